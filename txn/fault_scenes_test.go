package txn

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// scenes are all ways in which a program and the daemon come to change something. Those of more_fault_scenes_test.go are
// about what surrounds that.
var scenes = append([]scene{
	{
		name: "create", want: map[string]string{"new": news}, may: map[string]string{"new": "-"},
		act: func(a *attempt) error { return a.replace("new", nil) },
	},
	{
		name: "create exclusively what exists", want: map[string]string{},
		act: func(a *attempt) error {
			w, _, err := a.Root().Create("f", unix.O_WRONLY|unix.O_EXCL, 0o644, 0, a.me)
			if err == nil {
				a.t.Error("O_EXCL made a file that exists")
				finish(w, a.me)
			}
			return nil
		},
	},
	{
		name: "truncate", want: map[string]string{"f": news}, may: map[string]string{"f": oldF},
		act: func(a *attempt) error { return a.replace("f", nil) },
	},
	{
		name: "copy", want: map[string]string{"f": oldF + news[len(oldF):]}, may: map[string]string{"f": oldF},
		act: func(a *attempt) error {
			w, err := a.Root().OpenWrite("f", Ident{}, unix.O_WRONLY, a.me)
			if err != nil {
				return err
			}
			err = a.piece(w, news[len(oldF):], int64(len(oldF)))
			return first(err, finish(w, a.me))
		},
	},
	{
		name: "truncate in one request", want: map[string]string{"f": "old"}, may: map[string]string{"f": oldF},
		act: func(a *attempt) error {
			w, err := a.Root().OpenWrite("f", Ident{}, unix.O_WRONLY, a.me)
			if err != nil {
				return err
			}
			if err := w.Staged().Truncate(3); err != nil {
				w.Abandon()
				return err
			}
			return w.Commit()
		},
	},
	{
		name: "append, by two", want: map[string]string{"f": oldF + "onetwo"},
		may: map[string]string{"f": oldF + "|" + oldF + "one"}, steps: true,
		act: func(a *attempt) error {
			w, err := a.Root().OpenWrite("f", Ident{}, unix.O_WRONLY|unix.O_APPEND, a.me)
			if err != nil {
				return err
			}
			second, err := a.Root().OpenWrite("f", Ident{}, unix.O_WRONLY|unix.O_APPEND, a.me)
			if err = first(err, a.piece(w, "one", int64(len(oldF)))); err == nil {
				err = a.piece(second, "two", int64(len(oldF)+3))
			}
			err = first(err, finish(w, a.me))
			if second != nil {
				err = first(err, finish(second, a.me))
			}
			return err
		},
	},
	{
		name: "update", want: map[string]string{"f": news}, may: map[string]string{"f": oldF},
		act: func(a *attempt) error { // of a file that may be mapped
			w, err := a.Root().OpenWrite("f", Ident{}, unix.O_RDWR, a.me)
			if err != nil {
				return err
			}
			return a.put(w, nil, news)
		},
	},
	{
		name: "attributes", want: map[string]string{"f": news}, may: map[string]string{"f": oldF},
		act: func(a *attempt) error {
			return a.replace("f", func(*Writer) error {
				return errors.Join(unix.Setxattr(a.at("f"), "user.note", []byte("x"), 0), os.Chmod(a.at("f"), 0o601))
			})
		},
		more: func(a *attempt, err error) {
			if content(a.at("f")) == news {
				equal(a.t, "mode", a.stat("f").Mode&0o7777, 0o601)
				equal(a.t, "xattr", a.xattr("f", "user.note"), "x")
			}
		},
	},
	{
		name: "attributes alone, of a file with two names", steps: true,
		want: map[string]string{"f": oldF, "new": oldF},
		act: func(a *attempt) error {
			must(a.t, os.Link(a.at("f"), a.at("new")))
			w, err := a.Root().OpenWrite("f", Ident{}, unix.O_WRONLY, a.me)
			if err != nil {
				return err
			}
			err = w.Staged().Writable(func(fd int) error { return unix.Fchmod(fd, 0o601) })
			return first(err, finish(w, a.me))
		},
		more: func(a *attempt, err error) {
			if err == nil {
				equal(a.t, "mode", a.stat("f").Mode&0o7777, 0o601)
			}
		},
	},
	{
		name: "attributes of the staged file", want: map[string]string{"f": news}, may: map[string]string{"f": oldF}, steps: true,
		before: func(a *attempt) { a.setxattr("f", "user.old", []byte("x")) },
		act: func(a *attempt) error {
			return a.replace("f", func(w *Writer) error {
				fd, err := w.Staged().Hold()
				if err != nil {
					return err
				}
				defer w.Staged().Unhold()
				day := unix.Timespec{Sec: 86400}
				err = first(a.sys.Chmod(fd, 0o605), a.sys.Chown(fd, os.Getuid(), os.Getgid()), a.sys.Utimes(fd, day, day),
					a.sys.Setxattr(fd, "user.note", []byte("x"), 0), a.sys.Removexattr(fd, "user.old"))
				w.Staged().MarkSet(true, true, true)
				return err
			})
		},
		more: func(a *attempt, err error) {
			if err == nil {
				equal(a.t, "mode", a.stat("f").Mode&0o7777, 0o605)
				equal(a.t, "xattr", a.xattr("f", "user.note"), "x")
			}
		},
	},
	{
		name: "rename a staged file", steps: true,
		want: map[string]string{"f": news, "g": "-"}, may: map[string]string{"f": oldF + "|" + oldG, "g": oldG + "|-|" + news},
		act: func(a *attempt) error {
			return a.replace("g", func(*Writer) error { return a.rename("g", "f", 0, a.me) })
		},
	},
	{
		name: "rename a new file over another", steps: true,
		want: map[string]string{"f": news, "new": "-"}, may: map[string]string{"f": oldF, "new": "-|" + news},
		act: func(a *attempt) error {
			return a.replace("new", func(*Writer) error { return a.rename("new", "f", 0, a.me) })
		},
	},
	{
		name: "unlink", steps: true, want: map[string]string{"f": "-"}, may: map[string]string{"f": oldF + "|" + news},
		act: func(a *attempt) error {
			defer func() { a.wrote = "" }() // nobody will miss it
			return a.replace("f", func(*Writer) error { return a.Root().Unlink("f", a.me) })
		},
	},
	{
		name: "unlink a new name", steps: true, want: map[string]string{"new": "-"}, may: map[string]string{"new": news},
		act: func(a *attempt) error {
			defer func() { a.wrote = "" }()
			return a.replace("new", func(*Writer) error { return a.Root().Unlink("new", a.me) })
		},
	},
	{
		name: "exchange", steps: true,
		want: map[string]string{"f": oldG, "g": news}, may: map[string]string{"f": oldF + "|" + news, "g": oldG + "|" + oldF},
		act: func(a *attempt) error {
			return a.replace("f", func(*Writer) error { return a.rename("f", "g", unix.RENAME_EXCHANGE, a.me) })
		},
	},
	{
		name: "exchange a new name", steps: true,
		want: map[string]string{"f": news, "new": oldF}, may: map[string]string{"f": oldF + "|-", "new": "-|" + news},
		act: func(a *attempt) error {
			return a.replace("new", func(*Writer) error { return a.rename("new", "f", unix.RENAME_EXCHANGE, a.me) })
		},
	},
	{
		name: "hard link", want: map[string]string{"f": news, "g": oldF}, may: map[string]string{"f": oldF},
		before: func(a *attempt) { must(a.t, errors.Join(os.Remove(a.at("g")), os.Link(a.at("f"), a.at("g")))) },
		act:    func(a *attempt) error { return a.replace("f", nil) },
	},
	{
		name: "two names", steps: true,
		want: map[string]string{"new": news, "new2": news}, may: map[string]string{"new": "-", "new2": "-"},
		act: func(a *attempt) error {
			return a.replace("new", func(w *Writer) error { return a.Root().LinkStaged(w.Staged(), "new2") })
		},
	},
	{
		name: "a second name that is taken", steps: true,
		want: map[string]string{"new": news}, may: map[string]string{"new": "-"},
		act: func(a *attempt) error {
			return a.replace("new", func(w *Writer) error {
				if err := a.Root().LinkStaged(w.Staged(), "f"); err == nil {
					a.t.Error("it got a name that exists")
				}
				return nil
			})
		},
	},
	{
		name: "fsync", want: map[string]string{"f": news}, may: map[string]string{"f": oldF},
		act: func(a *attempt) error {
			return a.replace("f", func(w *Writer) error {
				w.Staged().Touch()
				return w.Staged().Sync(false)
			})
		},
		steps: true, // of which closing may succeed although the list of origins is not durable
	},
	{
		name: "killed", want: map[string]string{}, act: func(a *attempt) error {
			w, err := a.Root().OpenWrite("f", Ident{}, unix.O_WRONLY|unix.O_TRUNC, a.me)
			if err != nil {
				return err
			}
			if err := w.Staged().Writable(func(fd int) error { return pwrite(fd, "half") }); err == nil {
				a.wrote = "half"
			}
			w.st.mu.Lock()
			w.st.dismiss(w)
			w.st.to(Publishing)
			w.st.mu.Unlock()
			is(a.t, w.st.finish(a.killed), ErrKilled)
			return nil
		},
	},
	{
		name: "restore", steps: true, // which a disk that fails for good does not let it take back
		before: func(a *attempt) { a.keep("kept") },
		want:   map[string]string{"f": "kept"}, may: map[string]string{"f": oldF},
		act: func(a *attempt) error {
			s, err := OpenSalvage(a.sys, a.Root().fd)
			if err != nil {
				return err
			}
			defer s.Close()
			list, err := s.List()
			if err != nil {
				return err
			}
			return s.Restore(list[0].ID, "f", true)
		},
		more: func(a *attempt, err error) {
			list, _ := a.salvaged()
			slices.Sort(list)
			want := "[kept]"
			if content(a.at("f")) == "kept" {
				want = "[" + oldF + "]"
			}
			equal(a.t, "salvage", fmt.Sprint(slices.Compact(list)), want)
		},
	},
}, more...)

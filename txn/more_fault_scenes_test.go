package txn

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

var more = []scene{
	{
		name: "directories", steps: true, want: map[string]string{"d/x": news}, may: map[string]string{"d/x": "-"},
		act: func(a *attempt) error {
			if err := a.Root().Mkdir("d", 0o755, 0o022, a.me); err != nil {
				return err
			}
			return a.in("d", func(d *Dir) error {
				w, _, err := d.Create("x", unix.O_WRONLY, 0o644, 0, a.me)
				if err != nil {
					return err
				}
				if err := a.Root().Rmdir("d"); err == nil {
					a.t.Error("a directory is removed in which something is staged")
				}
				return a.put(w, nil, news)
			})
		},
	},
	{
		name: "remove a directory", steps: true, want: map[string]string{"d/x": "-"},
		before: func(a *attempt) { must(a.t, os.Mkdir(a.at("d"), 0o755)) },
		act: func(a *attempt) error {
			return first(a.in("d", func(d *Dir) error {
				w, _, err := d.Create("x", unix.O_WRONLY, 0o644, 0, a.me)
				if err != nil {
					return err
				}
				return first(d.Unlink("x", a.me), finish(w, a.me))
			}), a.Root().Rmdir("d"))
		},
	},
	{
		name: "rename a directory", steps: true,
		want: map[string]string{"d/x": "-", "e/x": news}, may: map[string]string{"d/x": news, "e/x": "-"},
		before: func(a *attempt) { must(a.t, os.Mkdir(a.at("d"), 0o755)) },
		act: func(a *attempt) error {
			return a.in("d", func(d *Dir) error {
				w, _, err := d.Create("x", unix.O_WRONLY, 0o644, 0, a.me)
				if err != nil {
					return err
				}
				return a.put(w, a.rename("d", "e", 0, a.me), news)
			})
		},
	},
	{
		name: "looking", want: map[string]string{},
		before: func(a *attempt) { write(a.t, a.at("d/x"), "x") },
		act: func(a *attempt) error {
			var st unix.Statx_t
			fd, err := a.Root().Pin("f", &st)
			if err == nil {
				unix.Close(fd)
			}
			_, err2 := a.lookup("g", a.me)
			err3 := a.in("d", func(d *Dir) error {
				a.Root().Reserved(a.me)
				a.Root().InPlace("f-journal")
				d.Path("x")
				_, err := d.Lookup("x", a.me)
				return err
			})
			return first(err, err2, err3)
		},
	},
	{
		name: "what is made in place", steps: true,
		want: map[string]string{"new": "", "new2": ""}, may: map[string]string{"new": "-", "new2": "-"},
		act: func(a *attempt) error {
			fd, err := a.Root().CreateDirect("new", unix.O_WRONLY, 0o644, 0, a.me)
			if err != nil {
				return err
			}
			unix.Close(fd)
			if fd, err = a.Root().Tmpfile(unix.O_WRONLY, 0o644, 0, a.me); err != nil {
				return err
			}
			defer unix.Close(fd)
			return first(a.Root().Link(fd, "new2", a.me), a.Root().Symlink("f", "d", a.me), a.Root().Unlink("d", a.me),
				a.Root().Mknod("e", unix.S_IFIFO|0o600, 0, 0, a.me), a.Root().Unlink("e", a.me))
		},
	},
	{
		name: "create where there is no O_TMPFILE", want: map[string]string{"new": news}, may: map[string]string{"new": "-"},
		before: func(a *attempt) { a.theStore().noTmpfile.Store(true) },
		act:    func(a *attempt) error { return a.replace("new", nil) },
	},
	{
		name: "quota", want: map[string]string{"f": news}, may: map[string]string{"f": oldF},
		before: func(a *attempt) { a.theStore().quota = true },
		act:    func(a *attempt) error { return a.replace("f", nil) },
	},
	{
		name: "publish on fsync", steps: true, want: map[string]string{"f": news}, may: map[string]string{"f": oldF + "|" + news[:10]},
		options: func(o *Options) { o.PublishOnFsync = true },
		act: func(a *attempt) error {
			return a.replace("f", func(w *Writer) error {
				return first(a.piece(w, news[:10], 0), w.Staged().Sync(true))
			})
		},
	},
	{
		name: "database", steps: true, want: map[string]string{"new": news}, may: map[string]string{"new": "-"},
		act: func(a *attempt) error {
			unhold := func() {}
			defer func() { unhold() }()
			return a.replace("new", func(w *Writer) error {
				if _, err := w.Staged().Hold(); err != nil { // as every open file of fs does
					return err
				}
				unhold = w.Staged().Unhold
				if err := a.piece(w, news, 0); err != nil {
					return err
				}
				_, err := a.Root().Companion("new-journal", a.me)
				return err
			})
		},
	},
	{
		name: "taken back", steps: true, want: map[string]string{"f": news}, may: map[string]string{"f": oldF + "|" + news[:10]},
		act: func(a *attempt) error {
			w, err := a.openAny("f")
			if err != nil {
				return err
			}
			w.Opened()
			w.Staged().Hold() // as every open file of fs does
			defer w.Staged().Unhold()
			if err = first(a.piece(w, news[:10], 0), w.Flush(a.me)); err != nil {
				w.Release()
				return err
			}
			err = w.Staged().TakeBack()
			if err != nil { // it was told that it cannot write
				w.Release()
				return err
			}
			return a.put(w, nil, news)
		},
	},
	{
		name: "a write fails", want: map[string]string{},
		act: func(a *attempt) error {
			w, err := a.openAny("f")
			if err != nil {
				return err
			}
			if err = a.piece(w, "half", 0); err == nil {
				a.wrote = "half"
			}
			w.Staged().Poison(unix.ENOSPC)
			if finish(w, a.me) == nil {
				a.t.Error("close says nothing of a write that failed")
			}
			return err
		},
	},
	{
		name: "left open", want: map[string]string{},
		act: func(a *attempt) error { // when the mount ends
			w, err := a.Root().OpenWrite("g", Ident{}, unix.O_WRONLY|unix.O_TRUNC, a.me)
			if err != nil {
				return err
			}
			w.Opened()
			if err = a.piece(w, "half", 0); err == nil {
				a.wrote = "half"
			}
			return err
		},
	},
	{
		name: "stage removed", long: true, steps: true,
		want: map[string]string{"f": news, "new": "two", "new2": "two"}, may: map[string]string{"f": oldF, "new": "-", "new2": "-"},
		act: func(a *attempt) error {
			two, err := a.openAny("new")
			if err != nil {
				return err
			}
			err = first(a.Root().LinkStaged(two.Staged(), "new2"), a.piece(two, "two", 0))
			must(a.t, os.RemoveAll(a.at(Hidden)))
			err = first(err, finish(two, a.me))
			err = first(a.replace("f", func(*Writer) error { return os.RemoveAll(a.at(Hidden)) }), err)
			if a.sys.stays {
				a.wrote = "" // nor can it be copied on a disk that fails for good
			}
			return err
		},
	},
	{
		name: "purge", long: true, want: map[string]string{}, steps: true,
		before: func(a *attempt) { a.keep("kept") },
		act: func(a *attempt) error {
			s, err := OpenSalvage(a.sys, a.Root().fd)
			if err != nil {
				return err
			}
			defer s.Close()
			n, _, err := s.Purge(func(Record) bool { return false })
			if err == nil {
				equal(a.t, "purged", n, 1)
			}
			return err
		},
		more: func(a *attempt, err error) {
			if list, _ := a.salvaged(); err == nil {
				equal(a.t, "salvage", len(list), 0)
			}
		},
	},
	{
		name: "first mount", long: true, want: map[string]string{},
		act:  func(a *attempt) error { return a.mountRoom() },
		more: func(a *attempt, err error) { a.checkRoom() },
	},
	{
		name: "recovery", long: true, want: map[string]string{},
		before: func(a *attempt) { a.leaveBehind() },
		act:    func(a *attempt) error { return a.mountRoom() },
		more:   func(a *attempt, err error) { a.checkRoom("of a dead daemon") },
	},
	{
		name: "recovery by command", long: true, want: map[string]string{},
		before: func(a *attempt) { a.leaveBehind() },
		act: func(a *attempt) error {
			_, err := Recover(a.sys, a.room)
			return err
		},
		more: func(a *attempt, err error) { a.checkRoom("of a dead daemon") },
	},
}

// in does something in a directory.
func (a *attempt) in(name string, do func(d *Dir) error) error {
	e, err := a.lookup(name, a.me)
	if err != nil {
		return err
	}
	d, err := a.Root().Dir(name, IdentOf(&e.Stat))
	if err != nil {
		return err
	}
	defer d.Release()
	return do(d)
}

func (a *attempt) theStore() *Store {
	s, err := a.store(a.Root())
	must(a.t, err)
	return s
}

func (a *attempt) roomAt(name string) string { return filepath.Join(a.path, "../room", name) }

// leaveBehind puts into the other directory what a daemon leaves that was killed.
func (a *attempt) leaveBehind() {
	write(a.t, a.roomAt(Hidden+"/"+formatName), "untorn 1\n")
	write(a.t, a.roomAt(Hidden+"/"+stageName+"/0123456789abcdef/1"), "of a dead daemon")
}

// mountRoom mounts the other directory, replaces a file there, and ends the mount.
func (a *attempt) mountRoom() error {
	o, err := Open(context.Background(), a.room, a.opt)
	if err != nil {
		return err
	}
	other := &attempt{mount: &mount{Overlay: o, t: a.t, path: a.roomAt(""), me: a.me}, sys: a.sys}
	err = other.replace("x", nil)
	if got := content(a.roomAt("x")); got != news && (err == nil || got != "-") {
		a.t.Errorf("x holds %q", got)
	}
	return errors.Join(err, o.Close())
}

// checkRoom mounts the other directory without faults: the salvage holds exactly what it should, the stage nothing.
func (a *attempt) checkRoom(kept ...string) {
	a.t.Helper()
	must(a.t, a.mountRoom())
	s, err := OpenSalvage(Linux{}, a.room)
	must(a.t, err)
	defer s.Close()
	list, err := s.List()
	must(a.t, err)
	var found []string
	for _, rec := range list {
		if text := content(a.roomAt(filepath.Join(Hidden, salvageName, rec.ID))); !strings.HasPrefix(news, text) {
			found = append(found, text) // and not of the mount before
		}
	}
	equal(a.t, "salvaged", found, kept)
	stage, err := os.ReadDir(a.roomAt(filepath.Join(Hidden, stageName)))
	must(a.t, err)
	equal(a.t, "instances left", len(stage), 0)
}

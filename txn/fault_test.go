package txn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"untorn/txn/proc"
)

// scene is what a program does in a backing of "f" and "g", and which faults must not change.
type scene struct {
	name string
	// act returns the first error that the program sees. It sets attempt.wrote when all is written that it wants
	// published, and closes what it opened, as the kernel does for it.
	act func(a *attempt) error
	// want is what stands under a name when act returned nil; "-" is nothing.
	want map[string]string
	// may lists what else may stand there after an error. When all of want stands in spite of one, that must be about
	// the fsync of the directory, unless the scene has several steps.
	may   map[string]string
	steps bool
	// more is checked at the end of each run.
	more func(a *attempt, err error)
}

// attempt is one run of a scene.
type attempt struct {
	*mount
	sys    *oneFault
	wrote  string // must be in the salvage unless it was published
	killed proc.End
}

const (
	oldF = "old version of f"
	oldG = "old version of g"
	news = "a new version, in pieces"
)

// write writes news in pieces and closes the file. It goes on after an error, as programs do that ignore it.
func (a *attempt) write(w *Writer, before error) error {
	err := before
	for i := 0; i < len(news); i += 10 {
		err = first(err, a.piece(w, news[i:min(i+10, len(news))], int64(i)))
	}
	if err == nil {
		a.wrote = news
	}
	return first(err, finish(w, a.me))
}

// piece is one write(2), repeated once. What package fs would poison the file for is poisoned; of another error of the
// write itself the program takes notice, and gives its file up.
func (a *attempt) piece(w *Writer, text string, off int64) error {
	var tried error
	write := func(fd int) error {
		_, tried = a.sys.Pwrite(fd, []byte(text), off)
		return tried
	}
	err := w.Staged().Writable(write)
	if err == nil {
		return nil
	}
	poisoned := tried != nil && Poisonous(tried)
	if poisoned {
		w.Staged().Poison(err)
	}
	again := w.Staged().Writable(write)
	if again == nil && !poisoned {
		return nil
	}
	if again != nil {
		w.Staged().Poison(again)
	}
	return err
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// replace is what `cmd > name` does.
func (a *attempt) replace(name string, between func(w *Writer) error) error {
	r := a.Root()
	w, err := (*Writer)(nil), error(nil)
	if _, lerr := a.lookup(name, a.me); lerr == unix.ENOENT {
		w, _, err = r.Create(name, unix.O_WRONLY, 0o644, 0, a.me)
	} else if lerr != nil {
		return lerr
	} else {
		w, err = r.OpenWrite(name, Ident{}, unix.O_WRONLY|unix.O_TRUNC, a.me)
	}
	if err != nil {
		return err
	}
	err = nil
	if between != nil {
		err = between(w)
	}
	return a.write(w, err)
}

var scenes = []scene{
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
		want: map[string]string{"f": "kept"}, may: map[string]string{"f": oldF},
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
}

func pwrite(fd int, text string) error {
	_, err := unix.Pwrite(fd, []byte(text), 0)
	return err
}

var faults = []unix.Errno{unix.EIO, unix.ENOSPC, unix.EDQUOT, unix.EINTR, unix.EMFILE, unix.ESTALE}

// TestFaults makes every operation of every scene fail with every errno, once, and then every kind of operation from
// every point on. Whatever it is: a path holds a whole version, the program is told unless the new one stands, nothing
// leaks or stays behind, no bytes are lost, and the next try succeeds.
func TestFaults(t *testing.T) {
	killed := killedEnd(t)
	for _, s := range scenes {
		t.Run(s.name, func(t *testing.T) {
			never := &oneFault{at: 1 << 30}
			if s.run(t, never, killed); len(never.kinds) == 0 {
				t.Fatal("no operation was seen")
			}
			for _, err := range faults {
				for i := 0; s.run(t, &oneFault{at: i, err: err}, killed); i++ {
				}
				for _, kind := range slices.Sorted(maps.Keys(never.kinds)) {
					if err != unix.EIO && err != unix.ENOSPC {
						continue // what the others come to is seen above, and it takes its time
					}
					for i := 0; s.run(t, &oneFault{at: i, err: err, kind: kind, stays: true}, killed); i++ {
					}
				}
			}
		})
	}
}

// TestSteps are those that each durability promises.
func TestSteps(t *testing.T) {
	for d, want := range map[Durability]string{
		Full: "fsync file, rename, fsync directory", Ordered: "fsync file, rename", None: "rename",
	} {
		sys := &oneFault{at: 1 << 30, kinds: map[string]bool{}, lost: map[Ident]bool{}}
		m := open(t, Options{Sys: sys, Durability: d})
		m.file("f", "old")
		w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
		put(t, w, 0, "new")
		sys.trace = nil
		must(t, closeLast(t, w, m.me))
		equal(t, d.String(), strings.Join(sys.trace, ", "), want)
		m.has("f", "new")
	}
}

func killedEnd(t *testing.T) proc.End {
	cmd := exec.Command("sleep", "60")
	must(t, cmd.Start())
	cmd.Process.Kill()
	die(t, cmd)
	defer cmd.Wait()
	return proc.EndOf(uint32(cmd.Process.Pid))
}

// run tries a scene once; it reports whether the fault came.
func (s *scene) run(t *testing.T, sys *oneFault, killed proc.End) bool {
	t.Helper()
	what := fmt.Sprintf("%v at operation %d of kind %q (stays: %v)", sys.err, sys.at, sys.kind, sys.stays)
	path, err := os.MkdirTemp("/dev/shm", "untorn-fault") // ext4 writes back at each rename over a file
	if err != nil {
		path, err = os.MkdirTemp("", "untorn-fault")
	}
	must(t, err)
	defer os.RemoveAll(path)
	before := descriptors(t)
	dir, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	write(t, filepath.Join(path, "f"), oldF)
	write(t, filepath.Join(path, "g"), oldG)
	sys.kinds, sys.lost = map[string]bool{}, map[Ident]bool{}
	var log strings.Builder
	o, err := Open(context.Background(), dir, Options{Sys: sys, Passthrough: sys.err != unix.EIO, Log: slog.New(slog.NewTextHandler(&log, nil))})
	must(t, err)
	a := &attempt{mount: &mount{Overlay: o, t: t, path: path, me: me()}, sys: sys, killed: killed}
	if s.name == "restore" {
		a.keep("kept")
	}
	sys.arm(true)
	err = s.act(a)
	sys.arm(false)
	s.judge(a, err)
	if s.more != nil {
		s.more(a, err)
	}
	if retry := a.replace("f", nil); retry != nil || content(a.at("f")) != news {
		t.Errorf("the next try: %v, %q", retry, content(a.at("f")))
	}
	sys.arm(true) // what gives things back may fail as well
	o.Close()
	sys.arm(false)
	if _, err := Recover(sys, dir); err != nil {
		t.Errorf("recovery: %v", err)
	}
	a.clean(dir)
	unix.Close(dir)
	equal(t, "descriptors left", leaked(t, before), "")
	equal(t, "an fsync that failed is repeated", sys.repeated && s.name != "restore", false)
	if t.Failed() {
		t.Fatalf("after %s, which was %q; the program saw: %v; log:\n%s", what, sys.fired, err, &log)
	}
	return sys.fired != ""
}

// keep puts an entry into the salvage.
func (a *attempt) keep(text string) {
	w := a.create("kept", a.me)
	put(a.t, w, 0, text)
	w.Staged().Poison(unix.EIO)
	finish(w, a.me)
}

// judge looks at what stands in the backing.
func (s *scene) judge(a *attempt, err error) {
	a.t.Helper()
	all := len(s.want) > 0
	for name, want := range s.want {
		got := content(a.at(name))
		all = all && got == want
		if got != want && (err == nil || !slices.Contains(strings.Split(s.may[name], "|"), got)) {
			a.t.Errorf("%s holds %q", name, got)
		}
	}
	if all && err != nil && !s.steps && !strings.Contains(err.Error(), "of the directory") &&
		!strings.Contains(err.Error(), "of its directory") {
		a.t.Errorf("it stands, and yet: %v", err)
	}
	if _, touched := s.want["f"]; !touched {
		a.has("f", oldF)
	}
	if _, touched := s.want["g"]; !touched {
		a.has("g", oldG)
	}
}

// clean checks what is left after a recovery: no temp, no file out of place, and the bytes that were not published.
func (a *attempt) clean(dir int) {
	a.t.Helper()
	for sub, want := range map[string]string{Hidden: "format journal salvage stage", Hidden + "/" + stageName: ""} { // clock may be missing
		equal(a.t, "left in "+sub, strings.TrimPrefix(strings.Join(a.ls(sub), " "), clockName+" "), want)
	}
	for _, name := range a.ls(".") {
		if !slices.Contains([]string{Hidden, "f", "g", "new", "new2"}, name) {
			a.t.Errorf("there is a file %q", name)
		}
	}
	s, err := OpenSalvage(Linux{}, dir)
	must(a.t, err)
	defer s.Close()
	list, err := s.List()
	must(a.t, err)
	found := a.wrote == "" || a.wrote == news // which stands by now, by the next try
	for _, rec := range list {
		found = found || content(a.at(filepath.Join(Hidden, salvageName, rec.ID))) == a.wrote
	}
	if !found {
		a.t.Errorf("%q is lost; the salvage has %+v", a.wrote, list)
	}
}

func (a *attempt) ls(sub string) (names []string) {
	a.t.Helper()
	all, err := os.ReadDir(a.at(sub))
	must(a.t, err)
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

package txn

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"untorn/txn/proc"
	"untorn/txn/spare"
)

// scene is what a program does in a backing of "f" and "g", and which faults must not change.
type scene struct {
	name    string
	options func(*Options)
	before  func(a *attempt) // without faults
	// act returns the first error that the program sees. It sets attempt.wrote when all is written that it wants
	// published, and closes what it opened, as the kernel does for it.
	act func(a *attempt) error
	// want is what stands under a name when act returned nil; "-" is nothing.
	want map[string]string
	// may lists what else may stand there after an error. When all of want stands in spite of one, that must be about
	// the fsync of the directory, unless the scene has several steps.
	may   map[string]string
	steps bool
	// long: it takes many operations, and is tried with fewer options but in a soak.
	long bool
	// more is checked at the end of each run.
	more func(a *attempt, err error)
}

// attempt is one run of a scene.
type attempt struct {
	*mount
	sys    *oneFault
	opt    Options
	wrote  string // must be in the salvage unless it was published
	killed proc.End
	room   int // an empty directory beside the backing, for other mounts
}

const (
	oldF = "old version of f"
	oldG = "old version of g"
	news = "a new version, in pieces"
)

// put writes a text in pieces and closes the file. It goes on after an error, as programs do that ignore it.
func (a *attempt) put(w *Writer, before error, text string) error {
	err := before
	for i := 0; i < len(text); i += 10 {
		err = first(err, a.piece(w, text[i:min(i+10, len(text))], int64(i)))
	}
	if err == nil {
		a.wrote = text
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

// openAny is open(2) with O_CREAT and O_TRUNC.
func (a *attempt) openAny(name string) (w *Writer, err error) {
	if _, err = a.lookup(name, a.me); err == unix.ENOENT {
		w, _, err = a.Root().Create(name, unix.O_WRONLY, 0o644, 0, a.me)
	} else if err == nil {
		w, err = a.Root().OpenWrite(name, Ident{}, unix.O_WRONLY|unix.O_TRUNC, a.me)
	}
	return w, err
}

// replace is what `cmd > name` does.
func (a *attempt) replace(name string, between func(w *Writer) error) error {
	w, err := a.openAny(name)
	if err != nil {
		return err
	}
	if between != nil {
		err = between(w)
	}
	return a.put(w, err, news)
}

func pwrite(fd int, text string) error {
	_, err := unix.Pwrite(fd, []byte(text), 0)
	return err
}

var faults = []unix.Errno{unix.EIO, unix.ENOSPC, unix.EDQUOT, unix.EINTR, unix.EMFILE, unix.ESTALE}

// takeSpace are the operations that fail on a disk that is full for good.
const takeSpace = "open pwrite truncate fallocate copy clone fsync setxattr mkdir mknod symlink link linkfd rename"

// combinations are all durabilities on both data paths.
func combinations() (all []Options) {
	for d := Full; d <= None; d++ {
		all = append(all, Options{Durability: d}, Options{Durability: d, Passthrough: true})
	}
	return all
}

// TestFaults makes every operation of every scene fail with every errno, once, and then every kind of operation from
// every point on. Whatever it is: a path holds a whole version, the program is told unless the new one stands, nothing
// leaks or stays behind, no bytes are lost, and the next try succeeds.
//
// Each operation fails under each combination of options, and with each errno under one of them; with UNTORN_TEST_SOAK
// with each under each.
func TestFaults(t *testing.T) {
	spare.Fill()
	soak := os.Getenv("UNTORN_TEST_SOAK") != ""
	killed, rules := killedEnd(t), DefaultRules()
	tried := 0
	defer func() { t.Logf("%d faults in %d scenes", tried, len(scenes)) }()
	program, _ := child(t) // it has few descriptors: they are looked through at each close
	for _, s := range scenes {
		t.Run(s.name, func(t *testing.T) {
			goroutines := runtime.NumGoroutine()
			for n, opt := range combinations() {
				opt.Rules = rules
				if s.long && n > 1 && !soak {
					break
				}
				never := &oneFault{at: 1 << 30}
				if s.run(t, never, opt, program, killed); len(never.kinds) == 0 {
					t.Fatal("no operation was seen")
				}
				for k := range faults {
					if k > 0 && !soak {
						break
					}
					for i := 0; s.run(t, &oneFault{at: i, err: faults[(i+n+k)%len(faults)]}, opt, program, killed); i++ {
						tried++
					}
				}
				if (n > 1 || s.long && n > 0) && !soak {
					continue // what it comes to is seen with the first two, and it takes its time
				}
				lasting := []unix.Errno{unix.EIO, unix.ENOSPC}[n%2]
				for _, kind := range slices.Sorted(maps.Keys(never.kinds)) {
					if lasting == unix.ENOSPC && !strings.Contains(takeSpace, kind) {
						continue
					}
					for i := 0; s.run(t, &oneFault{at: i, err: lasting, kind: kind, stays: true}, opt, program, killed); i++ {
						tried++
					}
				}
			}
			if !soon(func() bool { return runtime.NumGoroutine() <= goroutines }) {
				t.Fatalf("%d goroutines are left, there were %d", runtime.NumGoroutine(), goroutines)
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
func (s *scene) run(t *testing.T, sys *oneFault, opt Options, program Caller, killed proc.End) bool {
	t.Helper()
	path, err := os.MkdirTemp("/dev/shm", "untorn-fault") // ext4 writes back at each rename over a file
	if err != nil {
		path, err = os.MkdirTemp("", "untorn-fault")
	}
	must(t, err)
	defer os.RemoveAll(path)
	before := openDescriptors(t)
	for name, text := range map[string]string{"f": oldF, "g": oldG} {
		write(t, filepath.Join(path, "backing", name), text)
	}
	must(t, os.Mkdir(filepath.Join(path, "room"), 0o700))
	dir, room := openDir(t, filepath.Join(path, "backing")), openDir(t, filepath.Join(path, "room"))
	sys.kinds, sys.lost = map[string]bool{}, map[Ident]bool{}
	var log strings.Builder
	opt.Sys, opt.Log = sys, slog.New(slog.NewTextHandler(&log, nil))
	if s.options != nil {
		s.options(&opt)
	}
	o, err := Open(context.Background(), dir, opt)
	must(t, err)
	a := &attempt{mount: &mount{Overlay: o, t: t, path: filepath.Join(path, "backing"), me: program}, sys: sys, opt: opt, killed: killed, room: room}
	if s.before != nil {
		s.before(a)
	}
	sys.arm(true)
	err = s.act(a)
	sys.arm(false)
	s.judge(a, err)
	if s.more != nil {
		s.more(a, err)
	}
	stands := a.stands()
	a.again()
	sys.arm(true) // what gives things back may fail as well
	o.Close()
	sys.arm(false)
	equal(t, "directories held", len(o.dirs), 0)
	if _, err := Recover(Linux{}, dir); err != nil {
		t.Errorf("recovery: %v", err)
	}
	a.clean(dir, stands)
	unix.Close(dir)
	unix.Close(room)
	// A look into /proc may be going on yet.
	if !soon(func() bool { return openDescriptors(t) <= before }) {
		t.Errorf("%d descriptors are open, there were %d: %v", openDescriptors(t), before, descriptors(t))
	}
	equal(t, "an fsync that failed is repeated", sys.repeated, false)
	if t.Failed() {
		t.Fatalf("after %v at operation %d of kind %q (stays: %v), which was %q, under %v, passthrough %v; the program saw: %v; log:\n%s",
			sys.err, sys.at, sys.kind, sys.stays, sys.fired, opt.Durability, opt.Passthrough, err, &log)
	}
	return sys.fired != ""
}

// soon waits for what ends by itself.
func soon(cond func() bool) bool {
	for until := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			return false
		}
	}
	return true
}

func openDir(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	return fd
}

// openDescriptors counts them, which is quick; the reserve comes and goes by other numbers.
func openDescriptors(t *testing.T) int {
	t.Helper()
	d, err := os.Open("/proc/self/fd")
	must(t, err)
	defer d.Close()
	names, err := d.Readdirnames(-1)
	must(t, err)
	return len(names)
}

// stands reports whether what was written is a version.
func (a *attempt) stands() (found bool) {
	filepath.WalkDir(a.path, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Name() == Hidden {
			return filepath.SkipDir
		}
		found = found || err == nil && e.Type().IsRegular() && content(path) == a.wrote
		return nil
	})
	return found
}

// again is the next try of the program.
func (a *attempt) again() {
	a.t.Helper()
	const text = "the next try"
	wrote := a.wrote
	w, err := a.openAny("f")
	if err == nil {
		err = a.put(w, nil, text)
	}
	if a.wrote = wrote; err != nil || content(a.at("f")) != text {
		a.t.Errorf("the next try: %v, %q", err, content(a.at("f")))
	}
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
	if err != nil && a.sys.err != nil && !errors.Is(err, a.sys.err) && !(s.name == "stage removed" && errors.Is(err, unix.ENOENT)) {
		a.t.Errorf("the program is told %v", err)
	}
	if all && err != nil && !s.steps && !strings.Contains(err.Error(), "of the directory") {
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
func (a *attempt) clean(dir int, stood bool) {
	a.t.Helper()
	for sub, want := range map[string]string{Hidden: "format journal salvage stage", Hidden + "/" + stageName: ""} { // clock may be missing
		equal(a.t, "left in "+sub, strings.TrimPrefix(strings.Join(a.ls(sub), " "), clockName+" "), want)
	}
	for _, name := range a.ls(".") {
		if !slices.Contains([]string{Hidden, "f", "g", "new", "new2", "d", "e"}, name) {
			a.t.Errorf("there is a file %q", name)
		}
	}
	s, err := OpenSalvage(Linux{}, dir)
	must(a.t, err)
	defer s.Close()
	list, err := s.List()
	must(a.t, err)
	found := a.wrote == "" || stood
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

// keep puts an entry into the salvage.
func (a *attempt) keep(text string) {
	w := a.create("kept", a.me)
	put(a.t, w, 0, text)
	w.Staged().Poison(unix.EIO)
	finish(w, a.me)
}

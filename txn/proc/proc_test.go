package proc

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// child starts a shell that runs script once its standard input ends, and not before.
func child(t *testing.T, script string, files ...*os.File) (pid uint32, end func()) {
	t.Helper()
	cmd := exec.Command("sh", "-c", "read x; "+script)
	cmd.ExtraFiles = files
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	return uint32(cmd.Process.Pid), func() {
		t.Helper()
		in.Close()
		var info unix.Siginfo
		for {
			err := unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
			if err != unix.EINTR {
				must(t, err)
				return
			}
		}
	}
}

// gone is the id of no process: above what the kernel gives out.
func gone() uint32 { return MaxPid() + 1 }

// thread runs f with the id of another thread of this process, not the first.
func thread(f func(tid uint32)) {
	done := make(chan bool)
	go func() {
		defer close(done)
		runtime.LockOSThread()
		for unix.Gettid() == unix.Getpid() { // the first thread: keep it busy and try another
			inner := make(chan bool)
			go func() {
				runtime.LockOSThread()
				f(uint32(unix.Gettid()))
				close(inner)
			}()
			<-inner
			return
		}
		f(uint32(unix.Gettid()))
	}()
	<-done
}

func TestOf(t *testing.T) {
	self := uint32(os.Getpid())
	p, err := Of(self)
	must(t, err)
	if p.Pid != self || p.Parent != uint32(os.Getppid()) || p.Exiting || p.Name == "" {
		t.Errorf("of this process: %+v", p)
	}
	thread(func(tid uint32) {
		p, err := Of(tid)
		if err != nil || p.Pid != self || p.Exiting {
			t.Errorf("of a thread: %+v, %v", p, err)
		}
		if Leader(tid) {
			t.Errorf("thread %d passes for the first one", tid)
		}
		if got := Pid(tid); got != self {
			t.Errorf("the process of thread %d is %d", tid, got)
		}
	})
	if !Leader(self) || Pid(self) != self {
		t.Error("the first thread is not known as such")
	}
	pid, end := child(t, "exit 0")
	p, err = Of(pid)
	if err != nil || p.Pid != pid || p.Parent != self || p.Exiting {
		t.Errorf("of a child: %+v, %v", p, err)
	}
	end()
	if p, err = Of(pid); err != nil || !p.Exiting {
		t.Errorf("of a zombie: %+v, %v", p, err)
	}
	if n := Descriptors(pid); n != 0 {
		t.Errorf("a zombie has %d descriptors", n)
	}
	if _, err := Of(gone()); err != unix.ENOENT {
		t.Errorf("of no process: %v", err)
	}
	if Leader(gone()) || Pid(gone()) != gone() || Pid(0) != 0 {
		t.Error("a thread that is none has a process")
	}
}

func TestDescends(t *testing.T) {
	self := uint32(os.Getpid())
	one, _ := child(t, "exit 0")
	two, _ := child(t, "exit 0")
	for _, c := range []struct {
		tid, pid uint32
		want     bool
	}{
		{self, self, true}, {one, self, true}, {one, one, true}, {self, one, false}, {one, two, false},
		{one, uint32(os.Getppid()), true}, {gone(), self, false}, {1, self, false}, {0, self, false},
	} {
		if got := Descends(c.tid, c.pid); got != c.want {
			t.Errorf("%d descends from %d: %v", c.tid, c.pid, got)
		}
	}
	thread(func(tid uint32) {
		if !Descends(tid, self) {
			t.Error("a thread does not belong to its process")
		}
	})
	grandchild := exec.Command("sh", "-c", "sh -c 'echo $$; read x'; :")
	in, err := grandchild.StdinPipe()
	must(t, err)
	out, err := grandchild.StdoutPipe()
	must(t, err)
	must(t, grandchild.Start())
	defer grandchild.Wait()
	defer in.Close()
	buf := make([]byte, 32)
	n, err := out.Read(buf)
	must(t, err)
	pid := uint32(number([]byte(strings.TrimSpace(string(buf[:n])))))
	if !Descends(pid, self) || !Descends(pid, uint32(grandchild.Process.Pid)) || Descends(pid, one) {
		t.Errorf("the ancestors of grandchild %d are wrong", pid)
	}
}

func TestMayInherit(t *testing.T) {
	self := uint32(os.Getpid())
	one, _ := child(t, "exit 0")
	two, _ := child(t, "exit 0")
	if !MayInherit(one, []uint32{two, self}) {
		t.Error("a child of ours may not inherit from us")
	}
	if MayInherit(one, []uint32{two}) {
		t.Error("a sibling may inherit")
	}
	if MayInherit(gone(), []uint32{self}) {
		t.Error("no process may inherit")
	}
}

func file(t *testing.T) (path string, ino uint64) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(path, []byte("content"), 0o600))
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return path, st.Ino
}

func TestHolds(t *testing.T) {
	path, ino := file(t)
	self := uint32(os.Getpid())
	pid, end := child(t, "exit 0")
	check := func(what string, f File, want Answer) {
		t.Helper()
		if got := Holds(self, f); got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
		if got := Holds(pid, f); got != No {
			t.Errorf("%s, a child: %v", what, got)
		}
		thread(func(tid uint32) {
			if got := Holds(tid, f); got != want {
				t.Errorf("%s, a thread: %v, want %v", what, got, want)
			}
		})
	}
	check("not open", File{Inos: []uint64{ino}}, No)
	r, err := os.Open(path)
	must(t, err)
	defer r.Close()
	check("open to read", File{Inos: []uint64{ino}}, Yes)
	check("open to read, asked for writers", File{Inos: []uint64{ino}, Writing: true}, No)
	for _, flags := range []int{os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND} {
		w, err := os.OpenFile(path, flags, 0)
		must(t, err)
		check("open to write", File{Inos: []uint64{ino}, Writing: true}, Yes)
		w.Close()
	}
	check("closed", File{Inos: []uint64{ino}, Writing: true}, No)
	if Holds(gone(), File{Inos: []uint64{ino}}) != No || HeldBy(gone(), File{Inos: []uint64{ino}}) != No {
		t.Error("no process holds it")
	}

	// A child that inherits it, until it has ended.
	heir, endHeir := child(t, "exit 0", r)
	if Holds(heir, File{Inos: []uint64{ino}}) != Yes || HeldBy(heir, File{Inos: []uint64{ino}}) != Yes {
		t.Error("an heir has none")
	}
	endHeir()
	if Holds(heir, File{Inos: []uint64{ino}}) != No || HeldBy(heir, File{Inos: []uint64{ino}}) != No {
		t.Error("a zombie has one")
	}
	end()
}

// TestHoldsAmongMany finds one descriptor among more than one getdents buffer of them.
func TestHoldsAmongMany(t *testing.T) {
	path, ino := file(t)
	var list []*os.File
	defer func() {
		for _, f := range list {
			f.Close()
		}
	}()
	for range 400 {
		f, err := os.Open("/dev/null")
		must(t, err)
		list = append(list, f)
	}
	f, err := os.Open(path)
	must(t, err)
	list = append(list, f)
	if Holds(uint32(os.Getpid()), File{Inos: []uint64{ino}}) != Yes {
		t.Error("not found")
	}
	if n := Descriptors(uint32(os.Getpid())); n < 401 {
		t.Errorf("%d descriptors", n)
	}
}

// TestHeldByThread: the first thread of a process may have exited before the others.
func TestHeldByThread(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("needs python3")
	}
	path, ino := file(t)
	cmd := exec.Command(python, "-c", `
import ctypes, sys, threading
f = open(sys.argv[1], "r+")
def live():
    sys.stdin.read()
    import os; os._exit(0)
threading.Thread(target=live).start()
ctypes.CDLL(None).syscall(60, 0) # exit(2) of this thread alone
`, path)
	if runtime.GOARCH != "amd64" {
		t.Skip("the number of the system call is that of amd64")
	}
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	defer cmd.Wait()
	defer in.Close()
	pid := uint32(cmd.Process.Pid)
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if p, err := Of(pid); err == nil && p.Exiting {
			break
		}
		if time.Now().After(until) {
			t.Fatal("its first thread does not exit")
		}
	}
	if Holds(pid, File{Inos: []uint64{ino}}) != No {
		t.Error("the first thread has a descriptor")
	}
	if HeldBy(pid, File{Inos: []uint64{ino}, Writing: true}) != Yes {
		t.Error("the process has none")
	}
}

func TestMaps(t *testing.T) {
	path, ino := file(t)
	self := uint32(os.Getpid())
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	for _, c := range []struct {
		prot, flags int
		want        Answer
	}{
		{unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED, Yes},
		{unix.PROT_WRITE, unix.MAP_SHARED, Yes},
		{unix.PROT_READ, unix.MAP_SHARED, No},
		{unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE, No},
	} {
		b, err := unix.Mmap(int(f.Fd()), 0, 7, c.prot, c.flags)
		must(t, err)
		if got := Maps(self, 1, ino); got != c.want {
			t.Errorf("mapped with %d, %d: %v", c.prot, c.flags, got)
		}
		if got := Maps(self, ino+1); got == Yes {
			t.Error("another file is mapped")
		}
		must(t, unix.Munmap(b))
	}
	f.Close()
	if Maps(self, ino) != No || Maps(gone(), ino) != No {
		t.Error("it is mapped")
	}
	pid, end := child(t, "exit 0")
	end()
	if Maps(pid, ino) != No {
		t.Error("a zombie has it mapped")
	}
}

func TestEnds(t *testing.T) {
	for script, want := range map[string]unix.Signal{
		"exit 0": 0, "exit 1": 0, "exit 3": 0, "exit 128": 0, "exit 127": 0, "exit 255": 0, "exit 193": 0,
		"exit 129": unix.SIGHUP, "exit 130": unix.SIGINT, "exit 137": unix.SIGKILL, "exit 143": unix.SIGTERM, "exit 192": 64,
		"kill -9 $$": unix.SIGKILL, "kill -15 $$": unix.SIGTERM, "kill -1 $$": unix.SIGHUP,
		"ulimit -c 0; kill -11 $$": unix.SIGSEGV, "ulimit -c 0; kill -6 $$": unix.SIGABRT,
	} {
		pid, end := child(t, script)
		fd := OpenPidfd(pid)
		if fd < 0 || !Alive(fd) {
			t.Fatalf("no pidfd of a live process: %d", fd)
		}
		end()
		e := EndOf(pid)
		if !e.Known() || e.Signal() != want {
			t.Errorf("%s: %v, signal %v, known %v", script, e, e.Signal(), e.Known())
		}
		text := e.String()
		killed := strings.Contains(text, "killed by signal")
		if killed != (want != 0) || strings.Contains(text, "unknown") {
			t.Errorf("%s is told as %q", script, text)
		}
		if Alive(fd) {
			t.Errorf("%s: alive", script)
		}
		unix.Close(fd)
	}
	if e := EndOf(gone()); e.Known() || e.Signal() != 0 || e.String() != "end unknown" {
		t.Errorf("the end of no process: %v", e)
	}
	if fd := OpenPidfd(gone()); fd >= 0 {
		t.Error("a pidfd of no process")
	}
	if EndOfPidfd(-1).Known() {
		t.Error("the end of no descriptor is known")
	}
}

// TestEndOfPidfd asks after the process has been waited for: nothing else is left of it.
func TestEndOfPidfd(t *testing.T) {
	for _, script := range []string{"exit 3", "kill -9 $$"} {
		cmd := exec.Command("sh", "-c", "read x; "+script)
		in, err := cmd.StdinPipe()
		must(t, err)
		must(t, cmd.Start())
		fd := OpenPidfd(uint32(cmd.Process.Pid))
		in.Close()
		err = cmd.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Fatal(err)
		}
		e := EndOfPidfd(fd)
		unix.Close(fd)
		if !e.Known() {
			t.Skip("the kernel does not tell (before Linux 6.15)")
		}
		if killed := e.Signal() == unix.SIGKILL; killed != (script != "exit 3") {
			t.Errorf("%s: %v", script, e)
		}
	}
}

func TestSeesKills(t *testing.T) {
	if !SeesKills("sleep", "60") {
		t.Error("a killed child of our own is not seen")
	}
	if SeesKills("/nonexistent/program") {
		t.Error("a child that never was is seen to be killed")
	}
}

// TestNewest: a fork shows, and nothing else does that could be mistaken for none.
func TestNewest(t *testing.T) {
	n, err := OpenNewest()
	must(t, err)
	defer n.Close()
	for range 20 {
		before := n.Pid()
		pid, _ := child(t, "exit 0")
		after := n.Pid()
		if before == 0 || after == before {
			t.Fatalf("before a fork %d, after it %d", before, after)
		}
		// Others may fork as well, and pids wrap around.
		if limit := MaxPid(); (pid+limit-before)%limit > (after+limit-before)%limit {
			t.Errorf("child %d is not between %d and %d", pid, before, after)
		}
	}
	if MaxPid() < 300 {
		t.Errorf("pids end at %d", MaxPid())
	}
}

func TestCommand(t *testing.T) {
	cmd := exec.Command("cat", "-")
	in, err := cmd.StdinPipe()
	must(t, err)
	defer in.Close()
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	// Start returns in the middle of execve, when there are no arguments to see yet. What it echoes shows that it runs.
	_, err = in.Write([]byte("x"))
	must(t, err)
	_, err = out.Read(make([]byte, 1))
	must(t, err)
	pid := uint32(cmd.Process.Pid)
	if c := Command(pid); c != "cat -" {
		t.Errorf("command %q", c)
	}
	cmd.Process.Kill()
	var info unix.Siginfo
	for unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	if c := Command(pid); c != "cat" { // all that is left of a zombie
		t.Errorf("command of a zombie %q", c)
	}
	cmd.Wait()
	if c := Command(gone()); c != "" {
		t.Errorf("command of no process %q", c)
	}
}

func TestMountOptions(t *testing.T) {
	path, _ := file(t)
	var st unix.Statx_t
	must(t, unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st))
	options, ok := MountOptions(itoa(st.Mnt_id))
	if !ok || len(options) < 2 {
		t.Errorf("options %q, %v", options, ok)
	}
	if _, ok := MountOptions("no such mount"); ok {
		t.Error("a mount that is none has options")
	}
}

func itoa(n uint64) string { return strings.TrimPrefix(dir(uint32(n)), root) }

// TestWithin gives up on what blocks.
func TestWithin(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	_, err := within(time.Millisecond, func() (int, error) { return r.Read(make([]byte, 1)) })
	if err != errBlocked {
		t.Errorf("error %v", err)
	}
	n, err := within(time.Minute, func() (int, error) { return 7, nil })
	if n != 7 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestParsing(t *testing.T) {
	text := []byte("Name:\tcat: x\nTgid:\t12\nPPid:\t\nlast:\t3")
	for key, want := range map[string]string{"Name": "cat: x", "Tgid": "12", "PPid": "", "last": "3", "Tg": "", "none": ""} {
		if got := string(field(text, key)); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	for in, want := range map[string]int64{"12": 12, "12 kB": 12, "": -1, "x": -1, "-3": -3} {
		if got := number([]byte(in)); got != want {
			t.Errorf("%q: %d", in, got)
		}
	}
}

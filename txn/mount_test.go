package txn

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mount is an Overlay on a directory of the real filesystem, and the test as a program that uses it.
//
// There is no FUSE here: the test is the kernel as well, so descriptors of staged files do not exist. Where it matters who
// has one, a descriptor of the version stands for it, see mount.descriptor. Callers are the test itself, or children of it.
type mount struct {
	*Overlay
	t    *testing.T
	path string
	me   Caller // the thread of the test
}

var ways = map[string]Options{
	"full":              {},
	"full passthrough":  {Passthrough: true},
	"ordered":           {Durability: Ordered},
	"none, passthrough": {Durability: None, Passthrough: true},
}

// everyWay runs a test under each kind of durability and data path.
func everyWay(t *testing.T, f func(t *testing.T, m *mount)) {
	for name, opt := range ways {
		t.Run(name, func(t *testing.T) { f(t, open(t, opt)) })
	}
}

// open starts an Overlay. At the end of the test nothing of it may be left: no descriptor, no temp, no instance.
func open(t *testing.T, opt Options) *mount {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	path, dir := backing(t)
	before := descriptors(t)
	o, err := Open(context.Background(), dir, opt)
	must(t, err)
	t.Cleanup(func() {
		must(t, o.Close())
		equal(t, "descriptors left", leaked(t, before), "")
		stage, err := os.ReadDir(filepath.Join(path, Hidden, stageName))
		must(t, err)
		equal(t, "instances left in the stage", len(stage), 0)
	})
	o.Mounted(elsewhere)
	return &mount{Overlay: o, t: t, path: path, me: me()}
}

// elsewhere is a device that nothing here is on: descriptors do not count, see mount.descriptor.
const elsewhere = 1

// me is the calling thread, which must be locked to its goroutine.
func me() Caller {
	return Caller{Cred: Cred{uint32(os.Getuid()), uint32(os.Getgid())}, Tid: uint32(unix.Gettid())}
}

// descriptors lists those of this process, without what the Go runtime keeps for itself.
func descriptors(t *testing.T) map[string]string {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	list := map[string]string{}
	for _, e := range all {
		link, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(link, "anon_inode:[event") {
			list[e.Name()] = link
		}
	}
	return list
}

func leaked(t *testing.T, before map[string]string) string {
	t.Helper()
	var list []string
	for fd, link := range descriptors(t) {
		if before[fd] != link {
			list = append(list, fd+" "+link)
		}
	}
	return strings.Join(list, ", ")
}

// child starts a process that does nothing until the test ends, and no longer.
func child(t *testing.T, files ...*os.File) (Caller, *exec.Cmd) {
	t.Helper()
	return start(t, exec.Command("cat"), files...)
}

func start(t *testing.T, cmd *exec.Cmd, files ...*os.File) (Caller, *exec.Cmd) {
	t.Helper()
	in, err := cmd.StdinPipe()
	must(t, err)
	cmd.ExtraFiles = files
	must(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	return Caller{Cred: me().Cred, Tid: uint32(cmd.Process.Pid)}, cmd
}

// die waits until a process is a zombie, which still shows how it ended.
func die(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			must(t, err)
			return
		}
	}
}

func (m *mount) file(name, content string) { m.t.Helper(); write(m.t, m.at(name), content) }
func (m *mount) at(name string) string     { return filepath.Join(m.path, name) }

func (m *mount) create(name string, c Caller) *Writer {
	m.t.Helper()
	w, joined, err := m.Root().Create(name, unix.O_WRONLY|unix.O_EXCL, 0o644, 0o022, c)
	must(m.t, err)
	equal(m.t, "joined", joined, false)
	w.Opened()
	return w
}

func (m *mount) openWrite(name string, flags int, c Caller) *Writer {
	m.t.Helper()
	w, err := m.Root().OpenWrite(name, Ident{}, flags, c)
	must(m.t, err)
	w.Opened()
	return w
}

// put writes through a staged file.
func put(t *testing.T, w *Writer, off int64, text string) {
	t.Helper()
	must(t, w.Staged().Writable(func(fd int) error {
		_, err := w.st.o.sys.Pwrite(fd, []byte(text), off)
		return err
	}))
}

// finish is close(2) of the only descriptor and the RELEASE after it, whichever of them decides.
func finish(w *Writer, c Caller) error {
	w.Opened()
	err := w.Flush(c)
	w.Release()
	if err != nil {
		return err
	}
	return w.Staged().failure()
}

// closeLast is a close(2) that must find out itself that it is the last.
func closeLast(t *testing.T, w *Writer, c Caller) error {
	t.Helper()
	w.Opened()
	err := w.Flush(c)
	if s := w.Staged().State(); !s.Ended() {
		t.Errorf("the last close leaves it %v", s)
	}
	w.Release()
	return err
}

// closeEarly is a close(2) after which others still write.
func closeEarly(t *testing.T, w *Writer, c Caller) {
	t.Helper()
	w.Opened()
	must(t, w.Flush(c))
	w.Release()
	equal(t, "state", w.Staged().State(), Writing)
}

// has checks what the backing shows under a name; "-" is nothing.
func (m *mount) has(name, want string) {
	m.t.Helper()
	equal(m.t, name, content(m.at(name)), want)
}

func content(path string) string {
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return "-"
	}
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// salvaged is what is in the salvage: contents, and the records.
func (m *mount) salvaged() (list []string, records []Record) {
	m.t.Helper()
	s, err := OpenSalvage(Linux{}, m.Root().fd)
	must(m.t, err)
	defer s.Close()
	records, err = s.List()
	must(m.t, err)
	for _, rec := range records {
		list = append(list, content(filepath.Join(m.path, Hidden, salvageName, rec.ID)))
	}
	return list, records
}

func (m *mount) stat(name string) (st unix.Stat_t) {
	m.t.Helper()
	must(m.t, unix.Lstat(m.at(name), &st))
	return st
}

func root(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root may")
	}
}

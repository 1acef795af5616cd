package tests

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// faultyFS is a FUSE filesystem that passes everything on to a plain directory, and fails on command: a disk, a network
// or a server behind the backing that does. It is a process of its own, because this one would deadlock with it as soon
// as it forked into the mount.
//
// An order is a file named after an operation in a directory that the server looks into at each operation:
//
//	"EIO"     the operation fails with that errno
//	"hang"    the next such operation hangs until the order is gone; later ones pass
//	"hang all" all such operations hang until the order is gone
//
// While one hangs there is a file with the suffix .hangs beside the order.
type faultyFS struct {
	Dir    string // the mountpoint
	below  string // the plain directory
	orders string
	server *exec.Cmd
}

func init() { helpers["faultyfs"] = serveFaulty }

// hangMark is the suffix of what tells that an order is being carried out.
const hangMark = ".hangs"

// lacks are the orders that make it as poor as a FAT behind FUSE: one name for a file, no rights, no attributes.
var lacks = map[string]string{
	"link": "EPERM", "symlink": "EPERM", "setxattr": "ENOTSUP", "getxattr": "ENOTSUP", "listxattr": "ENOTSUP",
	"tmpfile": "ENOTSUP", "rename2": "EINVAL", "fallocate": "ENOTSUP", "copyrange": "ENOTSUP", "lseek": "ENOSYS",
}

// newFaultyFS mounts one until the test ends.
func newFaultyFS(t testing.TB) *faultyFS {
	t.Helper()
	return newFaultyFSAt(t, filepath.Join(tempDir(t), "faulty"))
}

func newFaultyFSAt(t testing.TB, dir string) *faultyFS {
	t.Helper()
	needRoot(t)
	base := tempDir(t)
	f := &faultyFS{Dir: dir, below: filepath.Join(base, "below"), orders: filepath.Join(base, "orders")}
	for _, d := range []string{f.Dir, f.below, f.orders} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f.server = exec.Command(selfCopy, f.below, f.Dir, f.orders)
	f.server.Env = append(os.Environ(), "UNTORN_TEST_HELPER=faultyfs")
	f.server.Stderr = os.Stderr
	f.server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := f.server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.end(t) })
	if !poll(30*time.Second, func() bool { return fuseDevice(f.Dir) != "" }) {
		t.Fatal("the faulty filesystem did not mount")
	}
	return f
}

// end takes every order back first, so that nothing hangs any more.
func (f *faultyFS) end(t testing.TB) {
	t.Helper()
	left, _ := os.ReadDir(f.orders)
	for _, e := range left {
		os.Remove(filepath.Join(f.orders, e.Name()))
	}
	if out, err := exec.Command("umount", f.Dir).CombinedOutput(); err != nil {
		t.Errorf("umount of the faulty filesystem: %v\n%s", err, out)
		syscall.Unmount(f.Dir, syscall.MNT_DETACH)
	}
	ended := make(chan struct{})
	go func() { f.server.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(settleTimeout):
		f.server.Process.Kill()
		<-ended
		t.Error("the faulty filesystem did not end")
	}
}

// order makes an operation fail, or hang, from now on.
func (f *faultyFS) order(t testing.TB, op, what string) {
	t.Helper()
	mustWrite(t, filepath.Join(f.orders, op), what)
}

// obey is an order that is taken back at once when what is run has ended.
func (f *faultyFS) obey(t testing.TB, op, what string, run func()) {
	t.Helper()
	f.order(t, op, what)
	defer f.relent(t, op)
	run()
}

// relent takes an order back.
func (f *faultyFS) relent(t testing.TB, op string) {
	t.Helper()
	if err := os.Remove(filepath.Join(f.orders, op)); err != nil {
		t.Fatal(err)
	}
}

// awaitHang returns when an operation hangs.
func (f *faultyFS) awaitHang(t testing.TB, op string) {
	t.Helper()
	eventually(t, op+" hangs", func() bool {
		_, err := os.Stat(filepath.Join(f.orders, op+hangMark))
		return err == nil
	})
}

// poor makes it lack what a FAT lacks.
func (f *faultyFS) poor(t testing.TB) {
	t.Helper()
	for op, errno := range lacks {
		f.order(t, op, errno)
	}
}

// serveFaulty DIRECTORY MOUNTPOINT ORDERS is the server.
func serveFaulty(args []string) {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM)
	root, err := fs.NewLoopbackRoot(args[0])
	check(err)
	raw := fs.NewNodeFS(root, &fs.Options{})
	server, err := fuse.NewServer(&faultyServer{raw, args[2]}, args[1], &fuse.MountOptions{
		AllowOther: true, FsName: "faulty", Name: "faulty", Options: []string{"default_permissions"}, DirectMountStrict: true,
		DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_NO_OPEN_SUPPORT,
	})
	check(err)
	server.Serve()
}

type faultyServer struct {
	fuse.RawFileSystem
	orders string
}

// fault carries an order out; OK lets the operation go on.
func (s *faultyServer) fault(op string) fuse.Status {
	file := filepath.Join(s.orders, op)
	text, err := os.ReadFile(file)
	if err != nil {
		return fuse.OK
	}
	order := strings.TrimSpace(string(text))
	if strings.HasPrefix(order, "hang") {
		mark, err := os.OpenFile(file+hangMark, os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) && order == "hang" {
			return fuse.OK
		}
		mark.Close()
		for {
			if _, err := os.Stat(file); err != nil {
				os.Remove(file + hangMark)
				return fuse.OK
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	for e := syscall.Errno(1); e < 200; e++ {
		if unix.ErrnoName(e) == order {
			return fuse.Status(e)
		}
	}
	fmt.Fprintf(os.Stderr, "no such order: %s: %q\n", op, order)
	return fuse.EINVAL
}

type cancel = <-chan struct{}

func (s *faultyServer) Lookup(c cancel, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if e := s.fault("lookup"); !e.Ok() {
		return e
	}
	return s.RawFileSystem.Lookup(c, in, name, out)
}

func (s *faultyServer) Create(c cancel, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if e := s.fault("create"); !e.Ok() {
		return e
	}
	return s.RawFileSystem.Create(c, in, name, out)
}

func (s *faultyServer) Tmpfile(c cancel, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	if e := s.fault("tmpfile"); !e.Ok() {
		return e
	}
	return s.RawFileSystem.Tmpfile(c, in, out)
}

func (s *faultyServer) Read(c cancel, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if e := s.fault("read"); !e.Ok() {
		return nil, e
	}
	return s.RawFileSystem.Read(c, in, buf)
}

func (s *faultyServer) Write(c cancel, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if e := s.fault("write"); !e.Ok() {
		return 0, e
	}
	return s.RawFileSystem.Write(c, in, data)
}

// Writev makes the server use Write.
func (s *faultyServer) Writev(cancel, *fuse.WriteIn, [][]byte) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}

func (s *faultyServer) Fsync(c cancel, in *fuse.FsyncIn) fuse.Status {
	if e := s.fault("fsync"); !e.Ok() {
		return e
	}
	return s.RawFileSystem.Fsync(c, in)
}

func (s *faultyServer) FsyncDir(c cancel, in *fuse.FsyncIn) fuse.Status {
	if e := s.fault("fsyncdir"); !e.Ok() {
		return e
	}
	return s.RawFileSystem.FsyncDir(c, in)
}

func (s *faultyServer) Rename(c cancel, in *fuse.RenameIn, old, name string) fuse.Status {
	op := "rename"
	if in.Flags != 0 {
		op = "rename2"
	}
	if e := s.fault(op); !e.Ok() {
		return e
	}
	return s.RawFileSystem.Rename(c, in, old, name)
}

func (s *faultyServer) StatFs(c cancel, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	if e := s.fault("statfs"); !e.Ok() {
		return e
	}
	return s.RawFileSystem.StatFs(c, in, out)
}

func (s *faultyServer) Link(c cancel, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if e := s.fault("link"); !e.Ok() {
		return e
	}
	return s.RawFileSystem.Link(c, in, name, out)
}

func (s *faultyServer) Symlink(c cancel, in *fuse.InHeader, to, name string, out *fuse.EntryOut) fuse.Status {
	if e := s.fault("symlink"); !e.Ok() {
		return e
	}
	return s.RawFileSystem.Symlink(c, in, to, name, out)
}

func (s *faultyServer) Fallocate(c cancel, in *fuse.FallocateIn) fuse.Status {
	if e := s.fault("fallocate"); !e.Ok() {
		return e
	}
	return s.RawFileSystem.Fallocate(c, in)
}

func (s *faultyServer) CopyFileRange(c cancel, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	if e := s.fault("copyrange"); !e.Ok() {
		return 0, e
	}
	return s.RawFileSystem.CopyFileRange(c, in)
}

func (s *faultyServer) Lseek(c cancel, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if e := s.fault("lseek"); !e.Ok() {
		return e
	}
	return s.RawFileSystem.Lseek(c, in, out)
}

func (s *faultyServer) SetXAttr(c cancel, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	if e := s.fault("setxattr"); !e.Ok() {
		return e
	}
	return s.RawFileSystem.SetXAttr(c, in, name, value)
}

func (s *faultyServer) GetXAttr(c cancel, in *fuse.InHeader, name string, value []byte) (uint32, fuse.Status) {
	if e := s.fault("getxattr"); !e.Ok() {
		return 0, e
	}
	return s.RawFileSystem.GetXAttr(c, in, name, value)
}

func (s *faultyServer) ListXAttr(c cancel, in *fuse.InHeader, list []byte) (uint32, fuse.Status) {
	if e := s.fault("listxattr"); !e.Ok() {
		return 0, e
	}
	return s.RawFileSystem.ListXAttr(c, in, list)
}

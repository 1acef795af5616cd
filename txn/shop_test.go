package txn

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// brokenSys lets a number of operations pass and fails all others with fail: like a crash, after which nothing more
// happens, not even cleaning up. With only set, just the operations that it names are counted and fail.
type brokenSys struct {
	Linux
	mu     sync.Mutex
	left   int
	fail   error
	only   string
	broken bool // an operation has failed
	statfs func(*unix.Statfs_t)
}

func (b *brokenSys) op(name string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail == nil || b.only != "" && !strings.Contains(b.only, name) {
		return nil
	}
	if b.left--; b.left >= 0 {
		return nil
	}
	b.broken = true
	return b.fail
}

func (b *brokenSys) Open(dir int, name string, flags int, mode uint32) (int, error) {
	if err := b.op("open"); err != nil {
		return -1, err
	}
	return b.Linux.Open(dir, name, flags, mode)
}

func (b *brokenSys) Reopen(fd int, flags int) (int, error) {
	if err := b.op("reopen"); err != nil {
		return -1, err
	}
	return b.Linux.Reopen(fd, flags)
}

func (b *brokenSys) Pwrite(fd int, p []byte, off int64) (int, error) {
	if err := b.op("write"); err != nil {
		return 0, err
	}
	return b.Linux.Pwrite(fd, p, off)
}

func (b *brokenSys) Fsync(int) error {
	if err := b.op("fsync"); err != nil {
		return err
	}
	return nil // no power is cut here, and thousands of these take their time
}

func (b *brokenSys) Fdatasync(fd int) error { return b.Fsync(fd) }
func (b *brokenSys) Syncfs(fd int) error    { return b.Fsync(fd) }

func (b *brokenSys) Stat(dir int, name string, st *unix.Statx_t) error {
	if err := b.op("stat"); err != nil {
		return err
	}
	return b.Linux.Stat(dir, name, st)
}

func (b *brokenSys) Statfs(fd int, st *unix.Statfs_t) error {
	if err := b.op("statfs"); err != nil {
		return err
	}
	err := b.Linux.Statfs(fd, st)
	if b.statfs != nil {
		b.statfs(st)
	}
	return err
}

func (b *brokenSys) Mkdir(dir int, name string, mode uint32) error {
	if err := b.op("mkdir"); err != nil {
		return err
	}
	return b.Linux.Mkdir(dir, name, mode)
}

func (b *brokenSys) Rename(odir int, oname string, dir int, name string, flags uint) error {
	if flags != 0 && b.only == "norenameat2" {
		return unix.EINVAL
	}
	if err := b.op("rename"); err != nil {
		return err
	}
	return b.Linux.Rename(odir, oname, dir, name, flags)
}

func (b *brokenSys) Link(odir int, oname string, dir int, name string) error {
	if err := b.op("link"); err != nil {
		return err
	}
	return b.Linux.Link(odir, oname, dir, name)
}

func (b *brokenSys) Unlink(dir int, name string) error {
	if err := b.op("unlink"); err != nil {
		return err
	}
	return b.Linux.Unlink(dir, name)
}

func (b *brokenSys) Rmdir(dir int, name string) error {
	if err := b.op("rmdir"); err != nil {
		return err
	}
	return b.Linux.Rmdir(dir, name)
}

// shop is a backing with a Store on it.
type shop struct {
	*Store
	t    *testing.T
	path string
	dir  int
	sys  *brokenSys
	log  bytes.Buffer
}

func backing(t *testing.T) (string, int) {
	t.Helper()
	path := t.TempDir()
	dir, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(dir) })
	return path, dir
}

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{t: t, sys: &brokenSys{}}
	s.path, s.dir = backing(t)
	s.open()
	t.Cleanup(func() { s.Store.close() })
	return s
}

// open starts a daemon's Store on the backing.
func (s *shop) open() {
	s.t.Helper()
	s.sys.fail = nil
	o := &Overlay{sys: s.sys, keep: s.sys, log: slog.New(slog.NewTextHandler(&s.log, nil))}
	base, err := openBase(s.sys, s.dir, true)
	must(s.t, err)
	s.Store = &Store{o: o, base: base, fd: -1, salvage: -1, origins: -1}
	must(s.t, s.Store.open())
}

// quiet is an Overlay that has a log.
func quiet(sys Sys) *Overlay {
	return &Overlay{sys: sys, keep: sys, log: slog.New(slog.DiscardHandler)}
}

// crash ends the daemon without any goodbye.
func (s *shop) crash() {
	for _, fd := range []*int{&s.origins, &s.salvage, &s.fd, &s.base} {
		unix.Close(*fd)
		*fd = -1
	}
}

func (s *shop) temp(name, content string) {
	s.t.Helper()
	write(s.t, filepath.Join(s.path, Hidden, stageName, s.instance, name), content)
}

func (s *shop) keepNew(name, content string, rec Record) string {
	s.t.Helper()
	s.temp(name, content)
	id, err := s.keep(name, rec)
	must(s.t, err)
	return id
}

func (s *shop) salvaged() *Salvage {
	s.t.Helper()
	v, err := OpenSalvage(Linux{}, s.dir)
	must(s.t, err)
	s.t.Cleanup(func() { v.Close() })
	return v
}

func (s *shop) records() []Record {
	s.t.Helper()
	list, err := s.salvaged().List()
	must(s.t, err)
	return list
}

// ids is what is in the salvage by content, to see what survived.
func (s *shop) contents() (list []string) {
	s.t.Helper()
	for _, rec := range s.records() {
		list = append(list, read(s.t, filepath.Join(s.path, Hidden, salvageName, rec.ID)))
	}
	return list
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error is %v, want %v", err, want)
	}
}

func equal[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
		t.Errorf("%s: got %s, want %s", what, g, w)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o700))
	must(t, os.WriteFile(path, []byte(content), 0o600))
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

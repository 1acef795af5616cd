package txn

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

// oneFault is a Sys in which one operation fails: the at-th of those that kind names, or of all. With stays, so do the
// later ones of that kind, as on a disk that is full for good. Unlike brokenSys it knows every operation, and afterwards
// the world goes on. It syncs nothing for real: no power is cut here, and thousands of these take their time.
type oneFault struct {
	Linux
	mu    sync.Mutex
	armed bool
	kind  string
	at    int
	stays bool
	err   error

	seen  int
	kinds map[string]bool // that were seen
	fired string          // the operation that failed first

	trace    []string       // renames and fsyncs, in order
	lost     map[Ident]bool // regular files of which an fsync failed
	repeated bool           // an fsync of one of those was asked for
}

func (s *oneFault) op(kind string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.armed {
		return nil
	}
	s.kinds[kind] = true
	if s.kind != "" && s.kind != kind {
		return nil
	}
	s.seen++
	if s.seen-1 != s.at && !(s.stays && s.seen > s.at) {
		return nil
	}
	if s.fired == "" {
		s.fired = kind
	}
	return s.err
}

func (s *oneFault) arm(on bool) {
	s.mu.Lock()
	s.armed = on
	s.mu.Unlock()
}

func (s *oneFault) fsync(fd int, kind string) error {
	var st unix.Statx_t
	if err := s.Linux.Stat(fd, "", &st); err != nil {
		return err
	}
	id, err := IdentOf(&st), s.op(kind)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.repeated = s.repeated || s.lost[id]
	what := kind + " directory"
	if IsRegular(&st) {
		what = kind + " file"
	}
	s.trace = append(s.trace, what)
	if err != nil && IsRegular(&st) {
		s.lost[id] = true
	}
	return err
}

func (s *oneFault) Fsync(fd int) error     { return s.fsync(fd, "fsync") }
func (s *oneFault) Syncfs(int) error       { return s.op("syncfs") }
func (s *oneFault) Fdatasync(fd int) error { return s.fsync(fd, "fdatasync") }

func (s *oneFault) Open(dir int, name string, flags int, mode uint32) (int, error) {
	if err := s.op("open"); err != nil {
		return -1, err
	}
	return s.Linux.Open(dir, name, flags, mode)
}

func (s *oneFault) Reopen(fd int, flags int) (int, error) {
	if err := s.op("reopen"); err != nil {
		return -1, err
	}
	return s.Linux.Reopen(fd, flags)
}

// Close closes even when it fails (close(2)).
func (s *oneFault) Close(fd int) error { return errors.Join(s.Linux.Close(fd), s.op("close")) }

func (s *oneFault) Pread(fd int, p []byte, off int64) (int, error) {
	if err := s.op("pread"); err != nil {
		return 0, err
	}
	return s.Linux.Pread(fd, p, off)
}

func (s *oneFault) Pwrite(fd int, p []byte, off int64) (int, error) {
	if err := s.op("pwrite"); err != nil {
		return 0, err
	}
	return s.Linux.Pwrite(fd, p, off)
}

func (s *oneFault) Truncate(fd int, size int64) error {
	if err := s.op("truncate"); err != nil {
		return err
	}
	return s.Linux.Truncate(fd, size)
}

func (s *oneFault) Seek(fd int, off int64, whence int) (int64, error) {
	if err := s.op("seek"); err != nil {
		return 0, err
	}
	return s.Linux.Seek(fd, off, whence)
}

func (s *oneFault) CopyRange(src int, srcOff int64, dst int, dstOff int64, n int) (int, error) {
	if err := s.op("copy"); err != nil {
		return 0, err
	}
	return s.Linux.CopyRange(src, srcOff, dst, dstOff, n)
}

func (s *oneFault) Clone(dst, src int) error {
	if err := s.op("clone"); err != nil {
		return err
	}
	return s.Linux.Clone(dst, src)
}

func (s *oneFault) Stat(dir int, name string, st *unix.Statx_t) error {
	if err := s.op("stat"); err != nil {
		return err
	}
	return s.Linux.Stat(dir, name, st)
}

func (s *oneFault) Statfs(fd int, st *unix.Statfs_t) error {
	if err := s.op("statfs"); err != nil {
		return err
	}
	return s.Linux.Statfs(fd, st)
}

func (s *oneFault) Chmod(fd int, mode uint32) error {
	if err := s.op("chmod"); err != nil {
		return err
	}
	return s.Linux.Chmod(fd, mode)
}

func (s *oneFault) Utimes(fd int, atime, mtime unix.Timespec) error {
	if err := s.op("utimes"); err != nil {
		return err
	}
	return s.Linux.Utimes(fd, atime, mtime)
}

func (s *oneFault) Getxattr(fd int, name string, p []byte) (int, error) {
	if err := s.op("getxattr"); err != nil {
		return 0, err
	}
	return s.Linux.Getxattr(fd, name, p)
}

func (s *oneFault) Setxattr(fd int, name string, p []byte, flags int) error {
	if err := s.op("setxattr"); err != nil {
		return err
	}
	return s.Linux.Setxattr(fd, name, p, flags)
}

func (s *oneFault) Listxattr(fd int, p []byte) (int, error) {
	if err := s.op("listxattr"); err != nil {
		return 0, err
	}
	return s.Linux.Listxattr(fd, p)
}

func (s *oneFault) Mkdir(dir int, name string, mode uint32) error {
	if err := s.op("mkdir"); err != nil {
		return err
	}
	return s.Linux.Mkdir(dir, name, mode)
}

func (s *oneFault) Link(odir int, oname string, dir int, name string) error {
	if err := s.op("link"); err != nil {
		return err
	}
	return s.Linux.Link(odir, oname, dir, name)
}

func (s *oneFault) LinkFd(fd int, dir int, name string) error {
	if err := s.op("linkfd"); err != nil {
		return err
	}
	return s.Linux.LinkFd(fd, dir, name)
}

func (s *oneFault) Rename(odir int, oname string, dir int, name string, flags uint) error {
	if err := s.op("rename"); err != nil {
		return err
	}
	s.mu.Lock()
	s.trace = append(s.trace, "rename")
	s.mu.Unlock()
	return s.Linux.Rename(odir, oname, dir, name, flags)
}

func (s *oneFault) Unlink(dir int, name string) error {
	if err := s.op("unlink"); err != nil {
		return err
	}
	return s.Linux.Unlink(dir, name)
}

func (s *oneFault) Rmdir(dir int, name string) error {
	if err := s.op("rmdir"); err != nil {
		return err
	}
	return s.Linux.Rmdir(dir, name)
}

func (s *oneFault) Getdents(fd int, p []byte) (int, error) {
	if err := s.op("getdents"); err != nil {
		return 0, err
	}
	return s.Linux.Getdents(fd, p)
}

func (s *oneFault) Flock(fd int, how int) error {
	if err := s.op("flock"); err != nil {
		return err
	}
	return s.Linux.Flock(fd, how)
}

func (s *oneFault) OpenBeneath(dir int, path string, flags int) (int, error) {
	if err := s.op("openbeneath"); err != nil {
		return -1, err
	}
	return s.Linux.OpenBeneath(dir, path, flags)
}

func (s *oneFault) Fallocate(fd int, mode uint32, off, n int64) error {
	if err := s.op("fallocate"); err != nil {
		return err
	}
	return s.Linux.Fallocate(fd, mode, off, n)
}

func (s *oneFault) Leased(fd int) (bool, error) {
	if err := s.op("leased"); err != nil {
		return false, err
	}
	return s.Linux.Leased(fd)
}

func (s *oneFault) Chown(fd int, uid, gid int) error {
	if err := s.op("chown"); err != nil {
		return err
	}
	return s.Linux.Chown(fd, uid, gid)
}

func (s *oneFault) Removexattr(fd int, name string) error {
	if err := s.op("removexattr"); err != nil {
		return err
	}
	return s.Linux.Removexattr(fd, name)
}

func (s *oneFault) InodeFlags(fd int) (int, error) {
	if err := s.op("inodeflags"); err != nil {
		return 0, err
	}
	return s.Linux.InodeFlags(fd)
}

func (s *oneFault) Mknod(dir int, name string, mode uint32, rdev uint64) error {
	if err := s.op("mknod"); err != nil {
		return err
	}
	return s.Linux.Mknod(dir, name, mode, rdev)
}

func (s *oneFault) Symlink(target string, dir int, name string) error {
	if err := s.op("symlink"); err != nil {
		return err
	}
	return s.Linux.Symlink(target, dir, name)
}

func (s *oneFault) Readlink(dir int, name string, p []byte) (int, error) {
	if err := s.op("readlink"); err != nil {
		return 0, err
	}
	return s.Linux.Readlink(dir, name, p)
}

func (s *oneFault) Path(fd int) (string, error) {
	if err := s.op("path"); err != nil {
		return "", err
	}
	return s.Linux.Path(fd)
}

func (s *oneFault) As(c Cred, f func() error) error {
	if err := s.op("as"); err != nil {
		return err
	}
	return s.Linux.As(c, f)
}

func (s *oneFault) AsWriter(c Cred, f func() error) error {
	if err := s.op("aswriter"); err != nil {
		return err
	}
	return s.Linux.AsWriter(c, f)
}

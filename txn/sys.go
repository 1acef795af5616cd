package txn

import (
	"golang.org/x/sys/unix"
)

// Sys is every operation that untorn does on the backing. Files are named by (directory descriptor, name), never by
// path, so that nothing can be redirected by a rename or a symlink and faults can be injected at any call.
//
// An empty name addresses the descriptor itself. Descriptors are close-on-exec. Errors are unix.Errno values; EINTR is
// returned by Fsync alone, which must not be repeated (a second fsync can report success for data that the first one
// lost: fsync(2), and Linux since 4.13 reports a write-back error once per descriptor).
type Sys interface {
	Open(dir int, name string, flags int, mode uint32) (int, error)
	// Reopen opens the inode behind fd once more, with other flags; fd may be O_PATH.
	Reopen(fd int, flags int) (int, error)
	Close(fd int) error

	Pread(fd int, p []byte, off int64) (int, error)
	Pwrite(fd int, p []byte, off int64) (int, error)
	Truncate(fd int, size int64) error
	Fallocate(fd int, mode uint32, off, n int64) error
	Seek(fd int, off int64, whence int) (int64, error)
	CopyRange(src int, srcOff int64, dst int, dstOff int64, n int) (int, error)
	// Clone makes dst share all blocks of src (ioctl FICLONE).
	Clone(dst, src int) error
	Fsync(fd int) error
	Fdatasync(fd int) error
	// Syncfs writes the whole filesystem of fd. It fails as well when what others have written is lost (Linux 5.8).
	Syncfs(fd int) error
	// Leased reports whether a read lease on fd (open read-only) can be had: nobody has the file open for writing.
	Leased(fd int) (bool, error)

	Stat(dir int, name string, st *unix.Statx_t) error
	Statfs(fd int, st *unix.Statfs_t) error
	Chmod(fd int, mode uint32) error
	Chown(fd int, uid, gid int) error
	Utimes(fd int, atime, mtime unix.Timespec) error
	Getxattr(fd int, name string, p []byte) (int, error)
	Setxattr(fd int, name string, p []byte, flags int) error
	Listxattr(fd int, p []byte) (int, error)
	Removexattr(fd int, name string) error
	InodeFlags(fd int) (int, error)

	Mkdir(dir int, name string, mode uint32) error
	Mknod(dir int, name string, mode uint32, rdev uint64) error
	Symlink(target string, dir int, name string) error
	Readlink(dir int, name string, p []byte) (int, error)
	Link(odir int, oname string, dir int, name string) error
	// LinkFd gives the inode behind fd a name; it works for O_TMPFILE descriptors as well.
	LinkFd(fd int, dir int, name string) error
	Rename(odir int, oname string, dir int, name string, flags uint) error
	Unlink(dir int, name string) error
	Rmdir(dir int, name string) error
	Getdents(fd int, p []byte) (int, error)
	Flock(fd int, how int) error

	// OpenBeneath opens a path of several components below dir, following no symlink and leaving dir by no way.
	OpenBeneath(dir int, path string, flags int) (int, error)
	// Path tells where the directory behind fd is now, for people to read; it is never used to get there.
	Path(fd int) (string, error)

	// As runs f with the file system ids of c, keeping the capabilities of the daemon, so that what f creates belongs
	// to c from its first instant. Without CAP_SETUID it just runs f.
	As(c Cred, f func() error) error
	// AsWriter is As without CAP_FSETID unless c is root: what f writes loses setuid and setgid as if c wrote it.
	AsWriter(c Cred, f func() error) error
	// AsCaller runs f with the rights of r and no others: the backing itself decides what r may do to a file as it is now.
	AsCaller(r Rights, f func() error) error
}

// Cred is who a file is created for.
type Cred struct{ Uid, Gid uint32 }

package txn

import (
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Linux is the Sys that does it.
type Linux struct{}

var _ Sys = Linux{}

// again repeats a call that a signal interrupted: the Go runtime's own preemption signals arrive at any time.
func again(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

func againN(f func() (int, error)) (n int, err error) {
	err = again(func() error { n, err = f(); return err })
	return n, err
}

func (Linux) Open(dir int, name string, flags int, mode uint32) (int, error) {
	return againN(func() (int, error) { return unix.Openat(dir, name, flags|unix.O_CLOEXEC, mode) })
}

// procFd names the inode behind a descriptor: a "magic link" (proc(5)), which leads to the inode itself and not through
// any path, also for O_PATH descriptors.
func procFd(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func (Linux) Reopen(fd int, flags int) (int, error) {
	return againN(func() (int, error) { return unix.Open(procFd(fd), flags|unix.O_CLOEXEC, 0) })
}

func (Linux) Close(fd int) error { return unix.Close(fd) }

func (Linux) Pread(fd int, p []byte, off int64) (int, error) {
	return againN(func() (int, error) { return unix.Pread(fd, p, off) })
}

func (Linux) Pwrite(fd int, p []byte, off int64) (int, error) {
	return againN(func() (int, error) { return unix.Pwrite(fd, p, off) })
}

func (Linux) Truncate(fd int, size int64) error {
	return again(func() error { return unix.Ftruncate(fd, size) })
}

func (Linux) Fallocate(fd int, mode uint32, off, n int64) error {
	return again(func() error { return unix.Fallocate(fd, mode, off, n) })
}

func (Linux) Seek(fd int, off int64, whence int) (int64, error) { return unix.Seek(fd, off, whence) }

func (Linux) CopyRange(src int, srcOff int64, dst int, dstOff int64, n int) (int, error) {
	return againN(func() (int, error) { return unix.CopyFileRange(src, &srcOff, dst, &dstOff, n, 0) })
}

func (Linux) Clone(dst, src int) error { return unix.IoctlFileClone(dst, src) }
func (Linux) Fsync(fd int) error       { return unix.Fsync(fd) }
func (Linux) Fdatasync(fd int) error   { return unix.Fdatasync(fd) }
func (Linux) Syncfs(fd int) error      { return unix.Syncfs(fd) }

// Leased: F_SETLEASE F_RDLCK fails with EAGAIN while anybody has the file open for writing, which a shared writable
// mapping counts as (fcntl(2); verified on Linux 6.18 for mappings through FUSE passthrough).
func (Linux) Leased(fd int) (bool, error) {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
	if err == unix.EAGAIN {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
	return true, err
}

// statxMask is all that untorn asks for, in one call.
const statxMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME | unix.STATX_MNT_ID

func (Linux) Stat(dir int, name string, st *unix.Statx_t) error {
	return again(func() error {
		return unix.Statx(dir, name, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statxMask, st)
	})
}

func (Linux) Statfs(fd int, st *unix.Statfs_t) error {
	return again(func() error { return unix.Fstatfs(fd, st) })
}

func (Linux) Chmod(fd int, mode uint32) error { return unix.Chmod(procFd(fd), mode) }

func (Linux) Chown(fd int, uid, gid int) error {
	return unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH)
}

func (Linux) Utimes(fd int, atime, mtime unix.Timespec) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, procFd(fd), []unix.Timespec{atime, mtime}, 0)
}

func (Linux) Getxattr(fd int, name string, p []byte) (int, error) {
	return unix.Getxattr(procFd(fd), name, p)
}

func (Linux) Setxattr(fd int, name string, p []byte, flags int) error {
	return unix.Setxattr(procFd(fd), name, p, flags)
}

func (Linux) Listxattr(fd int, p []byte) (int, error) { return unix.Listxattr(procFd(fd), p) }

func (Linux) Removexattr(fd int, name string) error { return unix.Removexattr(procFd(fd), name) }

func (Linux) InodeFlags(fd int) (int, error) {
	return unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
}

func (Linux) Mkdir(dir int, name string, mode uint32) error { return unix.Mkdirat(dir, name, mode) }

func (Linux) Mknod(dir int, name string, mode uint32, rdev uint64) error {
	return unix.Mknodat(dir, name, mode, int(rdev))
}

func (Linux) Symlink(target string, dir int, name string) error {
	return unix.Symlinkat(target, dir, name)
}

func (Linux) Readlink(dir int, name string, p []byte) (int, error) {
	return unix.Readlinkat(dir, name, p)
}

func (Linux) Link(odir int, oname string, dir int, name string) error {
	return unix.Linkat(odir, oname, dir, name, 0)
}

func (Linux) LinkFd(fd int, dir int, name string) error {
	return unix.Linkat(unix.AT_FDCWD, procFd(fd), dir, name, unix.AT_SYMLINK_FOLLOW)
}

func (Linux) Rename(odir int, oname string, dir int, name string, flags uint) error {
	if flags == 0 {
		// renameat(2) as such: filesystems that know no flags refuse renameat2 only when some are given, but
		// seccomp profiles of old containers do not know renameat2 at all.
		return unix.Renameat(odir, oname, dir, name)
	}
	return unix.Renameat2(odir, oname, dir, name, flags)
}

func (Linux) Unlink(dir int, name string) error { return unix.Unlinkat(dir, name, 0) }

func (Linux) Rmdir(dir int, name string) error {
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

func (Linux) Getdents(fd int, p []byte) (int, error) {
	return againN(func() (int, error) { return unix.Getdents(fd, p) })
}

func (Linux) OpenBeneath(dir int, path string, flags int) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	return againN(func() (int, error) { return unix.Openat2(dir, path, &how) })
}

func (Linux) Path(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlink(procFd(fd), buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func (Linux) Flock(fd int, how int) error {
	return again(func() error { return unix.Flock(fd, how) })
}

var (
	daemonUid = uint32(os.Geteuid())
	daemonGid = uint32(os.Getegid())
)

// As changes the ids of one thread: setfsuid(2) and setfsgid(2) work on the calling thread alone. Leaving uid 0 that way
// takes the capabilities away that concern files, unless KeepCapabilities has seen to it; then they are taken back here.
func (Linux) As(c Cred, f func() error) error {
	return as(c, !capabilitiesKept, 1<<unix.CAP_SYS_RESOURCE, f)
}

// AsWriter gives CAP_FSETID up for the time of f: with it the kernel keeps setuid and setgid on a write
// (setattr_should_drop_suidgid).
func (Linux) AsWriter(c Cred, f func() error) error {
	return as(c, true, 1<<unix.CAP_SYS_RESOURCE|1<<unix.CAP_FSETID, f)
}

// as runs f with the ids of c, and, if told to, all permitted capabilities but those in without.
func as(c Cred, capabilities bool, without uint64, f func() error) error {
	if daemonUid != 0 || (c.Uid == daemonUid && c.Gid == daemonGid) {
		return f()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	setfs(unix.SYS_SETFSGID, c.Gid)
	setfs(unix.SYS_SETFSUID, c.Uid)
	defer func() {
		setfs(unix.SYS_SETFSUID, daemonUid)
		setfs(unix.SYS_SETFSGID, daemonGid)
	}()
	if capabilities && c.Uid != daemonUid {
		if err := effective(without); err != nil {
			return err
		}
		defer effective(1 << unix.CAP_SYS_RESOURCE)
	}
	return f()
}

// capabilitiesKept: KeepCapabilities has succeeded. It is set before anything is served.
var capabilitiesKept bool

// effective makes all permitted capabilities of the thread effective, but for some.
func effective(without uint64) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	for i := range data {
		data[i].Effective = data[i].Permitted &^ uint32(without>>(32*i))
	}
	return unix.Capset(&hdr, &data[0])
}

// setfs cannot fail for a privileged caller, and reports no failure (setfsuid(2)).
func setfs(call uintptr, id uint32) { unix.RawSyscall(call, uintptr(id), 0, 0) }

// KeepCapabilities prepares the whole process for As and for honest accounting. It sets SECBIT_NO_SETUID_FIXUP, so that
// setfsuid takes no capabilities away, and gives up CAP_SYS_RESOURCE, with which the daemon would write past quotas and
// into reserved blocks on behalf of callers who may not. Call it after the limits have been raised. Without privileges
// it does nothing. It needs a binary without cgo (syscall.AllThreadsSyscall); with cgo it returns ENOTSUP, and As does the
// same for each call.
func KeepCapabilities() error {
	if daemonUid != 0 {
		return nil
	}
	const noSetuidFixup = 1 << 2 // linux/securebits.h
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, noSetuidFixup, 0); e != 0 {
		return e
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	data[unix.CAP_SYS_RESOURCE/32].Effective &^= 1 << (unix.CAP_SYS_RESOURCE % 32)
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0); e != 0 {
		return e
	}
	capabilitiesKept = true
	return nil
}

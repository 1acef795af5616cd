package txn

import (
	"errors"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"untorn/txn/proc"
)

// poisonous are the errors by which bytes are lost through no fault of the program: no space, and a disk, a network or a
// server behind the backing that fails. Programs often ignore them. The others (EBADF, EINVAL, EOPNOTSUPP ...) say that
// what was asked cannot be had, and cost nothing.
var poisonous = []unix.Errno{
	unix.ENOSPC, unix.EDQUOT, unix.EFBIG, unix.EIO, unix.EROFS, unix.ENOMEM, unix.ENOBUFS, // the filesystem
	unix.EUCLEAN, unix.EBADMSG, unix.EREMOTEIO, unix.ENODEV, // it, or its disk, is broken
	unix.ESTALE, unix.ETIMEDOUT, unix.ESHUTDOWN, unix.ENOTCONN, unix.ECONNABORTED, // who serves it is gone
}

// Poisonous reports whether a failed write must keep the file from being published.
func Poisonous(err error) bool {
	var errno unix.Errno
	return errors.As(err, &errno) && slices.Contains(poisonous, errno)
}

// lowSpace is how little room makes it worth asking whether a write may have failed for lack of it.
const lowSpace = 64 << 20

// probe finds out about writes that failed without our seeing them: with passthrough they go past the daemon, and the
// kernel checks the file size limit of the caller before it sends any. It asks whether the file could grow by some more.
// A false alarm keeps a good file in the salvage, and close(2) says so; the other way round a truncated file would be
// published.
func (st *Staged) probe(c Caller) {
	fd, err := st.Hold()
	if err != nil {
		return
	}
	defer st.Unhold()
	var s unix.Statx_t
	if st.o.sys.Stat(fd, "", &s) != nil {
		return
	}
	st.mu.Lock()
	// A write that fails touches the file all the same.
	tried := (s.Size > 0 || bare(s.Mtime) != st.clean.mtime) && (st.forced || versionOf(&s) != st.clean)
	st.mu.Unlock()
	if !tried {
		return
	}
	if limit, ok := proc.FileSizeLimit(c.Tid); ok && s.Size >= limit && s.Size > st.clean.size {
		st.Poison(unix.EFBIG)
		return
	}
	var fs unix.Statfs_t
	if !st.o.opt.Passthrough || st.o.sys.Statfs(fd, &fs) != nil {
		return
	}
	if fs.Bavail*uint64(fs.Frsize) > lowSpace && !st.store.quota {
		return
	}
	if err := st.grow(c, int64(s.Size)); Poisonous(err) {
		st.Poison(err)
	}
}

// margin is how much must fit yet. One block, as first designed, is not enough: a write wants its pages at once, and on an
// ext4 of 1 KiB blocks two of them were left after a write of one page had failed. It is what programs commonly write in
// one go (cp(1)).
const margin = 128 << 10

// grow tries to allocate space beyond the end, with the rights of the writer (root may use reserved blocks that others may
// not). It is given back by trim: others may be appending at this moment, and a hole punched there would take their bytes.
func (st *Staged) grow(c Caller, size int64) error {
	sys := st.o.sys
	return st.Writable(func(fd int) error {
		var before unix.Statx_t
		if err := sys.Stat(fd, "", &before); err != nil {
			return err
		}
		err := sys.As(c.Cred, func() error { return sys.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, pageEnd(size), margin) })
		if err != nil {
			return err
		}
		st.mu.Lock()
		st.grown = true
		st.mu.Unlock()
		sys.Utimes(fd, timespec(before.Atime), timespec(before.Mtime))
		return nil
	})
}

// trim gives back what grow has allocated, when all writers are gone.
func (st *Staged) trim() {
	st.mu.Lock()
	grown := st.grown
	st.grown = false
	st.mu.Unlock()
	if !grown {
		return
	}
	sys := st.o.sys
	fd, err := sys.Reopen(st.fd, unix.O_RDWR)
	if err != nil {
		return
	}
	defer sys.Close(fd)
	var s unix.Statx_t
	if sys.Stat(fd, "", &s) != nil {
		return
	}
	// ext4 punches nothing beyond the end, tmpfs does nothing when the size stays.
	sys.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, pageEnd(int64(s.Size)), margin)
	sys.Truncate(fd, int64(s.Size))
	sys.Utimes(fd, timespec(s.Atime), timespec(s.Mtime))
}

// pageEnd is the end of the last page of a file.
func pageEnd(size int64) int64 {
	const page = 4096
	return (size + page - 1) / page * page
}

// hasQuota reports whether the mount options of a filesystem (proc_pid_mountinfo(5)) speak of quotas.
func hasQuota(mount uint64) bool {
	options, ok := proc.MountOptions(strconv.FormatUint(mount, 10))
	if !ok {
		return false
	}
	for _, o := range options {
		switch o {
		case "quota", "usrquota", "grpquota", "prjquota", "uquota", "gquota", "pquota", "usrjquota", "grpjquota":
			return true
		}
	}
	return false
}

// WritesThrough reports whether the errors of writes on the filesystem of d are told by write(2) alone, as FUSE does
// (Documentation/filesystems/fuse/fuse-io.rst, write-through mode): a later fsync(2) then succeeds although bytes are
// missing. With passthrough nobody would see them.
func (o *Overlay) WritesThrough(d *Dir) bool {
	var fs unix.Statfs_t
	return o.sys.Statfs(d.fd, &fs) == nil && fs.Type == unix.FUSE_SUPER_MAGIC
}

// WritesThrough is that of the filesystem that the file is staged on.
func (st *Staged) WritesThrough() bool { return st.store.writesThrough }

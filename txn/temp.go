package txn

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// makeNew makes the temp of a new name with what the kernel would have given the file in its directory: the caller's
// ids, umask or default ACL, the group of a setgid directory, labels and flags that directories hand down. So the file is
// made in that directory, without a name (O_TMPFILE), and then linked into the stage.
func (st *Staged) makeNew(d *Dir, mode, umask uint32, c Caller) error {
	sys := st.o.sys
	perm := d.createMode(mode&0o7777, umask)
	if !st.store.noTmpfile.Load() {
		err := sys.As(c.Cred, func() (err error) {
			st.fd, err = st.o.keep.Open(d.fd, ".", unix.O_TMPFILE|unix.O_RDWR, perm)
			return err
		})
		if err == nil {
			if err = sys.LinkFd(st.fd, st.store.fd, st.temp); err == nil {
				return st.snapshot()
			}
			sys.Close(st.fd)
			st.fd = -1
			if !cannotLink(err) {
				return fmt.Errorf("linking it into the stage: %w", err)
			}
		} else if err = d.noTmpfile(err); err != nil {
			return err
		}
		st.store.noTmpfile.Store(true)
	}
	if err := st.makeInTwin(d, perm, c); err != nil {
		return err
	}
	return st.snapshot()
}

// noTmpfile returns nil for an error of open(2) that says that there is no O_TMPFILE here, and otherwise what went wrong.
func (d *Dir) noTmpfile(err error) error {
	var s unix.Statx_t
	if d.o.sys.Stat(d.fd, "", &s) == nil && s.Nlink == 0 {
		return unix.ENOENT // the directory has been removed; ext4 says EPERM to that
	}
	// EOPNOTSUPP: the filesystem; EISDIR, ENOENT: a kernel or FUSE filesystem that never heard of it (open(2)).
	if err == unix.EOPNOTSUPP || err == unix.EISDIR || err == unix.ENOENT {
		return nil
	}
	return err
}

// cannotLink tells an error of linkat(2) by which a filesystem says that it has no hard links (EPERM there), or, as many a
// FUSE server does, that it cannot make one of a file without a name.
func cannotLink(err error) bool {
	switch err {
	case unix.EPERM, unix.EOPNOTSUPP, unix.ENOSYS, unix.EXDEV, unix.ENOENT, unix.EINVAL, unix.EMLINK:
		return true
	}
	return false
}

// makeInTwin does the same where there is no O_TMPFILE: in a directory in the stage that has the mode, owner and default
// ACL of the real one.
func (st *Staged) makeInTwin(d *Dir, perm uint32, c Caller) error {
	sys := st.o.sys
	twin := st.temp + ".d"
	if err := sys.Mkdir(st.store.fd, twin, 0o700); err != nil {
		return err
	}
	defer sys.Rmdir(st.store.fd, twin)
	fd, err := sys.Open(st.store.fd, twin, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	if err := copyAttributes(sys, d.fd, fd, 0); err != nil {
		return err
	}
	err = sys.As(c.Cred, func() (err error) {
		st.fd, err = st.o.keep.Open(fd, st.temp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, perm)
		return err
	})
	if err != nil {
		return err
	}
	if err := sys.Rename(fd, st.temp, st.store.fd, st.temp, 0); err != nil {
		sys.Unlink(fd, st.temp)
		return err
	}
	return nil
}

// createMode is the mode to create with when the process itself has no umask: the kernel ignores the umask where the
// directory has a default ACL (acl(5)), so it is applied only where there is none.
func (d *Dir) createMode(mode, umask uint32) uint32 {
	var buf [1]byte
	_, err := d.o.sys.Getxattr(d.fd, "system.posix_acl_default", buf[:])
	if err == nil || err == unix.ERANGE {
		return mode
	}
	return mode &^ umask
}

// sqliteMagic begins every SQLite 3 database (sqlite.org/fileformat.html, section 1.3).
const sqliteMagic = "SQLite format 3\x00"

// makeFrom makes the temp of an existing version: empty for Truncated, with its bytes for Copied.
func (st *Staged) makeFrom(d *Dir, name string, flags int) error {
	sys := st.o.sys
	access := unix.O_RDONLY | unix.O_NOATIME // reading the base is our affair, not the program's
	if st.kind == Truncated {
		access = unix.O_PATH
	}
	base, err := sys.Open(d.fd, name, access|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err == unix.EPERM { // somebody else's file, and no CAP_FOWNER (open(2))
		base, err = sys.Open(d.fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	}
	if err == unix.ENOENT || err == unix.ELOOP {
		return ErrStale
	}
	if err != nil {
		return fmt.Errorf("opening the version of %q: %w", name, err)
	}
	defer sys.Close(base)
	var s unix.Statx_t
	if err := sys.Stat(base, "", &s); err != nil {
		return fmt.Errorf("looking at the version of %q: %w", name, err)
	}
	if !IsRegular(&s) {
		return ErrStale
	}
	if err := replaceable(&s, flags); err != nil {
		return err
	}
	if st.kind == Copied && st.o.Rules().Databases() && isDatabase(sys, base) {
		return ErrInPlace
	}
	st.base = versionOf(&s)
	if len(d.stagedAt(name)) == 1 {
		// Two that are staged at once must not look the same in /proc.
		st.shown.Store(s.Ino)
	}
	if err := st.makeLike(d, base, st.kind == Copied); err != nil {
		return fmt.Errorf("staging %q: %w", name, err)
	}
	return nil
}

// replaceable refuses what the kernel would refuse: FUSE does not know the immutable and append-only flags (chattr(1)).
func replaceable(s *unix.Statx_t, flags int) error {
	if s.Attributes&unix.STATX_ATTR_IMMUTABLE != 0 {
		return unix.EPERM
	}
	if s.Attributes&unix.STATX_ATTR_APPEND != 0 {
		if flags&unix.O_APPEND == 0 || flags&unix.O_TRUNC != 0 {
			return unix.EPERM
		}
		return ErrInPlace
	}
	return nil
}

func isDatabase(sys Sys, fd int) bool {
	var head [len(sqliteMagic)]byte
	n, err := sys.Pread(fd, head[:], 0)
	return err == nil && string(head[:n]) == sqliteMagic
}

// makeLike makes a temp with the attributes of the file behind base, and with its bytes if asked.
func (st *Staged) makeLike(d *Dir, base int, bytes bool) error {
	sys := st.o.sys
	fd, err := st.makeBare(d)
	if err != nil {
		return fmt.Errorf("making the temp: %w", err)
	}
	st.fd = fd
	var s unix.Statx_t
	if err := sys.Stat(base, "", &s); err != nil {
		return err
	}
	if err := copyAttributes(sys, base, fd, 0); err != nil {
		return err
	}
	mtime := unix.Timespec{Nsec: unix.UTIME_OMIT}
	if bytes {
		if err := st.copyBytes(base, int64(s.Size)); err != nil {
			return fmt.Errorf("copying its bytes: %w", err)
		}
		mtime = timespec(s.Mtime)
	} else if st.cred.Uid != 0 { // O_TRUNC is a write already
		if err := DropPrivilege(sys, fd, st.cred); err != nil {
			return err
		}
	}
	if err := sys.Utimes(fd, timespec(s.Atime), mtime); err != nil {
		return err
	}
	return st.snapshot()
}

// makeBare makes an empty temp. In a directory that hands its project id down (xfs and ext4 project quotas) a file of
// another project cannot be put by rename, so there it is made in the directory itself.
func (st *Staged) makeBare(d *Dir) (int, error) {
	sys := st.o.sys
	if d.handsDownProject() {
		fd, err := st.o.keep.Open(d.fd, ".", unix.O_TMPFILE|unix.O_RDWR, 0o600)
		if err != nil {
			return -1, err
		}
		if err := sys.LinkFd(fd, st.store.fd, st.temp); err != nil {
			sys.Close(fd)
			return -1, err
		}
		return fd, nil
	}
	return st.o.keep.Open(st.store.fd, st.temp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
}

// handsDownProject reports whether new files in d get its project id (FS_XFLAG_PROJINHERIT). It is looked up once.
func (d *Dir) handsDownProject() bool {
	d.projectOnce.Do(func() {
		fd, err := d.o.sys.Reopen(d.fd, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return
		}
		defer d.o.sys.Close(fd)
		flags, err := d.o.sys.InodeFlags(fd)
		const projinherit = 0x20000000 // FS_PROJINHERIT_FL, linux/fs.h
		d.project = err == nil && flags&projinherit != 0
	})
	return d.project
}

// DropPrivilege clears setuid, and setgid of a file that its group may execute or that belongs to another group than c,
// as the kernel does when somebody without CAP_FSETID writes (setattr_should_drop_suidgid). security.capability needs no
// care: it is never copied, and a write by the daemon removes it.
func DropPrivilege(sys Sys, fd int, c Cred) error {
	var s unix.Statx_t
	if err := sys.Stat(fd, "", &s); err != nil {
		return err
	}
	mode := uint32(s.Mode) & 0o7777
	keep := mode &^ unix.S_ISUID
	if mode&unix.S_IXGRP != 0 || s.Gid != c.Gid {
		keep &^= unix.S_ISGID
	}
	if keep == mode {
		return nil
	}
	return sys.Chmod(fd, keep)
}

// snapshot records how the temp looks before the first write. The look itself makes the kernel give the next change a
// change time that differs (multigrain timestamps, Linux 6.13).
func (st *Staged) snapshot() error {
	var s unix.Statx_t
	if err := st.o.sys.Stat(st.fd, "", &s); err != nil {
		return err
	}
	st.id = IdentOf(&s)
	st.clean, st.read = versionOf(&s), bare(s.Atime)
	return nil
}

// copyBytes fills the temp with size bytes of src: shared blocks where the filesystem can, else copied inside the kernel,
// holes kept.
func (st *Staged) copyBytes(src int, size int64) error {
	sys := st.o.sys
	if !st.store.noClone.Load() {
		err := sys.Clone(st.fd, src)
		if err == nil {
			return nil
		}
		if err == unix.EOPNOTSUPP || err == unix.ENOTTY || err == unix.ENOSYS {
			st.store.noClone.Store(true)
		}
	}
	if err := sys.Truncate(st.fd, size); err != nil {
		return err
	}
	for off := int64(0); off < size; {
		data, err := sys.Seek(src, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil // the rest is a hole
		}
		if err != nil {
			data = off
		}
		end, err := sys.Seek(src, data, unix.SEEK_HOLE)
		if err != nil {
			end = size
		}
		if err := copyRange(sys, src, st.fd, data, min(end, size)); err != nil {
			return err
		}
		off = end
	}
	return nil
}

func copyRange(sys Sys, src, dst int, off, end int64) error {
	for off < end {
		n, err := sys.CopyRange(src, off, dst, off, int(min(end-off, 1<<30)))
		if errors.Is(err, unix.EXDEV) || err == unix.EINVAL || err == unix.EOPNOTSUPP || err == unix.ENOSYS {
			n, err = copyChunk(sys, src, dst, off, end)
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return nil // the file has become shorter meanwhile
		}
		off += int64(n)
	}
	return nil
}

func copyChunk(sys Sys, src, dst int, off, end int64) (int, error) {
	buf := make([]byte, min(end-off, 1<<20))
	n, err := sys.Pread(src, buf, off)
	if err != nil || n == 0 {
		return n, err
	}
	for done := 0; done < n; {
		m, err := sys.Pwrite(dst, buf[done:n], off+int64(done))
		if err != nil {
			return 0, err
		}
		done += m
	}
	return n, nil
}

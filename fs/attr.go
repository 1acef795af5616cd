package fs

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"untorn/txn"
)

// stat looks at the inode of a node: through an open file, which works also when its name is gone, else through the
// staged file, the directory descriptor, or the name it was found under. txn.ErrStale: the name leads to another inode.
func (f *FS) stat(n *node, out *unix.Statx_t) error {
	sys := f.o.Sys()
	if n.staged != nil {
		if err := n.staged.Stat(out); err != txn.ErrClosed {
			return err
		}
	}
	if fd, release := n.openFd(); fd >= 0 {
		defer release()
		return sys.Stat(fd, "", out)
	}
	if n.fmt == unix.S_IFDIR {
		d, err := f.nodes.directory(n)
		if err != nil {
			return err
		}
		return sys.Stat(d.Fd(), "", out)
	}
	if fd, release := f.pins.borrow(n); fd >= 0 {
		defer release()
		return sys.Stat(fd, "", out)
	}
	parent, name := f.nodes.at(n)
	defer f.nodes.put(parent)
	d, err := f.dirOf(parent)
	if err != nil {
		return err
	}
	err = d.Stat(name, out)
	if err == unix.ENOENT || (err == nil && txn.IdentOf(out) != n.ident) {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.found != nil && n.found.Nlink <= 1 { // with other links it lives on, and a lookup finds it
			*out = *n.found
			return nil
		}
		return txn.ErrStale
	}
	return err
}

// dirOf is directory for a parent that may be gone.
func (f *FS) dirOf(parent *node) (*txn.Dir, error) {
	if parent == nil {
		return nil, txn.ErrStale
	}
	return f.nodes.directory(parent)
}

// withFd runs do with a descriptor of the inode of n, which may be O_PATH.
func (f *FS) withFd(n *node, do func(fd int) error) error {
	if n.staged != nil {
		if fd, err := n.staged.Hold(); err == nil {
			defer n.staged.Unhold()
			return do(fd)
		}
	}
	if fd, release := n.openFd(); fd >= 0 {
		defer release()
		return do(fd)
	}
	if n.fmt == unix.S_IFDIR {
		d, err := f.nodes.directory(n)
		if err != nil {
			return err
		}
		return do(d.Fd())
	}
	if fd, release := f.pins.borrow(n); fd >= 0 {
		defer release()
		return do(fd)
	}
	fd, err := f.openVersion(n, unix.O_PATH)
	if err != nil {
		return err
	}
	defer f.o.Sys().Close(fd)
	return do(fd)
}

// openVersion opens the inode of n by the name it was found under, and makes sure that it is that inode.
func (f *FS) openVersion(n *node, flags int) (int, error) {
	if fd, release := f.pins.borrow(n); fd >= 0 {
		defer release()
		return f.o.Sys().Reopen(fd, flags)
	}
	parent, name := f.nodes.at(n)
	defer f.nodes.put(parent)
	d, err := f.dirOf(parent)
	if err != nil {
		return -1, err
	}
	sys := f.o.Sys()
	fd, err := sys.Open(d.Fd(), name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err == unix.ENOENT || err == unix.ENOTDIR || (err == unix.ELOOP && n.fmt != unix.S_IFLNK) {
		return -1, txn.ErrStale
	}
	if err != nil {
		return -1, err
	}
	var st unix.Statx_t
	if err = sys.Stat(fd, "", &st); err == nil && txn.IdentOf(&st) != n.ident {
		err = txn.ErrStale
	}
	if err != nil {
		sys.Close(fd)
		return -1, err
	}
	return fd, nil
}

// GetAttr implements fuse.RawFileSystem.
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := f.nodes.get(in.NodeId)
	defer f.nodes.put(n)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	var st unix.Statx_t
	if err := f.stat(n, &st); err != nil {
		return f.answer(&in.InHeader, err)
	}
	n.remember(&st)
	f.fillAttr(&out.Attr, &st)
	if n == f.nodes.root && st.Nlink > 2 && !f.o.ReadOnly() {
		out.Nlink-- // .untorn does not count (btrfs counts no directories: always 1)
	}
	out.SetTimeout(f.attrTimeout(n))
	return fuse.OK
}

// attrTimeout is how long the kernel may remember the attributes of a node: not at all while something is staged for
// its name.
func (f *FS) attrTimeout(n *node) time.Duration {
	if n.staged != nil && !n.staged.State().Ended() {
		return 0
	}
	if n.fmt == unix.S_IFREG {
		parent, name := f.nodes.at(n)
		defer f.nodes.put(parent)
		if d, err := f.dirOf(parent); err != nil || d.HasStaged(name) {
			return 0
		}
	}
	return f.opt.Cache
}

// fillAttr translates a statx result.
func (f *FS) fillAttr(a *fuse.Attr, st *unix.Statx_t) {
	a.Ino = f.o.Ino(unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino)
	a.Size = st.Size
	a.Blocks = st.Blocks
	a.Atime, a.Atimensec = uint64(st.Atime.Sec), st.Atime.Nsec
	a.Mtime, a.Mtimensec = uint64(st.Mtime.Sec), st.Mtime.Nsec
	a.Ctime, a.Ctimensec = uint64(st.Ctime.Sec), st.Ctime.Nsec
	a.Mode = uint32(st.Mode)
	a.Nlink = st.Nlink
	a.Uid, a.Gid = st.Uid, st.Gid
	a.Rdev = uint32(unix.Mkdev(st.Rdev_major, st.Rdev_minor))
	a.Blksize = st.Blksize
}

// SetAttr implements fuse.RawFileSystem.
func (f *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := f.nodes.get(in.NodeId)
	defer f.nodes.put(n)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	if n.staged != nil {
		if _, err := n.staged.Hold(); err == nil {
			defer n.staged.Unhold() // truncate(2) publishes it, and it may be replaced before we look at it
		}
	}
	if size, ok := in.GetSize(); ok {
		var err error
		if fh, ok := in.GetFh(); ok && f.files.get(fh) != nil {
			err = f.files.get(fh).truncate(int64(size), f.caller(&in.InHeader).Cred)
		} else {
			err = f.truncatePath(n, int64(size), f.caller(&in.InHeader))
		}
		if err != nil {
			return f.answer(&in.InHeader, err)
		}
	}
	if err := f.withFd(n, func(fd int) error { return f.setAttr(n, fd, in) }); err != nil {
		return f.answer(&in.InHeader, err)
	}
	var st unix.Statx_t
	if err := f.stat(n, &st); err != nil {
		return f.answer(&in.InHeader, err)
	}
	n.remember(&st)
	f.fillAttr(&out.Attr, &st)
	out.SetTimeout(f.attrTimeout(n))
	return fuse.OK
}

// remember keeps how the inode looks, if that is kept for this node, see node.found.
func (n *node) remember(st *unix.Statx_t) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.found != nil {
		copied := *st
		n.found = &copied
	}
}

// setAttr changes everything but the size.
func (f *FS) setAttr(n *node, fd int, in *fuse.SetAttrIn) error {
	sys := f.o.Sys()
	uid, chuid := in.GetUID()
	gid, chgid := in.GetGID()
	mode, chmod := in.GetMode()
	if n.staged != nil {
		n.staged.MarkSet(chmod, chuid || chgid, false)
	}
	// Nothing to change at all is chown(-1, -1), which still clears setuid.
	const any = fuse.FATTR_MODE | fuse.FATTR_UID | fuse.FATTR_GID | fuse.FATTR_SIZE | fuse.FATTR_ATIME | fuse.FATTR_MTIME |
		fuse.FATTR_ATIME_NOW | fuse.FATTR_MTIME_NOW
	if caller := in.InHeader.Uid; in.Valid&any == 0 && caller != 0 {
		// The same request comes before a write by somebody else, which clears them itself; and from his chown, which may
		// not and would be EPERM. They look alike.
		var st unix.Statx_t
		if err := sys.Stat(fd, "", &st); err != nil || st.Uid != caller {
			return err
		}
	}
	as := func(owner bool, do func() error) error { return f.asCaller(&in.InHeader, fd, owner, do) }
	if chuid || chgid || in.Valid&any == 0 {
		u, g := -1, -1
		if chuid {
			u = int(uid)
		}
		if chgid {
			g = int(gid)
		}
		if err := as(true, func() error { return sys.Chown(fd, u, g) }); err != nil {
			return err
		}
	}
	if chmod {
		if err := as(true, func() error { return sys.Chmod(fd, mode) }); err != nil {
			return err
		}
	} else if in.Valid&fuse.FATTR_KILL_SUIDGID != 0 {
		if err := txn.DropPrivilege(sys, fd, f.caller(&in.InHeader).Cred); err != nil {
			return err
		}
	}
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME|fuse.FATTR_ATIME_NOW|fuse.FATTR_MTIME_NOW) == 0 {
		return nil
	}
	at := timeArg(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec)
	mt := timeArg(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec)
	now := unix.Timespec{Nsec: unix.UTIME_NOW}
	return as(at != now || mt != now, func() error { return sys.Utimes(fd, at, mt) }) // who may write may set both to now
}

func timeArg(valid, set, now uint32, sec uint64, nsec uint32) unix.Timespec {
	switch {
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	case valid&set != 0:
		return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
	}
	return unix.Timespec{Nsec: unix.UTIME_OMIT}
}

// StatFs implements fuse.RawFileSystem.
func (f *FS) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	n := f.nodes.get(in.NodeId)
	defer f.nodes.put(n)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	return f.answer(in, f.withFd(n, func(fd int) error {
		var st unix.Statfs_t
		if err := f.o.Sys().Statfs(fd, &st); err != nil {
			return err
		}
		*out = fuse.StatfsOut{
			Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
			Bsize: uint32(st.Bsize), NameLen: uint32(st.Namelen), Frsize: uint32(st.Frsize),
		}
		return nil
	}))
}

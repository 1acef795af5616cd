package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"untorn/txn"
)

// backing is the registration of an inode for passthrough (Linux 6.9): while any file of a node is open that way, all
// are, with the same backing file. That a version and its staged successor are two nodes gives this for free.
type backing struct {
	id   int32
	refs int // GUARDED_BY(node.mu)
}

// passOn lets the kernel read and write the file itself, past the daemon, if that is possible.
//
// LOCKS_REQUIRED(n.mu)
func (f *FS) passOn(n *node, fl *file, out *fuse.OpenOut) bool {
	if !f.passthrough {
		return false
	}
	if n.backing == nil {
		if n.plainOpen(fl) {
			return false // mixing the two on one inode is refused by the kernel
		}
		if fl.st != nil && fl.st.WritesThrough() {
			return false
		}
		id, err := f.register(fl, fl.cred)
		if err != nil {
			f.log.Warn("passthrough is not possible for a file; it goes through the daemon", "err", err)
			return false
		}
		n.backing = &backing{id: id}
	}
	n.backing.refs++
	fl.passing = true
	out.OpenFlags |= fuse.FOPEN_PASSTHROUGH
	out.BackingID = n.backing.id
	return true
}

// plainOpen reports whether a file of the node is open that goes through the daemon.
//
// LOCKS_REQUIRED(n.mu)
func (n *node) plainOpen(except *file) bool {
	for _, o := range n.files {
		if o != except && !o.passing {
			return true
		}
	}
	return false
}

// register tells the kernel about the backing file. It keeps the credentials of the thread that does it and writes with
// them: those of the opener, so that quotas, reserved blocks and the clearing of setuid hold for him.
func (f *FS) register(fl *file, c txn.Cred) (id int32, err error) {
	err = f.o.Sys().AsWriter(c, func() error {
		var errno unix.Errno
		id, errno = f.server.RegisterBackingFd(&fuse.BackingMap{Fd: int32(fl.fd)})
		if errno != 0 {
			return errno
		}
		return nil
	})
	return id, err
}

// putBacking gives a registration back.
//
// LOCKS_REQUIRED(n.mu)
func (n *node) putBacking(f *FS) {
	if n.backing.refs--; n.backing.refs == 0 {
		f.server.UnregisterBackingFd(n.backing.id)
		n.backing = nil
	}
}

// pathBeside chooses the data path of a file that is on the node of a version and writes to the staged file: always
// through the daemon. While the version is open with passthrough the kernel takes only opens with the same backing;
// FOPEN_DIRECT_IO then still brings reads and writes here, but a mapping would reach the version, and only a descriptor
// that is open for reading and writing can have one.
//
// LOCKS_REQUIRED(n.mu)
func (n *node) pathBeside(fl *file, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags |= fuse.FOPEN_DIRECT_IO
	if n.backing == nil {
		return fuse.OK
	}
	if fl.flags&unix.O_ACCMODE != unix.O_WRONLY {
		return status(errEscape)
	}
	n.backing.refs++
	fl.passing = true
	out.OpenFlags |= fuse.FOPEN_PASSTHROUGH
	out.BackingID = n.backing.id
	return fuse.OK
}

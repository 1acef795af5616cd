package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"untorn/txn"
)

// inDir runs do with the directory that a request is about.
func (f *FS) inDir(id uint64, do func(parent *node, d *txn.Dir) fuse.Status) fuse.Status {
	parent := f.nodes.get(id)
	defer f.nodes.put(parent)
	if parent == nil {
		return fuse.Status(unix.ESTALE)
	}
	d, err := f.nodes.directory(parent)
	if err != nil {
		return status(err)
	}
	return do(parent, d)
}

// Mkdir implements fuse.RawFileSystem.
func (f *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.inDir(in.NodeId, func(parent *node, d *txn.Dir) fuse.Status {
		if err := d.Mkdir(name, in.Mode, in.Umask, f.caller(&in.InHeader)); err != nil {
			return status(err)
		}
		return f.answerMade(parent, d, name, out)
	})
}

// Mknod implements fuse.RawFileSystem.
func (f *FS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.inDir(in.NodeId, func(parent *node, d *txn.Dir) fuse.Status {
		err := d.Mknod(name, in.Mode, in.Umask, uint64(in.Rdev), f.caller(&in.InHeader))
		if err != nil {
			return status(err)
		}
		return f.answerMade(parent, d, name, out)
	})
}

// Symlink implements fuse.RawFileSystem.
func (f *FS) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return f.inDir(in.NodeId, func(parent *node, d *txn.Dir) fuse.Status {
		if err := d.Symlink(target, name, f.caller(in)); err != nil {
			return status(err)
		}
		return f.answerMade(parent, d, name, out)
	})
}

// Readlink implements fuse.RawFileSystem.
func (f *FS) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n := f.nodes.get(in.NodeId)
	defer f.nodes.put(n)
	if n == nil {
		return nil, fuse.Status(unix.ESTALE)
	}
	buf := make([]byte, unix.PathMax)
	var size int
	err := f.withFd(n, func(fd int) (err error) {
		size, err = f.o.Sys().Readlink(fd, "", buf)
		return err
	})
	return buf[:max(size, 0)], f.answer(in, err)
}

// Link implements fuse.RawFileSystem.
func (f *FS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	n := f.nodes.get(in.Oldnodeid)
	defer f.nodes.put(n)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	return f.inDir(in.NodeId, func(parent *node, d *txn.Dir) fuse.Status {
		if n.staged != nil && !n.staged.State().Ended() {
			if err := d.LinkStaged(n.staged, name); err != txn.ErrStale {
				if err != nil {
					return status(err)
				}
				return f.answerStaged(n, out)
			}
		}
		err := f.withFd(n, func(fd int) error {
			// By the rule of protected_hardlinks (proc_sys_fs(5)) it matters whose file it is.
			return f.asCaller(&in.InHeader, fd, false, func() error { return d.Link(fd, name, f.caller(&in.InHeader)) })
		})
		if err != nil {
			return f.answer(&in.InHeader, err)
		}
		return f.answerMade(parent, d, name, out)
	})
}

// Unlink implements fuse.RawFileSystem.
func (f *FS) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.inDir(in.NodeId, func(_ *node, d *txn.Dir) fuse.Status {
		return status(d.Unlink(name, f.caller(in)))
	})
}

// Rmdir implements fuse.RawFileSystem.
func (f *FS) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.inDir(in.NodeId, func(_ *node, d *txn.Dir) fuse.Status { return status(d.Rmdir(name)) })
}

// Rename implements fuse.RawFileSystem.
func (f *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	return f.inDir(in.NodeId, func(parent *node, d *txn.Dir) fuse.Status {
		return f.inDir(in.Newdir, func(nparent *node, nd *txn.Dir) fuse.Status {
			moved, back, err := d.Rename(oldName, nd, newName, uint(in.Flags), f.caller(&in.InHeader))
			if err != nil {
				return status(err)
			}
			f.nodes.moved(moved, nparent, newName)
			if in.Flags&unix.RENAME_EXCHANGE != 0 {
				f.nodes.moved(back, parent, oldName)
			}
			return fuse.OK
		})
	})
}

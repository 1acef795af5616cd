package txn

import (
	"golang.org/x/sys/unix"
)

// nameOp is one operation on names, which a power cut leaves whole or not at all: every filesystem with a journal, or one
// that copies on write, renames atomically.
type nameOp struct {
	slots []slot
	nodes []*inode // whose names these are or were
	made  *inode   // a new directory
	gone  *inode   // a directory that was removed
	// moved: a directory has another place in the tree. Linux serialises those (s_vfs_rename_mutex), and so do the journals,
	// or a directory could end in itself.
	moved bool
}

// slot is what a name leads to after an operation; nil is nothing.
type slot struct {
	dir  *inode
	name string
	to   *inode
}

// apply does an operation to names, those that programs see or the stored ones.
func (op *nameOp) apply(names func(dir *inode) map[string]*inode) {
	for _, s := range op.slots {
		if s.to == nil {
			delete(names(s.dir), s.name)
		} else {
			names(s.dir)[s.name] = s.to
		}
	}
}

// log does an operation, and remembers it until it is durable.
func (d *disk) log(op nameOp) {
	op.apply(func(dir *inode) map[string]*inode { return dir.entries })
	d.ops = append(d.ops, op)
	for _, s := range op.slots {
		s.dir.mtime, s.dir.ctime = d.clock, d.clock
	}
	for _, i := range op.nodes {
		i.ctime = d.clock
	}
}

// made makes an inode as in a directory. What belongs to it at its birth is as durable as its name.
func (d *disk) made(dir *inode, mode uint32) *inode {
	i := d.inode(mode)
	if dir.mode&unix.S_ISGID != 0 {
		i.gid = dir.gid
		if i.is(unix.S_IFDIR) {
			i.mode |= unix.S_ISGID
		}
	}
	i.file.stored.attributes = i.attributes
	return i
}

// enter gives an inode a name that is free.
func (d *disk) enter(dir *inode, name string, i *inode) {
	op := nameOp{slots: []slot{{dir, name, i}}, nodes: []*inode{i}}
	i.nlink++
	i.linkable = false
	if i.parent = dir; i.is(unix.S_IFDIR) {
		i.nlink++
		dir.nlink++
		op.made = i
	}
	d.log(op)
}

// free finds the directory for a new name. EEXIST, ENOENT: the directory was removed.
func (d *disk) free(fd int, name string) (*inode, error) {
	dir, err := d.dir(fd)
	if err != nil {
		return nil, err
	}
	if _, err := dir.lookup(name); err != unix.ENOENT {
		if err == nil {
			err = unix.EEXIST
		}
		return nil, err
	}
	if dir.nlink == 0 {
		return nil, unix.ENOENT
	}
	return dir, nil
}

// create makes a name with a new inode.
func (d *disk) create(fd int, name string, mode uint32, then func(i *inode)) error {
	dir, err := d.free(fd, name)
	if err != nil {
		return err
	}
	d.change()
	i := d.made(dir, mode)
	then(i)
	d.enter(dir, name, i)
	return nil
}

func (d *disk) Mkdir(fd int, name string, mode uint32) error {
	defer d.lock()()
	return d.create(fd, name, unix.S_IFDIR|mode&0o1777, func(*inode) {})
}

func (d *disk) Mknod(fd int, name string, mode uint32, rdev uint64) error {
	defer d.lock()()
	return d.create(fd, name, mode, func(i *inode) { i.rdev = rdev })
}

func (d *disk) Symlink(target string, fd int, name string) error {
	defer d.lock()()
	return d.create(fd, name, unix.S_IFLNK|0o777, func(i *inode) { i.target = target })
}

func (d *disk) Readlink(fd int, name string, p []byte) (int, error) {
	defer d.lock()()
	i, err := d.at(fd, name)
	if err != nil {
		return 0, err
	}
	if !i.is(unix.S_IFLNK) {
		return 0, unix.EINVAL
	}
	return copy(p, i.target), nil
}

func (d *disk) Link(ofd int, oname string, fd int, name string) error {
	defer d.lock()()
	i, err := d.at(ofd, oname)
	if err != nil {
		return err
	}
	return d.link(i, fd, name)
}

func (d *disk) LinkFd(ofd int, fd int, name string) error {
	defer d.lock()()
	h, err := d.handle(ofd, true)
	if err != nil {
		return unix.ENOENT // there is no such link in /proc/self/fd
	}
	return d.link(h.i, fd, name)
}

func (d *disk) link(i *inode, fd int, name string) error {
	dir, err := d.free(fd, name)
	switch {
	case err != nil:
		return err
	case i.is(unix.S_IFDIR):
		return unix.EPERM
	case i.nlink == 0 && !i.linkable:
		return unix.ENOENT
	}
	d.change()
	d.enter(dir, name, i)
	return nil
}

func (d *disk) Unlink(fd int, name string) error {
	defer d.lock()()
	dir, i, err := d.victim(fd, name)
	if err != nil {
		return err
	}
	if i.is(unix.S_IFDIR) {
		return unix.EISDIR
	}
	d.change()
	d.log(nameOp{slots: []slot{{dir, name, nil}}, nodes: []*inode{i}})
	d.drop(dir, i)
	return nil
}

func (d *disk) Rmdir(fd int, name string) error {
	defer d.lock()()
	dir, i, err := d.victim(fd, name)
	switch {
	case err != nil:
		return err
	case !i.is(unix.S_IFDIR):
		return unix.ENOTDIR
	case len(i.entries) > 0:
		return unix.ENOTEMPTY
	}
	d.change()
	d.log(nameOp{slots: []slot{{dir, name, nil}}, nodes: []*inode{i}, gone: i})
	d.drop(dir, i)
	return nil
}

// victim finds a name with its directory.
func (d *disk) victim(fd int, name string) (dir, i *inode, err error) {
	if dir, err = d.dir(fd); err == nil {
		i, err = dir.lookup(name)
	}
	return dir, i, err
}

// drop counts a name less.
func (d *disk) drop(dir, i *inode) {
	if i.is(unix.S_IFDIR) {
		dir.nlink--
		i.nlink = 0
	} else {
		i.nlink--
	}
	d.forget(i)
}

func (d *disk) Rename(ofd int, oname string, fd int, name string, flags uint) error {
	defer d.lock()()
	if flags != 0 && d.noFlags || flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 ||
		flags == unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE {
		return unix.EINVAL
	}
	odir, err := d.dir(ofd)
	if err != nil {
		return err
	}
	dir, err := d.dir(fd)
	if err != nil {
		return err
	}
	exchange := flags&unix.RENAME_EXCHANGE != 0
	from, err := odir.lookup(oname)
	if err != nil {
		return err
	}
	to, err := dir.lookup(name)
	if err != nil && (err != unix.ENOENT || exchange || dir.nlink == 0) {
		return err
	}
	if err := renamable(odir, from, dir, to, flags); err != nil || from == to {
		return err
	}
	d.change()
	op := nameOp{slots: []slot{{odir, oname, nil}, {dir, name, from}}, nodes: []*inode{from}}
	if exchange {
		op.slots[0].to = to
	}
	op.moved = from.is(unix.S_IFDIR) || exchange && to.is(unix.S_IFDIR)
	if to != nil {
		op.nodes = append(op.nodes, to)
		if !exchange && to.is(unix.S_IFDIR) {
			op.gone = to
		}
	}
	d.log(op)
	if to != nil && exchange {
		to.settle(dir, odir)
	} else if to != nil {
		d.drop(dir, to)
	}
	from.settle(odir, dir)
	return nil
}

// settle moves a directory's link to its parent.
func (i *inode) settle(from, to *inode) {
	if i.parent = to; i.is(unix.S_IFDIR) {
		from.nlink--
		to.nlink++
	}
}

// renamable has the checks of do_renameat2 and vfs_rename (Linux 6.18, fs/namei.c), in their order.
func renamable(odir, from, dir, to *inode, flags uint) error {
	exchange := flags&unix.RENAME_EXCHANGE != 0
	isDir := from.is(unix.S_IFDIR)
	switch {
	case to != nil && flags&unix.RENAME_NOREPLACE != 0:
		return unix.EEXIST
	case isDir && within(dir, from):
		return unix.EINVAL
	case to == nil || from == to:
		return nil
	case to.is(unix.S_IFDIR) && within(odir, to):
		if exchange {
			return unix.EINVAL
		}
		return unix.ENOTEMPTY
	case exchange:
		return nil
	case isDir && !to.is(unix.S_IFDIR):
		return unix.ENOTDIR
	case !isDir && to.is(unix.S_IFDIR):
		return unix.EISDIR
	case len(to.entries) > 0:
		return unix.ENOTEMPTY
	}
	return nil
}

// within reports whether a directory is another or lies below it.
func within(dir, top *inode) bool {
	for ; dir != top; dir = dir.parent {
		if dir == dir.parent {
			return false
		}
	}
	return true
}

package txn

import (
	"golang.org/x/sys/unix"
)

// Stat is fstatat of a version in d.
func (d *Dir) Stat(name string, st *unix.Statx_t) error { return d.o.sys.Stat(d.fd, name, st) }

// make runs what makes a name that is not a regular file: at once and in place, unless it is reserved.
func (d *Dir) make(name string, c Caller, do func(sys Sys) error) error {
	if name == Hidden {
		return unix.EPERM
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.slots[name]) > 0 {
		return unix.EEXIST
	}
	return d.o.sys.As(c.Cred, func() error { return do(d.o.keep) })
}

// Mkdir makes a directory for the caller.
func (d *Dir) Mkdir(name string, mode, umask uint32, c Caller) error {
	mode = d.createMode(mode&0o7777, umask)
	return d.make(name, c, func(sys Sys) error { return sys.Mkdir(d.fd, name, mode) })
}

// Mknod makes a special file, or an empty regular one, for the caller.
func (d *Dir) Mknod(name string, mode, umask uint32, rdev uint64, c Caller) error {
	mode = mode&unix.S_IFMT | d.createMode(mode&0o7777, umask)
	return d.make(name, c, func(sys Sys) error { return sys.Mknod(d.fd, name, mode, rdev) })
}

// Symlink makes a symbolic link for the caller.
func (d *Dir) Symlink(target, name string, c Caller) error {
	return d.make(name, c, func(sys Sys) error { return sys.Symlink(target, d.fd, name) })
}

// CreateDirect makes a regular file in place and opens it.
func (d *Dir) CreateDirect(name string, flags int, mode, umask uint32, c Caller) (fd int, err error) {
	mode = d.createMode(mode&0o7777, umask)
	err = d.make(name, c, func(sys Sys) (err error) {
		fd, err = sys.Open(d.fd, name, flags|unix.O_CREAT|unix.O_NOFOLLOW, mode)
		return err
	})
	return fd, err
}

// Tmpfile makes a file without a name in d.
func (d *Dir) Tmpfile(flags int, mode, umask uint32, c Caller) (fd int, err error) {
	mode = d.createMode(mode&0o7777, umask)
	err = d.o.sys.As(c.Cred, func() (err error) {
		fd, err = d.o.keep.Open(d.fd, ".", flags|unix.O_TMPFILE, mode)
		return err
	})
	return fd, err
}

// Link gives the version behind fd (O_PATH will do) one more name.
func (d *Dir) Link(fd int, name string, c Caller) error {
	return d.make(name, Caller{Cred: Cred{daemonUid, daemonGid}}, func(sys Sys) error { return sys.LinkFd(fd, d.fd, name) })
}

// LinkStaged gives a staged file one more name, under which it will be published as well.
func (d *Dir) LinkStaged(st *Staged, name string) error {
	if name == Hidden {
		return unix.EPERM
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.key != st.store.key {
		return unix.EXDEV
	}
	var s unix.Statx_t
	err := d.o.sys.Stat(d.fd, name, &s)
	if len(d.slots[name]) > 0 || err == nil {
		return unix.EEXIST
	}
	if err != unix.ENOENT {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	switch st.state {
	case Writing:
		st.places = append(st.places, place{d.retain(), name})
		d.put(name, st)
		return nil
	case Detached:
		return unix.ENOENT // as for any file whose last name is gone (linkat(2))
	}
	return ErrStale
}

// visible returns what is reserved under a name for a caller, nil if he may not see it.
func (d *Dir) visible(name string, c Caller) *Staged {
	for _, st := range d.stagedAt(name) {
		st.settle()
		if st.Belongs(c) {
			return st
		}
	}
	return nil
}

// Unlink removes a name: the version, and with it the claim of every file that is staged for the name; without a version
// the reserved file, if the caller may see it. Closing those publishes nothing then.
func (d *Dir) Unlink(name string, c Caller) error {
	if name == Hidden {
		return unix.ENOENT
	}
	own := d.visible(name, c)
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.o.sys.Unlink(d.fd, name)
	if err == nil || (err == unix.ENOENT && own != nil) {
		d.detachAll(name)
		return nil
	}
	return err
}

// detachAll takes every staged file off a name.
//
// LOCKS_REQUIRED(d.mu)
func (d *Dir) detachAll(name string) {
	for len(d.slots[name]) > 0 {
		d.detach(name, d.slots[name][0])
	}
}

// detach takes one staged file off a name. With its last name goes its temp, as the inode of any unlinked file: the
// writers go on in it, and it ends with them.
//
// LOCKS_REQUIRED(d.mu)
func (d *Dir) detach(name string, st *Staged) {
	d.take(name, st)
	st.mu.Lock()
	defer st.mu.Unlock()
	for i, p := range st.places {
		if p.dir != d || p.name != name {
			continue
		}
		st.places = append(st.places[:i:i], st.places[i+1:]...)
		d.o.mu.Lock()
		d.refs-- // cannot be the last: our caller holds d
		d.o.mu.Unlock()
		break
	}
	if len(st.places) == 0 && st.state == Writing {
		st.to(Detached)
		d.o.sys.Unlink(st.store.fd, st.temp)
	}
}

// Rmdir removes a directory. A reserved name in it makes it not empty.
func (d *Dir) Rmdir(name string) error {
	if name == Hidden {
		return unix.ENOENT
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.unoccupied(name); err != nil {
		return err
	}
	return d.o.sys.Rmdir(d.fd, name)
}

// unoccupied makes sure that nothing is staged in the subdirectory of that name: unix.ENOTEMPTY.
func (d *Dir) unoccupied(name string) error {
	var s unix.Statx_t
	if err := d.o.sys.Stat(d.fd, name, &s); err != nil {
		return err
	}
	d.o.mu.Lock()
	defer d.o.mu.Unlock()
	if sub := d.o.dirs[IdentOf(&s)]; sub != nil && sub.live.Load() > 0 {
		return unix.ENOTEMPTY
	}
	return nil
}

// Rename is renameat2(2), for versions and reserved names alike. Files staged for the old name follow it; those staged
// for the new name lose it, as the file that they were to replace does. It returns what moved to the new name, and, for
// RENAME_EXCHANGE, what moved to the old one.
func (d *Dir) Rename(name string, nd *Dir, nname string, flags uint, c Caller) (moved, back Ident, err error) {
	if name == Hidden {
		return moved, back, unix.ENOENT
	}
	if nname == Hidden {
		return moved, back, unix.EPERM
	}
	own := d.visible(name, c)
	unlock := lockDirs(d, nd)
	defer unlock()
	var from, to unix.Statx_t
	ferr, terr := d.o.sys.Stat(d.fd, name, &from), d.o.sys.Stat(nd.fd, nname, &to)
	if ferr != nil && (ferr != unix.ENOENT || own == nil) {
		return moved, back, ferr
	}
	if terr != nil && terr != unix.ENOENT {
		return moved, back, terr
	}
	reserved := terr != nil && len(nd.slots[nname]) > 0
	if reserved && !nd.mayDisplace(nname, c) {
		return moved, back, unix.EPERM
	}
	if flags&unix.RENAME_NOREPLACE != 0 && (terr == nil || reserved) {
		return moved, back, unix.EEXIST
	}
	if ferr != nil {
		return own.id, IdentOf(&to), d.renameReserved(own, name, nd, nname, flags, terr, &to)
	}
	moved, back = IdentOf(&from), IdentOf(&to)
	if terr == nil && moved == back {
		return moved, back, nil // two names of one file: rename(2) does nothing then
	}
	if terr == nil && to.Mode&unix.S_IFMT == unix.S_IFDIR && flags&unix.RENAME_EXCHANGE == 0 {
		if err := nd.unoccupied(nname); err != nil {
			return moved, back, err
		}
	}
	rename := func() error { return d.o.sys.Rename(d.fd, name, nd.fd, nname, flags) }
	if reserved && flags&unix.RENAME_EXCHANGE != 0 { // with a file that has no version yet
		err = d.o.sys.Rename(d.fd, name, nd.fd, nname, unix.RENAME_NOREPLACE)
	} else if flags&unix.RENAME_WHITEOUT != 0 { // makes a file as well
		err = d.o.sys.As(c.Cred, rename)
	} else {
		err = rename()
	}
	if err != nil {
		return moved, back, err
	}
	if flags&unix.RENAME_EXCHANGE != 0 {
		d.exchangeStaged(name, nd, nname)
		return moved, back, nil
	}
	nd.detachAll(nname)
	d.moveAll(name, nd, nname)
	return moved, back, nil
}

// renameReserved renames a file that has no version yet.
//
// LOCKS_REQUIRED(d.mu, nd.mu)
func (d *Dir) renameReserved(own *Staged, name string, nd *Dir, nname string, flags uint, terr error, to *unix.Statx_t) error {
	if d == nd && name == nname {
		return nil
	}
	if d.key != nd.key {
		return unix.EXDEV
	}
	if flags&unix.RENAME_EXCHANGE != 0 {
		if terr != nil {
			return terr
		}
		if err := d.o.sys.Rename(nd.fd, nname, d.fd, name, unix.RENAME_NOREPLACE); err != nil {
			return err
		}
		d.exchangeStaged(name, nd, nname)
		return nil
	}
	if terr == nil && to.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EISDIR
	}
	nd.detachAll(nname)
	d.moveAll(name, nd, nname)
	return nil
}

// mayDisplace applies the rule of sticky directories (rename(2)) to a reserved name, which the kernel takes for free.
//
// LOCKS_REQUIRED(d.mu)
func (d *Dir) mayDisplace(name string, c Caller) bool {
	var dir, file unix.Statx_t
	if c.Uid == 0 || d.o.sys.Stat(d.fd, "", &dir) != nil || dir.Mode&unix.S_ISVTX == 0 || dir.Uid == c.Uid {
		return true
	}
	for _, st := range d.slots[name] {
		if st.Stat(&file) == nil && file.Uid != c.Uid {
			return false
		}
	}
	return true
}

// moveAll lets everything staged for one name follow it to another.
//
// LOCKS_REQUIRED(d.mu, nd.mu)
func (d *Dir) moveAll(name string, nd *Dir, nname string) {
	for len(d.slots[name]) > 0 {
		d.move(d.slots[name][0], name, nd, nname)
	}
}

// LOCKS_REQUIRED(d.mu, nd.mu)
func (d *Dir) move(st *Staged, name string, nd *Dir, nname string) {
	d.take(name, st)
	nd.put(nname, st)
	st.mu.Lock()
	for i, p := range st.places {
		if p.dir == d && p.name == name {
			st.places[i] = place{nd.retain(), nname}
			d.o.mu.Lock()
			d.refs-- // cannot be the last: our caller holds d
			d.o.mu.Unlock()
		}
	}
	noted := len(st.pids) > 0
	st.mu.Unlock()
	if noted {
		st.note()
	}
}

// LOCKS_REQUIRED(d.mu, nd.mu)
func (d *Dir) exchangeStaged(name string, nd *Dir, nname string) {
	ours := append([]*Staged(nil), d.slots[name]...)
	theirs := append([]*Staged(nil), nd.slots[nname]...)
	for _, st := range ours {
		d.move(st, name, nd, nname)
	}
	for _, st := range theirs {
		nd.move(st, nname, d, name)
	}
}

// Rebind moves the claim of a staged file to another name of the version that it was started from: which of several hard
// links a caller opened is known only from the lookup that follows.
func (d *Dir) Rebind(st *Staged, name string) {
	from, old, ok := st.holdPlace()
	if !ok {
		return
	}
	defer from.Release()
	if from == d && old == name {
		return
	}
	unlock := lockDirs(from, d)
	defer unlock()
	if now, oldNow, ok := st.Place(); ok && now == from && oldNow == old {
		from.move(st, old, d, name)
	}
}

package txn

import (
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	page   = 4096
	sector = 512 // what a disk writes whole
)

// contents are the bytes of a file.
type contents struct {
	bytes []byte
	pages map[int]bool // that are no hole
	// dirty are the sectors that changed since the last fsync, lost those of which an fsync failed: Linux takes them for
	// clean then, shows them as long as they are cached, and never writes them.
	dirty, lost map[int]bool
	// stored is what the last fsync made durable.
	stored struct {
		attributes
		bytes []byte
	}
}

// touch marks a range as changed.
func (c *contents) touch(off, end int) {
	if c.dirty == nil {
		c.dirty, c.lost, c.pages = map[int]bool{}, map[int]bool{}, map[int]bool{}
	}
	for s := off / sector; s*sector < end; s++ {
		c.dirty[s] = true
		delete(c.lost, s)
	}
}

// fill makes the pages of a range no holes.
func (c *contents) fill(off, end int) {
	c.touch(off, off)
	for p := off / page; p*page < end; p++ {
		c.pages[p] = true
	}
}

func (c *contents) resize(size int) {
	was := len(c.bytes)
	if size < was {
		c.touch(size, was)
		c.bytes = slices.Clone(c.bytes[:size])
		maps.DeleteFunc(c.pages, func(p int, _ bool) bool { return p*page >= size })
	} else {
		c.bytes = append(slices.Clone(c.bytes), make([]byte, size-was)...)
		c.touch(was, size)
	}
}

func (c *contents) write(p []byte, off int) {
	if end := off + len(p); end > len(c.bytes) {
		c.resize(end)
	}
	c.touch(off, off+len(p))
	c.fill(off, off+len(p))
	copy(c.bytes[off:], p)
}

// each runs f for every sector of a size.
func each(size int, f func(s, off, end int)) {
	for off := 0; off < size; off += sector {
		f(off/sector, off, min(off+sector, size))
	}
}

// store makes everything durable but what was lost.
func (i *inode) store() {
	c := &i.file
	bytes := slices.Clone(c.bytes)
	each(len(bytes), func(s, off, end int) {
		if c.lost[s] {
			clear(bytes[off:end])
			copy(bytes[off:end], c.stored.bytes[min(off, len(c.stored.bytes)):])
		}
	})
	clear(c.dirty)
	c.stored.bytes, c.stored.attributes = bytes, i.attributes
	c.stored.xattrs = maps.Clone(i.xattrs)
}

// modified notes a change of the data.
func (i *inode) modified(t time.Time) { i.mtime, i.ctime = t, t }

func (d *disk) Pread(fd int, p []byte, off int64) (int, error) {
	defer d.lock()()
	h, err := d.handle(fd, false)
	switch {
	case err != nil:
		return 0, err
	case !h.reads():
		return 0, unix.EBADF
	case h.i.is(unix.S_IFDIR):
		return 0, unix.EISDIR
	case off >= int64(len(h.i.file.bytes)):
		return 0, nil
	}
	return copy(p, h.i.file.bytes[off:]), nil
}

func (d *disk) Pwrite(fd int, p []byte, off int64) (int, error) {
	defer d.lock()()
	h, err := d.handle(fd, false)
	if err != nil {
		return 0, err
	}
	if !h.writes() {
		return 0, unix.EBADF
	}
	if len(p) == 0 {
		return 0, nil
	}
	h.i.modified(d.change())
	if h.flags&unix.O_APPEND != 0 {
		off = int64(len(h.i.file.bytes))
	}
	h.i.file.write(p, int(off))
	return len(p), nil
}

func (d *disk) Truncate(fd int, size int64) error {
	defer d.lock()()
	h, err := d.handle(fd, false)
	if err != nil {
		return err
	}
	if size < 0 || !h.writes() {
		return unix.EINVAL
	}
	h.i.modified(d.change())
	h.i.file.resize(int(size))
	return nil
}

func (d *disk) Fallocate(fd int, mode uint32, off, n int64) error {
	defer d.lock()()
	h, err := d.handle(fd, false)
	switch {
	case err != nil:
		return err
	case off < 0 || n <= 0:
		return unix.EINVAL
	case mode&^(unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE) != 0 || mode == unix.FALLOC_FL_PUNCH_HOLE:
		return unix.EOPNOTSUPP
	case !h.writes():
		return unix.EBADF
	}
	t := d.change()
	c, end := &h.i.file, int(off+n)
	if mode&unix.FALLOC_FL_PUNCH_HOLE != 0 {
		h.i.modified(t)
		inside := min(end, len(c.bytes))
		c.touch(int(off), inside)
		clear(c.bytes[min(int(off), inside):inside])
		maps.DeleteFunc(c.pages, func(p int, _ bool) bool { return p*page >= int(off) && (p+1)*page <= end })
		return nil
	}
	if mode == 0 && end > len(c.bytes) {
		h.i.modified(t)
		c.resize(end)
	}
	h.i.ctime = t
	c.fill(int(off), end)
	return nil
}

func (d *disk) Seek(fd int, off int64, whence int) (int64, error) {
	defer d.lock()()
	h, err := d.handle(fd, false)
	if err != nil {
		return 0, err
	}
	size := int64(len(h.i.file.bytes))
	switch whence {
	case unix.SEEK_END:
		return size + off, nil
	case unix.SEEK_DATA, unix.SEEK_HOLE:
		if off < 0 || off >= size {
			return 0, unix.ENXIO
		}
		for ; off < size; off = (off/page + 1) * page {
			if h.i.file.pages[int(off/page)] == (whence == unix.SEEK_DATA) {
				return off, nil
			}
		}
		if whence == unix.SEEK_DATA {
			return 0, unix.ENXIO
		}
		return size, nil // the hole that every file ends with
	}
	panic("a way to seek that untorn has no use for")
}

// pair checks the two files of a copy.
func (d *disk) pair(src, dst int) (from, to *handle, err error) {
	if from, err = d.handle(src, false); err == nil {
		to, err = d.handle(dst, false)
	}
	switch {
	case err != nil:
	case from.i.is(unix.S_IFDIR) || to.i.is(unix.S_IFDIR):
		err = unix.EISDIR
	case !from.reads() || !to.writes() || to.flags&unix.O_APPEND != 0:
		err = unix.EBADF
	}
	return from, to, err
}

func (d *disk) CopyRange(src int, srcOff int64, dst int, dstOff int64, n int) (int, error) {
	defer d.lock()()
	from, to, err := d.pair(src, dst)
	if err != nil {
		return 0, err
	}
	size := int64(len(from.i.file.bytes))
	n = int(max(0, min(int64(n), size-srcOff)))
	if from.i == to.i && srcOff+int64(n) > dstOff && dstOff+int64(n) > srcOff {
		return 0, unix.EINVAL
	}
	if n == 0 {
		return 0, nil
	}
	to.i.modified(d.change())
	to.i.file.write(slices.Clone(from.i.file.bytes[srcOff:srcOff+int64(n)]), int(dstOff))
	return n, nil
}

func (d *disk) Clone(dst, src int) error {
	defer d.lock()()
	from, to, err := d.pair(src, dst)
	if err != nil {
		return err
	}
	if !d.reflinks {
		return unix.EOPNOTSUPP
	}
	to.i.modified(d.change())
	to.i.file.resize(len(from.i.file.bytes))
	to.i.file.touch(0, len(to.i.file.bytes))
	copy(to.i.file.bytes, from.i.file.bytes)
	clear(to.i.file.pages)
	maps.Copy(to.i.file.pages, from.i.file.pages)
	return nil
}

// Fsync makes durable what the man page promises and nothing else: of a file the bytes and attributes but no name, of a
// directory the names in it but nothing of the files behind them.
func (d *disk) Fsync(fd int) error {
	defer d.lock()()
	h, err := d.handle(fd, false)
	if err != nil {
		return err
	}
	d.change()
	return d.harden(h.i)
}

// Syncfs makes everything durable, in the order of inode numbers. Names of files that could not be written are durable
// all the same.
func (d *disk) Syncfs(fd int) error {
	defer d.lock()()
	if _, err := d.handle(fd, false); err != nil {
		return err
	}
	d.change()
	var first error
	for _, ino := range slices.Sorted(maps.Keys(d.inos)) {
		if err := d.harden(d.inos[ino]); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// harden makes an inode durable, of a directory the names in it.
func (d *disk) harden(i *inode) error {
	if i.is(unix.S_IFDIR) {
		if !d.deaf {
			d.settle(i)
		}
		return nil
	}
	if d.broken != nil {
		if err := d.broken(i); err != nil {
			i.file.touch(0, 0)
			maps.Copy(i.file.lost, i.file.dirty)
			clear(i.file.dirty)
			return err
		}
	}
	if !d.deaf {
		i.store()
	}
	return nil
}

func (d *disk) Fdatasync(fd int) error { return d.Fsync(fd) }

func (d *disk) Leased(fd int) (bool, error) {
	defer d.lock()()
	h, err := d.handle(fd, false)
	if err != nil {
		return false, err
	}
	if !h.i.is(unix.S_IFREG) {
		return false, unix.EINVAL
	}
	for _, other := range d.fds {
		if other.i == h.i && other.flags&unix.O_PATH == 0 && other.writes() {
			return false, nil
		}
	}
	return true, nil
}

// set changes attributes of an open file.
func (d *disk) set(fd int, f func(i *inode) error) error {
	defer d.lock()()
	h, err := d.handle(fd, true)
	if err != nil {
		return err
	}
	t := d.change()
	if err := f(h.i); err != nil {
		return err
	}
	h.i.ctime = t
	return nil
}

func (d *disk) Chmod(fd int, mode uint32) error {
	return d.set(fd, func(i *inode) error { i.mode = i.mode&unix.S_IFMT | mode&0o7777; return nil })
}

func (d *disk) Chown(fd int, uid, gid int) error {
	return d.set(fd, func(i *inode) error {
		if uid >= 0 {
			i.uid = uint32(uid)
		}
		if gid >= 0 {
			i.gid = uint32(gid)
		}
		if i.is(unix.S_IFREG) {
			i.mode &^= unix.S_ISUID
			if i.mode&unix.S_IXGRP != 0 {
				i.mode &^= unix.S_ISGID
			}
		}
		return nil
	})
}

func (d *disk) Utimes(fd int, atime, mtime unix.Timespec) error {
	return d.set(fd, func(i *inode) error {
		for at, ts := range map[*time.Time]unix.Timespec{&i.atime: atime, &i.mtime: mtime} {
			switch ts.Nsec {
			case unix.UTIME_OMIT:
			case unix.UTIME_NOW:
				*at = d.clock
			default:
				*at = time.Unix(ts.Sec, ts.Nsec)
			}
		}
		return nil
	})
}

func (d *disk) Setxattr(fd int, name string, p []byte, flags int) error {
	return d.set(fd, func(i *inode) error {
		_, exists := i.xattrs[name]
		switch {
		case flags == unix.XATTR_CREATE && exists:
			return unix.EEXIST
		case flags == unix.XATTR_REPLACE && !exists:
			return unix.ENODATA
		}
		i.xattrs[name] = string(p)
		return nil
	})
}

func (d *disk) Removexattr(fd int, name string) error {
	return d.set(fd, func(i *inode) error {
		if _, exists := i.xattrs[name]; !exists {
			return unix.ENODATA
		}
		delete(i.xattrs, name)
		return nil
	})
}

func (d *disk) Getxattr(fd int, name string, p []byte) (int, error) {
	defer d.lock()()
	h, err := d.handle(fd, true)
	if err != nil {
		return 0, err
	}
	value, exists := h.i.xattrs[name]
	if !exists {
		return 0, unix.ENODATA
	}
	return answerXattr(p, value)
}

func (d *disk) Listxattr(fd int, p []byte) (int, error) {
	defer d.lock()()
	h, err := d.handle(fd, true)
	if err != nil {
		return 0, err
	}
	list := ""
	for _, name := range slices.Sorted(maps.Keys(h.i.xattrs)) {
		list += name + "\x00"
	}
	return answerXattr(p, list)
}

// answerXattr is how the kernel returns values and lists: an empty buffer asks for the size.
func answerXattr(p []byte, value string) (int, error) {
	if len(p) == 0 {
		return len(value), nil
	}
	if len(p) < len(value) {
		return 0, unix.ERANGE
	}
	return copy(p, value), nil
}

func (d *disk) InodeFlags(fd int) (int, error) {
	defer d.lock()()
	_, err := d.handle(fd, false)
	return 0, err
}

package txn

import (
	"encoding/binary"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// disk is a filesystem in memory, as a Sys, whose power can be cut. It knows of every file and of every name what is
// durable and what is only in the page cache; crash_cut_test.go says what a power cut may leave of the latter. It behaves
// as Linux does for root on tmpfs (TestDiskIsLinux compares them), and has no permission checks, because the tests of
// those are elsewhere.
type disk struct {
	features
	mu   sync.Mutex
	root *inode
	fds  map[int]*handle
	top  int // the newest descriptor
	inos map[uint64]*inode
	ops  []nameOp // what happened to names and is not durable yet, oldest first
	// clock is the time of the next change. It lies an hour back, so that whatever a dead daemon left is old.
	clock time.Time
	cred  Cred // for whom files are made
	as    sync.Mutex
	// cut is called with mu held before anything is changed or made durable: where the power may fail.
	cut func()
}

// features are what filesystems differ in.
type features struct {
	noFlags   bool // no RENAME_NOREPLACE and RENAME_EXCHANGE
	noTmpfile bool
	reflinks  bool
	// deaf is a disk that says yes to a flush and does nothing.
	deaf bool
	// broken fails the fsync of a file; what it was to write never reaches the disk.
	broken func(i *inode) error
}

// inode is what names lead to.
type inode struct {
	ino  uint64
	born time.Time
	attributes
	nlink    int
	linkable bool // made by O_TMPFILE and never linked
	opens    int
	locks    map[*handle]int // flock(2)
	target   string          // of a symlink
	file     contents
	// entries are the names in a directory as programs see them, stored those that survive a power cut.
	entries, stored map[string]*inode
	parent          *inode
}

type attributes struct {
	mode                uint32
	uid, gid            uint32
	rdev                uint64
	atime, mtime, ctime time.Time
	xattrs              map[string]string
}

// handle is an open file.
type handle struct {
	i     *inode
	flags int
	list  []string // what is left to be read of a directory, nil before the first read
	read  bool
}

var _ Sys = (*disk)(nil)

func newDisk(f features) *disk {
	d := &disk{features: f, fds: map[int]*handle{}, top: 1000, inos: map[uint64]*inode{},
		clock: time.Now().Add(-time.Hour), cred: Cred{daemonUid, daemonGid}}
	d.root = d.inode(unix.S_IFDIR | 0o755)
	d.root.parent, d.root.nlink = d.root, 2
	return d
}

func (d *disk) lock() (unlock func()) {
	d.mu.Lock()
	return d.mu.Unlock
}

// change is called before each change; it returns the time of it.
func (d *disk) change() time.Time {
	if d.cut != nil {
		d.cut()
	}
	d.clock = d.clock.Add(time.Microsecond)
	return d.clock
}

// inode makes one. Like ext4 it takes the lowest number that is free, so that a new file often has that of the one that
// was just replaced.
func (d *disk) inode(mode uint32) *inode {
	ino := uint64(2)
	for d.inos[ino] != nil {
		ino++
	}
	d.clock = d.clock.Add(time.Microsecond)
	i := &inode{ino: ino, born: d.clock, locks: map[*handle]int{}}
	i.attributes = attributes{mode: mode, uid: d.cred.Uid, gid: d.cred.Gid, xattrs: map[string]string{},
		atime: d.clock, mtime: d.clock, ctime: d.clock}
	if i.is(unix.S_IFDIR) {
		i.entries, i.stored = map[string]*inode{}, map[string]*inode{}
	}
	i.file.stored.attributes = i.attributes
	d.inos[ino] = i
	return i
}

// forget frees the number of an inode that nothing leads to any more.
func (d *disk) forget(i *inode) {
	if i.nlink == 0 && i.opens == 0 && d.inos[i.ino] == i {
		delete(d.inos, i.ino)
	}
}

func (i *inode) is(kind uint32) bool { return i.mode&unix.S_IFMT == kind }

// handle finds an open file; O_PATH descriptors are none to calls that read or write (EBADF).
func (d *disk) handle(fd int, path bool) (*handle, error) {
	h := d.fds[fd]
	if h == nil || !path && h.flags&unix.O_PATH != 0 {
		return nil, unix.EBADF
	}
	return h, nil
}

func (h *handle) reads() bool  { return h.flags&unix.O_ACCMODE != unix.O_WRONLY }
func (h *handle) writes() bool { return h.flags&unix.O_ACCMODE != unix.O_RDONLY }

// dir finds an open directory.
func (d *disk) dir(fd int) (*inode, error) {
	h, err := d.handle(fd, true)
	if err != nil {
		return nil, err
	}
	if !h.i.is(unix.S_IFDIR) {
		return nil, unix.ENOTDIR
	}
	return h.i, nil
}

// lookup finds a name in a directory.
func (i *inode) lookup(name string) (*inode, error) {
	switch {
	case !i.is(unix.S_IFDIR):
		return nil, unix.ENOTDIR
	case name == ".":
		return i, nil
	case name == "..":
		return i.parent, nil
	case len(name) > 255:
		return nil, unix.ENAMETOOLONG
	case strings.Contains(name, "/"):
		panic("a path, where a name belongs: " + name)
	}
	if e := i.entries[name]; e != nil {
		return e, nil
	}
	return nil, unix.ENOENT
}

// at finds (fd, name); an empty name is the descriptor itself.
func (d *disk) at(fd int, name string) (*inode, error) {
	if name == "" {
		h, err := d.handle(fd, true)
		if err != nil {
			return nil, err
		}
		return h.i, nil
	}
	dir, err := d.dir(fd)
	if err != nil {
		return nil, err
	}
	return dir.lookup(name)
}

func (d *disk) Open(fd int, name string, flags int, mode uint32) (int, error) {
	defer d.lock()()
	dir, err := d.dir(fd)
	if err != nil {
		return -1, err
	}
	if flags&unix.O_PATH != 0 {
		flags &= unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW
	}
	i, err := dir.lookup(name)
	switch {
	case err == nil && flags&unix.O_TMPFILE == unix.O_TMPFILE:
		if d.noTmpfile {
			return -1, unix.EOPNOTSUPP
		}
		d.change()
		i = d.made(dir, unix.S_IFREG|mode&0o7777)
		i.linkable = flags&unix.O_EXCL == 0
		return d.open(i, flags&^(unix.O_TMPFILE|unix.O_EXCL|unix.O_CREAT))
	case err == unix.ENOENT && flags&unix.O_CREAT != 0:
		if dir.nlink == 0 {
			return -1, unix.ENOENT
		}
		d.change()
		i = d.made(dir, unix.S_IFREG|mode&0o7777)
		d.enter(dir, name, i)
		return d.open(i, flags&^(unix.O_CREAT|unix.O_TRUNC))
	case err != nil:
		return -1, err
	case flags&unix.O_CREAT != 0 && flags&unix.O_EXCL != 0:
		return -1, unix.EEXIST
	}
	return d.open(i, flags)
}

// open makes a descriptor.
func (d *disk) open(i *inode, flags int) (int, error) {
	path := flags&unix.O_PATH != 0
	switch {
	case flags&unix.O_DIRECTORY != 0 && !i.is(unix.S_IFDIR):
		return -1, unix.ENOTDIR
	case i.is(unix.S_IFLNK) && !path:
		return -1, unix.ELOOP // nothing in untorn follows one
	case i.is(unix.S_IFDIR) && flags&(unix.O_ACCMODE|unix.O_CREAT) != 0:
		return -1, unix.EISDIR
	}
	h := &handle{i: i, flags: flags}
	if flags&unix.O_TRUNC != 0 && i.is(unix.S_IFREG) {
		i.modified(d.change())
		i.file.resize(0)
	}
	d.top++
	d.fds[d.top] = h
	i.opens++
	return d.top, nil
}

func (d *disk) Reopen(fd int, flags int) (int, error) {
	defer d.lock()()
	h, err := d.handle(fd, true)
	if err != nil {
		return -1, err
	}
	return d.open(h.i, flags)
}

func (d *disk) Close(fd int) error {
	defer d.lock()()
	h := d.fds[fd]
	if h == nil {
		return unix.EBADF
	}
	delete(d.fds, fd)
	delete(h.i.locks, h)
	h.i.opens--
	d.forget(h.i)
	return nil
}

func (d *disk) OpenBeneath(fd int, name string, flags int) (int, error) {
	defer d.lock()()
	switch {
	case name == "":
		return -1, unix.ENOENT
	case name[0] == '/':
		return -1, unix.EXDEV
	}
	top, err := d.dir(fd)
	if err != nil {
		return -1, err
	}
	i := top
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." && i == top {
			return -1, unix.EXDEV
		}
		if i.is(unix.S_IFLNK) {
			return -1, unix.ELOOP
		}
		if i, err = i.lookup(part); err != nil {
			return -1, err
		}
	}
	if i.is(unix.S_IFLNK) {
		return -1, unix.ELOOP
	}
	return d.open(i, flags)
}

func (d *disk) Path(fd int) (string, error) {
	defer d.lock()()
	i, err := d.at(fd, "")
	if err != nil {
		return "", err
	}
	gone := ""
	if i.nlink == 0 {
		gone = " (deleted)"
	}
	at := "/"
	for ; i != d.root; i = i.parent {
		name := "?"
		if i.parent == nil {
			return "/?" + gone, nil
		}
		for n, e := range i.parent.entries {
			if e == i {
				name = n
			}
		}
		at = path.Join("/", name, at)
	}
	return at + gone, nil
}

// The disk is one device, mounted once.
const diskMinor, diskMount = 77, 1 << 40

func (d *disk) Stat(fd int, name string, st *unix.Statx_t) error {
	defer d.lock()()
	i, err := d.at(fd, name)
	if err != nil {
		return err
	}
	stamp := func(t time.Time) unix.StatxTimestamp {
		return unix.StatxTimestamp{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}
	}
	*st = unix.Statx_t{
		Mask: statxMask, Blksize: page, Nlink: uint32(i.nlink), Uid: i.uid, Gid: i.gid, Mode: uint16(i.mode), Ino: i.ino,
		Atime: stamp(i.atime), Mtime: stamp(i.mtime), Ctime: stamp(i.ctime), Btime: stamp(i.born),
		Dev_minor: diskMinor, Mnt_id: diskMount, Rdev_major: unix.Major(i.rdev), Rdev_minor: unix.Minor(i.rdev),
	}
	switch {
	case i.is(unix.S_IFREG):
		st.Size, st.Blocks = uint64(len(i.file.bytes)), uint64(len(i.file.pages)*page/512)
	case i.is(unix.S_IFLNK):
		st.Size = uint64(len(i.target))
	}
	return nil
}

func (d *disk) Statfs(fd int, st *unix.Statfs_t) error {
	defer d.lock()()
	_, err := d.handle(fd, true)
	*st = unix.Statfs_t{Bsize: page, Frsize: page, Blocks: 1 << 20, Bfree: 1 << 19, Bavail: 1 << 19, Namelen: 255}
	return err
}

func (d *disk) Getdents(fd int, p []byte) (int, error) {
	defer d.lock()()
	h, err := d.handle(fd, false)
	switch {
	case err != nil:
		return 0, err
	case !h.i.is(unix.S_IFDIR):
		return 0, unix.ENOTDIR
	case h.i.nlink == 0:
		return 0, unix.ENOENT
	}
	if !h.read {
		h.read, h.list = true, []string{".", ".."}
		for name := range h.i.entries {
			h.list = append(h.list, name)
		}
		slices.Sort(h.list)
	}
	n := 0
	for ; len(h.list) > 0; h.list = h.list[1:] {
		e, err := h.i.lookup(h.list[0])
		if err != nil {
			continue // removed since
		}
		// struct linux_dirent64, getdents(2)
		size := (19 + len(h.list[0]) + 1 + 7) / 8 * 8
		if n+size > len(p) {
			if n == 0 {
				return 0, unix.EINVAL
			}
			break
		}
		clear(p[n : n+size])
		binary.NativeEndian.PutUint64(p[n:], e.ino)
		binary.NativeEndian.PutUint64(p[n+8:], uint64(len(h.list)))
		binary.NativeEndian.PutUint16(p[n+16:], uint16(size))
		p[n+18] = byte(e.mode & unix.S_IFMT >> 12)
		copy(p[n+19:], h.list[0])
		n += size
	}
	return n, nil
}

// Flock never waits; a daemon that is dead holds no lock, because nobody has its descriptors.
func (d *disk) Flock(fd int, how int) error {
	defer d.lock()()
	h, err := d.handle(fd, false)
	if err != nil {
		return err
	}
	how &^= unix.LOCK_NB
	if h.i.locks[h] == how {
		return nil
	}
	delete(h.i.locks, h) // a lock that cannot be converted is lost (flock(2))
	if how == unix.LOCK_UN {
		return nil
	}
	for other, held := range h.i.locks {
		if other != h && (how == unix.LOCK_EX || held == unix.LOCK_EX) {
			return unix.EWOULDBLOCK
		}
	}
	h.i.locks[h] = how
	return nil
}

// As is not for two threads at once, but for Linux it is the thread that has the ids.
func (d *disk) As(c Cred, f func() error) error {
	d.as.Lock()
	defer d.as.Unlock()
	set := func(c Cred) (was Cred) {
		defer d.lock()()
		was, d.cred = d.cred, c
		return was
	}
	defer set(set(c))
	return f()
}

func (d *disk) AsWriter(c Cred, f func() error) error   { return d.As(c, f) }
func (d *disk) AsCaller(_ Rights, f func() error) error { return f() } // everybody has all rights here

// mount opens the top directory, as what starts an Overlay or a recovery does.
func (d *disk) mount() int {
	defer d.lock()()
	fd, err := d.open(d.root, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		panic(err)
	}
	return fd
}

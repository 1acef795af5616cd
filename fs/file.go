package fs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"untorn/txn"
)

// file is an open file: what the kernel calls by a file handle.
type file struct {
	f     *FS
	n     *node
	flags uint32 // of open(2)
	cred  txn.Cred

	// fd does the reads and writes. It belongs to the file (own), to all readers of the version (shared), or to the
	// staged file (st).
	fd     int
	own    bool
	shared *reader
	st     *txn.Staged
	w      *txn.Writer // nil unless it writes to st

	beside  bool // on the node of a version, while fd is of the staged file
	passing bool // it counts in n.backing
}

// reader is the descriptor of a version that all its readers share.
type reader struct {
	fd   int
	refs int // GUARDED_BY(node.mu)
}

// files is the table of open files.
type files struct {
	mu   sync.RWMutex
	list []any    // GUARDED_BY(mu); *file or *stream, at index handle-1
	free []uint64 // GUARDED_BY(mu)
}

func (t *files) put(v any) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if k := len(t.free); k > 0 {
		h := t.free[k-1]
		t.free = t.free[:k-1]
		t.list[h-1] = v
		return h
	}
	t.list = append(t.list, v)
	return uint64(len(t.list))
}

func (t *files) any(h uint64) any {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if h == 0 || h > uint64(len(t.list)) {
		return nil
	}
	return t.list[h-1]
}

func (t *files) get(h uint64) *file {
	fl, _ := t.any(h).(*file)
	return fl
}

func (t *files) remove(h uint64) any {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h == 0 || h > uint64(len(t.list)) {
		return nil
	}
	v := t.list[h-1]
	t.list[h-1] = nil
	t.free = append(t.free, h)
	return v
}

// reader returns the shared descriptor of a version, opened if need be; the caller owes a putReader.
func (f *FS) reader(n *node) (*reader, error) {
	n.mu.Lock()
	if r := n.reading; r != nil {
		r.refs++
		n.mu.Unlock()
		return r, nil
	}
	n.mu.Unlock()
	fd, err := f.openVersion(n, unix.O_RDONLY)
	if err == txn.ErrStale {
		// Its name is gone, but not everybody who has it open.
		if other, release := n.openFd(); other >= 0 {
			fd, err = f.o.Sys().Reopen(other, unix.O_RDONLY)
			release()
		}
	}
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if r := n.reading; r != nil { // somebody was faster
		f.o.Sys().Close(fd)
		r.refs++
		return r, nil
	}
	n.reading = &reader{fd: fd, refs: 1}
	return n.reading, nil
}

// putReader gives a shared descriptor back.
//
// LOCKS_REQUIRED(n.mu)
func (n *node) putReader(f *FS, r *reader) {
	if r.refs--; r.refs == 0 {
		f.o.Sys().Close(r.fd)
		n.reading = nil
	}
}

// openFd borrows the descriptor of an open file of the node, -1 if there is none.
func (n *node) openFd() (fd int, release func()) {
	n.mu.Lock()
	for _, fl := range n.files {
		if !fl.beside {
			return fl.fd, n.mu.Unlock
		}
	}
	n.mu.Unlock()
	return -1, nil
}

// install makes an open file known and decides on its data path.
func (f *FS) install(n *node, fl *file, out *fuse.OpenOut) fuse.Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	if fl.beside {
		if s := n.pathBeside(fl, out); !s.Ok() {
			f.discard(n, fl)
			return s
		}
		fl.w.Opened()
	} else if !f.passOn(n, fl, out) && n.unchanged(f, fl) {
		out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
	}
	if fl.beside {
		n.beside.Store(true)
		n.keep.Store(true)
	}
	n.files = append(n.files, fl)
	f.nodes.retain(n)
	out.Fh = f.files.put(fl)
	return fuse.OK
}

// unchanged reports whether the file is as it was when it was opened last, so that what the kernel has cached of it is
// good.
//
// LOCKS_REQUIRED(n.mu)
func (n *node) unchanged(f *FS, fl *file) bool {
	if fl.st != nil && !fl.st.State().Ended() {
		return len(n.files) > 0 // all its writers are on this one node
	}
	var st unix.Statx_t
	if f.o.Sys().Stat(fl.fd, "", &st) != nil {
		return false
	}
	now := seen{st.Mtime, st.Ctime, st.Size}
	same := n.seen == now
	n.seen = now
	n.keep.Store(true)
	return same
}

// discard gives back what a file holds.
//
// LOCKS_REQUIRED(n.mu)
func (f *FS) discard(n *node, fl *file) {
	if fl.passing {
		n.putBacking(f)
	}
	switch {
	case fl.st != nil:
		if fl.w != nil {
			// Publishing takes locks that come before ours, see doc.go.
			n.mu.Unlock()
			before := fl.st.State()
			fl.w.Release() // Abandon, if it was refused
			if before != txn.Published {
				f.published(fl)
			}
			n.mu.Lock()
		}
		fl.st.Unhold()
	case fl.shared != nil:
		n.putReader(f, fl.shared)
	case fl.own:
		f.o.Sys().Close(fl.fd)
	}
}

// Release implements fuse.RawFileSystem.
func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	fl, _ := f.files.remove(in.Fh).(*file)
	if fl == nil {
		return
	}
	n := fl.n
	defer f.nodes.put(n)
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, o := range n.files {
		if o == fl {
			n.files = append(n.files[:i:i], n.files[i+1:]...)
			break
		}
	}
	f.discard(n, fl)
}

// Flush implements fuse.RawFileSystem: one close(2). It is not bound to the cancellation of the request: signals
// interrupt requests all the time, and what is decided here is decided.
func (f *FS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	fl := f.files.get(in.Fh)
	if fl == nil || fl.w == nil {
		return fuse.OK
	}
	err := fl.w.Flush(f.caller(&in.InHeader))
	f.published(fl)
	return status(err)
}

// published tells the kernel that the times of a directory have changed, if a file was published in it, and the attributes
// of a version, if it was given those of its staged copy.
func (f *FS) published(fl *file) {
	const onlyAttributes = -1 // fuse_reverse_inval_inode: a negative offset leaves the pages alone
	if fl.st.Adjusted() {
		if n := f.nodes.of(fl.st.Base()); n != nil {
			defer f.nodes.put(n)
			f.server.InodeNotify(n.id, onlyAttributes, 0)
		}
	}
	if fl.st.State() != txn.Published {
		return
	}
	if parent, _ := f.nodes.at(fl.n); parent != nil {
		defer f.nodes.put(parent)
		f.server.InodeNotify(parent.id, onlyAttributes, 0)
	}
}

// Fsync implements fuse.RawFileSystem.
func (f *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	fl := f.files.get(in.Fh)
	if fl == nil {
		return fuse.EBADF
	}
	data := in.FsyncFlags&1 != 0
	if fl.st != nil {
		return status(fl.st.Sync(data))
	}
	if data {
		return status(f.o.Sys().Fdatasync(fl.fd))
	}
	return status(f.o.Sys().Fsync(fl.fd))
}

// Read implements fuse.RawFileSystem.
func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	fl := f.files.get(in.Fh)
	if fl == nil {
		return nil, fuse.EBADF
	}
	n, err := f.o.Sys().Pread(fl.fd, buf, int64(in.Offset))
	if err != nil {
		return nil, status(err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write implements fuse.RawFileSystem. Every failure that loses bytes is remembered: programs often ignore it.
func (f *FS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	fl := f.files.get(in.Fh)
	if fl == nil {
		return 0, fuse.EBADF
	}
	sys := f.o.Sys()
	done, off := 0, int64(in.Offset)
	if fl.beside && fl.flags&unix.O_APPEND != 0 {
		// The kernel appends at the end of the version, whose node this is on.
		var st unix.Statx_t
		if err := sys.Stat(fl.fd, "", &st); err != nil {
			return 0, status(err)
		}
		off = int64(st.Size)
	}
	write := func(fd int) error {
		for done < len(data) {
			n, err := sys.Pwrite(fd, data[done:], off+int64(done))
			if err != nil {
				return err
			}
			done += n
		}
		return nil
	}
	cred := f.caller(&in.InHeader).Cred
	err := fl.writable(cred, write)
	if err != nil && fl.w != nil && fl.st.MakeRoom(err) {
		err = fl.writable(cred, write)
	}
	if err != nil {
		if fl.w != nil && txn.Poisonous(err) {
			fl.st.Poison(err)
		}
		if done == 0 {
			return 0, status(err)
		}
	}
	return uint32(done), fuse.OK
}

// Writev implements fuse.RawFileSystem: Write will be called.
func (f *FS) Writev(<-chan struct{}, *fuse.WriteIn, [][]byte) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}

// writable runs do with a descriptor that can write (with passthrough the one of a staged file cannot), as c.
func (fl *file) writable(c txn.Cred, do func(fd int) error) error {
	as := func(fd int) error {
		return fl.f.o.Sys().AsWriter(c, func() error { return do(fd) })
	}
	if fl.st == nil {
		return as(fl.fd)
	}
	if s := fl.st.State(); fl.w != nil && (s == txn.Publishing || s == txn.Published) {
		if err := fl.st.TakeBack(); err != nil {
			return err // what is published is never written again
		}
	}
	return fl.st.Writable(as)
}

func (fl *file) truncate(size int64, c txn.Cred) error {
	if fl.st != nil {
		fl.st.Touch()
	}
	return fl.writable(c, func(fd int) error { return fl.f.o.Sys().Truncate(fd, size) })
}

// truncatePath is truncate(2): stage, change, publish, in one request, or rather two, because the version and what
// replaces it are two nodes.
func (f *FS) truncatePath(n *node, size int64, c txn.Caller) error {
	t := thread{tid: c.Tid, uid: c.Uid, gid: c.Gid}.key()
	rd := f.redirects.take(t)
	if rd != nil && !rd.lazy() && rd.m == n {
		defer f.nodes.put(n)
		err := rd.w.Staged().Truncate(size)
		if cerr := rd.w.Commit(); err == nil {
			err = cerr
		}
		return err
	}
	if rd != nil && !rd.lazy() && rd.of(n) && rd.w.Staged().Base() == n.ident {
		// No lookup came in between: it was named by /proc/self/fd.
		defer f.nodes.put(rd.m)
		err := rd.w.Staged().Truncate(size)
		if cerr := rd.w.Commit(); err == nil {
			err = cerr
		}
		return err
	}
	f.redirects.drop(rd)
	if n.staged != nil && !n.staged.State().Ended() {
		return n.staged.Truncate(size)
	}
	parent, name := f.nodes.at(n)
	defer f.nodes.put(parent)
	d, err := f.dirOf(parent)
	if err != nil {
		return err
	}
	w, err := (*txn.Writer)(nil), error(txn.ErrInPlace)
	if !d.InPlace(name) {
		w, err = d.OpenWrite(name, n.ident, unix.O_WRONLY, c)
	}
	if err == txn.ErrInPlace {
		fd, err := f.openVersion(n, unix.O_WRONLY)
		if err != nil {
			return err
		}
		defer f.o.Sys().Close(fd)
		return f.o.Sys().Truncate(fd, size)
	}
	if err == txn.ErrStale {
		f.redirects.put(t, &redirect{n: n, flags: unix.O_WRONLY})
		return err
	}
	if err != nil {
		return err
	}
	f.redirects.put(t, &redirect{n: n, m: f.nodes.ofStaged(w.Staged(), parent, name), w: w, flags: unix.O_WRONLY, d: d, name: name})
	// No notification here: the kernel holds the lock of the inode, and a rename that waits for it holds that of the
	// directory, which a notification needs.
	return txn.ErrStale
}

// Fallocate implements fuse.RawFileSystem.
func (f *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	fl := f.files.get(in.Fh)
	if fl == nil {
		return fuse.EBADF
	}
	err := fl.writable(f.caller(&in.InHeader).Cred, func(fd int) error {
		return f.o.Sys().Fallocate(fd, in.Mode, int64(in.Offset), int64(in.Length))
	})
	if fl.w != nil && txn.Poisonous(err) && err != unix.EFBIG {
		fl.st.Poison(err)
	}
	return status(err)
}

// Lseek implements fuse.RawFileSystem. The kernel asks only for SEEK_DATA and SEEK_HOLE.
func (f *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	fl := f.files.get(in.Fh)
	if fl == nil {
		return fuse.EBADF
	}
	off, err := f.o.Sys().Seek(fl.fd, int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return status(err)
}

// CopyFileRange implements fuse.RawFileSystem.
func (f *FS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	from, to := f.files.get(in.FhIn), f.files.get(in.FhOut)
	if from == nil || to == nil {
		return 0, fuse.EBADF
	}
	var n int
	err := to.writable(f.caller(&in.InHeader).Cred, func(fd int) (err error) {
		n, err = f.o.Sys().CopyRange(from.fd, int64(in.OffIn), fd, int64(in.OffOut), int(min(in.Len, 1<<30)))
		return err
	})
	if to.w != nil && txn.Poisonous(err) {
		to.st.Poison(err)
	}
	return uint32(max(n, 0)), status(err)
}

// Ioctl implements fuse.RawFileSystem. None is passed on: as root and for any caller they would reach the backing
// filesystem itself, down to its shutdown (F15).
func (f *FS) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return fuse.Status(unix.ENOTTY)
}

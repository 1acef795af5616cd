package fs

import (
	"errors"
	"slices"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"untorn/txn"
)

// writes reports whether open flags ask for changing the file. O_RDONLY|O_TRUNC truncates on Linux (open(2)).
func writes(flags uint32) bool {
	return flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0
}

// Open implements fuse.RawFileSystem. An open for write of a version is answered with ESTALE once, see redirect.
func (f *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := f.nodes.get(in.NodeId)
	defer f.nodes.put(n)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	t := f.thread(&in.InHeader)
	rd := f.redirects.take(t)
	if rd != nil && rd.lazy() && rd.of(n) {
		// No lookup came in between, and the version has no name that we know: it was opened through /proc/self/fd after it
		// was replaced.
		return status(errEscape)
	}
	if rd != nil && !rd.lazy() && (rd.m == n || rd.of(n)) && writes(in.Flags) {
		defer f.nodes.put(rd.m)
		if rd.m == n {
			return f.openWriter(n, rd.w, in.Flags, out)
		}
		if rd.w.Staged().Base() != n.ident {
			rd.w.Abandon() // its name leads elsewhere now, and that was not opened
			return f.answer(&in.InHeader, txn.ErrStale)
		}
		return f.openBeside(n, rd.w, in.Flags, out)
	}
	f.redirects.drop(rd)
	c := f.caller(&in.InHeader)
	if n.staged != nil {
		if s := f.openStaged(n, in.Flags, c, out); s != fuse.Status(unix.ESTALE) {
			return s
		}
	}
	if !writes(in.Flags) {
		return f.openRead(n, in, out)
	}
	return f.stage(n, in, c, out)
}

// openStaged opens the node of a file that is still staged. ESTALE: it is not any more.
func (f *FS) openStaged(n *node, flags uint32, c txn.Caller, out *fuse.OpenOut) fuse.Status {
	st := n.staged
	if st.State().Ended() {
		return fuse.Status(unix.ESTALE)
	}
	if writes(flags) {
		w, err := st.Join(int(flags), c)
		if err == txn.ErrClosed {
			return fuse.Status(unix.ESTALE)
		}
		if err != nil {
			return status(err)
		}
		return f.openWriter(n, w, flags, out)
	}
	if !st.Belongs(c) {
		return fuse.Status(unix.ESTALE)
	}
	fd, err := st.Hold()
	if err != nil {
		return fuse.Status(unix.ESTALE)
	}
	return f.install(n, &file{f: f, n: n, flags: flags, cred: c.Cred, fd: fd, st: st}, out)
}

// openRead opens a version for reading.
func (f *FS) openRead(n *node, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if n.beside.Load() && !f.pins.insists(f.thread(&in.InHeader), n) && !f.leadsTo(n) {
		// The kernel still has this node under the name, since no lookup came with the open that replaced it. Now it looks
		// it up again. If it asks for the same node then, the caller means a descriptor of it, by /proc/self/fd.
		return f.answer(&in.InHeader, txn.ErrStale)
	}
	r, err := f.reader(n)
	if err != nil {
		return f.answer(&in.InHeader, err)
	}
	out.OpenFlags |= fuse.FOPEN_NOFLUSH
	return f.install(n, &file{f: f, n: n, flags: in.Flags, cred: f.caller(&in.InHeader).Cred, fd: r.fd, shared: r}, out)
}

// leadsTo reports whether the name that a node was found under still leads to it.
func (f *FS) leadsTo(n *node) bool {
	parent, name := f.nodes.at(n)
	defer f.nodes.put(parent)
	d, err := f.dirOf(parent)
	if err != nil {
		return false
	}
	var st unix.Statx_t
	return d.Stat(name, &st) == nil && txn.IdentOf(&st) == n.ident
}

// openWriter opens a staged file for its writer.
func (f *FS) openWriter(m *node, w *txn.Writer, flags uint32, out *fuse.OpenOut) fuse.Status {
	fd, err := w.Staged().Hold()
	if err != nil {
		w.Abandon()
		return fuse.Status(unix.ESTALE)
	}
	w.Opened()
	return f.install(m, &file{f: f, n: m, flags: flags, cred: w.Staged().Cred(), fd: fd, st: w.Staged(), w: w}, out)
}

// stage handles an open for write of a version by its rules: in place, or by a redirect to a staged file.
func (f *FS) stage(n *node, in *fuse.OpenIn, c txn.Caller, out *fuse.OpenOut) fuse.Status {
	parent, name := f.nodes.at(n)
	defer f.nodes.put(parent)
	d, err := f.dirOf(parent)
	if err != nil {
		return status(err)
	}
	if d.InPlace(name) || (n.staged != nil && n.staged.State() == txn.InPlace) {
		return f.openInPlace(n, in, out)
	}
	w, err := d.OpenWrite(name, n.ident, int(in.Flags), c)
	if errors.Is(err, txn.ErrInPlace) {
		return f.openInPlace(n, in, out)
	}
	if errors.Is(err, txn.ErrStale) {
		f.redirects.put(f.thread(&in.InHeader), &redirect{n: n, flags: int(in.Flags)})
		return fuse.Status(unix.ESTALE)
	}
	if err != nil {
		f.failed("open for write", d, name, err)
		return f.answer(&in.InHeader, err)
	}
	m := f.nodes.ofStaged(w.Staged(), parent, name)
	if m == n { // a reserved file became this version and goes on being written
		defer f.nodes.put(m)
		return f.openWriter(m, w, in.Flags, out)
	}
	f.redirects.put(f.thread(&in.InHeader), &redirect{n: n, m: m, w: w, flags: int(in.Flags), d: d, name: name})
	return fuse.Status(unix.ESTALE)
}

// openBeside serves an open that came again without a lookup, through /proc/self/fd or a bind mount of a single file: it
// stays on the node of the version, while its reads and writes go to the staged file. If others have the version open
// with passthrough, the kernel lets it be opened only with the same backing, which a mapping would then reach.
func (f *FS) openBeside(n *node, w *txn.Writer, flags uint32, out *fuse.OpenOut) fuse.Status {
	fd, err := w.Staged().Hold()
	if err != nil {
		w.Abandon()
		return fuse.Status(unix.ESTALE)
	}
	return f.install(n, &file{f: f, n: n, flags: flags, cred: w.Staged().Cred(), fd: fd, st: w.Staged(), w: w, beside: true}, out)
}

// openInPlace opens a version itself for write.
func (f *FS) openInPlace(n *node, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if err := f.rival(n); err != nil {
		parent, name := f.nodes.at(n)
		if d, derr := f.dirOf(parent); derr == nil {
			f.failed("open in place", d, name, err)
		}
		return f.answer(&in.InHeader, err)
	}
	fd, err := f.openVersion(n, backingFlags(in.Flags))
	if err != nil {
		return f.answer(&in.InHeader, err)
	}
	if in.Flags&unix.O_TRUNC != 0 {
		if err := f.o.Sys().Truncate(fd, 0); err != nil {
			f.o.Sys().Close(fd)
			return status(err)
		}
		if in.Mode&fuse.OPEN_KILL_SUIDGID != 0 {
			txn.DropPrivilege(f.o.Sys(), fd, f.caller(&in.InHeader).Cred)
		}
	}
	return f.install(n, &file{f: f, n: n, flags: in.Flags, cred: f.caller(&in.InHeader).Cred, fd: fd, own: true}, out)
}

// rivalPatience is how long a rival of a database is given to vanish: the kernel closes the backing file of the last
// descriptor shortly after it has told us.
const rivalPatience = 20 * time.Millisecond

// rival refuses a database that somebody writes past this mount, see txn.ErrRival. While writers of ours have it open they
// cannot be told apart.
func (f *FS) rival(n *node) error {
	if n.written() {
		return nil
	}
	fd, err := f.openVersion(n, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.o.Sys().Close(fd)
	for end := time.Now().Add(rivalPatience); ; time.Sleep(time.Millisecond) {
		err := f.o.Rival(fd)
		if err == nil || n.written() {
			return nil // in the second case another open was faster
		}
		if time.Now().After(end) {
			return err
		}
	}
}

// written reports whether the node is open for writing.
func (n *node) written() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.files, func(fl *file) bool { return writes(fl.flags) })
}

// backingFlags are those that the daemon opens with itself: it always reads as well (pages are filled before they are
// written), and never O_DIRECT, whose alignment the buffers of requests do not have.
func backingFlags(flags uint32) int {
	access := unix.O_RDWR
	if !writes(flags) {
		access = unix.O_RDONLY
	}
	return access | int(flags)&(unix.O_APPEND|unix.O_SYNC|unix.O_DSYNC)
}

// Create implements fuse.RawFileSystem.
func (f *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	parent := f.nodes.get(in.NodeId)
	defer f.nodes.put(parent)
	if parent == nil {
		return fuse.Status(unix.ESTALE)
	}
	d, err := f.nodes.directory(parent)
	if err != nil {
		return status(err)
	}
	if name == txn.Hidden {
		return fuse.EPERM
	}
	f.redirects.drop(f.redirects.take(f.thread(&in.InHeader)))
	c := f.caller(&in.InHeader)
	direct := d.Direct(name)
	if !direct {
		if direct, err = d.Companion(name, c); err != nil {
			return status(err)
		}
	}
	if direct {
		return f.createInPlace(parent, d, name, in, c, out)
	}
	w, joined, err := d.Create(name, int(in.Flags), in.Mode, in.Umask, c)
	if err == txn.ErrStale && writes(in.Flags) {
		// It exists since the kernel looked. Opening it right away saves a try, of which there are only two.
		if w, err = d.OpenWrite(name, txn.Ident{}, int(in.Flags), c); errors.Is(err, txn.ErrInPlace) {
			err = txn.ErrStale
		}
		joined = true
	}
	if err != nil {
		f.failed("create", d, name, err)
		return status(err)
	}
	m := f.nodes.ofStaged(w.Staged(), parent, name)
	if joined {
		// The kernel took the name for free and checked no right to the file.
		switch f.mayOpen(m, in.Flags, c) {
		case denied:
			w.Abandon()
			f.nodes.put(m)
			return fuse.EACCES
		case unclear:
			// A repeated lookup finds it, and makes the kernel check.
			f.redirects.put(f.thread(&in.InHeader), &redirect{m: m, w: w, flags: int(in.Flags), d: d, name: name})
			return fuse.Status(unix.ESTALE)
		}
	}
	defer f.nodes.put(m)
	if s := f.answerStaged(m, &out.EntryOut); !s.Ok() {
		w.Abandon()
		return s
	}
	s := f.openWriter(m, w, in.Flags, &out.OpenOut)
	if !s.Ok() {
		f.nodes.forget(m.id, 1)
	}
	return s
}

// createInPlace makes a file that the rules exempt.
func (f *FS) createInPlace(parent *node, d *txn.Dir, name string, in *fuse.CreateIn, c txn.Caller, out *fuse.CreateOut) fuse.Status {
	flags := backingFlags(in.Flags) | int(in.Flags)&unix.O_EXCL
	fd, err := d.CreateDirect(name, flags, in.Mode, in.Umask, c)
	if err != nil {
		return status(err)
	}
	var e txn.Entry
	if err := f.o.Sys().Stat(fd, "", &e.Stat); err != nil {
		f.o.Sys().Close(fd)
		return status(err)
	}
	n := f.nodes.version(&e.Stat, parent, name)
	defer f.nodes.put(n)
	f.answerVersion(n, d, &e, &out.EntryOut)
	return f.install(n, &file{f: f, n: n, flags: in.Flags, cred: f.caller(&in.InHeader).Cred, fd: fd, own: true}, &out.OpenOut)
}

// Tmpfile implements fuse.RawFileSystem. A file without a name is atomic by itself: linkat(2) publishes it.
func (f *FS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	parent := f.nodes.get(in.NodeId)
	defer f.nodes.put(parent)
	if parent == nil {
		return fuse.Status(unix.ESTALE)
	}
	d, err := f.nodes.directory(parent)
	if err != nil {
		return status(err)
	}
	fd, err := d.Tmpfile(backingFlags(in.Flags)|int(in.Flags)&unix.O_EXCL, in.Mode, in.Umask, f.caller(&in.InHeader))
	if err != nil {
		return status(err)
	}
	var e txn.Entry
	if err := f.o.Sys().Stat(fd, "", &e.Stat); err != nil {
		f.o.Sys().Close(fd)
		return status(err)
	}
	n := f.nodes.version(&e.Stat, parent, "")
	defer f.nodes.put(n)
	f.answerVersion(n, d, &e, &out.EntryOut)
	return f.install(n, &file{f: f, n: n, flags: in.Flags, cred: f.caller(&in.InHeader).Cred, fd: fd, own: true}, &out.OpenOut)
}

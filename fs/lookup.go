package fs

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"untorn/txn"
)

// Lookup implements fuse.RawFileSystem.
func (f *FS) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	parent := f.nodes.get(in.NodeId)
	defer f.nodes.put(parent)
	if parent == nil {
		return fuse.Status(unix.ESTALE)
	}
	d, err := f.nodes.directory(parent)
	if err != nil {
		return status(err)
	}
	if m := f.redirects.leads(f.thread(in), d, name); m != nil {
		defer f.nodes.put(m)
		return f.answerStaged(m, out)
	}
	e, err := d.Lookup(name, f.caller(in))
	if err == unix.ENOENT && !e.Staged && name != txn.Hidden && f.opt.Cache > 0 {
		// A node of 0 is a name that is known not to exist, for as long.
		out.NodeId = 0
		out.SetEntryTimeout(f.opt.Cache)
		return fuse.OK
	}
	if err != nil {
		return status(err)
	}
	if e.Reserved != nil {
		m := f.nodes.ofStaged(e.Reserved, parent, name)
		defer f.nodes.put(m)
		return f.answerStaged(m, out)
	}
	pin := -1
	if f.pins.wanted(f.thread(in)) && e.Stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		if pin, err = d.Pin(name, &e.Stat); err != nil {
			return status(err)
		}
	}
	n := f.nodes.version(&e.Stat, parent, name)
	defer f.nodes.put(n)
	f.pins.hold(n, pin)
	if m := f.redirects.from(f.thread(in), n, d, name); m != nil {
		defer f.nodes.put(m)
		f.nodes.forget(n.id, 1)
		f.nodes.moved(m.ident, parent, name)
		return f.answerStaged(m, out)
	}
	if rd := f.redirects.waiting(f.thread(in)); rd != nil && n.fmt == unix.S_IFREG {
		if s, inPlace := f.stageLate(rd, n, parent, d, name, f.caller(in), out); !inPlace {
			return s
		}
		f.redirects.take(f.thread(in))
	}
	f.answerVersion(n, d, &e, out)
	return fuse.OK
}

// stageLate stages a file at the lookup, for an open that did not know its name, and answers with it. n, whose lookup has
// been counted, is what the name leads to. inPlace: nothing was staged, because that is to be opened itself.
func (f *FS) stageLate(rd *redirect, n, parent *node, d *txn.Dir, name string, c txn.Caller, out *fuse.EntryOut) (s fuse.Status, inPlace bool) {
	if d.InPlace(name) {
		return fuse.OK, true
	}
	w, err := d.OpenWrite(name, txn.Ident{}, rd.flags, c)
	if errors.Is(err, txn.ErrInPlace) {
		return fuse.OK, true
	}
	f.nodes.forget(n.id, 1)
	if err != nil {
		f.failed("open for write", d, name, err)
		return status(err), false
	}
	m := f.nodes.ofStaged(w.Staged(), parent, name)
	s = f.answerStaged(m, out)
	f.redirects.put(thread{tid: c.Tid, uid: c.Uid, gid: c.Gid}.key(), &redirect{n: rd.n, m: m, w: w, flags: rd.flags, d: d, name: name})
	return s, false
}

// answerVersion fills the answer for a version, whose lookup has been counted. While something is staged for its name,
// nothing of it may be cached: then publishing needs no invalidation.
func (f *FS) answerVersion(n *node, d *txn.Dir, e *txn.Entry, out *fuse.EntryOut) {
	out.NodeId, out.Generation = n.id, 1
	f.fillAttr(&out.Attr, &e.Stat)
	n.mu.Lock()
	defer n.mu.Unlock()
	if e.Staged || n.found != nil || (d.Stirred() && n.fmt == unix.S_IFREG) {
		st := e.Stat
		n.found = &st
		n.keep.Store(true)
	}
	if e.Staged {
		return
	}
	out.SetEntryTimeout(f.opt.Cache)
	out.SetAttrTimeout(f.opt.Cache)
}

// answerStaged answers with the node of a staged file. Timeouts are exactly 0: with any other, somebody else would reach
// it through the dentry.
func (f *FS) answerStaged(m *node, out *fuse.EntryOut) fuse.Status {
	var st unix.Statx_t
	if err := m.staged.Stat(&st); err != nil {
		return fuse.Status(unix.ESTALE)
	}
	m.mu.Lock()
	m.found = &st
	m.mu.Unlock()
	f.nodes.count(m)
	out.NodeId, out.Generation = m.id, 1
	f.fillAttr(&out.Attr, &st)
	return fuse.OK
}

// answerMade looks up what has just been made and answers with it.
func (f *FS) answerMade(parent *node, d *txn.Dir, name string, out *fuse.EntryOut) fuse.Status {
	var e txn.Entry
	if err := d.Stat(name, &e.Stat); err != nil {
		return status(err)
	}
	n := f.nodes.version(&e.Stat, parent, name)
	defer f.nodes.put(n)
	f.answerVersion(n, d, &e, out)
	return fuse.OK
}

// Forget implements fuse.RawFileSystem.
func (f *FS) Forget(nodeid, nlookup uint64) { f.nodes.forget(nodeid, nlookup) }

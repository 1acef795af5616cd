package fs

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"untorn/txn"
)

// node is one inode that the kernel has given us to do with, or that has a state of ours. A version and the file that is
// staged to replace it are two nodes, because the kernel keeps page cache, size and passthrough backing per inode (F1).
// When a staged file is published its node is that of the version, and the old one goes on serving those who have it open.
//
// There is one node for an inode at a time. That of a directory lives until the kernel forgets it, that of a file while it
// is in use, or as long as there is something to remember of it; then only its record in the table is left.
type node struct {
	id   uint64
	slot uint32
	fmt  uint32 // S_IFMT bits
	// ident is constant: another inode is another node, also when it has the same number.
	ident txn.Ident
	// staged is the staged file that this node was made for; it stays when that is published.
	staged *txn.Staged

	dir  *txn.Dir    // GUARDED_BY(nodes.mu); of a directory, opened at first use
	uses int         // GUARDED_BY(nodes.mu); requests, open files and redirects that have it
	keep atomic.Bool // seen, found or beside has something to remember
	// beside: it was opened beside, so it may have been replaced without a lookup of its name.
	beside atomic.Bool

	mu      sync.Mutex
	files   []*file  // GUARDED_BY(mu); open files
	reading *reader  // GUARDED_BY(mu); the descriptor that those who read share
	backing *backing // GUARDED_BY(mu); passthrough registration, one for all open files
	seen    seen     // GUARDED_BY(mu); how it looked when it was opened last
	// found is how it looked at the last lookup, kept once something was staged beside it: the kernel may ask for the
	// attributes again at once, and the inode may be gone by then.
	found *unix.Statx_t // GUARDED_BY(mu)
}

// seen tells whether the pages that the kernel has cached are still those of the file.
type seen struct {
	mtime, ctime unix.StatxTimestamp
	size         uint64
}

// nodes are all that the kernel remembers.
type nodes struct {
	mu    sync.Mutex
	table table            // GUARDED_BY(mu)
	live  map[uint32]*node // GUARDED_BY(mu); by slot
	root  *node
}

func newNodes(root *txn.Dir) *nodes {
	t := rooted(root.Ident())
	t.root.dir = root
	return t
}

// rooted returns a table with a root, whose number is FUSE_ROOT_ID because it is the first.
func rooted(id txn.Ident) *nodes {
	t := &nodes{live: map[uint32]*node{}}
	t.root = t.use(t.table.add(id, unix.S_IFDIR))
	return t
}

// get returns the node that a request is about, nil if the kernel means one that it has forgotten. It is used until put.
func (t *nodes) get(id uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	slot, ok := t.table.slot(id)
	if !ok {
		return nil
	}
	return t.use(slot)
}

// use returns the node of a record, for use until put.
//
// LOCKS_REQUIRED(t.mu)
func (t *nodes) use(slot uint32) *node {
	n := t.revive(slot)
	n.uses++
	return n
}

// revive returns the node of a record.
//
// LOCKS_REQUIRED(t.mu)
func (t *nodes) revive(slot uint32) *node {
	n := t.live[slot]
	if n == nil {
		n = &node{id: t.table.id(slot), slot: slot, ident: t.table.ident(slot), fmt: uint32(t.table.at(slot).fmt) << 12}
		t.live[slot] = n
	}
	return n
}

// retain uses a node once more, until put.
func (t *nodes) retain(n *node) {
	t.mu.Lock()
	n.uses++
	t.mu.Unlock()
}

// put gives back one use. Nil does nothing.
func (t *nodes) put(n *node) {
	if n == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n.uses--
	if n.uses > 0 {
		return
	}
	if t.table.at(n.slot).lookups == 0 {
		t.sweep(n.slot)
	} else if n.fmt != unix.S_IFDIR && n.staged == nil && !n.keep.Load() {
		delete(t.live, n.slot)
	}
}

// version returns the node of a version that was found under a name, for use until put, and counts a lookup.
func (t *nodes) version(st *unix.Statx_t, parent *node, name string) *node {
	id, fmt := txn.IdentOf(st), uint32(st.Mode)&unix.S_IFMT
	t.mu.Lock()
	defer t.mu.Unlock()
	slot, ok := t.table.find(id)
	if !ok || uint32(t.table.at(slot).fmt)<<12 != fmt {
		slot = t.table.add(id, fmt)
	}
	t.place(slot, parent, name)
	t.table.at(slot).lookups++
	return t.use(slot)
}

// of returns the node of an inode, for use until put; nil if the kernel does not know it.
func (t *nodes) of(id txn.Ident) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	slot, ok := t.table.find(id)
	if !ok {
		return nil
	}
	return t.use(slot)
}

// ofStaged returns the node of a staged file, for use until put. It counts no lookup.
func (t *nodes) ofStaged(st *txn.Staged, parent *node, name string) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	if slot, ok := t.table.find(st.Ident()); ok && t.live[slot] != nil && t.live[slot].staged == st {
		return t.use(slot)
	}
	slot := t.table.add(st.Ident(), unix.S_IFREG)
	t.place(slot, parent, name)
	n := t.use(slot)
	n.staged = st
	return n
}

// place notes where an inode was found.
//
// LOCKS_REQUIRED(t.mu)
func (t *nodes) place(slot uint32, parent *node, name string) {
	r := t.table.at(slot)
	old := r.parent
	if slot == t.root.slot || (old == parent.slot+1 && t.table.names.get(r.name) == name) {
		return
	}
	t.table.rename(slot, name)
	if old == parent.slot+1 {
		return
	}
	r.parent = parent.slot + 1
	t.table.at(parent.slot).children++
	if old != 0 {
		t.table.at(old-1).children--
		t.sweep(old - 1)
	}
}

// moved notes that an inode has another name now.
func (t *nodes) moved(id txn.Ident, parent *node, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if slot, ok := t.table.find(id); ok {
		t.place(slot, parent, name)
	}
}

// count adds a lookup that is answered with n.
func (t *nodes) count(n *node) {
	t.mu.Lock()
	t.table.at(n.slot).lookups++
	t.mu.Unlock()
}

// forget takes back lookups.
func (t *nodes) forget(id, lookups uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if slot, ok := t.table.slot(id); ok && slot != t.root.slot {
		r := t.table.at(slot)
		r.lookups -= min(lookups, r.lookups)
		t.sweep(slot)
	}
}

// sweep drops an inode that nobody knows any more, and then its directory if it was kept for its sake.
//
// LOCKS_REQUIRED(t.mu)
func (t *nodes) sweep(slot uint32) {
	for slot != t.root.slot {
		r, n := t.table.at(slot), t.live[slot]
		if r.lookups > 0 || r.children > 0 || (n != nil && n.uses > 0) {
			return
		}
		parent := r.parent
		t.table.remove(slot)
		delete(t.live, slot)
		if n != nil && n.dir != nil {
			n.dir.Release()
			n.dir = nil
		}
		if parent == 0 {
			return
		}
		slot = parent - 1
		t.table.at(slot).children--
	}
}

// at is where a node in use was found last, nil if that is not known. The directory is used until put.
func (t *nodes) at(n *node) (parent *node, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.above(n)
}

// LOCKS_REQUIRED(t.mu)
func (t *nodes) above(n *node) (parent *node, name string) {
	r := t.table.at(n.slot)
	if r.parent == 0 {
		return nil, ""
	}
	return t.use(r.parent - 1), t.table.names.get(r.name)
}

// directory returns the txn.Dir of a directory node in use, opened by way of its parents at first use. txn.ErrStale: it is not
// where it was found.
func (t *nodes) directory(n *node) (*txn.Dir, error) {
	t.mu.Lock()
	if n.dir != nil || n.fmt != unix.S_IFDIR {
		defer t.mu.Unlock()
		if n.fmt != unix.S_IFDIR {
			return nil, unix.ENOTDIR
		}
		return n.dir, nil
	}
	parent, name := t.above(n)
	t.mu.Unlock()
	if parent == nil {
		return nil, txn.ErrStale
	}
	defer t.put(parent)
	up, err := t.directory(parent)
	if err != nil {
		return nil, err
	}
	d, err := up.Dir(name, n.ident)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.dir != nil { // somebody was faster
		d.Release()
		return n.dir, nil
	}
	n.dir = d
	return d, nil
}

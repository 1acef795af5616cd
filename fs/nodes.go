package fs

import (
	"sync"

	"golang.org/x/sys/unix"

	"untorn/txn"
)

// node is one inode as the kernel knows it. A version and the file that is staged to replace it are two nodes, because
// the kernel keeps page cache, size and passthrough backing per inode (F1). When a staged file is published its node is
// that of the version, and the old one goes on serving those who have it open.
type node struct {
	id  uint64
	fmt uint32 // S_IFMT bits
	// ident is constant: another inode is another node, also when it has the same number.
	ident txn.Ident
	// staged is the staged file that this node was made for; it stays when that is published.
	staged *txn.Staged

	parent  *node    // GUARDED_BY(nodes.mu); where it was found last
	name    string   // GUARDED_BY(nodes.mu)
	dir     *txn.Dir // GUARDED_BY(nodes.mu); of a directory, opened at first use
	lookups uint64   // GUARDED_BY(nodes.mu); what the kernel will forget
	refs    int      // GUARDED_BY(nodes.mu); children, and redirects that lead here

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

// nodes is the table of all that the kernel remembers.
type nodes struct {
	mu    sync.Mutex
	byID  map[uint64]*node    // GUARDED_BY(mu)
	byIno map[txn.Ident]*node // GUARDED_BY(mu)
	last  uint64              // GUARDED_BY(mu); ids are never used again
	root  *node
}

func newNodes(root *txn.Dir) *nodes {
	r := &node{id: 1, fmt: unix.S_IFDIR, ident: root.Ident(), dir: root, lookups: 1}
	return &nodes{
		byID:  map[uint64]*node{1: r},
		byIno: map[txn.Ident]*node{r.ident: r},
		last:  1, root: r,
	}
}

// get returns the node that a request is about. The kernel names only nodes that it has not forgotten.
func (t *nodes) get(id uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

// version returns the node of a version that was found under a name, and counts a lookup.
func (t *nodes) version(st *unix.Statx_t, parent *node, name string) *node {
	id := txn.IdentOf(st)
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byIno[id]
	if n == nil || n.fmt != uint32(st.Mode)&unix.S_IFMT {
		n = t.add(&node{ident: id, fmt: uint32(st.Mode) & unix.S_IFMT}, parent, name)
	} else {
		t.place(n, parent, name)
	}
	n.lookups++
	return n
}

// of returns the node of an inode, nil if the kernel does not know it.
func (t *nodes) of(id txn.Ident) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byIno[id]
}

// ofStaged returns the node of a staged file. It counts no lookup but a reference, to be given back by unref.
func (t *nodes) ofStaged(st *txn.Staged, parent *node, name string) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byIno[st.Ident()]
	if n == nil || n.staged != st {
		n = t.add(&node{ident: st.Ident(), fmt: unix.S_IFREG, staged: st}, parent, name)
	}
	n.refs++
	return n
}

// add enters a node, in place of a forgotten one that had the same inode number.
//
// LOCKS_REQUIRED(t.mu)
func (t *nodes) add(n *node, parent *node, name string) *node {
	t.last++
	n.id = t.last
	n.parent, n.name = parent, name
	if parent != nil {
		parent.refs++
	}
	t.byID[n.id] = n
	t.byIno[n.ident] = n
	return n
}

// place notes where a node was found.
//
// LOCKS_REQUIRED(t.mu)
func (t *nodes) place(n, parent *node, name string) {
	if n == t.root || (n.parent == parent && n.name == name) {
		return
	}
	old := n.parent
	n.parent, n.name = parent, name
	parent.refs++
	if old != nil {
		old.refs--
		t.sweep(old)
	}
}

// moved notes that an inode has another name now.
func (t *nodes) moved(id txn.Ident, parent *node, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byIno[id]; n != nil {
		t.place(n, parent, name)
	}
}

// count adds a lookup that is answered with n.
func (t *nodes) count(n *node) {
	t.mu.Lock()
	n.lookups++
	t.mu.Unlock()
}

// forget takes back lookups.
func (t *nodes) forget(id, lookups uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byID[id]; n != nil && n != t.root {
		n.lookups -= min(lookups, n.lookups)
		t.sweep(n)
	}
}

// unref gives back a reference of ofStaged.
func (t *nodes) unref(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.refs--
	t.sweep(n)
}

// sweep drops a node that nobody knows any more, and then its parent if it was kept for its sake.
//
// LOCKS_REQUIRED(t.mu)
func (t *nodes) sweep(n *node) {
	for n != nil && n != t.root && n.lookups == 0 && n.refs == 0 {
		delete(t.byID, n.id)
		if t.byIno[n.ident] == n {
			delete(t.byIno, n.ident)
		}
		if n.dir != nil {
			n.dir.Release()
			n.dir = nil
		}
		p := n.parent
		n.parent = nil
		if p != nil {
			p.refs--
		}
		n = p
	}
}

// at is where a node was found last.
func (t *nodes) at(n *node) (parent *node, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return n.parent, n.name
}

// directory returns the txn.Dir of a directory node, opened by way of its parents at first use. txn.ErrStale: it is not
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
	parent, name := n.parent, n.name
	t.mu.Unlock()
	if parent == nil {
		return nil, txn.ErrStale
	}
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

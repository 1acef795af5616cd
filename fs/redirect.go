package fs

import (
	"sync"
	"time"

	"untorn/txn"
)

// thread is who repeats a lookup after ESTALE: the kernel names the thread, not the process. A thread of another pid
// namespace is 0; then its ids must do, and a second one with the same ids may be mistaken for it, for an instant, in a
// stat (an open is checked again).
type thread struct{ tid, uid, gid uint32 }

// redirect is an open-for-write (or truncate) of a version that was answered with ESTALE. The kernel repeats the lookup
// from the same thread, which gets the node of the staged file instead, and the same call on that (F1). The writer keeps
// the staged file from being published in between.
type redirect struct {
	n     *node // the version that was opened, which the kernel may have forgotten; nil for a reserved name
	m     *node // the staged file, in use by the redirect
	w     *txn.Writer
	flags int      // of the open
	d     *txn.Dir // GUARDED_BY(redirects.mu)
	name  string   // GUARDED_BY(redirects.mu); what was opened, as far as it is known
	begun time.Time
}

// A redirect without m and w is one of a version that is no more where it was found last: it may have another name (a hard
// link), which only the lookup tells. The file is staged then.
func (rd *redirect) lazy() bool { return rd.w == nil }

// of reports whether it is an open of a version by this node.
func (rd *redirect) of(n *node) bool { return rd.n != nil && rd.n.id == n.id }

// redirects are those on their way: usually none, for some tens of microseconds one.
type redirects struct {
	mu       sync.Mutex
	byThread map[thread]*redirect // GUARDED_BY(mu)
	sweeping bool                 // GUARDED_BY(mu)
	nodes    *nodes
}

// patience is how long a redirect may take. A thread that was killed between ESTALE and the lookup never comes back.
const patience = time.Second

func (r *redirects) put(t thread, rd *redirect) {
	r.mu.Lock()
	old := r.byThread[t]
	rd.begun = time.Now()
	r.byThread[t] = rd
	if !r.sweeping {
		r.sweeping = true
		time.AfterFunc(patience, r.sweep)
	}
	r.mu.Unlock()
	r.drop(old)
}

// take ends the redirect of a thread, if there is one: its next open or truncate has come.
func (r *redirects) take(t thread) *redirect {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.byThread) == 0 {
		return nil
	}
	rd := r.byThread[t]
	delete(r.byThread, t)
	return rd
}

// leads returns the staged node that a lookup of a name by a redirected thread is to be answered with, for use until put:
// the redirect may be swept any moment.
func (r *redirects) leads(t thread, d *txn.Dir, name string) *node {
	r.mu.Lock()
	defer r.mu.Unlock()
	rd := r.byThread[t]
	if rd == nil || rd.lazy() || rd.d != d || rd.name != name {
		return nil
	}
	r.nodes.retain(rd.m)
	return rd.m // even if the name has been taken from it meanwhile: then it was opened just before
}

// from is leads for a name that turned out to be another link to the version that was opened: the lookup tells which one
// the caller meant.
func (r *redirects) from(t thread, n *node, d *txn.Dir, name string) *node {
	rd := r.find(t)
	if rd == nil || rd.lazy() || rd.n == nil || rd.n.ident != n.ident {
		return nil
	}
	d.Rebind(rd.w.Staged(), name)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byThread[t] != rd {
		return nil // it was swept just now
	}
	rd.d, rd.name = d, name // the kernel may look it up twice, and forget the version in between
	r.nodes.retain(rd.m)
	return rd.m
}

// waiting returns the redirect of a thread whose file has yet to be staged.
func (r *redirects) waiting(t thread) *redirect {
	if rd := r.find(t); rd != nil && rd.lazy() {
		return rd
	}
	return nil
}

func (r *redirects) find(t thread) *redirect {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.byThread) == 0 {
		return nil
	}
	return r.byThread[t]
}

// drop gives up a redirect.
func (r *redirects) drop(rd *redirect) {
	if rd == nil || rd.lazy() {
		return
	}
	rd.w.Abandon()
	r.nodes.put(rd.m)
}

// sweep drops redirects whose threads did not come back.
func (r *redirects) sweep() {
	var lost []*redirect
	r.mu.Lock()
	for t, rd := range r.byThread {
		if time.Since(rd.begun) >= patience {
			delete(r.byThread, t)
			lost = append(lost, rd)
		}
	}
	if r.sweeping = len(r.byThread) > 0; r.sweeping {
		time.AfterFunc(patience, r.sweep)
	}
	r.mu.Unlock()
	for _, rd := range lost {
		r.drop(rd)
	}
}

package fs

import (
	"errors"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"untorn/txn"
)

// pins see to it that ESTALE reaches no program. A version is reached by its name, so a path that is replaced again and
// again may lead elsewhere each time between the lookup and what follows it. The kernel repeats a call that met ESTALE
// once only. So a thread that was told ESTALE gets what it looks up next pinned by a descriptor for a moment, and the
// second try cannot fail for that reason.
type pins struct {
	sys      txn.Sys
	mu       sync.Mutex
	stale    map[thread]staleness // GUARDED_BY(mu); threads that were told ESTALE
	held     map[uint64]*pin      // GUARDED_BY(mu); by node.id
	sweeping bool                 // GUARDED_BY(mu)
}

// staleness is when a thread was told ESTALE, and about which node.
type staleness struct {
	when time.Time
	node uint64
}

type pin struct {
	fd    int
	users int
	begun time.Time
}

// pinned is how long a pin lasts: longer than any thread is on its way from a lookup to the call that it is for.
const pinned = 200 * time.Millisecond

// answer is status for what was asked of a node that may have been replaced.
func (f *FS) answer(in *fuse.InHeader, err error) fuse.Status {
	if errors.Is(err, txn.ErrStale) {
		f.pins.told(f.thread(in), in.NodeId)
	}
	return status(err)
}

// told notes that a thread was told ESTALE about a node.
func (p *pins) told(t thread, node uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stale[t] = staleness{time.Now(), node}
	p.schedule()
}

// LOCKS_REQUIRED(p.mu)
func (p *pins) schedule() {
	if !p.sweeping {
		p.sweeping = true
		time.AfterFunc(pinned, p.sweep)
	}
}

// wanted reports whether a lookup by a thread is to be pinned.
func (p *pins) wanted(t thread) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.stale) == 0 {
		return false
	}
	_, ok := p.stale[t]
	return ok
}

// insists reports whether a thread that was just told ESTALE about a node asks for it again.
func (p *pins) insists(t thread, n *node) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.stale[t]
	return ok && s.node == n.id
}

// hold pins a node by a descriptor that it takes over; -1 does nothing.
func (p *pins) hold(n *node, fd int) {
	if fd < 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.held[n.id]; old != nil {
		old.begun = time.Now()
		p.sys.Close(fd)
		return
	}
	p.held[n.id] = &pin{fd: fd, begun: time.Now()}
	p.schedule()
}

// borrow returns the descriptor that pins a node, -1 if there is none.
func (p *pins) borrow(n *node) (fd int, release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.held) == 0 {
		return -1, nil
	}
	h := p.held[n.id]
	if h == nil {
		return -1, nil
	}
	h.users++
	return h.fd, func() {
		p.mu.Lock()
		h.users--
		p.mu.Unlock()
	}
}

// sweep ends pins and marks that have served their time.
func (p *pins) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for t, s := range p.stale {
		if time.Since(s.when) >= pinned {
			delete(p.stale, t)
		}
	}
	for id, h := range p.held {
		if h.users == 0 && time.Since(h.begun) >= pinned {
			p.sys.Close(h.fd)
			delete(p.held, id)
		}
	}
	p.sweeping = false
	if len(p.stale)+len(p.held) > 0 {
		p.schedule()
	}
}

// close ends all pins.
func (p *pins) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, h := range p.held {
		p.sys.Close(h.fd)
		delete(p.held, id)
	}
}

package txn

import "time"

// MakeRoom gives up salvaged files after a write that failed for lack of space, and reports whether it is worth trying
// again.
func (st *Staged) MakeRoom(err error) bool { return full(err) && st.store.room() > 0 }

// guardEvery is how often the free space is looked at while something is staged: with passthrough nobody tells us that
// the disk fills up.
const guardEvery = time.Second

// guard gives up salvaged files while the disk fills up, before a writer meets its end. It goes on as long as something is
// staged.
func (o *Overlay) guard() {
	if !o.busy() {
		return
	}
	defer o.pending.Done()
	stores := map[*Store]bool{}
	for _, st := range o.Staged() {
		stores[st.store] = true
	}
	for s := range stores {
		s.giveWay()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.guarding = len(o.staged) > 0; o.guarding {
		time.AfterFunc(guardEvery, o.guard)
	}
}

// giveWay gives up salvaged files if the filesystem is nearly full.
func (s *Store) giveWay() {
	if s.low() {
		s.sweep(s.o.opt.Limits)
	}
}

// low reports whether the filesystem has less free than the salvage is to leave. A Store that is closed has what it needs.
func (s *Store) low() bool {
	s.keepMu.Lock()
	defer s.keepMu.Unlock()
	if s.salvage < 0 {
		return false
	}
	missing, err := s.shelf().missing()
	return err == nil && missing > 0
}

package txn

import (
	"slices"

	"untorn/txn/proc"
)

// Who decides whether a staged file is published is, first of all, the processes that opened it: the one among them that
// let go of it last. If it was killed, the file is doomed, whatever becomes of those who merely inherited a descriptor:
// they do not know that the rest of the file is missing, and their good end says nothing about it. If it was not, the
// process that closes the very last descriptor decides, and that may be an heir that is killed while it writes.
//
// So an heir that is killed before others close decides nothing (`2> log` of a script), and neither does an opener that is
// killed while another opener has the file: those who append to one file share what becomes of it.

// opener is a process that opened a staged file itself.
type opener struct {
	pid uint32 // 0: of another pid namespace
	// left: it was seen to close its last descriptor, in whatever way.
	left bool
}

// opens enters a process as an opener.
//
// LOCKS_REQUIRED(st.mu)
func (st *Staged) opens(pid uint32) {
	for i := range st.openers {
		if st.openers[i].pid == pid {
			st.openers[i].left = false
			return
		}
	}
	st.openers = append(st.openers, opener{pid: pid})
}

// leaves notes that a process has closed its last descriptor and, if it did so in exit(2), how it ends.
//
// LOCKS_REQUIRED(st.mu)
func (st *Staged) leaves(pid uint32, end proc.End) {
	leaving, others := false, false
	for i := range st.openers {
		o := &st.openers[i]
		if o.pid != pid {
			others = others || !o.left
			continue
		}
		leaving = leaving || !o.left
		o.left = true
	}
	if leaving && !others && end.Signal() != 0 {
		st.doom = end
	}
}

// doomed reports whether the last opener was killed. Nobody else may join such a file: what he writes would be lost with
// it.
func (st *Staged) doomed() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.doom.Signal() != 0 && !st.o.opt.PublishKilled
}

// pids are the processes that opened it.
//
// LOCKS_REQUIRED(st.mu)
func (st *Staged) pids() []uint32 {
	pids := make([]uint32, len(st.openers))
	for i, o := range st.openers {
		pids[i] = o.pid
	}
	return pids
}

// others are the openers but for one process.
//
// LOCKS_REQUIRED(st.mu)
func (st *Staged) others(than uint32) []opener {
	list := make([]opener, 0, len(st.openers))
	for _, o := range st.openers {
		if o.pid != than {
			list = append(list, o)
		}
	}
	return list
}

// unseen tells about an opener that has nothing open although it was not seen to close it. A process in exit(2) gives up
// its table first and closes what was in it afterwards: its FLUSH is on the way then, and comes after the one that we are
// asked about. A zombie is past all that. It can have left unseen if it shared its table with a process that lives on
// (CLONE_FILES); how it ended counts all the same.
func (st *Staged) unseen(pid uint32) holders {
	p, err := proc.Of(pid)
	if err == nil && p.Exiting && !p.Dead {
		return some
	}
	if err == nil && p.Dead {
		end := proc.EndOf(pid)
		st.mu.Lock()
		st.leaves(pid, end)
		st.mu.Unlock()
	}
	return none
}

// forsake gives up on opens that have yet to become open files, and whose threads have died meanwhile: between our answer
// that they try again (ESTALE) and that second try. They keep nobody from being the last.
func (st *Staged) forsake() {
	var waiting []*Writer
	st.mu.Lock()
	for _, w := range st.write {
		if !w.opened && !w.flushed && w.tid != 0 {
			waiting = append(waiting, w)
		}
	}
	st.mu.Unlock()
	for _, w := range waiting {
		if p, err := proc.Of(w.tid); err == nil && !p.Exiting {
			continue
		}
		st.mu.Lock()
		w.flushed = true // there will be no descriptor to close
		if !slices.ContainsFunc(st.write, func(o *Writer) bool { return o != w && o.pid == w.pid }) {
			st.leaves(w.pid, proc.End{})
		}
		st.mu.Unlock()
	}
}

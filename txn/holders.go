package txn

import (
	"slices"

	"untorn/txn/proc"
)

// holders is what is known of who still has a staged file open when one of its descriptors is closed.
type holders uint8

const (
	perhaps holders = iota // cannot be told; RELEASE will
	some
	none
)

// inspect finds out who else has the staged file open while c closes a descriptor of it, and, if c is exiting, how it
// ends. It reads only what never blocks, see package proc.
//
// What is known of c is noted before the others are looked at. Of two processes that close the file at the same moment
// each has given up its descriptor before it comes here, so that at least the later one knows of both.
func (st *Staged) inspect(c Caller) (proc.End, holders) {
	t := st.trace()
	by := st.closer(c, t)
	st.forsake()
	st.mu.Lock()
	st.latest = by.end
	opening, mine := false, false
	for _, o := range st.write {
		opening = opening || !o.flushed
		mine = mine || (!o.flushed && o.pid == by.pid)
	}
	if by.has == none && !mine {
		st.leaves(by.pid, by.end)
	}
	others, family := st.others(by.pid), st.pids()
	st.mu.Unlock()
	switch {
	case by.has != none:
		return by.end, by.has
	case opening:
		return by.end, some
	}
	return by.end, st.inspectOthers(others, family, c, t)
}

// closer is the process that closes a descriptor.
type closer struct {
	pid uint32   // if it has nothing else
	end proc.End // if it closes it in exit(2)
	has holders  // whether it has another descriptor, or a mapping
}

// closer looks at the process of c.
func (st *Staged) closer(c Caller, t trace) (by closer) {
	if c.Tid == 0 {
		return by
	}
	a, seen := proc.Search(c.Tid, t.fds)
	if seen == 0 { // none, or no right to look
		p, err := proc.Of(c.Tid)
		if err != nil {
			return by
		}
		if p.Exiting { // it has given up its memory before
			by = closer{pid: p.Pid, end: proc.EndOf(c.Tid), has: none}
			if !by.end.Known() {
				st.o.blind.Do(func() {
					st.o.log.Warn("no right to see how a writer ended (ptrace): if it was killed, what it wrote is published",
						"path", st.path(), "pid", p.Pid, "command", p.Name)
				})
			}
			return by
		}
	}
	if a == proc.No && t.inos != nil {
		if a = proc.Maps(c.Tid, t.inos...); a == proc.Yes {
			st.mapped(c.Tid)
		}
	}
	if by.has = answer(a); by.has == none {
		by.pid = st.processOf(c.Tid)
	}
	return by
}

// processOf is proc.Pid, which it need not ask about an opener.
func (st *Staged) processOf(tid uint32) uint32 {
	st.mu.Lock()
	known := slices.Contains(st.pids(), tid)
	st.mu.Unlock()
	if known {
		return tid
	}
	return proc.Pid(tid)
}

// trace is what a staged file leaves in the /proc of a process that can write to it.
type trace struct {
	fds  proc.File
	inos []uint64 // of its shared writable mappings; nil when nobody can have one
}

func (st *Staged) trace() trace {
	t := trace{fds: st.inProc()}
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, o := range st.write {
		if o.rdwr {
			t.inos = append(slices.Clone(t.fds.Inos), st.id.Ino)
			break
		}
	}
	return t
}

// in tells whether a process can write to the file.
func (t trace) in(pid uint32) holders {
	if pid == 0 {
		return perhaps
	}
	a := proc.HeldBy(pid, t.fds)
	if a == proc.No && t.inos != nil {
		a = proc.Maps(pid, t.inos...)
	}
	return answer(a)
}

func answer(a proc.Answer) holders {
	switch a {
	case proc.Yes:
		return some
	case proc.No:
		return none
	}
	return perhaps
}

// forkBound is how many living processes younger than the open are looked at before it is left to RELEASE.
const forkBound = 512

// inspectOthers looks at the processes that opened the file, and at all that were forked since: nobody else can have
// inherited it. (A descriptor sent over a socket to an older process is the exception, see doc.go.)
func (st *Staged) inspectOthers(openers []opener, family []uint32, c Caller, t trace) holders {
	for _, o := range openers {
		h := t.in(o.pid)
		if h == none && !o.left {
			h = st.unseen(o.pid)
		}
		if h != none {
			return h
		}
	}
	newest := st.o.newest.Pid()
	if newest == st.fork {
		return none
	}
	if st.fork == 0 || newest == 0 {
		return perhaps
	}
	since, err := proc.Since(st.fork, newest)
	if err != nil || len(since) > forkBound {
		return perhaps
	}
	for _, pid := range since {
		if pid == c.Tid || slices.Contains(family, pid) {
			continue // has been looked at
		}
		h := t.in(pid)
		if h == perhaps && !proc.MayInherit(pid, family) {
			continue // somebody else's
		}
		if h != none {
			return h
		}
	}
	return none
}

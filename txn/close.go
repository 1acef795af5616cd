package txn

import (
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"untorn/txn/proc"
)

// holders is what is known of who still has a staged file open when one of its descriptors is closed.
type holders uint8

const (
	perhaps holders = iota // cannot be told; RELEASE will
	some
	none
)

// Flush handles one close(2) by c, or the closing of a descriptor in execve(2) or exit(2). If it is provably the last,
// the staged file comes to its end here and the error is what close(2) returns; otherwise the error is that of an earlier
// failed write, if any.
func (w *Writer) Flush(c Caller) error {
	st := w.st
	if s := st.State(); s != Writing && s != Detached {
		return st.failure()
	}
	st.mu.Lock()
	joins := st.joins
	w.flushed = true
	st.mu.Unlock()
	end, have := st.inspect(c)
	if end.Signal() == 0 {
		st.probe(c)
	}
	st.mu.Lock()
	w.end = end
	st.latest = end
	st.idle = have == none
	st.doubt = time.Time{}
	if have != some {
		st.doubt = time.Now().Add(undecidedWait)
	}
	poison := st.poison
	st.mu.Unlock()
	if have == none && end.Signal() == 0 && poison == nil {
		if done, err := st.adjust(); err != nil {
			st.Poison(err)
		} else if done {
			return nil // it counts as untouched now, and is left to RELEASE
		}
	}
	if have == none && (st.Modified() || st.mine(c, end)) && st.retire(joins) {
		return st.finish(end)
	}
	return poison
}

// mine reports whether an untouched file can be published at a close that looks like the last. It may have been passed on
// to an older process to be filled; but only over a socket, and the caller has none. (An untouched copy waits in any case:
// if it is dropped too early, what the other one writes is lost.)
func (st *Staged) mine(c Caller, end proc.End) bool {
	return st.kind != Copied && !end.Known() && proc.HasSockets(c.Tid) == proc.No
}

func (st *Staged) failure() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.result
}

// inspect finds out who else has the staged file open while c closes a descriptor of it, and, if c is exiting, how it
// ends. It reads only what never blocks, see package proc.
func (st *Staged) inspect(c Caller) (proc.End, holders) {
	if c.Tid == 0 {
		return proc.End{}, perhaps
	}
	var end proc.End
	f := st.inProc()
	switch n := proc.Descriptors(c.Tid); {
	case n < 0:
		return end, perhaps
	case n == 0:
		if p, err := proc.Of(c.Tid); err != nil {
			return end, perhaps
		} else if p.Exiting {
			if end = proc.EndOf(c.Tid); !end.Known() {
				st.o.blind.Do(func() {
					st.o.log.Warn("no right to see how a writer ended (ptrace): if it was killed, what it wrote is published",
						"path", st.path(), "pid", p.Pid, "command", p.Name)
				})
			}
		}
	default:
		if a := proc.Holds(c.Tid, f); a != proc.No {
			return end, answer(a)
		}
	}
	st.mu.Lock()
	rdwr, opening := false, false
	others := make([]uint32, 0, 8)
	pids := slices.Clone(st.pids)
	for _, o := range st.write {
		rdwr = rdwr || o.rdwr
		opening = opening || !o.flushed
		if !o.closed && o.pid != c.Tid && o.tid != c.Tid {
			others = append(others, o.pid)
		}
	}
	st.mu.Unlock()
	if opening {
		return end, some
	}
	if rdwr && !end.Known() {
		a := proc.Maps(c.Tid, append(f.Inos, st.id.Ino)...)
		if a == proc.Yes {
			st.mapped(c.Tid)
		}
		if a != proc.No {
			return end, answer(a)
		}
	}
	return end, st.inspectOthers(others, pids, c, f, rdwr)
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
func (st *Staged) inspectOthers(openers, family []uint32, c Caller, f proc.File, rdwr bool) holders {
	look := func(pid uint32) holders {
		if pid == 0 {
			return perhaps
		}
		a := proc.HeldBy(pid, f)
		if a == proc.No && rdwr {
			a = proc.Maps(pid, append(f.Inos, st.id.Ino)...)
		}
		return answer(a)
	}
	for _, pid := range openers {
		if h := look(pid); h != none {
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
		if pid == c.Tid {
			continue
		}
		h := look(pid)
		if h == perhaps && !proc.MayInherit(pid, family) {
			continue // somebody else's
		}
		if h != none {
			return h
		}
	}
	return none
}

// mapped remembers a process that keeps the file mapped beyond its last descriptor: when the mapping goes nobody tells
// whose it was.
func (st *Staged) mapped(tid uint32) {
	fd := proc.OpenPidfd(tid)
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.mapper >= 0 {
		unix.Close(st.mapper)
	}
	st.mapper = fd
}

// retire marks all writers as closed, since nobody was found to have the file open, and moves to Publishing. False:
// somebody joined since the inspection (joins has changed), or it is over already.
func (st *Staged) retire(joins int) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.state != Writing && st.state != Detached {
		return false
	}
	if st.joins != joins {
		return false
	}
	for _, o := range st.write {
		o.closed = true
	}
	st.to(Publishing)
	return true
}

// Release handles the end of the open file: no descriptor and, without passthrough, no mapping is left of it. It comes
// after close(2) has returned, so an error can only be logged, which happens here.
func (w *Writer) Release() {
	st := w.st
	st.mu.Lock()
	if !w.opened {
		st.mu.Unlock()
		w.Abandon()
		return
	}
	st.dismiss(w)
	left := false
	for _, o := range st.write {
		left = left || !o.closed
	}
	over := st.state != Writing && st.state != Detached
	var last *Dir
	if len(st.write) == 0 {
		last, st.stood = st.stood.dir, place{}
	}
	st.mu.Unlock()
	if last != nil {
		last.Release()
	}
	if left || over {
		return
	}
	st.last(w)
}

// Opened tells that the writer has become an open file.
func (w *Writer) Opened() {
	w.st.mu.Lock()
	defer w.st.mu.Unlock()
	w.opened, w.st.opened = true, true
}

// Abandon takes back a writer that never became an open file: its thread died on the way, or was refused. If it was the
// only one there ever was, nothing has been written and nothing is published; otherwise the others decide.
func (w *Writer) Abandon() {
	st := w.st
	st.mu.Lock()
	st.dismiss(w)
	if len(st.write) > 0 || (st.state != Writing && st.state != Detached) {
		st.mu.Unlock()
		return
	}
	unused, end := !st.opened, st.latest
	if unused {
		st.to(Publishing)
	}
	st.mu.Unlock()
	if unused {
		st.drop()
		return
	}
	st.endUnseen(end)
}

// Commit ends a writer whose whole life was one request, such as truncate(2): if nobody else writes, the staged file is
// published before it returns, and the error is what that came to.
func (w *Writer) Commit() error {
	st := w.st
	st.mu.Lock()
	st.dismiss(w)
	st.opened = true // it counts as a writer
	if len(st.write) > 0 || (st.state != Writing && st.state != Detached) {
		st.mu.Unlock()
		return nil
	}
	st.to(Publishing)
	st.mu.Unlock()
	return st.finish(proc.End{})
}

// dismiss removes a writer from the list.
//
// LOCKS_REQUIRED(st.mu)
func (st *Staged) dismiss(w *Writer) {
	for i, o := range st.write {
		if o == w {
			st.write = append(st.write[:i:i], st.write[i+1:]...)
			return
		}
	}
}

// last ends the staged file after its last writer was released, at once or when nobody has it mapped any more.
func (st *Staged) last(w *Writer) {
	st.mu.Lock()
	wait := w.rdwr && st.o.opt.Passthrough
	end := w.end
	st.latest = end
	st.mu.Unlock()
	if wait && st.inUse() && st.o.busy() {
		go func() {
			defer st.o.pending.Done()
			if st.awaitUnused() {
				st.endUnseen(st.endOfMapper(end))
			}
		}()
		return
	}
	st.endUnseen(st.endOfMapper(end))
}

// endUnseen ends a staged file when nobody waits for the outcome.
func (st *Staged) endUnseen(end proc.End) {
	st.mu.Lock()
	if (st.state != Writing && st.state != Detached) || len(st.write) > 0 {
		st.mu.Unlock()
		return // over, or joined again
	}
	st.to(Publishing)
	st.mu.Unlock()
	st.finish(end)
}

// inUse reports whether somebody still has the temp open or mapped for writing.
func (st *Staged) inUse() bool {
	if st.store.noLease.Load() {
		return false
	}
	fd, err := st.Hold()
	if err != nil {
		return false
	}
	defer st.Unhold()
	free, err := st.o.sys.Leased(fd)
	if err != nil {
		st.store.noLease.Store(true)
		return false
	}
	return !free
}

// awaitUnused waits until nobody has the temp open or mapped for writing; false when the mount ends before, or somebody
// opened the staged file again. There is no event for it: the lease is asked for again, less and less often.
func (st *Staged) awaitUnused() bool {
	for pause := time.Millisecond; st.inUse(); pause = min(2*pause, 200*time.Millisecond) {
		t := time.NewTimer(pause)
		select {
		case <-st.o.closing:
			t.Stop()
			return false
		case <-st.done():
			t.Stop()
			return false
		case <-t.C:
		}
	}
	return true
}

// errUnknownEnd is the reason for salvage when a mapping went away and nobody can tell how its process ended.
var errUnknownEnd = errors.New("its writer kept it mapped, and how that process ended is not known")

// endOfMapper tells how the process ended that kept the file mapped. If it lives, it unmapped the file in good order. If
// there was none, the one that closed it last decides.
func (st *Staged) endOfMapper(last proc.End) proc.End {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.mapper < 0 {
		return last
	}
	defer func() { unix.Close(st.mapper); st.mapper = -1 }()
	if proc.Alive(st.mapper) {
		return proc.End{}
	}
	end := proc.EndOfPidfd(st.mapper)
	if !end.Known() && st.poison == nil {
		st.poison = errUnknownEnd
	}
	return end
}

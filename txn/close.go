package txn

import (
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"untorn/txn/proc"
)

// Flush handles one close(2) by c, or the closing of a descriptor in execve(2) or exit(2). If it is provably the last,
// the staged file comes to its end here and the error is what close(2) returns; otherwise the error is that of an earlier
// failed write, if any. Of two that come at the same moment each may be the last to its caller: the one that does not
// publish waits for the one that does.
func (w *Writer) Flush(c Caller) error {
	st := w.st
	if st.ending() {
		return st.outcome()
	}
	st.mu.Lock()
	joins := st.joins
	w.flushed, st.closed = true, true
	st.mu.Unlock()
	end, have := st.inspect(c)
	if end.Signal() == 0 {
		st.probe(c)
	}
	st.mu.Lock()
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
	if have == none && st.ending() {
		return st.outcome()
	}
	return poison
}

// ending reports whether the staged file has come to its end, or is on the way.
func (st *Staged) ending() bool {
	s := st.State()
	return s != Writing && s != Detached
}

// outcome waits for the end and tells what it came to.
func (st *Staged) outcome() error {
	<-st.done()
	return st.failure()
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
	stood := st.dismiss(w)
	left := false
	for _, o := range st.write {
		left = left || !o.closed
	}
	over := st.state != Writing && st.state != Detached
	st.mu.Unlock()
	stood.release()
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
	stood := st.dismiss(w)
	if len(st.write) > 0 || (st.state != Writing && st.state != Detached) {
		st.mu.Unlock()
		stood.release()
		return
	}
	unused, end := !st.opened, st.latest
	st.mu.Unlock()
	if unused {
		st.dropUnseen()
		return
	}
	st.endUnseen(end)
}

// dropUnseen ends a staged file that nobody has made use of.
func (st *Staged) dropUnseen() {
	st.mu.Lock()
	if (st.state != Writing && st.state != Detached) || len(st.write) > 0 {
		st.mu.Unlock()
		return // over, or joined
	}
	st.to(Publishing)
	st.mu.Unlock()
	st.drop()
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

// dismiss removes a writer from the list, and with its last one the process from those who have the file open. Without
// writers nothing needs be taken back: the caller releases the place, when he has unlocked.
//
// LOCKS_REQUIRED(st.mu)
func (st *Staged) dismiss(w *Writer) (stood place) {
	st.write = slices.DeleteFunc(st.write, func(o *Writer) bool { return o == w })
	if !slices.ContainsFunc(st.write, func(o *Writer) bool { return o.pid == w.pid }) {
		st.leaves(w.pid, proc.End{})
	}
	if len(st.write) == 0 {
		stood, st.stood = st.stood, place{}
	}
	return stood
}

// release gives the hold on the directory back, if there is one.
func (p place) release() {
	if p.dir != nil {
		p.dir.Release()
	}
}

// last ends the staged file after its last writer was released, at once or when nobody has it mapped any more.
//
// If no descriptor of it was ever closed and nothing was written, there was none: a signal can end open(2) after we have
// answered it. The caller has not seen the file, and it is not published empty.
func (st *Staged) last(w *Writer) {
	st.mu.Lock()
	wait := w.rdwr && st.o.opt.Passthrough
	end := st.latest
	closed := st.closed
	st.mu.Unlock()
	if !closed {
		if !st.Modified() {
			st.dropUnseen()
			return
		}
		end = st.endUnclosed(w.pid)
	}
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

// inUse reports whether somebody still has the temp open or mapped for writing; false when that cannot be told.
func (st *Staged) inUse() bool {
	free, known := st.lease()
	return known && !free
}

// unused reports that nobody has the temp open or mapped for writing any more; false when that cannot be told.
func (st *Staged) unused() bool {
	free, known := st.lease()
	return known && free
}

// lease asks whether a lease is to be had on the temp: with passthrough, all who can write to it have it open as well.
func (st *Staged) lease() (free, known bool) {
	if st.store.noLease.Load() {
		return false, false
	}
	fd, err := st.Hold()
	if err != nil {
		return false, false
	}
	defer st.Unhold()
	if free, err = st.o.sys.Leased(fd); err != nil {
		st.store.noLease.Store(true)
		return false, false
	}
	return free, true
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

// errUnknownEnd is the reason for salvage when a file went away without a close(2), and nobody can tell how its process
// ended.
var errUnknownEnd = errors.New("its writer did not close it, and how that process ended is not known")

// endUnclosed tells how the process ended that opened a file of which no descriptor was ever closed. If it lives, it let
// go of the file in good order, by way of io_uring for one.
func (st *Staged) endUnclosed(pid uint32) (end proc.End) {
	if pid == 0 {
		return end
	}
	p, err := proc.Of(pid)
	if err == nil && !p.Exiting {
		return end
	}
	if err == nil {
		end = proc.EndOf(pid)
	}
	if !end.Known() {
		st.mu.Lock()
		defer st.mu.Unlock()
		if st.poison == nil {
			st.poison = errUnknownEnd
		}
	}
	return end
}

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

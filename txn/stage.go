package txn

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"untorn/txn/proc"
)

// ErrInPlace: the file must be opened as it is: it is a database, or an append-only file, which nothing can replace.
var ErrInPlace = errors.New("to be opened in place")

// Create stages a new name. The name is reserved from here on: to others it does not exist, and yet cannot be made.
//
// unix.EEXIST: it exists or is reserved, and flags has O_EXCL. ErrStale: it exists; look it up and open it. If the name is
// reserved by another file, joined is true and the writer is one of that file, or of a private one beside it: access must
// be checked against its attributes first. Other errors are those of making the temp; nothing is left behind then.
func (d *Dir) Create(name string, flags int, mode, umask uint32, c Caller) (w *Writer, joined bool, err error) {
	d.mu.Lock()
	reserved := len(d.slots[name]) > 0
	var s unix.Statx_t
	err = d.o.sys.Stat(d.fd, name, &s)
	if err != nil && err != unix.ENOENT {
		d.mu.Unlock()
		return nil, false, err
	}
	if exists := err == nil; exists || reserved {
		d.mu.Unlock()
		if flags&unix.O_EXCL != 0 {
			return nil, false, unix.EEXIST
		}
		if exists {
			return nil, false, ErrStale
		}
		w, err = d.openReserved(name, flags, c)
		return w, true, err
	}
	st := d.newStaged(New, name, c)
	d.put(name, st)
	d.mu.Unlock()
	w, err = st.prepare(d, flags, c, func() error { return st.makeNew(d, mode, umask, c) })
	if err != nil {
		return nil, false, fmt.Errorf("staging new file %q: %w", name, err)
	}
	return w, false, nil
}

// openReserved opens a reserved name for one more writer: it joins, or with O_TRUNC, unless it belongs to the writer,
// gets a private file of the same attributes. So it does when what is there is doomed.
func (d *Dir) openReserved(name string, flags int, c Caller) (*Writer, error) {
	beside := flags&unix.O_TRUNC != 0
	for _, st := range d.stagedAt(name) {
		<-st.ready
		own := st.Belongs(c)
		if !own && st.doomed() {
			beside = true
			continue
		}
		var s unix.Statx_t
		with := flags
		if flags&unix.O_TRUNC != 0 && !own {
			if st.Stat(&s) != nil || s.Size > 0 {
				continue // an empty one is joined, see OpenWrite
			}
			with &^= unix.O_TRUNC
		}
		if w, err := st.join(with, c); err != ErrClosed {
			return w, err
		}
	}
	list := d.stagedAt(name)
	if len(list) == 0 || !beside {
		return nil, ErrStale
	}
	like := list[0]
	<-like.ready // it may have come after those that were looked at
	fd, err := like.Hold()
	if err != nil {
		return nil, ErrStale
	}
	defer like.Unhold()
	st := d.newStaged(New, name, c)
	d.mu.Lock()
	d.put(name, st)
	d.mu.Unlock()
	w, err := st.prepare(d, flags, c, func() error { return st.makeLike(d, fd, false) })
	if err != nil {
		return nil, fmt.Errorf("staging %q: %w", name, err)
	}
	return w, nil
}

// OpenWrite stages an existing version for writing, or joins what is staged for its name already, as doc.go says.
//
// want is the version that the caller means, or zero for whatever the name leads to. ErrStale: the name leads elsewhere, or
// to no regular file. ErrInPlace. unix.EPERM: the file is immutable. ErrOwner. Other errors are those of making and filling
// the temp; nothing is left behind then.
func (d *Dir) OpenWrite(name string, want Ident, flags int, c Caller) (*Writer, error) {
	var s unix.Statx_t
	if err := d.o.sys.Stat(d.fd, name, &s); err == unix.ENOENT || (want != Ident{} && IdentOf(&s) != want) {
		return nil, ErrStale
	} else if err != nil {
		return nil, err
	}
	for _, st := range d.stagedAt(name) {
		<-st.ready
		if st.Belongs(c) {
			if w, err := st.join(flags, c); err != ErrClosed {
				return w, err
			}
		}
	}
	if flags&unix.O_TRUNC != 0 && s.Size == 0 && d.emptyShared(name) {
		// Nothing is truncated, so nothing need be private: lock files are opened like this (flock(1): 9> lock), and those
		// who lock must meet on one inode.
		if w, err := d.openShared(name, flags&^unix.O_TRUNC, c); err == nil {
			w.st.Touch()
			return w, nil
		} else if err != ErrInPlace {
			return nil, err
		}
	}
	if flags&unix.O_TRUNC != 0 {
		st := d.newStaged(Truncated, name, c)
		d.mu.Lock()
		d.put(name, st)
		d.mu.Unlock()
		return d.fill(st, name, flags, c)
	}
	return d.openShared(name, flags, c)
}

// emptyShared reports whether what further opens would join is empty, or not there.
func (d *Dir) emptyShared(name string) bool {
	d.mu.Lock()
	st := d.shared(name)
	d.mu.Unlock()
	if st == nil {
		return true
	}
	<-st.ready
	var s unix.Statx_t
	return st.Stat(&s) == nil && s.Size == 0
}

// openShared joins the shared staged file of a name, or makes it.
func (d *Dir) openShared(name string, flags int, c Caller) (*Writer, error) {
	for {
		d.mu.Lock()
		shared := d.shared(name)
		if shared == nil {
			st := d.newStaged(Copied, name, c)
			d.put(name, st)
			d.mu.Unlock()
			return d.fill(st, name, flags, c)
		}
		d.mu.Unlock()
		<-shared.ready
		if w, err := shared.join(flags, c); err != ErrClosed {
			return w, err
		}
		// It is being published or given up, which takes as long as the disk does; start from what there is then. Only so
		// many ESTALE are hidden from a program.
		<-shared.done()
	}
}

// shared returns what further opens without O_TRUNC join.
//
// LOCKS_REQUIRED(d.mu)
func (d *Dir) shared(name string) *Staged {
	for _, st := range d.slots[name] {
		if (st.kind == Copied || st.kind == New) && !st.doomed() {
			return st
		}
	}
	return nil
}

func (d *Dir) fill(st *Staged, name string, flags int, c Caller) (*Writer, error) {
	return st.prepare(d, flags, c, func() error { return st.makeFrom(d, name, flags) })
}

// prepare runs what makes the temp, and enters the first writer, or takes the name back if it fails.
func (st *Staged) prepare(d *Dir, flags int, c Caller, do func() error) (*Writer, error) {
	err := st.make(d, do)
	if err == nil && st.o.opt.Passthrough {
		err = st.demote()
	}
	if err != nil {
		st.fail()
		return nil, err
	}
	w := st.newWriter(flags, c)
	st.mu.Lock()
	st.to(Writing)
	st.enter(w)
	if len(st.places) == 0 { // unlinked while the temp was being made
		st.to(Detached)
		st.o.sys.Unlink(st.store.fd, st.temp)
	}
	st.mu.Unlock()
	st.o.enlist(st)
	st.note()
	close(st.ready)
	return w, nil
}

// make runs what makes the temp in the stage of d.
func (st *Staged) make(d *Dir, do func() error) error {
	store, err := st.o.store(d)
	if err != nil {
		return err
	}
	try := func() error {
		st.unmakeTemp()
		st.store, st.temp = store, store.next()
		return do()
	}
	err = try()
	for range 5 { // a removal may be under way yet
		if !errors.Is(err, unix.ENOENT) || !store.gone() {
			break
		}
		if store, err = st.o.renew(d, store); err != nil {
			return err
		}
		err = try()
	}
	if full(err) && store.room() > 0 { // the salvage gives way
		err = try()
	}
	return err
}

// unmakeTemp takes back what a failed attempt to make the temp left.
func (st *Staged) unmakeTemp() {
	if st.fd >= 0 {
		st.o.sys.Unlink(st.store.fd, st.temp)
		st.o.sys.Close(st.fd)
		st.fd = -1
	}
}

// fail ends a staged file that could not be prepared.
func (st *Staged) fail() {
	st.unmakeTemp()
	st.withdraw()
	st.mu.Lock()
	st.to(Dropped)
	st.giveBack()
	close(st.ended)
	st.mu.Unlock()
	close(st.ready)
}

// withdraw takes a staged file off all its names.
func (st *Staged) withdraw() {
	unlock := st.lockPlaces()
	st.mu.Lock()
	places := st.places
	st.places = nil
	for _, p := range places {
		p.dir.take(p.name, st)
	}
	st.mu.Unlock()
	unlock()
	for _, p := range places {
		p.dir.Release()
	}
}

// demote exchanges our writable descriptor for one that only reads: with passthrough nobody writes through it, and a
// read lease, which tells whether a mapping is left, is refused while any writable one is open.
func (st *Staged) demote() error {
	fd, err := st.o.keep.Reopen(st.fd, unix.O_RDONLY)
	if err == unix.EACCES {
		return nil // a mode that lets not even the owner read, and no privileges: keep the one there is
	}
	if err != nil {
		return fmt.Errorf("reopening the temp: %w", err)
	}
	st.o.sys.Close(st.fd)
	st.fd = fd
	return nil
}

// Writer is one open-for-write of a staged file: one struct file of the kernel, however many descriptors and mappings
// share it.
type Writer struct {
	st   *Staged
	tid  uint32 // who opened it
	pid  uint32
	rdwr bool // it can have a shared writable mapping

	opened bool // GUARDED_BY(st.mu); it has become an open file

	// flushed: a descriptor of it was closed. Without that it is open, or about to be: every close(2) is a FLUSH, and
	// between our answer to an open and the descriptor in the caller's table nothing else tells.
	flushed bool // GUARDED_BY(st.mu)

	closed bool // GUARDED_BY(st.mu); it is proved that no process has it open any more
}

// Staged is the file that it writes to.
func (w *Writer) Staged() *Staged { return w.st }

func (st *Staged) newWriter(flags int, c Caller) *Writer {
	return &Writer{st: st, tid: c.Tid, pid: proc.Pid(c.Tid), rdwr: flags&unix.O_ACCMODE == unix.O_RDWR}
}

// enter adds a writer.
//
// LOCKS_REQUIRED(st.mu)
func (st *Staged) enter(w *Writer) {
	st.write = append(st.write, w)
	st.joins++
	st.opens(w.pid)
	st.doubt, st.idle = time.Time{}, false
}

// join adds a further writer. ErrClosed: the staged file has come to its end, or is on the way.
func (st *Staged) join(flags int, c Caller) (*Writer, error) {
	w := st.newWriter(flags, c)
	st.mu.Lock()
	if st.state != Writing && st.state != Detached {
		st.mu.Unlock()
		return nil, ErrClosed
	}
	st.enter(w)
	if flags&unix.O_TRUNC != 0 {
		st.doom = proc.End{} // what the killed one had written goes
	}
	st.mu.Unlock()
	if flags&unix.O_TRUNC != 0 {
		if err := st.Truncate(0); err != nil {
			w.Abandon()
			return nil, err
		}
	}
	return w, nil
}

// Join adds a writer to a staged file that was reached by its own node. ErrClosed.
func (st *Staged) Join(flags int, c Caller) (*Writer, error) {
	<-st.ready
	return st.join(flags, c)
}

// Truncate is ftruncate of the temp. It counts as a change even when the size stays.
func (st *Staged) Truncate(size int64) error {
	st.Touch()
	return st.Writable(func(fd int) error { return st.o.sys.Truncate(fd, size) })
}

// Touch makes the staged file count as modified, whatever it looks like.
func (st *Staged) Touch() {
	st.mu.Lock()
	st.forced = true
	st.mu.Unlock()
}

// Writable runs f with a descriptor that can write.
func (st *Staged) Writable(f func(fd int) error) error {
	fd, err := st.Hold()
	if err != nil {
		return err
	}
	defer st.Unhold()
	if st.o.opt.Passthrough {
		if fd, err = st.o.sys.Reopen(fd, unix.O_RDWR); err != nil {
			st.Poison(err) // whoever ignores the failed write must not have a hole published
			return fmt.Errorf("reopening the temp: %w", err)
		}
		defer st.o.sys.Close(fd)
	}
	return f(fd)
}

// note records in the stage where the temp belongs, for whoever finds it after a crash.
func (st *Staged) note() {
	st.mu.Lock()
	temp, kind, clean := st.temp, st.kind, st.clean
	st.mu.Unlock()
	o := Origin{Temp: temp, Path: st.path(), Pid: st.pid(), Time: st.began}
	if c := st.command.Load(); c != nil {
		o.Command = *c
	}
	if kind == Copied {
		o.Clean = &Clean{Size: clean.size, Mtime: nanos(clean.mtime), Ctime: nanos(clean.ctime)}
	}
	if err := st.store.note(o); err != nil {
		st.o.log.Warn("recording where a staged file belongs", "path", o.Path, "err", err)
	}
}

func nanos(t unix.StatxTimestamp) int64 { return t.Sec*1e9 + int64(t.Nsec) }

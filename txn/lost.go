package txn

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// What is staged survives that somebody removes the stage by hand (rm -rf .untorn) while files are being written: the
// writers and we have the inodes open. But an inode whose last name is gone can get no other (linkat(2): ENOENT), so what
// is published or salvaged of it is a copy, made in a new stage. It costs the copying, or nothing where blocks can be
// shared. What the salvage held is gone, and a crash of the daemon before the last close loses the bytes.

// gone reports whether a directory of the store was removed.
func (s *Store) gone() bool {
	for _, fd := range []int{s.fd, s.salvage, s.base} {
		var st unix.Statx_t
		if s.o.sys.Stat(fd, "", &st) == nil && st.Nlink == 0 {
			return true
		}
	}
	return false
}

// renew makes a store in the place of one that is gone.
func (o *Overlay) renew(d *Dir, gone *Store) (*Store, error) {
	o.mu.Lock()
	if o.stores[d.key] == gone {
		delete(o.stores, d.key)
		o.gone = append(o.gone, gone) // files are staged in it
		o.log.Warn("the stage was removed by hand; there is a new one", "dir", d.Path(Hidden))
	}
	o.mu.Unlock()
	return o.store(d)
}

// lost reports whether the temp was removed from the stage.
func (st *Staged) lost() bool {
	var s unix.Statx_t
	return st.o.sys.Stat(st.store.fd, st.temp, &s) == unix.ENOENT
}

// publishLost ends a staged file whose temp is lost: it publishes a copy under all its names.
func (st *Staged) publishLost() error {
	twin, err := st.copyOut((*Staged).makeLike)
	if err == errGone {
		return st.drop()
	}
	if err != nil {
		return st.giveUp(err)
	}
	err = twin.publish()
	st.leave(twin.State())
	st.end(err)
	return err
}

// keepLost moves a copy to the salvage, when the temp itself could not be: failed is why. Other failures than that
// something of the store is gone are returned as they are.
func (st *Staged) keepLost(rec Record, failed error) (id string, err error) {
	if !errors.Is(failed, unix.ENOENT) || !st.lost() && !st.store.gone() {
		return "", failed
	}
	twin, err := st.copyOut((*Staged).makeKept)
	if err != nil {
		return "", err
	}
	id, err = twin.store.keep(twin.temp, rec)
	twin.leave(Salvaged)
	twin.end(err)
	if err == nil {
		st.o.sys.Unlink(st.store.fd, st.temp)
	}
	return id, err
}

// makeKept is makeLike for the salvage, where the bytes count. What cannot be had of the attributes is left away.
func (st *Staged) makeKept(d *Dir, base int, _ bool) (err error) {
	var s unix.Statx_t
	if err := st.o.sys.Stat(base, "", &s); err != nil {
		return err
	}
	if st.fd, err = st.makeBare(d); err != nil {
		return err
	}
	copyAttributes(st.o.sys, base, st.fd, 0)
	return st.copyBytes(base, int64(s.Size))
}

// copyOut makes a copy of a staged file that nobody writes to any more, in state Publishing and with the same names.
// errGone: it has none.
func (st *Staged) copyOut(with func(twin *Staged, d *Dir, base int, bytes bool) error) (*Staged, error) {
	fd, err := st.Hold()
	if err != nil {
		return nil, err
	}
	defer st.Unhold()
	unlock := st.lockPlaces()
	st.mu.Lock()
	if len(st.places) == 0 {
		st.mu.Unlock()
		unlock()
		return nil, errGone
	}
	d := st.places[0].dir.retain()
	defer d.Release()
	twin := d.newStaged(Truncated, st.places[0].name, Caller{Cred: st.cred})
	if st.kind == New {
		twin.kind = New
	}
	for _, p := range st.places[1:] {
		twin.places = append(twin.places, place{p.dir.retain(), p.name})
	}
	for _, p := range twin.places {
		p.dir.put(p.name, twin)
	}
	twin.base, twin.over, twin.set, twin.pids = st.base, st.over, st.set, slices.Clone(st.pids)
	twin.command.Store(st.command.Load())
	st.mu.Unlock()
	unlock()

	store, err := st.o.store(d)
	if err == nil && store.gone() { // perhaps only the salvage is: that is no hindrance to a temp
		_, err = st.o.renew(d, store)
	}
	if err == nil {
		err = twin.make(d, func() error { return with(twin, d, fd, true) })
	}
	if err != nil {
		twin.fail()
		return nil, err
	}
	twin.mu.Lock()
	twin.to(Writing)
	twin.to(Publishing)
	twin.mu.Unlock()
	st.o.enlist(twin)
	twin.note()
	close(twin.ready)
	return twin, nil
}

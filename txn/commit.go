package txn

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// publishCopy makes the bytes so far the version, while the writer keeps the file open: a copy is published, because
// what is published is never written again.
func (st *Staged) publishCopy() error {
	d, name, ok := st.holdPlace()
	if !ok {
		return nil
	}
	defer d.Release()
	err := st.adopt() // what the path got since it was staged
	if err != nil {
		return fmt.Errorf("publishing what was written so far: %w", err)
	}
	twin, err := d.publishTwin(name, st.fd, st)
	if err != nil {
		return fmt.Errorf("publishing what was written so far: %w", err)
	}
	st.mu.Lock()
	st.show(twin.id.Ino)
	st.mu.Unlock()
	return nil
}

// goOn publishes a staged file in the state that it is in, and lets its writers go on in the version itself: for
// databases, which bring their own transactions and must lose nothing when a process is killed.
func (st *Staged) goOn() error {
	st.mu.Lock()
	if st.state != Writing {
		st.mu.Unlock()
		return nil
	}
	st.to(Publishing)
	st.mu.Unlock()
	if err := st.harden(); err != nil {
		return st.giveUp(fmt.Errorf("fsync of the file: %w", err))
	}
	dirs, err := st.expose(InPlace)
	defer releaseAll(dirs)
	if err != nil {
		return st.giveUp(fmt.Errorf("putting it in place: %w", err))
	}
	err = st.hardenDirs(dirs)
	st.end(err)
	return err
}

// Companion handles the making of a file whose name says that it belongs to a database: if X is staged and X-journal or
// X-wal is made beside it, X is published and goes on in place. It reports whether name is such a companion, of an X that
// is open or begins like a database, and so is to be made in place itself.
func (d *Dir) Companion(name string, c Caller) (bool, error) {
	owner, ok := companionOf(name)
	if !ok || !d.o.Rules().Databases() {
		return false, nil
	}
	for _, st := range d.stagedAt(owner) {
		<-st.ready
		if !st.Belongs(c) {
			continue
		}
		if err := st.goOn(); err != nil {
			return false, fmt.Errorf("publishing database %q: %w", owner, err)
		}
		return true, nil
	}
	return d.holdsDatabase(owner), nil
}

// InPlace tells whether an existing file is to be opened in place: by the rules, or because it belongs to a database.
func (d *Dir) InPlace(name string) bool {
	if d.Direct(name) {
		return true
	}
	owner, ok := companionOf(name)
	return ok && d.o.Rules().Databases() && d.holdsDatabase(owner)
}

func (d *Dir) holdsDatabase(name string) bool {
	fd, err := d.o.sys.Open(d.fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer d.o.sys.Close(fd)
	return isDatabase(d.o.sys, fd)
}

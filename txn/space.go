package txn

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// spaceEvery is how often the free space is looked at: with passthrough programs fill a disk without our seeing it.
const spaceEvery = 10 * time.Second

// watchSpace sees to it that the salvage gives way before programs run out of space, until the Overlay is closed.
func (o *Overlay) watchSpace() {
	time.AfterFunc(spaceEvery, func() {
		if !o.busy() {
			return
		}
		defer o.pending.Done()
		o.checkSpace()
		o.watchSpace()
	})
}

func (o *Overlay) checkSpace() {
	o.mu.Lock()
	var all []*Store
	for _, s := range o.stores {
		all = append(all, s)
	}
	o.mu.Unlock()
	for _, s := range all {
		if missing, err := s.shelf().missing(); err == nil && missing > 0 {
			s.sweep(o.opt.Limits)
		}
	}
}

// hardenKilled makes what a killed writer left survive a power cut. Nobody waits for that: the process is gone, and its
// exit should not take as long as its bytes take to the disk. What could not be synced before is not tried again.
func (st *Staged) hardenKilled(why error, id string) {
	st.mu.Lock()
	poison := st.poison
	st.mu.Unlock()
	o, salvage := st.o, st.store.salvage
	if o.opt.Durability == None || !errors.Is(why, ErrKilled) || poison != nil {
		return
	}
	fd, err := o.sys.Reopen(st.fd, unix.O_RDONLY)
	if err != nil {
		o.log.Warn("a salvaged file may not survive a power cut", "id", id, "err", fmt.Errorf("opening it: %w", err))
		return
	}
	sync := func() {
		defer o.sys.Close(fd)
		err := o.sys.Fdatasync(fd)
		if err == nil {
			err = o.sys.Fsync(salvage)
		}
		if err != nil {
			o.log.Warn("a salvaged file may not survive a power cut", "id", id, "err", err)
		}
	}
	if !o.busy() { // Close waits for those it knows
		sync()
		return
	}
	go func() {
		defer o.pending.Done()
		sync()
	}()
}

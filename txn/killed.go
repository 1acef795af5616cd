package txn

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// hardenKilled makes what a killed writer left survive a power cut. Nobody waits for that: the process is gone, and its
// exit should not take as long as its bytes take to the disk. What could not be synced before is not tried again.
// held is its descriptor.
func (st *Staged) hardenKilled(held int, why error, id string) {
	st.mu.Lock()
	poison := st.poison
	st.mu.Unlock()
	o, salvage := st.o, st.store.salvage
	if o.opt.Durability == None || !errors.Is(why, ErrKilled) || poison != nil {
		return
	}
	fd, err := o.sys.Reopen(held, unix.O_RDONLY)
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

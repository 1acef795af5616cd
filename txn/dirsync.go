package txn

import (
	"sync"

	"golang.org/x/sys/unix"
)

// sync makes the names in the directory durable that were changed before it was called.
func (d *Dir) sync() error {
	return d.syncs.share(func() error {
		fd, err := d.o.sys.Reopen(d.fd, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer d.o.sys.Close(fd)
		return d.o.sys.Fsync(fd)
	})
}

// sharedSync lets those who wait for the same fsync at the same time share one. An fsync covers what was changed before it
// began: who comes while one is under way waits for the next, together with all who come until that begins. The error goes
// to all of them.
type sharedSync struct {
	mu   sync.Mutex
	now  *syncing // GUARDED_BY(mu); under way
	next *syncing // GUARDED_BY(mu); begins when now is done
}

// syncing is one fsync.
type syncing struct {
	done chan struct{}
	err  error // constant after done is closed
}

func (s *sharedSync) share(fsync func() error) error {
	s.mu.Lock()
	if next := s.next; next != nil {
		s.mu.Unlock()
		<-next.done
		return next.err
	}
	mine := &syncing{done: make(chan struct{})}
	if now := s.now; now != nil {
		s.next = mine
		s.mu.Unlock()
		<-now.done
		s.mu.Lock()
		s.next = nil
	}
	s.now = mine
	s.mu.Unlock()

	mine.err = fsync()
	s.mu.Lock()
	s.now = nil
	s.mu.Unlock()
	close(mine.done)
	return mine.err
}

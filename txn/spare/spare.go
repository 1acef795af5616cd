// Package spare keeps some file descriptors of the process in reserve. Every open file of a mount costs its daemon one, so
// programs can use them all up. Then a new open must fail, cleanly, with EMFILE; but what has been written must still be
// published when it is closed, or kept, and both need descriptors for a moment. Those come from here.
//
// The rule is: a descriptor that is given back in the same call is opened by Brief, one that is kept by Lasting, and both
// are closed by Close. Nobody opens a second Brief one while it has a first, so whoever waits for one gets it.
//
// It is one reserve for the process because the limit is one (RLIMIT_NOFILE, getrlimit(2)). The limit of the whole system
// (ENFILE) is treated in the same way, but other processes may be faster there. It does not concern root.
package spare

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// most is how many closes at once get by without waiting for one another.
	most = 64
	// share of the limit that is the most that is kept in reserve.
	share = 8
	// patience is how long an open waits while all of the reserve is in use.
	patience = 10 * time.Second
	// tries bounds how often one open that goes on failing takes another.
	tries = 16
)

// pool is the reserve; nil where there is none.
type pool struct {
	source int        // what it has duplicates of
	spares chan int   // of as many as it should have
	mu     sync.Mutex // held where a descriptor is freed for somebody who is to get it
}

var (
	once    sync.Once
	reserve atomic.Pointer[pool]
)

// Fill takes the reserve, for the life of the process. Without it Brief, Lasting and Close are what they are given.
func Fill() {
	once.Do(func() {
		var limit unix.Rlimit
		if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
			return
		}
		source, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			return
		}
		p := &pool{source: source, spares: make(chan int, min(most, limit.Cur/share))}
		p.refill()
		reserve.Store(p)
	})
}

// exhausted reports whether an open failed for lack of descriptors.
func exhausted(err error) bool { return err == unix.EMFILE || err == unix.ENFILE }

// short reports whether some of the reserve are in use.
func (p *pool) short() bool { return p != nil && len(p.spares) < cap(p.spares) }

// refill takes what is missing from the descriptors that are free.
func (p *pool) refill() {
	for p.short() {
		fd, err := unix.FcntlInt(uintptr(p.source), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return
		}
		p.put(fd)
	}
}

func (p *pool) put(fd int) {
	select {
	case p.spares <- fd:
	default: // somebody else has filled it
		unix.Close(fd)
	}
}

// Brief opens a descriptor that is closed again by the same call, if need be with one of the reserve.
func Brief(open func() (int, error)) (int, error) {
	fd, err := open()
	p := reserve.Load()
	if !exhausted(err) || p == nil {
		return fd, err
	}
	for range tries {
		select {
		case s := <-p.spares:
			p.mu.Lock()
			unix.Close(s)
			fd, err = open()
			p.mu.Unlock()
		case <-time.After(patience):
			return fd, err
		}
		if !exhausted(err) {
			return fd, err
		}
	}
	p.refill()
	return fd, err
}

// Lasting opens a descriptor that is kept. The reserve comes first.
func Lasting(open func() (int, error)) (int, error) {
	if p := reserve.Load(); p.short() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.refill()
	}
	return open()
}

// Close closes a descriptor, or makes it one of the reserve, if that is short: in one step, so that nobody gets it in
// between.
func Close(fd int, close func(fd int) error) error {
	if p := reserve.Load(); p.short() && unix.Dup3(p.source, fd, unix.O_CLOEXEC) == nil {
		p.put(fd)
		return nil
	}
	return close(fd)
}

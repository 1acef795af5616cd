package txn

import (
	"sync"

	"golang.org/x/sys/unix"
)

// reserve is a little space on the filesystem, held by a file without a name. When the disk is full and a staged file has
// to be salvaged, its record needs a block or two; then the reserve is spent.
type reserve struct {
	mu sync.Mutex
	fd int // GUARDED_BY(mu); 0 when there is none
}

// reserveName is the name that it has for an instant. No temp has it: theirs are numbers in base 36 of fewer digits.
const reserveName = "reserve"

// reserveSize is enough for some records and the directory blocks that they may need.
const reserveSize = 64 << 10

// fill takes the reserve if it is not held. On a disk that is full already there is none.
func (r *reserve) fill(s *Store) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fd != 0 {
		return
	}
	sys := s.o.sys
	fd, err := s.o.keep.Open(s.fd, reserveName, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return
	}
	// With a name it would be taken for a temp by a recovery. An empty one is not.
	if err = sys.Unlink(s.fd, reserveName); err == nil {
		err = sys.Fallocate(fd, 0, 0, reserveSize)
	}
	if err != nil {
		sys.Close(fd)
		return
	}
	r.fd = fd
}

// spend gives the space back to the filesystem and reports whether there was any.
func (r *reserve) spend(sys Sys) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fd == 0 {
		return false
	}
	sys.Close(r.fd)
	r.fd = 0
	return true
}

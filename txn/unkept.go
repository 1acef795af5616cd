package txn

import "sync"

// unkept are staged files that could be neither published nor salvaged, because the filesystem failed. They wait in the
// stage, and are tried again when something else has succeeded there and when the mount ends. A crash, or a filesystem
// that goes on failing, leaves them to the next recovery.
type unkept struct {
	mu   sync.Mutex
	list []leftover // GUARDED_BY(mu)
}

type leftover struct {
	temp string
	rec  Record
}

func (u *unkept) add(temp string, rec Record) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.list = append(u.list, leftover{temp, rec})
}

func (u *unkept) take() []leftover {
	u.mu.Lock()
	defer u.mu.Unlock()
	list := u.list
	u.list = nil
	return list
}

// keepUnkept tries again to salvage what could not be salvaged before.
func (s *Store) keepUnkept() {
	list := s.unkept.take()
	for i, l := range list {
		id, err := s.keep(l.temp, l.rec)
		if err != nil {
			for _, l := range list[i:] {
				s.unkept.add(l.temp, l.rec)
			}
			return
		}
		s.o.log.Warn("salvaged what had to wait in the stage", "path", l.rec.Path, "id", id)
	}
}

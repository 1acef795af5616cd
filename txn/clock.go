package txn

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The salvage gives entries up by age, and the clock may be wrong: at boot until the time has been fetched, or for good.
// So untorn writes down, in .untorn/clock, since when the clock has gone on without a jump, and when it was last looked at.

const (
	// jump is how far the clock may have gone on since the last look. A longer way is a jump, or a time in which nobody
	// mounted the backing and so nobody saw what is kept; either way nothing is given up at once.
	jump = 7 * 24 * time.Hour
	// proof is how long the clock must have gone on since.
	proof = 24 * time.Hour
	// looked is how exact the time of the last look is.
	looked = time.Minute
)

// clock is the content of the file.
type clock struct{ since, last time.Time }

// tell moves on to a look at the time now.
func (c clock) tell(now time.Time) clock {
	if c.last.IsZero() || c.since.After(c.last) || now.Before(c.last) || now.Sub(c.last) > jump {
		c.since = now
	}
	c.last = now
	return c
}

// mayAge reports whether entries may be given up for their age, which is limited. They may not while an entry is younger
// than now (the clock was set back, or forward before that), nor before the clock has gone on long enough since it
// jumped; the bounds in bytes and number hold all the same.
func (s *Store) mayAge(entries []kept, now time.Time, limit time.Duration) bool {
	before := s.readClock()
	c := before.tell(now)
	if c.since != before.since || now.Sub(before.last) > looked {
		if err := s.writeClock(c); err != nil {
			s.o.log.Debug("writing down the time", "error", err)
			return false
		}
	}
	if len(entries) > 0 && entries[len(entries)-1].at.After(now) {
		return false
	}
	return now.Sub(c.since) >= min(limit, proof)
}

// readClock reads the file; what cannot be understood is as good as none.
func (s *Store) readClock() (c clock) {
	text, err := readEnd(s.o.sys, s.base, clockName, 128)
	if err != nil {
		return clock{}
	}
	since, last, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	c.since, err = time.Parse(time.RFC3339, since)
	if err != nil {
		return clock{}
	}
	if c.last, err = time.Parse(time.RFC3339, last); err != nil {
		return clock{}
	}
	return c
}

// writeClock needs no care: of a torn file the worst is that nothing ages for a day.
func (s *Store) writeClock(c clock) error {
	s.o.sys.Unlink(s.base, clockName) // rather than write into what it might be
	fd, err := s.o.sys.Open(s.base, clockName, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer s.o.sys.Close(fd)
	_, err = s.o.sys.Pwrite(fd, []byte(c.since.UTC().Format(time.RFC3339)+" "+c.last.UTC().Format(time.RFC3339)+"\n"), 0)
	return err
}

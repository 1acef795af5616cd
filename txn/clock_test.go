package txn

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestWrongClock sets the clock as machines do that boot without one, and looks what the salvage gives up for its age.
func TestWrongClock(t *testing.T) {
	const day = 24 * time.Hour
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name  string
		looks []time.Duration // since now, one after the other
		want  []bool
	}{
		{"right", []time.Duration{0, 6 * day, 12 * day}, []bool{false, true, true}},
		{"forward", []time.Duration{0, 2 * day, 30000 * day, 30000*day + time.Hour}, []bool{false, true, false, false}},
		{"forward and back", []time.Duration{0, 2 * day, 30000 * day, 2*day + time.Hour}, []bool{false, true, false, false}},
		{"back", []time.Duration{0, 2 * day, -20000 * day, -19998 * day}, []bool{false, true, false, true}},
		{"back and forward", []time.Duration{0, 2 * day, -20000 * day, 2 * day, 4 * day}, []bool{false, true, false, false, true}},
		{"not mounted for long", []time.Duration{0, 2 * day, 60 * day, 60*day + time.Hour, 62 * day}, []bool{false, true, false, false, true}},
	} {
		s := newShop(t)
		for i, look := range c.looks {
			if i == 0 {
				must(t, os.Remove(filepath.Join(s.path, Hidden, clockName)))
			}
			if got := s.mayAge(nil, now.Add(look), 30*day); got != c.want[i] {
				t.Errorf("%s: look %d: %v", c.name, i, got)
			}
		}
	}
	s := newShop(t)
	if s.mayAge([]kept{{at: time.Now().Add(day)}}, time.Now(), 0) {
		t.Error("something ages although an entry is from the future")
	}
	for _, text := range []string{"", "\x00\x00", "yesterday now", "2026-11-20T12:00:00Z", "9999999-11-20T12:00:00Z x"} {
		write(t, filepath.Join(s.path, Hidden, clockName), text)
		if s.mayAge(nil, time.Now(), day) {
			t.Errorf("with a clock file of %q things age", text)
		}
	}
}

// TestSweepWithWrongClock: entries of last month and of the next century outlive a mount at either time.
func TestSweepWithWrongClock(t *testing.T) {
	s := newShop(t)
	salvage := filepath.Join(s.path, Hidden, salvageName)
	for _, at := range []time.Time{time.Now().AddDate(0, -2, 0), time.Unix(5, 0)} {
		write(t, filepath.Join(salvage, idAt(at)), "old")
		write(t, filepath.Join(salvage, idAt(at)+recordSuffix), "{}")
	}
	since := time.Now().AddDate(0, -3, 0)
	must(t, s.writeClock(clock{since, since})) // it was not mounted for three months
	s.sweep(Limits{})
	equal(t, "left", len(s.contents()), 2)
	must(t, s.writeClock(clock{since, time.Now().Add(-time.Hour)}))
	future := idAt(time.Now().AddDate(70, 0, 0))
	write(t, filepath.Join(salvage, future), "future")
	s.sweep(Limits{})
	equal(t, "left beside an entry from the future", len(s.contents()), 3)

	// New entries follow it, so that the number of entries bounds them in the order in which they came.
	s.o.opt.Limits = Limits{Count: 2}
	s.keepNew("1", "new", Record{})
	s.keepNew("2", "newer", Record{})
	equal(t, "left", s.contents(), []string{"new", "newer"})

	must(t, os.RemoveAll(salvage))
	must(t, os.Mkdir(salvage, 0o700))
	s.crash()
	s.open()
	old := idAt(time.Now().AddDate(0, -2, 0))
	write(t, filepath.Join(salvage, old), "old")
	must(t, s.writeClock(clock{since, time.Now().Add(-time.Hour)}))
	s.sweep(Limits{})
	equal(t, "left with a clock that is right", len(s.contents()), 0)
}

func TestIDsThatSomebodyPlanted(t *testing.T) {
	s := newShop(t)
	write(t, filepath.Join(s.path, Hidden, salvageName, "99991231-235959-ffff"), "planted")
	s.sweep(Limits{})
	id := s.keepNew("1", "new", Record{})
	if at, ok := idTime(id); !ok || time.Since(at).Abs() > time.Minute {
		t.Errorf("the new entry is %s", id)
	}
	equal(t, "entries", len(s.contents()), 2)
}

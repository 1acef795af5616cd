package txn

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSalvageGivesWay: when the disk fills up, whoever fills it, the salvage is given up before, but for the youngest
// entry, and the log tells.
func TestSalvageGivesWay(t *testing.T) {
	s := newShop(t)
	s.o.stores = map[storeKey]*Store{{}: s.Store}
	for _, name := range []string{"1", "2", "3"} {
		s.keepNew(name, strings.Repeat(name, 8192), Record{Path: "p" + name})
	}
	s.o.checkSpace()
	equal(t, "left while there is room", len(s.contents()), 3)
	s.sys.statfs = func(st *unix.Statfs_t) { st.Bavail = 0 }
	s.o.checkSpace()
	if list := s.records(); len(list) != 1 || list[0].Path != "p3" {
		t.Errorf("left: %+v", list)
	}
	for _, path := range []string{"p1", "p2"} {
		if !strings.Contains(s.log.String(), "path="+path) || !strings.Contains(s.log.String(), "nearly full") {
			t.Errorf("nothing in the log about %s:\n%s", path, &s.log)
		}
	}
}

// TestKilledIsDurable: what a killed writer left is synced by the time that the mount ends, if anything is promised, after
// the record, and the closing process has not waited for it.
func TestKilledIsDurable(t *testing.T) {
	for d, want := range map[Durability]string{
		Full: "fsync file, rename, rename, fdatasync file, fsync directory", Ordered: "fsync file, rename, rename, fdatasync file, fsync directory",
		None: "fsync file, rename, rename",
	} {
		sys := &oneFault{at: 1 << 30, kinds: map[string]bool{}, lost: map[Ident]bool{}}
		m := open(t, Options{Sys: sys, Durability: d})
		m.file("f", "old")
		writer, end := waiting(t, "kill -9 $$")
		w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, writer)
		put(t, w, 0, "half")
		end()
		sys.trace = nil
		is(t, closeLast(t, w, writer), ErrKilled)
		m.pending.Wait()
		sys.mu.Lock()
		equal(t, d.String(), strings.Join(sys.trace, ", "), want)
		sys.mu.Unlock()
		_, records := m.salvaged()
		equal(t, "reason", records[0].Reason, "killed by signal 9 (SIGKILL)")
	}
}

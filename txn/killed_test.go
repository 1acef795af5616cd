package txn

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKilledIsDurable: what a killed writer left is synced by the time that the mount ends, if anything is promised, after
// the record, and the closing process has not waited for it.
func TestKilledIsDurable(t *testing.T) {
	for d, want := range map[Durability]string{
		Full: "fsync file, rename, fsync directory, rename, fdatasync file, fsync directory", Ordered: "fsync file, rename, fsync directory, rename, fdatasync file, fsync directory",
		None: "fsync file, rename, fsync directory, rename",
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

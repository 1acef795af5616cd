package txn

import (
	"context"
	"io"
	"log/slog"
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

// onlooker asks for a staged file whenever something is logged.
type onlooker struct {
	slog.Handler
	o    *Overlay
	lost bool
}

func (l *onlooker) Handle(ctx context.Context, r slog.Record) error {
	if l.o != nil {
		for _, st := range l.o.Staged() {
			st.Info()
		}
	}
	l.lost = l.lost || strings.Contains(r.Message, "may not survive")
	return nil
}

// TestKilledIsWatched: what a killed writer left is synced also if somebody looks at it at the same time, whose hold of its
// descriptor is the last.
func TestKilledIsWatched(t *testing.T) {
	log := &onlooker{Handler: slog.NewTextHandler(io.Discard, nil)}
	m := open(t, Options{Log: slog.New(log)})
	log.o = m.Overlay
	m.file("f", "old")
	opener, end := waiting(t, "kill -9 $$")
	w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, opener)
	put(t, w, 0, "half")
	end()
	is(t, closeLast(t, w, opener), ErrKilled)
	equal(t, "it may not survive a power cut", log.lost, false)
}

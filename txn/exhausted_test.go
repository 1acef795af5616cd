package txn

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// hog uses up the descriptors of this process.
type hog struct {
	o     *Overlay
	limit unix.Rlimit
	taken []int
}

func newHog(t *testing.T, o *Overlay) *hog {
	t.Helper()
	h := &hog{o: o}
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &h.limit))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 300, Max: h.limit.Max}))
	t.Cleanup(func() { h.free(t) })
	h.take(t)
	return h
}

// take takes what there is.
func (h *hog) take(t *testing.T) {
	t.Helper()
	for {
		fd, err := h.o.Sys().Reopen(h.o.Root().fd, unix.O_PATH)
		if err != nil {
			is(t, err, unix.EMFILE)
			return
		}
		h.taken = append(h.taken, fd)
	}
}

// free gives everything back.
func (h *hog) free(t *testing.T) {
	for _, fd := range h.taken {
		h.o.Sys().Close(fd)
	}
	h.taken = nil
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &h.limit))
}

// TestNoDescriptorLeft: programs have used up the descriptors of the daemon. New opens fail with EMFILE and leave nothing
// behind; what is open can be written, looked at, closed, published, and salvaged.
func TestNoDescriptorLeft(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		m.file("f", "old")
		m.file("g", "old")
		m.file("other", "old")
		writers := map[string]*Writer{
			"f":   m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me),
			"g":   m.openWrite("g", unix.O_RDWR, m.me),
			"new": m.create("new", m.me),
		}
		lost := m.create("lost", m.me)
		dead, cmd := child(t)
		cmd.Process.Kill()
		die(t, cmd)
		hog := newHog(t, m.Overlay)

		_, err := m.Root().OpenWrite("other", Ident{}, unix.O_WRONLY|unix.O_TRUNC, m.me)
		is(t, err, unix.EMFILE)
		_, _, err = m.Root().Create("another", unix.O_WRONLY, 0o644, 0, m.me)
		is(t, err, unix.EMFILE)
		_, err = m.Root().OpenWrite("other", Ident{}, unix.O_WRONLY, m.me)
		is(t, err, unix.EMFILE)

		put(t, lost, 0, "of a killed one")
		is(t, lost.Flush(dead), ErrKilled)
		lost.Release()
		for name, w := range writers {
			hog.take(t) // what the one before gave back
			put(t, w, 0, "new")
			must(t, os.Chmod(m.at(other(name)), 0o640)) // so that it is looked at again
			must(t, closeLast(t, w, m.me))
			m.has(name, "new")
		}
		hog.free(t)
		m.has("other", "old")
		m.has("another", "-")
		kept, _ := m.salvaged()
		equal(t, "salvaged", kept, []string{"of a killed one"})
		must(t, closeLast(t, m.openWrite("other", unix.O_WRONLY|unix.O_TRUNC, m.me), m.me))
		m.has("other", "")
	})
}

// other is a name that exists.
func other(name string) string {
	if name == "new" {
		return "other"
	}
	return name
}

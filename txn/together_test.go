package txn

import (
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// slow is a disk on which one fsync takes as long as the test wants.
type slow struct {
	Linux
	armed   atomic.Bool
	begun   chan struct{}
	release chan struct{}
	err     error
}

func newSlow(err error) *slow {
	return &slow{begun: make(chan struct{}), release: make(chan struct{}), err: err}
}

func (s *slow) Fsync(fd int) error {
	if s.armed.CompareAndSwap(true, false) {
		close(s.begun)
		<-s.release
		if s.err != nil {
			return s.err
		}
	}
	return s.Linux.Fsync(fd)
}

// publishing closes a file in the background and returns when it is on its way to the disk.
func (s *slow) publishing(w *Writer, c Caller) (done chan error) {
	done = make(chan error, 1)
	s.armed.Store(true)
	go func() { done <- w.Flush(c) }()
	<-s.begun
	return done
}

// TestClosesAtTheSameMoment: of two, each may be the last to its caller. Neither returns before the file is there, and both
// say so if it is not.
func TestClosesAtTheSameMoment(t *testing.T) {
	for _, fails := range []error{nil, unix.EIO} {
		sys := newSlow(fails)
		m := open(t, Options{Sys: sys})
		m.file("f", "old")
		w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
		put(t, w, 0, "new")
		first := sys.publishing(w, m.me)
		time.AfterFunc(50*time.Millisecond, func() { close(sys.release) })
		err := w.Flush(m.me)
		if fails == nil {
			must(t, err)
			m.has("f", "new")
		} else {
			is(t, err, fails)
			m.has("f", "old")
		}
		is(t, <-first, fails)
		w.Release()
	}
}

// TestOpenWhilePublishing waits for the disk, however slow it is.
func TestOpenWhilePublishing(t *testing.T) {
	sys := newSlow(nil)
	m := open(t, Options{Sys: sys})
	m.file("f", "old")
	w := m.openWrite("f", unix.O_WRONLY, m.me)
	put(t, w, 0, "new")
	first := sys.publishing(w, m.me)
	time.AfterFunc(1100*time.Millisecond, func() { close(sys.release) })
	other, _ := child(t)
	w2 := m.openWrite("f", unix.O_WRONLY, other)
	put(t, w2, 3, "er")
	must(t, closeLast(t, w2, other))
	must(t, <-first)
	w.Release()
	m.has("f", "newer")
}

// TestTruncatingOpenWhilePublishing: O_TRUNC does not get lost on the way past a file that is being published.
func TestTruncatingOpenWhilePublishing(t *testing.T) {
	sys := newSlow(nil)
	m := open(t, Options{Sys: sys})
	a, _ := child(t)
	b, _ := child(t)
	c, _ := child(t)
	w1 := m.create("f", a)
	put(t, w1, 0, "a")
	w2, joined, err := m.Root().Create("f", unix.O_WRONLY|unix.O_TRUNC, 0o644, 0, b)
	must(t, err)
	w2.Opened()
	equal(t, "joined", joined && w2.st != w1.st, true)
	put(t, w2, 0, "b's")
	must(t, w1.Staged().Truncate(0))
	first := sys.publishing(w1, a)
	w3, _, err := m.Root().Create("f", unix.O_WRONLY|unix.O_TRUNC, 0o644, 0, c)
	must(t, err)
	w3.Opened()
	if w3.st == w2.st {
		t.Error("it writes into what somebody else has written")
	}
	close(sys.release)
	must(t, <-first)
	w1.Release()
	put(t, w3, 0, "c")
	must(t, closeLast(t, w3, c))
	m.has("f", "c")
	must(t, closeLast(t, w2, b))
	m.has("f", "b's")
}

package txn

import (
	"testing"

	"golang.org/x/sys/unix"
)

// crowded is a disk that is nearly full, on which somebody else writes right after a probe has found that there is space.
type crowded struct {
	Linux
	meanwhile func()
}

func (c *crowded) Statfs(fd int, st *unix.Statfs_t) error {
	err := c.Linux.Statfs(fd, st)
	st.Bavail = 1
	return err
}

func (c *crowded) Fallocate(fd int, mode uint32, off, n int64) error {
	err := c.Linux.Fallocate(fd, mode, off, n)
	if do := c.meanwhile; do != nil {
		c.meanwhile = nil
		do()
	}
	return err
}

// TestProbeAmongWriters: what somebody else appends while a close probes for space stays.
func TestProbeAmongWriters(t *testing.T) {
	sys := &crowded{}
	m := open(t, Options{Passthrough: true, Sys: sys})
	m.file("f", "old")
	other, _ := child(t)
	w := m.openWrite("f", unix.O_WRONLY, m.me)
	o := m.openWrite("f", unix.O_WRONLY, other)
	block := make([]byte, 8192)
	for i := range block {
		block[i] = 'x'
	}
	put(t, w, 0, "new")
	sys.meanwhile = func() { put(t, o, 3, string(block)) }
	must(t, w.Flush(m.me))
	w.Release()
	if sys.meanwhile != nil {
		t.Fatal("nothing was probed")
	}
	must(t, closeLast(t, o, other))
	m.has("f", "new"+string(block))
	if st := m.stat("f"); st.Blocks*512 > margin {
		t.Errorf("%d blocks are left beyond the end", st.Blocks)
	}
}

// TestProbeLeavesTheUntouched: a file that nobody has written to is not replaced because of a probe.
func TestProbeLeavesTheUntouched(t *testing.T) {
	m := open(t, Options{Passthrough: true, Sys: &crowded{}})
	m.file("f", "old")
	before := m.stat("f").Ino
	w := m.openWrite("f", unix.O_WRONLY, m.me)
	must(t, finish(w, m.me))
	equal(t, "state", w.Staged().State(), Dropped)
	equal(t, "inode", m.stat("f").Ino, before)
}

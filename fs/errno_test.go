package fs

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"untorn/txn"
)

// TestStatus: what a program sees of an error, however deep it is wrapped.
func TestStatus(t *testing.T) {
	for err, want := range map[error]unix.Errno{
		nil:         0,
		unix.ENOSPC: unix.ENOSPC,
		fmt.Errorf("staging: %w", fmt.Errorf("making the temp: %w", unix.EDQUOT)): unix.EDQUOT,
		fmt.Errorf("%w: %w", txn.ErrPoisoned, unix.EFBIG):                         unix.EFBIG,
		fmt.Errorf("looking: %w", txn.ErrStale):                                   unix.ESTALE,
		txn.ErrReadOnly:                                                           unix.EROFS,
		txn.ErrOwner:                                                              unix.EPERM,
		errEscape:                                                                 unix.EBUSY,
		errors.New("a mystery"):                                                   unix.EIO,
	} {
		if got := status(err); unix.Errno(got) != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}

// TestFileTable: handles are found as long as they are open, are used again, and nothing else is one.
func TestFileTable(t *testing.T) {
	var table files
	a, b := &file{}, &stream{}
	ha, hb := table.put(a), table.put(b)
	if table.get(ha) != a || table.any(hb) != b || table.get(hb) != nil {
		t.Error("a handle leads elsewhere")
	}
	if table.remove(ha) != a || table.get(ha) != nil {
		t.Error("a removed handle is still there")
	}
	if c := table.put(&file{}); c != ha {
		t.Errorf("handle %d, want %d again", c, ha)
	}
	for _, h := range []uint64{0, 3, 1 << 60} {
		if table.any(h) != nil || table.remove(h) != nil {
			t.Errorf("%d is a handle", h)
		}
	}
}

// TestNodesAreForgotten: a node stays as long as the kernel, a child or a redirect knows it, and no longer.
func TestNodesAreForgotten(t *testing.T) {
	root := &node{id: 1, fmt: unix.S_IFDIR, lookups: 1}
	table := &nodes{byID: map[uint64]*node{1: root}, byIno: map[txn.Ident]*node{}, last: 1, root: root}
	stat := func(ino uint64, mode uint16) *unix.Statx_t { return &unix.Statx_t{Ino: ino, Mode: mode} }

	dir := table.version(stat(10, unix.S_IFDIR), root, "d")
	f := table.version(stat(11, unix.S_IFREG), dir, "f")
	if again := table.version(stat(11, unix.S_IFREG), root, "g"); again != f {
		t.Error("one inode has two nodes")
	}
	if parent, name := table.at(f); parent != root || name != "g" {
		t.Error("it is not where it was found last")
	}
	table.forget(dir.id, 1)
	if table.get(dir.id) != nil {
		t.Error("a directory that nobody knows is kept")
	}
	table.forget(f.id, 1)
	if table.get(f.id) != f {
		t.Error("it was looked up twice and forgotten once")
	}
	table.forget(f.id, 1)
	if len(table.byID) != 1 || len(table.byIno) != 0 {
		t.Errorf("%d nodes are left, %d inodes", len(table.byID), len(table.byIno))
	}
	if other := table.version(stat(11, unix.S_IFIFO), root, "p"); other.id <= f.id {
		t.Error("an id was used again")
	}
}

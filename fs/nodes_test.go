package fs

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"untorn/txn"
)

// TestNodesAreForgotten: an inode is known as long as the kernel, a file in it or a user needs it, and no longer.
func TestNodesAreForgotten(t *testing.T) {
	table := rooted(txn.Ident{Ino: 2})
	root := table.root
	if root.id != 1 {
		t.Fatalf("the root is node %d, FUSE wants 1", root.id)
	}
	stat := func(ino uint64, mode uint16) *unix.Statx_t { return &unix.Statx_t{Ino: ino, Mode: mode} }

	dir := table.version(stat(10, unix.S_IFDIR), root, "d")
	f := table.version(stat(11, unix.S_IFREG), dir, "f")
	if again := table.version(stat(11, unix.S_IFREG), root, "g"); again != f {
		t.Error("one inode has two nodes while it is in use")
	}
	if parent, name := table.at(f); parent != root || name != "g" {
		t.Errorf("it was found last as %q in %v", name, parent)
	}
	table.put(root)
	table.put(dir)
	table.forget(dir.id, 1)
	if table.get(dir.id) != nil {
		t.Error("a directory that nobody knows is kept")
	}
	table.put(f)
	table.put(f)
	if len(table.live) != 1 {
		t.Errorf("%d nodes are there besides the root, although none is in use", len(table.live)-1)
	}
	table.forget(f.id, 1)
	again := table.get(f.id)
	if again == nil || again.ident != f.ident {
		t.Fatal("it was looked up twice and forgotten once, and is gone")
	}
	table.forget(f.id, 1)
	if same := table.get(f.id); same != again {
		t.Error("it is in use, and forgotten")
	}
	table.put(again)
	table.put(again)
	if len(table.live) != 1 || table.table.count != 1 {
		t.Errorf("%d nodes and %d records are left", len(table.live), table.table.count)
	}
	if other := table.version(stat(11, unix.S_IFIFO), root, "p"); other.id == f.id {
		t.Error("the number of a node was used again")
	}
}

// TestNodesKeepWhatIsRemembered: a node with something to remember stays until the kernel forgets it, a directory too.
func TestNodesKeepWhatIsRemembered(t *testing.T) {
	table := rooted(txn.Ident{Ino: 2})
	dir := table.version(&unix.Statx_t{Ino: 10, Mode: unix.S_IFDIR}, table.root, "d")
	f := table.version(&unix.Statx_t{Ino: 11, Mode: unix.S_IFREG}, dir, "f")
	f.keep.Store(true)
	table.put(f)
	table.put(dir)
	if got := table.get(f.id); got != f {
		t.Error("it was forgotten what a file looked like")
	}
	table.put(f)
	table.forget(dir.id, 1)
	if parent, _ := table.at(f); parent != dir {
		t.Error("the directory of a file that is known is another one now")
	}
	table.put(dir)
	table.forget(f.id, 1)
	if table.table.count != 1 || len(table.live) != 1 {
		t.Errorf("%d records and %d nodes are left", table.table.count, len(table.live))
	}
}

// TestLongNames: some filesystems have names of more than 255 bytes.
func TestLongNames(t *testing.T) {
	table := rooted(txn.Ident{Ino: 2})
	long := strings.Repeat("名", 255)
	n := table.version(&unix.Statx_t{Ino: 10, Mode: unix.S_IFREG}, table.root, long)
	other := table.version(&unix.Statx_t{Ino: 11, Mode: unix.S_IFREG}, table.root, "f")
	for n, want := range map[*node]string{n: long, other: "f"} {
		parent, name := table.at(n)
		if name != want {
			t.Errorf("a name of %d bytes became one of %d", len(want), len(name))
		}
		table.put(parent)
		table.forget(n.id, 1)
		table.put(n)
	}
	if live := table.table.names.live; live != 0 {
		t.Errorf("%d bytes of names are left", live)
	}
}

// TestNodesOfManyDevices: the snapshots of a btrfs have the same inode numbers, each on a device of its own. They are found
// as quickly as others.
func TestNodesOfManyDevices(t *testing.T) {
	var table table
	for dev := range uint64(200) {
		for ino := range uint64(200) {
			table.add(txn.Ident{Dev: dev, Ino: 257 + ino}, unix.S_IFREG)
		}
	}
	longest := 0
	for _, s := range table.heads {
		length := 0
		for ; s != 0; s = table.at(s - 1).next {
			length++
		}
		longest = max(longest, length)
	}
	if longest > 20 {
		t.Errorf("one chain has %d of %d records", longest, table.count)
	}
}

package fs

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"untorn/txn"
)

// TestRedirectEndsDuringLookup: a thread looks up what it was redirected to just when its patience is over. The node that
// it is answered with stays until the answer has been counted.
func TestRedirectEndsDuringLookup(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	o, err := txn.Open(context.Background(), fd, txn.Options{Durability: txn.None})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	table := newNodes(o.Root())
	r := redirects{byThread: map[thread]*redirect{}, nodes: table}
	me := thread{tid: 1}
	for name, lookup := range map[string]func(rd *redirect) *node{
		"by its name": func(*redirect) *node { return r.leads(me, o.Root(), "f") },
		"by a link":   func(rd *redirect) *node { return r.from(me, rd.n, o.Root(), "f") },
	} {
		t.Run(name, func(t *testing.T) {
			w, err := o.Root().OpenWrite("f", txn.Ident{}, unix.O_WRONLY|unix.O_TRUNC, txn.Caller{})
			if err != nil {
				t.Fatal(err)
			}
			m := table.ofStaged(w.Staged(), table.root, "f")
			rd := &redirect{n: &node{ident: w.Staged().Base()}, m: m, w: w, d: o.Root(), name: "f"}
			r.put(me, rd)
			answer := lookup(rd)
			if answer != m {
				t.Fatalf("the lookup leads to %v", answer)
			}
			r.drop(r.take(me))
			table.count(answer)
			if got := table.get(m.id); got != m {
				t.Fatal("the kernel is told of a node that has gone")
			}
			table.put(m)
			table.put(answer)
			table.forget(m.id, 1)
			if table.table.count != 1 || len(table.live) != 1 {
				t.Errorf("%d records and %d nodes are left", table.table.count, len(table.live))
			}
		})
	}
}

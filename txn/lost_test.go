package txn

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// removals are what a user may remove while files are being written.
var removals = map[string]func(m *mount){
	"everything": func(m *mount) { must(m.t, os.RemoveAll(m.at(Hidden))) },
	"the stage":  func(m *mount) { must(m.t, os.RemoveAll(m.at(Hidden+"/"+stageName))) },
	"the salvage": func(m *mount) {
		must(m.t, os.RemoveAll(m.at(Hidden+"/"+salvageName)))
	},
	"the temps": func(m *mount) {
		temps, err := filepath.Glob(m.at(Hidden + "/" + stageName + "/*/*"))
		must(m.t, err)
		for _, temp := range temps {
			if filepath.Base(temp) != originsName {
				must(m.t, os.Remove(temp))
			}
		}
	},
}

// TestStageRemoved: whatever is removed of .untorn while files are staged, writers go on, what they close is published
// with all its names and attributes, a killed one's bytes are kept, and new opens work at once.
func TestStageRemoved(t *testing.T) {
	for what, remove := range removals {
		t.Run(what, func(t *testing.T) {
			everyWay(t, func(t *testing.T, m *mount) {
				m.file("f", "old")
				must(t, os.Chmod(m.at("f"), 0o751))
				m.setxattr("f", "user.note", []byte("x"))
				m.file("g", "old")
				m.file("fresh", "old")
				f := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
				g := m.openWrite("g", unix.O_WRONLY, m.me)
				two := m.create("two", m.me)
				must(t, m.Root().LinkStaged(two.Staged(), "second"))
				lost, gone := m.create("lost", m.me), m.create("gone", m.me)
				put(t, f, 0, "new")
				put(t, lost, 0, "of a killed one")
				remove(m)

				made := m.create("made", m.me)
				put(t, made, 0, "made")
				fresh := m.openWrite("fresh", unix.O_WRONLY|unix.O_TRUNC, m.me)
				put(t, fresh, 0, "new")
				put(t, f, 3, "er")
				put(t, g, 3, "er")
				put(t, two, 0, "two")
				must(t, m.Root().Unlink("gone", m.me))
				for _, w := range []*Writer{f, g, two, made, fresh, gone} {
					put(t, gone, 0, "gone")
					must(t, finish(w, m.me))
				}
				lost.Staged().Poison(unix.EIO)
				is(t, finish(lost, m.me), unix.EIO)

				for name, want := range map[string]string{
					"f": "newer", "g": "older", "two": "two", "second": "two", "made": "made", "fresh": "new", "gone": "-", "lost": "-",
				} {
					m.has(name, want)
				}
				equal(t, "mode", m.stat("f").Mode&0o7777, 0o751)
				equal(t, "attribute", m.xattr("f", "user.note"), "x")
				equal(t, "hard links", m.stat("two").Ino, m.stat("second").Ino)
				kept, _ := m.salvaged()
				equal(t, "salvaged", kept, []string{"of a killed one"})
				equal(t, "staged", len(m.Staged()), 0)
			})
		})
	}
}

// TestStageRemovedAgain: it happens once more while a copy is being staged, and between two publishes.
func TestStageRemovedAgain(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		for i := range 5 {
			names := []string{fmt.Sprint("a", i), fmt.Sprint("b", i)}
			a, b := m.create(names[0], m.me), m.create(names[1], m.me)
			removals["everything"](m)
			put(t, a, 0, "a")
			must(t, finish(a, m.me))
			removals["everything"](m)
			put(t, b, 0, "b")
			must(t, finish(b, m.me))
			m.has(names[0], "a")
			m.has(names[1], "b")
		}
		all, err := os.ReadDir(m.path)
		must(t, err)
		equal(t, "names", len(all), 11)
		equal(t, "entry", slices.ContainsFunc(all, func(e os.DirEntry) bool { return e.Name() == Hidden }), true)
	})
}

// TestStageOfDatabaseRemoved: what goes on in place has to be the inode that is open, and no copy can be that. The program
// is told, and the bytes are kept.
func TestStageOfDatabaseRemoved(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		w := m.create("X", m.me)
		put(t, w, 0, "base")
		removals["everything"](m)
		_, err := m.Root().Companion("X-journal", m.me)
		is(t, err, unix.ENOENT)
		is(t, finish(w, m.me), unix.ENOENT)
		m.has("X", "-")
		kept, _ := m.salvaged()
		equal(t, "salvaged", kept, []string{"base"})
	})
}

package txn

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"untorn/txn/proc"
)

// heir is a process that was started after a staged file was opened, and has a descriptor of it until it is told to end.
func (m *mount) heir() (end func()) {
	m.t.Helper()
	d := m.descriptor("f", os.O_WRONLY)
	defer d.Close()
	_, end = waiting(m.t, "exit 0", d)
	return end
}

// TestKilledOpener decides over the good end of a process that has merely inherited the descriptor, whichever of them
// closes last.
func TestKilledOpener(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		for name, seen := range map[string]bool{"seen to close it": true, "not seen": false} {
			t.Run(name, func(t *testing.T) {
				m.file("f", "old")
				opener, end := waiting(t, "kill -9 $$")
				w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, opener)
				put(t, w, 0, "half")
				leave := m.heir()
				end()
				if seen {
					m.stillStaged("while there is an heir", w, opener)
				}
				leave()
				is(t, closeLast(t, w, m.me), ErrKilled)
				m.has("f", "old")
			})
		}
	})
}

// TestKilledOpenerAndRelease: the close of the heir cannot be told to be the last.
func TestKilledOpenerAndRelease(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old")
	opener, end := waiting(t, "kill -9 $$")
	w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, opener)
	put(t, w, 0, "half")
	leave := m.heir()
	end()
	m.stillStaged("while there is an heir", w, opener)
	leave()
	m.stillStaged("after the heir", w, Caller{Cred: m.me.Cred})
	w.Release()
	is(t, w.Staged().failure(), ErrKilled)
	m.has("f", "old")
}

// TestKilledAfterItsClose: who had let go of the file before has finished it.
func TestKilledAfterItsClose(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		m.file("f", "old")
		opener, end := waiting(t, "kill -9 $$")
		w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, opener)
		put(t, w, 0, "new")
		leave := m.heir()
		m.stillStaged("while there is an heir", w, opener)
		end()
		leave()
		must(t, closeLast(t, w, m.me))
		m.has("f", "new")
	})
}

// TestKilledAmongOpeners: of several, the last one to let go of the file decides.
func TestKilledAmongOpeners(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		for last, published := range map[string]bool{"exit 0": true, "kill -9 $$": false} {
			m.file("f", "old")
			first, end1 := waiting(t, "kill -9 $$")
			second, end2 := waiting(t, last)
			w1 := m.openWrite("f", unix.O_WRONLY, first)
			w2 := m.openWrite("f", unix.O_WRONLY, second)
			equal(t, "joined", w1.st == w2.st, true)
			put(t, w1, 0, "new")
			leave := m.heir()
			end1()
			m.stillStaged("while another has it", w1, first)
			m.stillStaged("while another has it, at its duplicate's close", w2, m.me)
			end2()
			m.stillStaged("while there is an heir", w2, second)
			leave()
			err := closeLast(t, w2, m.me)
			w1.Release()
			if published {
				must(t, err)
				m.has("f", "new")
			} else {
				is(t, err, ErrKilled)
				m.has("f", "old")
			}
		}
	})
}

// TestDoomedIsNotJoined: what others write goes into a file of their own.
func TestDoomedIsNotJoined(t *testing.T) {
	for _, kind := range []Kind{New, Copied} {
		t.Run(kind.String(), func(t *testing.T) {
			m := open(t, Options{})
			opener, end := waiting(t, "kill -9 $$")
			var w *Writer
			if kind == New {
				w = m.create("f", opener)
			} else {
				m.file("f", "old")
				w = m.openWrite("f", unix.O_WRONLY, opener)
			}
			put(t, w, 0, "half")
			end()
			must(t, w.Flush(Caller{Cred: m.me.Cred})) // no telling who else has it
			w.st.mu.Lock()
			w.st.leaves(opener.Tid, proc.EndOf(opener.Tid))
			w.st.mu.Unlock()
			other, _ := child(t)
			var w2 *Writer
			var err error
			if kind == New {
				w2, _, err = m.Root().Create("f", unix.O_WRONLY|unix.O_APPEND, 0o644, 0o022, other)
			} else {
				w2, err = m.Root().OpenWrite("f", Ident{}, unix.O_WRONLY, other)
			}
			must(t, err)
			if w2.st == w.st {
				t.Fatal("joined")
			}
			put(t, w2, 0, "new")
			must(t, closeLast(t, w2, other))
			m.has("f", "new")
			w.Release()
			is(t, w.Staged().failure(), ErrKilled)
			m.has("f", "new")
		})
	}
}

// TestReleasedUnclosed: the file went away without a close(2).
func TestReleasedUnclosed(t *testing.T) {
	m := open(t, Options{})
	for name, c := range map[string]struct {
		script        string
		lives, reaped bool
		content, want string
	}{
		"nothing was written":      {"exit 0", true, false, "", "old"}, // open(2) failed after it had been answered
		"its writer lives":         {"kill -9 $$", true, false, "new", "new"},
		"its writer ended":         {"exit 0", false, false, "new", "new"},
		"its writer was killed":    {"kill -9 $$", false, false, "new", "old"},
		"its writer cannot be had": {"exit 0", false, true, "new", "old"},
	} {
		m.file("f", "old")
		writer, end := waiting(t, c.script)
		w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, writer)
		if c.content != "" {
			put(t, w, 0, c.content)
		}
		if !c.lives {
			end()
		}
		if c.reaped {
			w.pid = proc.MaxPid() + 1
		}
		w.Release()
		equal(t, name, content(m.at("f")), c.want)
		if c.lives {
			end()
		}
	}
}

// TestDeadBeforeItOpened: a thread that died between the two tries of its open keeps nobody from being the last, and does
// not share in what becomes of the file.
func TestDeadBeforeItOpened(t *testing.T) {
	m := open(t, Options{})
	for script, published := range map[string]bool{"exit 0": true, "kill -9 $$": false} {
		m.file("f", "old")
		writer, end := waiting(t, script)
		w := m.openWrite("f", unix.O_WRONLY, writer)
		put(t, w, 0, "new")
		dead, err := m.Root().OpenWrite("f", Ident{}, unix.O_WRONLY, ended(t, "kill -9 $$"))
		must(t, err)
		equal(t, "joined", dead.st == w.st, true)
		leave := m.heir()
		end()
		m.stillStaged("while there is an heir", w, writer)
		leave()
		err = closeLast(t, w, m.me)
		if published {
			must(t, err)
			m.has("f", "new")
		} else {
			is(t, err, ErrKilled)
			m.has("f", "old")
		}
		dead.Abandon()
	}
}

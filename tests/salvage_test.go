package tests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// salvageOne kills a writer of name and returns what was kept of it.
func salvageOne(t *testing.T, m *mount, name, content string) salvageEntry {
	t.Helper()
	known := map[string]bool{}
	for _, e := range m.Salvaged(t) {
		known[e.ID] = true
	}
	t.Setenv("NAME", name)
	t.Setenv("CONTENT", content)
	sh(t, m.Dir, `bash -c 'printf %s "$CONTENT"; kill -9 $$' > "$NAME" || true`)
	var found salvageEntry
	eventually(t, "the killed writer's bytes in the salvage", func() bool {
		for _, e := range m.Salvaged(t) {
			if !known[e.ID] {
				found = e
			}
		}
		return found.ID != ""
	})
	if found.Path != name || found.Size != int64(len(content)) || found.PID == 0 || found.Command == "" ||
		found.Reason == "" || time.Since(found.Time).Abs() > time.Hour {
		t.Fatalf("salvaged: %+v", found)
	}
	return found
}

func mustUntorn(t testing.TB, args ...string) string {
	t.Helper()
	stdout, stderr, code := untorn(t, args...)
	if code != 0 {
		t.Fatalf("untorn %q: exit code %d: %s%s", args, code, stdout, stderr)
	}
	return stdout
}

// TestSalvageRestore brings bytes back: to their own path, to another, by force.
func TestSalvageRestore(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		sh(t, m.Dir, "mkdir d; echo old > d/f; chmod 640 d/f")
		e := salvageOne(t, m, "d/f", "kept")
		if out := mustUntorn(t, "salvage", "list", m.Backing); !strings.Contains(out, e.ID) || !strings.Contains(out, "d/f") {
			t.Errorf("salvage list: %s", out)
		}
		if out := mustUntorn(t, "salvage", "show", m.Backing, e.ID); !strings.Contains(out, "kept") {
			t.Errorf("salvage show: %s", out)
		}
		if _, stderr, code := untorn(t, "salvage", "restore", m.Backing, e.ID); code != 1 || !strings.Contains(stderr, "--force") {
			t.Errorf("it restores over a file: exit code %d: %s", code, stderr)
		}
		m.wantVersion(t, "d/f", "old\n")
		to := filepath.Join(tempDir(t), "copy")
		mustUntorn(t, "salvage", "restore", m.Backing, e.ID, "--to", to)
		if got, err := os.ReadFile(to); err != nil || string(got) != "kept" {
			t.Errorf("%q, %v", got, err)
		}
		if _, _, code := untorn(t, "salvage", "restore", m.Backing, e.ID, "--to", to); code != 1 {
			t.Errorf("it restores over another file: exit code %d", code)
		}
		mustUntorn(t, "salvage", "restore", m.Backing, e.ID, "--force")
		m.awaitVersion(t, "d/f", "kept")
		e = salvageOne(t, m, "gone", "kept again")
		mustUntorn(t, "salvage", "restore", m.Backing, e.ID)
		m.awaitVersion(t, "gone", "kept again")
	})
}

// TestSalvageThroughTheMount: the mountpoint is as good as the backing, and while mounted
// over the backing it is the only way.
func TestSalvageThroughTheMount(t *testing.T) {
	needUntorn(t)
	for name, mk := range map[string]func(testing.TB, ...string) *mount{"beside": newMount, "over": newOverMount} {
		t.Run(name, func(t *testing.T) {
			m := mk(t)
			sh(t, m.Dir, "echo old > f")
			e := salvageOne(t, m, "f", "kept")
			if out := mustUntorn(t, "salvage", "show", m.Dir, e.ID); !strings.Contains(out, "kept") {
				t.Errorf("salvage show: %s", out)
			}
			mustUntorn(t, "salvage", "restore", m.Dir, e.ID, "--force")
			m.awaitVersion(t, "f", "kept")
			mustUntorn(t, "salvage", "purge", m.Dir, "--all")
			if left := m.Salvaged(t); len(left) != 0 {
				t.Errorf("left: %+v", left)
			}
		})
	}
}

// TestSalvagePurge removes what it is told to, and nothing else.
func TestSalvagePurge(t *testing.T) {
	needUntorn(t)
	m := newMount(t)
	var entries []salvageEntry
	for _, name := range []string{"a", "b", "c", "d"} {
		entries = append(entries, salvageOne(t, m, name, "content of "+name))
	}
	left := func(want int) {
		t.Helper()
		if got := m.Salvaged(t); len(got) != want {
			t.Fatalf("%d left, want %d: %+v", len(got), want, got)
		}
	}
	mustUntorn(t, "salvage", "purge", m.Backing, "--older-than", "24h")
	left(4)
	mustUntorn(t, "salvage", "purge", m.Backing, entries[1].ID)
	left(3)
	mustUntorn(t, "salvage", "purge", m.Backing, entries[0].ID, entries[2].ID)
	left(1)
	if got := m.Salvaged(t)[0].ID; got != entries[3].ID {
		t.Errorf("the wrong one is left: %s", got)
	}
	mustUntorn(t, "salvage", "purge", m.Backing, "--older-than", "0s")
	left(0)
}

// TestCrashedDaemon: what was staged is in the salvage after `recover`, and after the next
// mount; versions are as they were.
func TestCrashedDaemon(t *testing.T) {
	needUntorn(t)
	recoveries := map[string]func(t *testing.T, m *mount) *mount{
		"recover": func(t *testing.T, m *mount) *mount { mustUntorn(t, "recover", m.Backing); return m },
		"mount":   func(t *testing.T, m *mount) *mount { return newMountOn(t, m.Backing, m.Flags...) },
	}
	eachPath(t, func(t *testing.T, flags []string) {
		for name, recover := range recoveries {
			t.Run(name, func(t *testing.T) {
				m := newMount(t, flags...)
				m.put(t, "f", oldVersion)
				mustMkdir(t, m.real("d"))
				s := startSteps(t, m.Dir, `exec 5>f 6>d/new; echo staged >&5; echo new >&6; step`)
				s.await(t)
				before := manifest(t, m.Backing)
				m.Kill(t)
				s.kill(t)
				wantSame(t, before, manifest(t, m.Backing))
				after := recover(t, m)
				for path, content := range map[string]string{"f": "staged\n", "d/new": "new\n"} {
					e := after.awaitSalvaged(t, path, 1)[0]
					to := filepath.Join(tempDir(t), "restored")
					mustUntorn(t, "salvage", "restore", m.Backing, e.ID, "--to", to)
					if got, err := os.ReadFile(to); err != nil || string(got) != content {
						t.Errorf("%s: %q, %v", path, got, err)
					}
				}
				wantSame(t, before, manifest(t, m.Backing))
				if left := stagedFiles(m.Backing); len(left) > 0 {
					t.Errorf("left in the stage: %v", left)
				}
				if again := mustUntorn(t, "recover", m.Backing); len(after.Salvaged(t)) != 2 {
					t.Errorf("the second recovery changed something: %s", again)
				}
			})
		}
	})
}

// TestRecoverySparesTheLiving: a mount that is alive is not recovered under its feet.
func TestRecoverySparesTheLiving(t *testing.T) {
	needUntorn(t)
	m := newMount(t)
	m.put(t, "f", oldVersion)
	s := startSteps(t, m.Dir, `{ echo a; step; echo b; } > f`)
	s.await(t)
	mustUntorn(t, "recover", m.Backing)
	other := filepath.Join(tempDir(t), "mnt")
	mustMkdir(t, other)
	mustUntorn(t, "mount", m.Backing, other)
	mustUntorn(t, "umount", other)
	s.release(t)
	s.finish(t)
	m.wantVersion(t, "f", newVersion)
	if kept := m.Salvaged(t); len(kept) != 0 {
		t.Errorf("salvaged: %+v", kept)
	}
}

package tests

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestFuseBacking: a backing that is itself a FUSE filesystem.
func TestFuseBacking(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		doEveryday(t, newMountOn(t, newFaultyFS(t).Dir, flags...), ".")
	})
}

// fuseFault is one thing that goes wrong in the backing.
type fuseFault struct {
	op, order string
	errno     syscall.Errno // what close(2) returns
	published bool          // the new version stands all the same
}

var fuseFaults = []fuseFault{
	{"write", "EIO", syscall.EIO, false},
	{"write", "ENOTCONN", syscall.ENOTCONN, false},
	{"fsync", "EIO", syscall.EIO, false},
	{"fsync", "ENOSPC", syscall.ENOSPC, false},
	{"rename", "EIO", syscall.EIO, false},
	{"rename", "ENOSPC", syscall.ENOSPC, false},
	{"fsyncdir", "EIO", syscall.EIO, true}, // whether it survives a power cut is not known
}

// TestBackingFails: whatever fails in the backing, close(2) says so to programs that ignored it until then, the old
// version stays whole, the bytes are salvaged, at the latest when the fault has ended, and everything works again then.
func TestBackingFails(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		f := newFaultyFS(t)
		m := newMountOn(t, f.Dir, flags...)
		for _, fault := range fuseFaults {
			for _, how := range []string{"truncate", "new"} {
				if fault.op == "rename" && how == "new" {
					continue // no O_TMPFILE that can be linked here, so it fails at the open: TestOpenFails
				}
				t.Run(fault.op+" "+fault.order+" "+how, func(t *testing.T) {
					fault.strike(t, f, m, how)
				})
			}
		}
	})
}

func (fault fuseFault) strike(t *testing.T, f *faultyFS, m *mount, how string) {
	m.put(t, "truncate", oldVersion)
	const seed = 3
	var r carelessReport
	f.obey(t, fault.op, fault.order, func() {
		r = runCareless(t, 0, m.path(how), how, strconv.Itoa(seed))
		if syscall.Errno(r.Close) != fault.errno {
			t.Errorf("close(2) returns %v, want %v", syscall.Errno(r.Close), fault.errno)
		}
		switch {
		case fault.published:
		case how == "new":
			m.wantNone(t, how)
		default:
			m.wantVersion(t, how, oldVersion)
		}
	})
	want := string(victimStream(seed, 100)[:r.Written])
	sh(t, m.Dir, `cp /etc/passwd copy; cmp copy /etc/passwd`)
	if fault.published {
		m.wantVersion(t, how, want)
		sh(t, m.Dir, "rm "+how)
		return
	}
	if r.Written == 0 { // nothing to keep
		return
	}
	e := m.awaitSalvaged(t, how, 1)[0]
	if e.PID == 0 || !strings.Contains(e.Reason, fault.errno.Error()) {
		t.Errorf("salvaged: %+v", e)
	}
	if out := mustUntorn(t, "salvage", "restore", m.Backing, e.ID, "--to", "-"); out != want {
		t.Errorf("restored %d bytes of %d", len(out), len(want))
	}
	mustUntorn(t, "salvage", "purge", m.Backing, "--all")
}

// TestBackingFailsPrograms: programs that look at errors see them.
func TestBackingFailsPrograms(t *testing.T) {
	needUntorn(t)
	programs := map[string]string{
		"cp":     `cp "$SOURCE" f`,
		"dd":     `dd if="$SOURCE" of=f status=none`,
		"tee":    `tee f < "$SOURCE" > /dev/null`,
		"sort":   `sort -o f "$SOURCE"`,
		"python": `/usr/bin/python3 -c 'with open("f", "w") as f: f.write("x" * 100)'`,
		"rsync":  `rsync --inplace "$SOURCE" f`,
	}
	eachPath(t, func(t *testing.T, flags []string) {
		f := newFaultyFS(t)
		m := newMountOn(t, f.Dir, flags...)
		t.Setenv("SOURCE", "/etc/services")
		for name, program := range programs {
			m.put(t, "f", oldVersion)
			for _, fault := range []string{"write", "fsync", "rename"} {
				f.obey(t, fault, "EIO", func() {
					out, err := trySh(t, m.Dir, program)
					if err == nil || !strings.Contains(out, "nput/output error") {
						t.Errorf("%s, %s fails: %v: %s", name, fault, err, out)
					}
				})
				m.wantVersion(t, "f", oldVersion)
			}
			sh(t, m.Dir, program)
		}
	})
}

// TestOpenFails: what cannot be staged is refused at the open, and leaves nothing.
func TestOpenFails(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		f := newFaultyFS(t)
		m := newMountOn(t, f.Dir, flags...)
		m.put(t, "f", oldVersion)
		for _, errno := range []string{"EIO", "ENOSPC", "EDQUOT", "EROFS"} {
			f.order(t, "tmpfile", errno)
			f.obey(t, "create", errno, func() {
				sh(t, m.Dir, `if : > f; then exit 1; fi; if : >> f; then exit 1; fi; if : > new; then exit 1; fi`)
			})
			f.relent(t, "tmpfile")
			m.wantVersion(t, "f", oldVersion)
			m.wantNone(t, "new")
		}
		if staged := stagedFiles(m.Backing); len(staged) > 0 {
			t.Errorf("still staged: %q", staged)
		}
		sh(t, m.Dir, `echo new > new; [ "$(cat new)" = new ]`)
	})
}

// TestBackingHangs: while a filesystem below the backing hangs, at whatever moment of a publish, everything that does
// not lie on it goes on. Who waits for it goes on when it does, or ends then if it was killed meanwhile.
func TestBackingHangs(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		for _, h := range []hang{
			{"create", false, false}, {"rename", false, false}, // while its stage is made
			{"create", true, false}, {"create", true, true}, // at the open
			// At the close.
			{"fsync", true, false}, {"fsync", true, true}, {"rename", true, false}, {"rename", true, true},
			{"fsyncdir", true, false},
		} {
			t.Run(fmt.Sprintf("%+v", h), func(t *testing.T) { h.strike(t, flags) })
		}
	})
}

type hang struct {
	op   string
	used bool // something was written there before
	kill bool // kill who waits
}

func (h hang) strike(t *testing.T, flags []string) {
	backing := tempDir(t)
	f := newFaultyFSAt(t, filepath.Join(backing, "slow"))
	mustMkdir(t, filepath.Join(backing, "fast"))
	m := newMountOn(t, backing, flags...)
	m.put(t, "slow/f", oldVersion)
	if h.used {
		sh(t, m.Dir, "echo x > slow/other")
	}
	f.order(t, h.op, "hang all")
	writer := command(t, "bash", "-c", "echo new > slow/f")
	writer.Dir = m.Dir
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	f.awaitHang(t, h.op)
	doEveryday(t, m, "fast")
	if h.kill {
		writer.Process.Kill()
	}
	f.relent(t, h.op)
	err := writer.Wait()
	if !h.kill {
		if err != nil {
			t.Errorf("the writer failed: %v", err)
		}
		m.wantVersion(t, "slow/f", "new\n")
		return
	}
	wantDeath(t, err, syscall.SIGKILL)
	if got := mustRead(t, m.real("slow/f")); got != oldVersion && got != "new\n" {
		t.Errorf("got %.80q", got)
	}
}

// TestSlowFsync: one file's fsync takes its time; others in the same directory are published meanwhile.
func TestSlowFsync(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		f := newFaultyFS(t)
		m := newMountOn(t, f.Dir, flags...)
		f.order(t, "fsync", "hang")
		slow := command(t, "bash", "-c", "echo new > slow")
		slow.Dir = m.Dir
		if err := slow.Start(); err != nil {
			t.Fatal(err)
		}
		f.awaitHang(t, "fsync")
		m.wantNone(t, "slow")
		doEveryday(t, m, ".")
		m.wantNone(t, "slow")
		f.relent(t, "fsync")
		if err := slow.Wait(); err != nil {
			t.Error(err)
		}
		m.wantVersion(t, "slow", "new\n")
	})
}

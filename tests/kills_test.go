package tests

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// victim writes pieces of a known stream until it dies. It reports each piece that is
// written with a dot.
//
//	victim.py PATH HOW SEED FATE [N]
//
// HOW is how it opens the file. FATE is `wait` (somebody else kills it), `segv` or `abort`
// after N pieces, or `limit`: RLIMIT_FSIZE of N bytes.
const victim = `
import os, resource, signal, sys, time
path, how, seed, fate, n = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
flags = {"truncate": os.O_WRONLY | os.O_TRUNC, "append": os.O_WRONLY | os.O_APPEND, "update": os.O_RDWR,
    "new": os.O_WRONLY | os.O_CREAT | os.O_EXCL, "create": os.O_RDWR | os.O_CREAT | os.O_TRUNC}[how]
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if fate == "limit":
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))
fd = os.open(path, flags, 0o644)
for i in range(2000):
    if i == n and fate in ("segv", "abort"):
        os.kill(os.getpid(), signal.SIGSEGV if fate == "segv" else signal.SIGABRT)
    os.write(fd, (("%s:%d" % (seed, i)).ljust(99) + "\n").encode() * 37)
    os.write(1, b".")
time.sleep(1000)`

const pieceSize = 3700

// victimStream is what the victim writes.
func victimStream(seed, pieces int) []byte {
	var b bytes.Buffer
	for i := range pieces {
		b.WriteString(strings.Repeat(fmt.Sprintf("%-99s\n", fmt.Sprintf("%d:%d", seed, i)), 37))
	}
	return b.Bytes()
}

// death is one killed writer and what it must leave.
type death struct {
	pid, seed    int
	path, how    string
	acknowledged int // bytes at least
}

// TestKilledWriters: 500 writers die at random points; the old version stays every time,
// and what they wrote is in the salvage, byte for byte.
func TestKilledWriters(t *testing.T) {
	count := rounds(500)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		base := strings.Repeat("the old version\n", 5000)
		mustMkdir(t, m.real("d"))
		for _, how := range []string{"truncate", "append", "update", "create"} {
			m.put(t, "d/"+how, base)
		}
		before := manifest(t, m.Backing)
		rng := rand.New(rand.NewPCG(5, 6))
		var deaths []death
		for i := range count {
			how := []string{"truncate", "append", "update", "new", "create"}[i%5]
			d := killOne(t, m, i, how, i/5%5, rng, int64(len(base)))
			if how == "new" {
				m.wantNone(t, d.path)
			} else {
				m.wantVersion(t, d.path, base)
			}
			deaths = append(deaths, d)
		}
		wantSame(t, before, manifest(t, m.Backing))
		checkDeaths(t, m, deaths, []byte(base))
		wantSame(t, before, manifest(t, m.Backing))
	})
}

// killOne runs a victim to its death.
func killOne(t *testing.T, m *mount, seed int, how string, kind int, rng *rand.Rand, base int64) death {
	t.Helper()
	pieces := 1 + rng.IntN(30)
	fate, n := "wait", 0
	want := syscall.SIGKILL
	switch kind {
	case 1:
		want = syscall.SIGTERM
	case 2:
		fate, n, want = "segv", pieces, syscall.SIGSEGV
	case 3:
		fate, n, want = "abort", pieces, syscall.SIGABRT
	case 4:
		fate, want = "limit", syscall.SIGXFSZ
		n = pieces*pieceSize + rng.IntN(pieceSize)
		if how == "append" {
			n += int(base)
		}
	}
	d := death{seed: seed, path: "d/" + how, how: how, acknowledged: pieces * pieceSize}
	cmd := command(t, "/usr/bin/python3", "-c", victim, m.path(d.path), how, strconv.Itoa(seed), fate, strconv.Itoa(n))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	dots, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.pid = cmd.Process.Pid
	if _, err := io.ReadFull(dots, make([]byte, pieces)); err != nil {
		cmd.Wait()
		t.Fatalf("victim %d (%s, %s): %v\n%s", seed, how, fate, err, errs.String())
	}
	if fate == "wait" {
		cmd.Process.Signal(want)
	}
	io.Copy(io.Discard, dots)
	wantDeath(t, cmd.Wait(), want)
	return d
}

func wantDeath(t testing.TB, err error, want syscall.Signal) {
	t.Helper()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != want {
		t.Fatalf("the writer ended with %v, want death by %v", err, want)
	}
}

// checkDeaths restores each victim's bytes and compares them with what it wrote.
func checkDeaths(t *testing.T, m *mount, deaths []death, base []byte) {
	t.Helper()
	if native {
		t.Fatal("no salvage")
	}
	byPID := map[int]salvageEntry{}
	eventually(t, "every killed writer in the salvage", func() bool {
		clear(byPID)
		for _, e := range m.Salvaged(t) {
			byPID[e.PID] = e
		}
		return len(byPID) >= len(deaths)
	})
	to := filepath.Join(tempDir(t), "restored")
	for _, d := range deaths {
		e, ok := byPID[d.pid]
		if !ok {
			t.Errorf("nothing salvaged of %+v", d)
			continue
		}
		if e.Path != d.path || e.ID == "" || e.Reason == "" || e.Time.IsZero() || !strings.Contains(e.Command, "python") {
			t.Errorf("salvage of %+v: %+v", d, e)
		}
		os.Remove(to)
		if _, stderr, code := untorn(t, "salvage", "restore", m.Backing, e.ID, "--to", to); code != 0 {
			t.Fatalf("salvage restore: exit code %d: %s", code, stderr)
		}
		got, err := os.ReadFile(to)
		if err != nil || int64(len(got)) != e.Size {
			t.Fatalf("restored %d bytes of %d, %v", len(got), e.Size, err)
		}
		if err := d.verify(got, base); err != nil {
			t.Errorf("%+v: %v", d, err)
		}
	}
}

// verify checks that got is what the victim had made of the base when it died.
func (d death) verify(got, base []byte) error {
	written, rest := got, []byte{}
	stream := victimStream(d.seed, min(2000, len(got)/pieceSize+1))
	switch d.how {
	case "append":
		if !bytes.HasPrefix(got, base) {
			return errors.New("the salvaged bytes do not begin with the base")
		}
		written = got[len(base):]
	case "update":
		n := 0
		for n < len(got) && n < len(stream) && got[n] == stream[n] {
			n++
		}
		written, rest = got[:n], got[n:]
		if n < len(base) && !bytes.Equal(rest, base[n:]) {
			return fmt.Errorf("after %d new bytes the base does not follow", n)
		}
	}
	if len(written) < d.acknowledged {
		return fmt.Errorf("%d bytes were written, %d salvaged", d.acknowledged, len(written))
	}
	if !bytes.HasPrefix(stream, written) {
		return errors.New("the salvaged bytes are not what was written")
	}
	return nil
}

// TestWaysToDie has the deaths that reach a file by way of other processes and threads.
func TestWaysToDie(t *testing.T) {
	scripts := map[string]string{
		"subshell":              `(exec 5>f; echo lost >&5; kill -9 $BASHPID) || true`,
		"command":               `bash -c 'echo lost; kill -9 $$' > f || true`,
		"last of a double fork": `bash -c '( (echo lost; sleep 0.05; kill -9 $BASHPID) & ) > f'`,
		"one of many threads":   `py 'import threading, signal, time; f = open("f", "w"); f.write("lost"); f.flush(); threading.Thread(target=lambda: os.kill(os.getpid(), 9)).start(); time.sleep(100)' || true`,
		"status of a killed child": `bash -c 'exec > f; echo lost; exit 137' || true
			bash -c 'exec > f; echo lost; exit 143' || true`,
		"env":         `env bash -c 'echo lost; kill -9 $$' > f || true`,
		"timeout":     `timeout -s KILL 0.5 bash -c 'echo lost; sleep 100' > f || true`,
		"interrupted": `bash -c 'echo lost; kill -INT $$' > f || true`,
	}
	eachPath(t, func(t *testing.T, flags []string) {
		eachDurability(t, flags, func(t *testing.T, flags []string) {
			m := newMount(t, flags...)
			for name, script := range scripts {
				t.Run(name, func(t *testing.T) {
					m.put(t, "f", oldVersion)
					startSteps(t, m.Dir, script).finish(t)
					m.wantVersion(t, "f", oldVersion)
					if native {
						return
					}
					eventually(t, "the salvage", func() bool { return len(m.Salvaged(t)) > 0 })
					for _, e := range m.Salvaged(t) {
						if e.Path != "f" {
							t.Errorf("in the salvage: %+v", e)
						}
					}
					if _, stderr, code := untorn(t, "salvage", "purge", m.Backing, "--all"); code != 0 {
						t.Errorf("salvage purge: %s", stderr)
					}
				})
			}
		})
	})
}

// TestStatusPublishes: a program that exits by itself has finished its file, whatever its
// status; 128 and more are what shells report of killed children.
func TestStatusPublishes(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		for _, status := range []int{0, 1, 2, 77, 125, 126, 127} {
			m.put(t, "f", oldVersion)
			startSteps(t, m.Dir, fmt.Sprintf(`bash -c 'exec > f; echo a; echo b; exit %d' || true`, status)).finish(t)
			m.wantVersion(t, "f", newVersion)
		}
		sh(t, m.Dir, `echo x > input; grep x input nothere > f 2> /dev/null || [ $? = 2 ]; [ "$(cat f)" = input:x ]`)
		if !native && len(m.Salvaged(t)) != 0 {
			t.Errorf("salvaged: %+v", m.Salvaged(t))
		}
	})
}

// TestOnKillPublish: the documented choice for logs and the like.
func TestOnKillPublish(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, append(flags, "--on-kill=publish")...)
		m.put(t, "f", oldVersion)
		for _, name := range []string{"f", "new"} {
			sh(t, m.Dir, `bash -c 'echo a; echo b; kill -9 $$' > `+name+` || true`)
			m.awaitVersion(t, name, newVersion)
		}
	})
}

// TestKilledChildDecidesNothing: the parent goes on writing and finishes the file.
func TestKilledChildDecidesNothing(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		m.put(t, "log", oldVersion)
		sh(t, m.Dir, `exec 2> log; for s in KILL TERM SEGV; do bash -c "echo $s >&2; kill -$s \$\$" || true; done; exec 2>&-`)
		got, err := os.ReadFile(m.path("log"))
		for _, s := range []string{"KILL", "TERM", "SEGV"} {
			if err != nil || !strings.Contains(string(got), s) {
				t.Errorf("the log lacks %s: %q, %v", s, got, err)
			}
		}
	})
}

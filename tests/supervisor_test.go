package tests

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// holdsFiles has a file open for writing, a version open for reading, and its directory, when the server dies. Nothing may
// block; the writer is told at the latest by close.
const holdsFiles = `py '
import errno
def refused(what, do):
    try: do()
    except OSError as e:
        if e.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO): return True
        raise
    return False
top, here = os.getcwd(), os.open(".", os.O_RDONLY)
w = os.open("f", os.O_WRONLY | os.O_TRUNC)
os.write(w, b"staged by the writer")
r = os.open("g", os.O_RDONLY)
step()
for what, do in ("fsync", lambda: os.fsync(w)), ("close", lambda: os.close(w)), ("listdir", lambda: os.listdir(".")), \
        ("open", lambda: os.open("g", os.O_RDONLY, dir_fd=here)):
    if not refused(what, do): sys.exit(what + " succeeded")
refused("read", lambda: os.read(r, 100))
refused("close", lambda: os.close(r))
os.chdir(top)
if open("f").read() != "old\n": sys.exit("the old version is gone")'`

// TestServerDies: the mountpoint answers again, whatever kills the server; who has files open gets errors, no hang; the old
// version is there and what was written is in the salvage.
func TestServerDies(t *testing.T) {
	needUntorn(t)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGABRT, syscall.SIGSEGV} {
		for name, mk := range map[string]func(testing.TB, ...string) *mount{"beside": newMount, "over": newOverMount} {
			t.Run(fmt.Sprintf("%v/%s", sig, name), func(t *testing.T) {
				eachPath(t, func(t *testing.T, flags []string) {
					m := mk(t, flags...)
					sh(t, m.Dir, "echo old > f; echo other > g")
					s := startSteps(t, m.Dir, holdsFiles)
					s.await(t)
					p := openProcess(t, m.server)
					began := time.Now()
					if err := syscall.Kill(m.server, sig); err != nil {
						t.Fatal(err)
					}
					m.awaitServer(t)
					t.Logf("it answers again after %v", time.Since(began).Round(time.Millisecond))
					p.awaitEnd(t)
					s.release(t)
					s.finish(t)
					sh(t, m.Dir, `[ "$(cat f)" = old ]; echo new > f; [ "$(cat f)" = new ]`)
					m.wantSalvaged(t, "f", "staged by the writer")
				})
			})
		}
	}
}

// wantSalvaged checks the one entry of the salvage.
func (m *mount) wantSalvaged(t testing.TB, path, content string) {
	t.Helper()
	e := m.awaitSalvaged(t, path, 1)[0]
	if got := mustUntorn(t, "salvage", "restore", m.Dir, e.ID, "--to", "-"); got != content {
		t.Errorf("salvaged: %q, want %q", got, content)
	}
}

// TestCallersAreFreed: who waits in a call for an answer when the server dies gets an error.
func TestCallersAreFreed(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		// Each in a directory of its own: they would wait for each other's locks.
		scripts := []string{`ls -la d0`, `echo x > d1/f`, `echo x > d2/new`, `mv d3/f d3/g`, `cat d4/f`, `mkdir d5/d`, `truncate -s 1 d6/f`}
		for i := range scripts {
			mustMkdir(t, m.real(fmt.Sprintf("d%d", i)))
			m.put(t, fmt.Sprintf("d%d/f", i), "old\n")
		}
		stopped := m.server
		if err := syscall.Kill(stopped, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Kill(stopped, syscall.SIGCONT) })
		var waiting []*exec.Cmd
		for _, script := range scripts {
			cmd := command(t, "bash", "-c", `cd "$0"; `+script, m.Dir)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			waiting = append(waiting, cmd)
		}
		eventually(t, "callers that wait", func() bool { return connectionWaits(t, m) >= len(waiting) })
		killAndWait(t, m.server)
		for _, cmd := range waiting {
			if cmd.Wait() == nil {
				t.Errorf("%q succeeded", cmd.Args)
			}
		}
		m.awaitServer(t)
		sh(t, m.Dir, `for i in {0..6}; do [ "$(cat d$i/f)" = old ]; echo new > d$i/f; [ "$(cat d$i/f)" = new ]; done`)
	})
}

// connectionWaits is how many requests have no answer yet.
func connectionWaits(t testing.TB, m *mount) (n int) {
	t.Helper()
	_, minor, _ := strings.Cut(m.device, ":")
	const control = "/sys/fs/fuse/connections"
	if _, err := os.Stat(control + "/" + minor); err != nil {
		syscall.Mount("fusectl", control, "fusectl", 0, "")
	}
	b, err := os.ReadFile(control + "/" + minor + "/waiting")
	if err != nil {
		t.Skip(err)
	}
	fmt.Sscan(string(b), &n)
	return n
}

// TestBackingIsNeverBare: mounted over the backing, at no instant of a restart does the bare backing show. Its .untorn is
// what only that has.
func TestBackingIsNeverBare(t *testing.T) {
	needUntorn(t)
	needRoot(t)
	if !kernelHas(6, 5) {
		t.Skip("needs MOVE_MOUNT_BENEATH")
	}
	m := newOverMount(t, "--restarts=1000")
	var looks, bare atomic.Int64
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, err := os.Lstat(filepath.Join(m.Dir, ".untorn")); err == nil {
				bare.Add(1)
			}
			looks.Add(1)
		}
	}()
	for i := range rounds(20) {
		killAndWait(t, m.server)
		m.awaitServer(t)
		sh(t, m.Dir, fmt.Sprintf("echo %d > f; [ $(cat f) = %d ]", i, i))
	}
	close(done)
	<-stopped
	if bare.Load() > 0 || looks.Load() < 100 {
		t.Errorf("the bare backing was seen %d times in %d", bare.Load(), looks.Load())
	}
	m.Unmount(t)
	if _, err := os.Lstat(filepath.Join(m.Dir, ".untorn")); err != nil {
		t.Errorf("the bare backing does not show .untorn: %v", err)
	}
}

func kernelHas(major, minor int) bool {
	var u syscall.Utsname
	syscall.Uname(&u)
	var release strings.Builder
	for _, c := range u.Release {
		release.WriteByte(byte(c))
	}
	var a, b int
	fmt.Sscanf(release.String(), "%d.%d", &a, &b)
	return a > major || a == major && b >= minor
}

// TestEndWhileRestarting: who ends the mount while its server is dead or not yet back is obeyed: nothing is mounted again,
// and no process is left.
func TestEndWhileRestarting(t *testing.T) {
	needUntorn(t)
	needRoot(t)
	ends := map[string]func(t *testing.T, m *mount){
		"signal": func(t *testing.T, m *mount) { m.daemon.Process.Signal(syscall.SIGTERM) },
		"umount": func(t *testing.T, m *mount) {
			if _, stderr, code := untorn(t, "umount", m.Dir); code != 0 {
				t.Errorf("exit code %d: %s", code, stderr)
			}
		},
		"umount -l": func(t *testing.T, m *mount) { syscall.Unmount(m.Dir, syscall.MNT_DETACH) },
	}
	rng := rand.New(rand.NewPCG(7, 8))
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			for range rounds(10) {
				m := newMount(t)
				sh(t, m.Dir, "echo old > f")
				syscall.Kill(m.server, syscall.SIGKILL)
				time.Sleep(time.Duration(rng.IntN(int(15 * time.Millisecond)))) // until a random point
				end(t, m)
				m.killed = true // it may have been told so while its server was dead
				m.awaitEnd(t)
				if fuseDevice(m.Dir) != "" {
					t.Fatal("it is mounted again")
				}
				if left := processesWith(t, "mount", m.Backing, m.Dir); len(left) > 0 {
					t.Fatalf("processes are left: %d", left)
				}
			}
		})
	}
}

// TestCrashLoop: a server that dies each time it is started is given up, and the dead mount goes.
func TestCrashLoop(t *testing.T) {
	needUntorn(t)
	m := newMount(t, "--restarts=4")
	for range 4 {
		killAndWait(t, m.server)
		if !poll(20*time.Second, func() bool {
			pid := serverOf(m.Dir)
			again := pid != 0 && pid != m.server
			if again {
				m.server = pid
			}
			return again || m.hasEnded()
		}) {
			t.Fatal("neither mounted again nor ended")
		}
	}
	m.killed = true
	m.awaitEnd(t)
	if code := m.daemon.ProcessState.ExitCode(); code != 9 {
		t.Errorf("exit code %d", code)
	}
	if fuseDevice(m.Dir) != "" {
		t.Error("the dead mount is left")
	}
	m.wantLog(t, "4 times in a row")
}

// TestLateDeath: only early deaths count for --restarts.
func TestLateDeath(t *testing.T) {
	needUntorn(t)
	m := newMount(t, "--restarts=1")
	time.Sleep(5500 * time.Millisecond)
	killAndWait(t, m.server)
	m.awaitServer(t)
	m.killed = true
	killAndWait(t, m.server)
	m.awaitEnd(t)
	if code := m.daemon.ProcessState.ExitCode(); code != 9 {
		t.Errorf("exit code %d", code)
	}
}

// wantLog checks that the daemon's log has a text.
func (m *mount) wantLog(t testing.TB, text string) {
	t.Helper()
	if b, err := os.ReadFile(m.log); err != nil || !strings.Contains(string(b), text) {
		t.Errorf("the log does not say %q: %v", text, err)
	}
}

// TestSupervisorKilled: the server serves on, says so, and ends as one without a supervisor does.
func TestSupervisorKilled(t *testing.T) {
	needUntorn(t)
	for name, end := range map[string]func(t *testing.T, m *mount){
		"umount": func(t *testing.T, m *mount) { mustUntorn(t, "umount", m.Dir) },
		"signal": func(t *testing.T, m *mount) { syscall.Kill(m.server, syscall.SIGTERM) },
	} {
		t.Run(name, func(t *testing.T) {
			eachPath(t, func(t *testing.T, flags []string) {
				m := newMount(t, flags...)
				s := startSteps(t, m.Dir, `echo old > f; exec 5>f; echo a >&5; step; echo b >&5; exec 5>&-`)
				s.await(t)
				m.killed = true
				p := openProcess(t, m.server)
				m.daemon.Process.Kill()
				<-m.ended
				eventually(t, "the server's remark", func() bool {
					b, _ := os.ReadFile(m.log)
					return strings.Contains(string(b), "supervisor is gone")
				})
				m.wantVersion(t, "f", "old\n")
				s.release(t)
				s.finish(t)
				m.wantVersion(t, "f", newVersion)
				end(t, m)
				p.awaitEnd(t)
				if fuseDevice(m.Dir) != "" || len(stagedFiles(m.Backing)) > 0 {
					t.Error("the mount, or a staged file, is left")
				}
			})
		})
	}
}

// TestServerIsSignalled: a signal to the server is one to its supervisor.
func TestServerIsSignalled(t *testing.T) {
	needUntorn(t)
	m := newMount(t)
	sh(t, m.Dir, "echo old > f")
	if err := syscall.Kill(m.server, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m.awaitEnd(t)
	if fuseDevice(m.Dir) != "" {
		t.Error("still mounted")
	}
}

// TestMountIsMoved: the next server's mount goes where the dead one is, also when that has moved with its parent. What is
// mounted over by somebody else is left alone.
func TestMountIsMoved(t *testing.T) {
	needUntorn(t)
	needRoot(t)
	m := newMount(t)
	sh(t, m.Dir, "echo old > f")
	before, after := m.Dir, filepath.Join(tempDir(t), "after")
	if err := os.Rename(filepath.Dir(before), after); err != nil {
		t.Fatal(err)
	}
	m.Dir = filepath.Join(after, "mnt")
	killAndWait(t, m.server)
	m.awaitServer(t)
	sh(t, m.Dir, `[ "$(cat f)" = old ]`)

	if err := syscall.Mount("tmpfs", m.Dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(m.Dir, syscall.MNT_DETACH) })
	m.killed = true
	killAndWait(t, m.server)
	m.awaitEnd(t)
	m.wantLog(t, "covered by another mount")
	syscall.Unmount(m.Dir, syscall.MNT_DETACH)
	if err := syscall.Statfs(m.Dir, new(syscall.Statfs_t)); !errors.Is(err, syscall.ENOTCONN) { // no cache knows
		t.Errorf("below it: %v, want the dead mount", err)
	}
	syscall.Unmount(m.Dir, syscall.MNT_DETACH)
	os.Rename(after, filepath.Dir(before)) // for the cleanup
}

// TestWithoutSupervisor: --no-supervise is one process; when it dies the mount stays dead, and the next one takes its place.
func TestWithoutSupervisor(t *testing.T) {
	needUntorn(t)
	m := newMount(t, "--no-supervise")
	if m.server != m.daemon.Process.Pid {
		t.Errorf("process %d serves, %d was started", m.server, m.daemon.Process.Pid)
	}
	sh(t, m.Dir, "echo old > f")
	killAndWait(t, m.server)
	<-m.ended
	if _, err := os.ReadFile(m.path("f")); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the mount of a dead daemon: %v", err)
	}
	m.launch(t)
	m.wantVersion(t, "f", "old\n")
}

// clerk books numbers in a database, one for each step, and prints those whose commits were acknowledged.
const clerk = `py '
import sqlite3
db = sqlite3.connect("bank.db", timeout=20, isolation_level=None)
db.execute("pragma journal_mode=wal")
db.execute("pragma synchronous=normal")
db.execute("create table if not exists t(x)")
for x in range(%d, %d):
    try:
        db.execute("begin immediate")
        db.execute("insert into t values(?)", (x,))
        step()
        db.execute("commit")
        print(x)
    except sqlite3.Error as e:
        print(x, e, file=sys.stderr)
        break
    step()' 2> errors%d`

// TestDatabaseOfADeadServer: with passthrough who has a database open goes on writing it although its server is dead, and
// the locks of those who come by the next one would not meet his. No commit that was acknowledged may be lost.
func TestDatabaseOfADeadServer(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		first := startSteps(t, m.Dir, fmt.Sprintf(clerk, 0, 100, 0))
		for range 4 {
			first.await(t)
			first.release(t)
		}
		first.await(t) // in the midst of a transaction
		killAndWait(t, m.server)
		m.awaitServer(t)
		second := startSteps(t, m.Dir, fmt.Sprintf(clerk, 100, 102, 1))
		second.reports.ReadString('\n') // it is in the midst too, or has given up
		for _, s := range []*steps{first, second} {
			s.releases.Write(bytes.Repeat([]byte("\n"), 20))
			s.releases.Close()
		}
		first.wait()
		second.wait()
		third := startSteps(t, m.Dir, fmt.Sprintf(clerk, 200, 202, 2))
		third.releases.Write(bytes.Repeat([]byte("\n"), 4))
		third.finish(t)
		if !strings.HasSuffix(third.output.String(), "200\n201\n") {
			t.Errorf("after all others have gone: %q", third.output.String())
		}
		there := strings.Fields(sh(t, m.Dir, `[ "$(sqlite3 bank.db "pragma integrity_check")" = ok ]; sqlite3 bank.db "select x from t"`))
		for _, s := range []*steps{first, second, third} {
			for x := range strings.FieldsSeq(s.output.String()) {
				if !slices.Contains(there, x) {
					t.Errorf("commit %s was acknowledged, and is lost; there are %q", x, there)
				}
			}
		}
	})
}

// TestOrdinaryUserServerDies: fusermount3 mounts again. Only the user sees the mount, so it is he who looks.
func TestOrdinaryUserServerDies(t *testing.T) {
	needUntorn(t)
	u := newUserMount(t)
	u.asOwner(t, "bash", "-euc", `cd "$1"; echo old > f`, "-", u.Dir)
	for range 3 {
		for _, pid := range processesWith(t, "mount", u.Backing, u.Dir) {
			if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(comm) == "untorn-server\n" {
				killAndWait(t, pid)
			}
		}
		eventually(t, "an answer of the mount", func() bool {
			out, err := u.tryAsOwner(t, "cat", u.path("f"))
			return err == nil && out == "old\n"
		})
	}
	u.asOwner(t, "bash", "-euc", `cd "$1"; echo new > f; [ "$(cat "$2/f")" = new ]`, "-", u.Dir, u.Backing)
	u.asOwner(t, binary, "umount", u.Dir)
	if fuseDevice(u.Dir) != "" {
		t.Error("still mounted")
	}
	eventually(t, "the end of the processes", func() bool { return len(processesWith(t, "mount", u.Backing, u.Dir)) == 0 })
}

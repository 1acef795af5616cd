package tests

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestBackgroundMount: without -f the command returns when the mount answers, and the
// daemon lets go of the caller's terminal and output.
func TestBackgroundMount(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		dir := tempDir(t)
		backing, mnt := filepath.Join(dir, "backing"), filepath.Join(dir, "mnt")
		mustMkdir(t, backing)
		mustMkdir(t, mnt)
		// CombinedOutput would wait for a daemon that keeps the pipe.
		stdout, stderr, code := untorn(t, append(append([]string{"mount"}, flags...), backing, mnt)...)
		if code != 0 {
			t.Fatalf("exit code %d: %s%s", code, stdout, stderr)
		}
		if fuseDevice(mnt) == "" {
			t.Fatal("it returned before it was mounted")
		}
		daemons := processesWith(t, "mount", backing, mnt)
		sh(t, mnt, "echo a > f; echo b >> f")
		if _, stderr, code := untorn(t, "umount", mnt); code != 0 {
			t.Fatalf("umount: exit code %d: %s", code, stderr)
		}
		if fuseDevice(mnt) != "" {
			t.Error("still mounted")
		}
		for _, pid := range daemons {
			eventually(t, "the end of the daemon", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
		}
		if got, err := os.ReadFile(filepath.Join(backing, "f")); err != nil || string(got) != newVersion {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// processesWith lists the processes of the binary under test that have all args.
func processesWith(t testing.TB, args ...string) []int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
next:
	for _, dir := range dirs {
		if exe, err := os.Readlink(dir + "/exe"); err != nil || exe != binary {
			continue
		}
		line, _ := os.ReadFile(dir + "/cmdline")
		for _, a := range args {
			if !strings.Contains("\x00"+string(line), "\x00"+a+"\x00") {
				continue next
			}
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// TestSignalUnmounts: SIGTERM and SIGINT end the daemon as umount does.
func TestSignalUnmounts(t *testing.T) {
	needUntorn(t)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		eachPath(t, func(t *testing.T, flags []string) {
			m := newMount(t, flags...)
			sh(t, m.Dir, "echo a > f; echo b >> f")
			if err := m.daemon.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			m.awaitEnd(t)
			if fuseDevice(m.Dir) != "" {
				t.Errorf("still mounted after %v", sig)
			}
			if got, err := os.ReadFile(m.real("f")); err != nil || string(got) != newVersion {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// TestLazyUmount takes the mount away; who has a file open finishes it.
func TestLazyUmount(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		m.put(t, "f", oldVersion)
		s := startSteps(t, m.Dir, `exec 5>f; cd /; echo a >&5; step; echo b >&5; exec 5>&-`)
		s.await(t)
		if _, stderr, code := untorn(t, "umount", "--lazy", m.Dir); code != 0 {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		if fuseDevice(m.Dir) != "" {
			t.Error("still mounted")
		}
		s.release(t)
		s.finish(t)
		m.awaitEnd(t)
		if got, err := os.ReadFile(m.real("f")); err != nil || string(got) != newVersion {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// TestTwoMountsOfOneBacking see each other's versions and disturb nothing.
func TestTwoMountsOfOneBacking(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		a := newMount(t, append(flags, "--cache=0s")...)
		b := newMountOn(t, a.Backing, append(flags, "--cache=0s")...)
		a.put(t, "f", oldVersion)
		s := startSteps(t, a.Dir, `{ echo a; step; echo b; } > f`)
		s.await(t)
		b.wantVersion(t, "f", oldVersion)
		sh(t, b.Dir, `echo g > g`)
		a.wantVersion(t, "g", "g\n")
		s.release(t)
		s.finish(t)
		b.wantVersion(t, "f", newVersion)
		b.Unmount(t)
		sh(t, a.Dir, `echo still > h`)
		a.wantVersion(t, "h", "still\n")
	})
}

// TestDirectRules: an exempt path is written in place, and the last match decides.
func TestDirectRules(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, append(flags, "--direct", "*.log", "--direct", "logs/**", "--stage", "logs/keep/*")...)
		sh(t, m.Dir, "mkdir -p logs/deep/er logs/keep; touch f x.log logs/a logs/deep/er/b logs/keep/c")
		s := startSteps(t, m.Dir, `for f in f x.log logs/a logs/deep/er/b logs/keep/c; do exec {fd}>> $f; echo part >&$fd; done; step`)
		s.await(t)
		for name, want := range map[string]string{"f": "", "x.log": "part\n", "logs/a": "part\n", "logs/deep/er/b": "part\n", "logs/keep/c": ""} {
			m.wantVersion(t, name, want)
		}
		s.release(t)
		s.finish(t)
		m.wantVersion(t, "f", "part\n")
		m.wantVersion(t, "logs/keep/c", "part\n")
	})
}

// TestFsync: by default it publishes nothing; with --fsync=publish it is a commit.
func TestFsync(t *testing.T) {
	const script = `py '
fd = os.open("f", os.O_WRONLY | os.O_TRUNC)
os.write(fd, b"a\n"); os.fsync(fd); step()
os.write(fd, b"b\n"); step()
os.fsync(fd); step()'`
	eachPath(t, func(t *testing.T, flags []string) {
		for flag, want := range map[string][]string{
			"--fsync=stage":   {oldVersion, oldVersion, oldVersion},
			"--fsync=publish": {"a\n", "a\n", newVersion},
		} {
			t.Run(flag, func(t *testing.T) {
				m := newMount(t, append(flags, flag)...)
				m.put(t, "f", oldVersion)
				s := startSteps(t, m.Dir, script)
				for _, w := range want {
					s.await(t)
					m.wantVersion(t, "f", w)
					s.release(t)
				}
				s.finish(t)
				m.wantVersion(t, "f", newVersion)
			})
		}
	})
}

// TestDoctorAndVersion say what there is, for people and for scripts.
func TestDoctorAndVersion(t *testing.T) {
	needUntorn(t)
	dir := tempDir(t)
	for _, args := range [][]string{{"doctor"}, {"doctor", dir}} {
		if stdout, stderr, code := untorn(t, args...); code != 0 || !strings.Contains(stdout, "/dev/fuse") {
			t.Errorf("untorn %v: exit code %d: %s%s", args, code, stdout, stderr)
		}
	}
	stdout, _, code := untorn(t, "doctor", dir, "--json")
	if code != 0 || !json.Valid([]byte(stdout)) {
		t.Errorf("doctor --json: exit code %d: %s", code, stdout)
	}
	if len(everything(t, dir)) != 1 {
		t.Errorf("doctor left something behind: %v", everything(t, dir))
	}
	if stdout, _, code := untorn(t, "version"); code != 0 || !strings.Contains(stdout, "untorn") {
		t.Errorf("version: exit code %d: %s", code, stdout)
	}
	if stdout, _, code := untorn(t, "rules", dir); code != 0 || !strings.Contains(stdout, "sqlite") {
		t.Errorf("rules: exit code %d: %s", code, stdout)
	}
}

// TestLongBackingPath: a path may be longer than a mount option, on the backing and where it is mounted.
func TestLongBackingPath(t *testing.T) {
	needUntorn(t)
	for _, length := range []int{100, 250} {
		backing := tempDir(t)
		for range 3 {
			backing = filepath.Join(backing, strings.Repeat("d", length))
			mustMkdir(t, backing)
		}
		m := &mount{Backing: backing, Dir: backing}
		m.start(t, backing)
		sh(t, m.Dir, `echo new > f; [ "$(cat f)" = new ]`)
		killAndWait(t, m.server)
		m.awaitServer(t)
		sh(t, m.Dir, `[ "$(cat f)" = new ]`)
		mustUntorn(t, "salvage", "list", m.Dir)
	}
}

// TestBackingIsRenamed: the commands find the backing of a mount also when a directory above it got another name.
func TestBackingIsRenamed(t *testing.T) {
	needUntorn(t)
	m := newOverMount(t)
	top, name := filepath.Dir(m.Dir), filepath.Base(m.Dir)
	renamed := filepath.Join(tempDir(t), "renamed")
	if err := os.Rename(top, renamed); err != nil {
		t.Fatal(err)
	}
	at := func(dir string) { m.Dir, m.Backing = filepath.Join(dir, name), filepath.Join(dir, name) }
	t.Cleanup(func() {
		os.Rename(renamed, top)
		at(top)
	})
	at(renamed)
	for range 2 { // the second time with the next server
		sh(t, m.Dir, "bash -c 'echo lost; kill -9 $$' > f || true")
		m.awaitSalvaged(t, "f", 1)
		mustUntorn(t, "check", m.Dir)
		mustUntorn(t, "salvage", "purge", m.Dir, "--all")
		killAndWait(t, m.server)
		m.awaitServer(t)
	}
}

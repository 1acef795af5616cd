package tests

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// closeLoop is run with $BACKING and $COUNT set and REDIRECT replaced.
const closeLoop = `
for ((i = 1; i <= COUNT; i++)); do
	WRITE > f
	read -r got < f || { echo "round $i: nothing in the mount"; exit 1; }
	[ "$got" = "version $i" ] || { echo "round $i: the mount has '$got'"; exit 1; }
	read -r got < "$BACKING/f" || { echo "round $i: nothing in the backing"; exit 1; }
	[ "$got" = "version $i" ] || { echo "round $i: the backing has '$got'"; exit 1; }
done`

// TestClosedFileIsThere: when a command has ended, its output is there at once, in the
// mount and in the backing.
func TestClosedFileIsThere(t *testing.T) {
	count := strconv.Itoa(rounds(1000))
	writes := map[string]string{"builtin": `echo "version $i"`, "command": `/bin/echo "version $i"`}
	eachPath(t, func(t *testing.T, flags []string) {
		eachDurability(t, flags, func(t *testing.T, flags []string) {
			for name, write := range writes {
				t.Run(name, func(t *testing.T) {
					m := newMount(t, flags...)
					t.Setenv("BACKING", m.Backing)
					t.Setenv("COUNT", count)
					sh(t, m.Dir, strings.Replace(closeLoop, "WRITE", write, 1))
				})
			}
		})
	})
}

// TestClosedFileIsThereAmongOthers: the same while unrelated processes come and go, none
// of which can have inherited anything.
func TestClosedFileIsThereAmongOthers(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, append(flags, "--durability=none")...)
		for range 6 {
			storm := startSteps(t, tempDir(t), `(while :; do /bin/true; (:); done) & step; kill $!; wait || true`)
			storm.await(t)
			defer storm.finish(t)
			defer storm.release(t)
		}
		t.Setenv("BACKING", m.Backing)
		t.Setenv("COUNT", "300")
		for _, write := range []string{`echo "version $i"`, `/bin/echo "version $i"`} {
			sh(t, m.Dir, strings.Replace(closeLoop, "WRITE", write, 1))
		}
	})
}

// TestSameInodeNumberElsewhere: a process that writes has files of another filesystem open
// which happen to have the inode numbers of those that it replaces.
func TestSameInodeNumberElsewhere(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMountOn(t, makeFS(t, "ext4", 32<<20), append(flags, "--durability=none")...)
		t.Setenv("OTHER", makeFS(t, "ext4", 32<<20))
		t.Setenv("BACKING", m.Backing)
		t.Setenv("COUNT", "1000")
		sh(t, m.Dir, `for i in {1..200}; do exec {fd}>> "$OTHER/$i"; done`+strings.Replace(closeLoop, "WRITE", `echo "version $i"`, 1))
	})
}

const (
	oldVersion = "old\n"
	newVersion = "a\nb\n"
)

// closeCases replace f. At each step the version must be the old one; where the script
// ends, the new one, at once.
var closeCases = []struct{ name, script string }{
	{"group", `{ echo a; step; echo b; } > f`},
	{"subshell", `(echo a; step; echo b) > f`},
	{"nested subshells", `( (echo a); step; (echo b) ) > f`},
	{"both outputs", `{ echo a; step; echo b >&2; } > f 2>&1`},
	{"commands", `{ /bin/echo a; step; /bin/echo b; } > f`},
	{"tee", `{ echo a; step; echo b; } | tee f > /dev/null`},
	{"append", `py '
fd = os.open("f", os.O_WRONLY | os.O_APPEND)
os.ftruncate(fd, 0); os.write(fd, b"a\n"); step(); os.write(fd, b"b\n"); os.close(fd)'`},
	{"read-write", `exec 5<>f; echo a >&5; step; echo b >&5; exec 5>&-`},
	{"exec", `exec 5>f; echo a >&5; step; echo b >&5; step; exec 5>&-; is f $'a\nb'; is "$BACKING/f" $'a\nb'`},
	{"exit without close", `exec 5>f; echo a >&5; step; echo b >&5`},
	{"exit with a status", `(exec > f; echo a; step; echo b; exit 3) || [ $? = 3 ]`},
	{"dup", `exec 5>f 6>&5; echo a >&5; exec 5>&-; step; echo b >&6; exec 6>&-; is f $'a\nb'`},
	{"dup over another", `exec 5>f 6>g; echo a >&5; echo g >&6; exec 6>&5; is g g; is "$BACKING/g" g
		exec 5>&-; step; echo b >&6; exec 6>&-; is f $'a\nb'`},
	{"standard output reopened", `{ echo a; step; echo b >> /dev/stdout; } > f`},
	{"standard output truncated", `{ echo lost; step; printf 'a\nb\n' > /dev/stdout; step; } > f`},
	{"child outlives its parent's descriptor", `mkfifo p; { echo a; { read -r _ < p; echo b; } & } > f; step; echo go > p; wait`},
	{"double fork", `( ( { step; printf 'a\nb\n'; } & ) > f )`},
	{"killed child", `exec 5>f; echo a >&5; bash -c 'kill -9 $$' || true; step; echo b >&5; exec 5>&-; is f $'a\nb'`},
	{"killed child that wrote", `exec 5>f; bash -c 'echo a >&5; kill -9 $$' || true; step; echo b >&5; exec 5>&-`},
	{"kept across exec", `exec 5>f; echo a >&5; exec bash -c 'echo step >&8; read -r _ <&9; echo b >&5'`},
	{"threads", `py '
import threading
fd = os.open("f", os.O_WRONLY | os.O_TRUNC)
def write(b):
    t = threading.Thread(target=os.write, args=(fd, b)); t.start(); t.join()
write(b"a\n"); step(); write(b"b\n")
t = threading.Thread(target=os.close, args=(fd,)); t.start(); t.join()
assert open("f").read() == "a\nb\n"'`},
	{"opened by a thread that is gone", `py '
import threading
fds = []
t = threading.Thread(target=lambda: fds.append(os.open("f", os.O_WRONLY | os.O_TRUNC))); t.start(); t.join()
os.write(fds[0], b"a\n"); step(); os.write(fds[0], b"b\n"); os.close(fds[0])
assert open("f").read() == "a\nb\n"'`},
	{"fork, child closes last", `py '
fd = os.open("f", os.O_WRONLY | os.O_TRUNC)
pid = os.fork()
if pid == 0:
    os.write(fd, b"a\n"); step(); os.write(fd, b"b\n"); os._exit(0)
os.close(fd); os.waitpid(pid, 0)
assert open("f").read() == "a\nb\n"'`},
	{"subprocess", `py '
import subprocess
f = open("f", "w")
p = subprocess.Popen(["bash", "-c", "echo a; echo step >&8; read -r _ <&9; echo b"], stdout=f, pass_fds=(8, 9))
f.close(); p.wait()
assert open("f").read() == "a\nb\n"'`},
	{"posix_spawn", `py '
pid = os.posix_spawn("/bin/bash", ["bash", "-c", "echo a; echo step >&8; read -r _ <&9; echo b"], os.environ,
    file_actions=[(os.POSIX_SPAWN_OPEN, 1, "f", os.O_WRONLY | os.O_TRUNC, 0)])
os.waitpid(pid, 0)
assert open("f").read() == "a\nb\n"'`},
	{"unrelated processes in between", `exec 5>f; echo a >&5; for i in {1..50}; do /bin/true 5>&-; done; step
		sleep 60 5>&- 8>&- & until grep -q sleep /proc/$!/comm; do :; done; echo b >&5; exec 5>&-; is f $'a\nb'; kill $!; wait || true`},
}

// TestOldVersionUntilTheLastClose: however the descriptor travels, a path has its old
// version until the last one is closed.
func TestOldVersionUntilTheLastClose(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		t.Setenv("BACKING", m.Backing)
		for _, c := range closeCases {
			t.Run(c.name, func(t *testing.T) {
				sh(t, m.Dir, "rm -rf * && echo old > f")
				s := startSteps(t, m.Dir, c.script)
				for range strings.Count(c.script, "step") {
					s.await(t)
					m.wantVersion(t, "f", oldVersion)
					s.release(t)
				}
				s.finish(t)
				m.wantVersion(t, "f", newVersion)
			})
		}
	})
}

// TestNewVersionAtOnce: a file is there although the process that wrote it goes on.
func TestNewVersionAtOnce(t *testing.T) {
	scripts := map[string]string{
		// The descriptor is closed by the kernel, in the middle of execve.
		"closed by exec": `py '
fd = os.open("f", os.O_WRONLY | os.O_TRUNC)
os.write(fd, b"a\nb\n")
os.execv("/bin/bash", ["bash", "-c", "echo step >&8; read -r _ <&9"])'`,
		"closed": `exec 5>f; echo a >&5; echo b >&5; exec 5>&-; step`,
		"close_range": `py '
fd = os.open("f", os.O_WRONLY | os.O_TRUNC)
os.write(fd, b"a\nb\n"); os.closerange(fd, fd + 1); step()'`,
	}
	eachPath(t, func(t *testing.T, flags []string) {
		for name, script := range scripts {
			t.Run(name, func(t *testing.T) {
				m := newMount(t, flags...)
				m.put(t, "f", oldVersion)
				s := startSteps(t, m.Dir, script)
				s.await(t)
				m.wantVersion(t, "f", newVersion)
				s.release(t)
				s.finish(t)
			})
		}
	})
}

// TestSlowWriter is the sequence of the README, watched all the time.
func TestSlowWriter(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		m.put(t, "f", oldVersion)
		s := startSteps(t, m.Dir, `{ echo a; sleep 1; echo b; } > f`)
		ended := make(chan struct{})
		go func() { io.Copy(io.Discard, s.reports); close(ended) }()
		for going := true; going; {
			select {
			case <-ended:
				going = false
			default:
			}
			for _, p := range []string{m.path("f"), m.real("f")} {
				got, err := os.ReadFile(p)
				if err != nil || (string(got) != oldVersion && string(got) != newVersion) {
					t.Fatalf("%s: %q, %v", p, got, err)
				}
			}
		}
		s.finish(t)
		m.wantVersion(t, "f", newVersion)
	})
}

// passDescriptor hands a descriptor to a process that was there before the open. The
// kernel gives no hint of that: the sender's close looks like the last one.
const passDescriptor = `py '
import socket
a, b = socket.socketpair()
if os.fork() == 0:
    a.close()
    _, fds, _, _ = socket.recv_fds(b, 1, 1)
    step()
    os.write(fds[0], b"RECEIVER")
    os.close(fds[0]); os._exit(0)
b.close()
fd = os.open("f", os.O_WRONLY | os.O_TRUNC)
if b"SENDER": os.write(fd, b"SENDER")
socket.send_fds(a, [b"x"], [fd])
os.close(fd)
os.wait()'`

// TestDescriptorPassedToAnOlderProcess: the receiver's bytes come out, and the version that was there before is never
// modified in place. If the sender's close was taken for the last, what it published is taken back before anybody finds
// more in it: only who had opened that before sees what is added (README, deviations).
func TestDescriptorPassedToAnOlderProcess(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		for name, c := range map[string]struct{ sent, received string }{
			"untouched": {"", "a\nb\n"}, "written": {"a\n", "b\n"},
		} {
			t.Run(name, func(t *testing.T) {
				m := newMount(t, flags...)
				m.put(t, "f", oldVersion)
				escape := func(s string) string { return strings.ReplaceAll(s, "\n", `\n`) }
				s := startSteps(t, m.Dir, strings.NewReplacer("RECEIVER", escape(c.received), "SENDER", escape(c.sent)).Replace(passDescriptor))
				s.await(t)
				if c.sent == "" {
					m.wantVersion(t, "f", oldVersion)
				}
				version, err := os.Open(m.real("f"))
				if err != nil {
					t.Fatal(err)
				}
				defer version.Close()
				before := readAll(t, version)
				if before != oldVersion && before != c.sent {
					t.Fatalf("after the sender's close: %q", before)
				}
				published := before != oldVersion
				if len(flags) == 0 && !native && published {
					// With passthrough a write reaches the version until the file is taken back.
					eventually(t, "taken back", func() bool {
						a, err1 := version.Stat()
						b, err2 := os.Stat(m.real("f"))
						return err1 == nil && err2 == nil && !os.SameFile(a, b)
					})
				}
				s.release(t)
				s.finish(t)
				m.awaitVersion(t, "f", newVersion)
				if after := readAll(t, version); after != before && !published {
					t.Errorf("a version was modified in place: %q became %q", before, after)
				}
			})
		}
	})
}

func readAll(t testing.TB, f *os.File) string {
	t.Helper()
	b := make([]byte, 1<<16)
	n, err := f.ReadAt(b, 0)
	if n == 0 && err == nil {
		t.Fatal("empty read")
	}
	return string(b[:n])
}

// TestLastToCloseWins: each truncating open is its own version, whole.
func TestLastToCloseWins(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		m.put(t, "f", oldVersion)
		first := startSteps(t, m.Dir, `exec 5>f; echo first, the longer one >&5; step; echo again >&5; exec 5>&-`)
		first.await(t)
		second := startSteps(t, m.Dir, `exec 5>f; echo second >&5; step; exec 5>&-`)
		second.await(t)
		m.wantVersion(t, "f", oldVersion)
		first.release(t)
		first.finish(t)
		m.wantVersion(t, "f", "first, the longer one\nagain\n")
		second.release(t)
		second.finish(t)
		m.wantVersion(t, "f", "second\n")
	})
}

// TestAppendersShare: appending opens of one path meet in one staged file, which is
// published when the last is closed.
func TestAppendersShare(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		m.put(t, "f", oldVersion)
		first := startSteps(t, m.Dir, `exec 5>>f; echo 1 >&5; step; echo 3 >&5; exec 5>&-`)
		first.await(t)
		second := startSteps(t, m.Dir, `exec 5>>f; echo 2 >&5; step; echo 4 >&5; exec 5>&-`)
		second.await(t)
		first.release(t)
		first.finish(t)
		m.wantVersion(t, "f", oldVersion)
		second.release(t)
		second.finish(t)
		m.wantVersion(t, "f", "old\n1\n2\n3\n4\n")
	})
}

// TestOverMountPublishes: mounted over its own backing, the same holds; the backing can
// be seen again after the unmount.
func TestOverMountPublishes(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newOverMount(t, flags...)
		sh(t, m.Dir, "mkdir d; echo old > d/f")
		s := startSteps(t, filepath.Join(m.Dir, "d"), `{ echo a; step; echo b; } > f`)
		s.await(t)
		m.wantVersion(t, "d/f", oldVersion)
		s.release(t)
		s.finish(t)
		m.wantVersion(t, "d/f", newVersion)
		m.Unmount(t)
		m.wantVersion(t, "d/f", newVersion)
	})
}

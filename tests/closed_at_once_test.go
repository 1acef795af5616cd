package tests

import (
	"os/exec"
	"runtime"
	"strconv"
	"testing"
)

// closer replaces f in one way, again and again, and looks for what it wrote as soon as the last descriptor is closed, in
// the mount and in the backing.
//
//	closer.py BACKING WAY COUNT
const closer = `
import mmap, os, sys, threading
backing, way, count = sys.argv[1], sys.argv[2], int(sys.argv[3])

def look(want):
    got = [open(path, "rb").read() for path in ("f", backing + "/f")]
    assert got == [want, want], "%s, %r: the mount and the backing have %r" % (way, want, got)

def create(flags): return os.open("f", flags | os.O_CREAT | os.O_TRUNC, 0o644)

def child(f, *args):
    pid = os.fork()
    if pid == 0:
        try: f(*args); os._exit(0)
        except BaseException as e: print(e, file=sys.stderr, flush=True); os._exit(1)
    return pid

def wait(pid): assert os.waitpid(pid, 0)[1] == 0

# The program that an exec starts looks by itself: its descriptor was closed on the way into it.
LOOK = 'for f in f "$1"; do read -r got < $f && [ "$got" = "$2" ] || { echo "$f has $got, not $2" >&2; exit 1; }; done'
def execute(fd, b, cloexec=True):
    os.write(fd, b + b"\n")
    os.set_inheritable(fd, not cloexec)
    os.execv("/bin/sh", ["sh", "-c", LOOK, "sh", backing + "/f", b.decode()])

def by_exec(b): wait(child(lambda: execute(create(os.O_RDWR), b)))
def by_exec_of_a_copy(b):
    fd = create(os.O_RDWR)
    def heir():
        os.write(fd, b + b"\n"); os.execv("/bin/true", ["true"])
    wait(child(heir)); os.close(fd); look(b + b"\n")
def by_close(b): fd = create(os.O_WRONLY); os.write(fd, b); os.close(fd); look(b)
def by_close_read_write(b): fd = create(os.O_RDWR); os.write(fd, b); os.close(fd); look(b)
def by_dup2(b): fd = create(os.O_RDWR); os.write(fd, b); os.dup2(0, fd); look(b); os.close(fd)
def by_duplicate(b):
    fd = create(os.O_RDWR); second = os.dup(fd); os.write(fd, b); os.close(fd); os.close(second); look(b)
def by_thread(b):
    fd = create(os.O_RDWR); os.write(fd, b)
    t = threading.Thread(target=os.close, args=(fd,)); t.start(); t.join(); look(b)
def by_child(b):
    fd = create(os.O_RDWR); pid = child(os.write, fd, b); os.close(fd); wait(pid); look(b)
def by_parent(b):
    fd = create(os.O_RDWR); wait(child(os.write, fd, b)); os.close(fd); look(b)
def by_exit(b): wait(child(lambda: os.write(create(os.O_RDWR), b))); look(b)
def by_spawn(b):
    wait(os.posix_spawn("/bin/echo", ["echo", b.decode()], {}, file_actions=[
        (os.POSIX_SPAWN_OPEN, 1, "f", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)])); look(b + b"\n")
def by_unmap(b):
    fd = create(os.O_RDWR); os.ftruncate(fd, len(b))
    with mmap.mmap(fd, len(b)) as m: m[:] = b
    os.close(fd); look(b)

write = globals()[way]
for i in range(count): write(b"version %d of %s" % (i, way.encode()))
`

var closeWays = []string{"by_close", "by_close_read_write", "by_exec", "by_exec_of_a_copy", "by_dup2", "by_duplicate", "by_thread",
	"by_child", "by_parent", "by_exit", "by_spawn", "by_unmap"}

// TestClosedFileIsThereUnderLoad: however the last descriptor is closed, the file is there at once, also while the
// machine has twice as much to do as it can.
func TestClosedFileIsThereUnderLoad(t *testing.T) {
	for range 2 * runtime.NumCPU() {
		busy := exec.Command("sh", "-c", "while :; do :; done")
		if err := busy.Start(); err != nil {
			t.Fatal(err)
		}
		defer busy.Wait()
		defer busy.Process.Kill()
	}
	count := strconv.Itoa(rounds(10))
	eachPath(t, func(t *testing.T, flags []string) {
		for _, durability := range []string{"full", "none"} {
			m := newMount(t, append(flags, "--durability="+durability)...)
			for _, way := range closeWays {
				t.Run(durability+" "+way, func(t *testing.T) {
					cmd := command(t, "/usr/bin/python3", "-c", closer, m.Backing, way, count)
					cmd.Dir = m.Dir
					if out, err := cmd.CombinedOutput(); err != nil {
						t.Errorf("%v\n%s", err, out)
					}
				})
			}
		}
	})
}

package tests

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// hammer replaces a file by versions that carry their own checksum, one process per version, and hurts these processes:
// they are killed at any moment, fork, pass the descriptor on by fork, dup and exec, and those who inherit it live shorter
// or longer than they do. Whoever writes, writes from the beginning, so that nothing but a whole version has a good
// checksum.
//
//	hammer.py PATH HOW COUNT SEED
const hammer = `
import ctypes, mmap, os, random, signal, sys, threading, time, zlib
path, how, count, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
ctypes.CDLL(None).prctl(36, 1) # PR_SET_CHILD_SUBREAPER: those who are left over are ours to wait for
kills = [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP]
pause = lambda r, ms: time.sleep(r.random() * ms / 1000)

def pieces(r):
    body = [b"%d:%d:%d " % (seed, i, r.randrange(10**9)) * r.randrange(1, 60) for i in range(r.randrange(2, 20))]
    return body + [b"\n%08x\n" % zlib.crc32(b"".join(body) + b"\n")]

def heir(r, fd, gate):
    """What becomes of a process that has inherited the descriptor."""
    fate = r.randrange(7)
    if fate == 0: pause(r, 4)
    elif fate == 1: os.read(gate, 1) # until its parent ends, at the same instant
    elif fate == 2: pause(r, 2); os.close(os.dup(fd)); os.close(fd); pause(r, 2)
    elif fate == 3: os.set_inheritable(fd, r.random() < .5); os.execv("/bin/true", ["true"])
    elif fate == 4: os.kill(os.getpid(), r.choice(kills))
    elif fate == 5 and os.fork() == 0: pause(r, 4)
    elif fate == 6: os.dup2(os.open("/dev/null", os.O_WRONLY), fd); pause(r, 4)
    os._exit(r.choice([0, 0, 1, 3]))

def writer(r):
    flags = {"write": os.O_WRONLY | os.O_TRUNC, "update": os.O_RDWR | os.O_TRUNC, "map": os.O_RDWR | os.O_TRUNC,
        "share": os.O_RDWR, "create": os.O_WRONLY | os.O_TRUNC}[how]
    if how == "create" and r.random() < .3: os.unlink(path)
    fd = os.open(path, flags | os.O_CREAT, 0o644)
    gate, mine = os.pipe() # only this process has its other end: it ends with it
    doom = r.randrange(40)
    content = pieces(r)
    if how == "share": os.ftruncate(fd, 0)
    for i, piece in enumerate(content):
        if r.random() < .1 and os.fork() == 0:
            os.close(mine); heir(r, fd, gate)
        if r.random() < .1: os.close(os.dup(fd))
        if i == doom: os.kill(os.getpid(), r.choice(kills))
        os.write(fd, piece)
    if how == "map":
        with mmap.mmap(fd, 0) as m: m[0:1] = m[0:1]
    if r.random() < .5:
        t = threading.Thread(target=os.close, args=(fd,)); t.start(); t.join()
    elif r.random() < .5: os.execv("/bin/true", ["true"])
    os._exit(r.choice([0, 1]))

r = random.Random(seed)
for i in range(count):
    s = r.random()
    pid = os.fork()
    if pid == 0: writer(random.Random(s))
    if r.random() < .5:
        pause(r, 6)
        os.kill(pid, r.choice(kills))
    while os.waitpid(-1, 0)[0] != pid: pass
while True:
    try: os.wait()
    except ChildProcessError: break
`

// whole reports whether a version of the hammer is one.
func whole(b []byte) bool {
	at := len(b) - len("00000000\n")
	return at > 0 && string(b[at:]) == fmt.Sprintf("%08x\n", crc32.ChecksumIEEE(b[:at]))
}

// TestChecksummedFileUnderFire: four programs replace one file, each in its own way, and a fifth
// one makes a file anew again and again, while half of their processes are
// killed. Whoever looks sees a whole version.
func TestChecksummedFileUnderFire(t *testing.T) {
	count := strconv.Itoa(rounds(60))
	first := []byte("first\n")
	first = fmt.Appendf(first, "%08x\n", crc32.ChecksumIEEE(first))
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, append(flags, "--durability=none")...)
		m.put(t, "f", string(first))
		var running []*exec.Cmd
		end := make(chan string)
		for i, how := range []string{"write", "update", "map", "share", "create"} {
			name := "f"
			if how == "create" {
				name = "g" // alone: two who open a new name meet on one file, as flock(1) needs it
			}
			cmd := command(t, "/usr/bin/python3", "-c", hammer, m.path(name), how, count, strconv.Itoa(i))
			var errs bytes.Buffer
			cmd.Stderr = &errs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			running = append(running, cmd)
			go func() {
				if err := cmd.Wait(); err != nil {
					end <- fmt.Sprintf("%s: %v\n%s", how, err, errs.String())
					return
				}
				end <- ""
			}()
		}
		looks := map[bool]int{}
		for left := len(running); left > 0; {
			select {
			case failed := <-end:
				left--
				if failed != "" {
					t.Error(failed)
				}
			default:
			}
			for _, p := range []string{m.path("f"), m.real("f"), m.path("g"), m.real("g")} {
				got, err := os.ReadFile(p)
				if os.IsNotExist(err) {
					continue // unlinked
				}
				if err != nil {
					t.Fatal(err)
				}
				if looks[whole(got)]++; !whole(got) && looks[false] < 5 {
					t.Errorf("%s is broken: %d bytes, %.40q ... %.40q", p, len(got), got, got[max(0, len(got)-40):])
				}
			}
		}
		t.Logf("%d looks found a whole version, %d a broken one", looks[true], looks[false])
	})
}

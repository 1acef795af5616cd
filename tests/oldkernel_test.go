package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// without runs a program on a kernel that answers a system call with an errno.
//
//	without.py NUMBER ERRNO PROGRAM ARG...
const without = `
import ctypes, os, struct, sys
number, errno = int(sys.argv[1]), int(sys.argv[2])
code = b"".join(struct.pack("HBBI", *i) for i in (
    (0x20, 0, 0, 0),                  # load the number
    (0x15, 0, 1, number),             # skip the next one unless it is that
    (0x06, 0, 0, 0x00050000 | errno), # SECCOMP_RET_ERRNO
    (0x06, 0, 0, 0x7fff0000)))        # SECCOMP_RET_ALLOW
kept = ctypes.create_string_buffer(code, len(code))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(kept)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(22, 2, program, 0, 0): # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    sys.exit("no seccomp: %s" % os.strerror(ctypes.get_errno()))
os.execv(sys.argv[3], sys.argv[3:])`

// TestInheritedDescriptors: what the shell has open, a lock say, is held by no process of a mount; also before Linux 5.11,
// whose close_range(2) knows no CLOSE_RANGE_CLOEXEC, or is not there.
func TestInheritedDescriptors(t *testing.T) {
	needUntorn(t)
	needRoot(t)
	const closeRange = 436
	for _, errno := range []int{0, 22, 38} { // EINVAL, ENOSYS
		t.Run(fmt.Sprint("errno ", errno), func(t *testing.T) {
			dir := tempDir(t)
			backing, mnt, lock := filepath.Join(dir, "backing"), filepath.Join(dir, "mnt"), filepath.Join(dir, "lock")
			mustMkdir(t, backing)
			mustMkdir(t, mnt)
			held, err := os.Create(lock)
			if err != nil {
				t.Fatal(err)
			}
			defer held.Close()
			args := []string{binary, "mount", "--log-file", filepath.Join(dir, "log"), backing, mnt}
			if errno != 0 {
				args = append([]string{"/usr/bin/python3", "-c", without, strconv.Itoa(closeRange), strconv.Itoa(errno)}, args...)
			}
			cmd := command(t, args[0], args[1:]...)
			cmd.Env = cleanEnv()
			cmd.ExtraFiles = []*os.File{nil, nil, nil, nil, held} // 7: the first ones are used by untorn itself
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("mount: %v\n%s", err, out)
			}
			processes := processesWith(t, "mount", backing, mnt)
			if len(processes) != 2 {
				t.Errorf("%d processes keep the mount", len(processes))
			}
			for _, pid := range processes {
				open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
				if err != nil {
					t.Error(err)
				}
				for _, e := range open {
					fd := fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name())
					if to, _ := os.Readlink(fd); to == lock {
						t.Errorf("process %d has the lock", pid)
					} else if strings.HasPrefix(to, backing) && !closedByExec(t, pid, e.Name()) {
						t.Errorf("what process %d starts has %s", pid, to)
					}
				}
			}
			mustUntorn(t, "umount", mnt)
		})
	}
}

// closedByExec reports whether a descriptor of a process stays its own.
func closedByExec(t testing.TB, pid int, fd string) bool {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd))
	if err != nil {
		t.Fatal(err)
	}
	const closeOnExec = 0o2000000
	var flags int
	for line := range strings.Lines(string(text)) {
		fmt.Sscanf(line, "flags: %o", &flags)
	}
	return flags&closeOnExec != 0
}

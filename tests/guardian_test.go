package tests

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

func init() { helpers["guardian"] = guardian }

// startGuardian starts a process that cleans up when this one has ended in whatever way:
// a `go test` that times out or is killed would leave mounts and daemons behind.
func startGuardian() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(selfCopy, workDir)
	cmd.Env = append(os.Environ(), "UNTORN_TEST_HELPER=guardian")
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	// The write end stays open as long as this process lives: the kernel closes it.
	guarded = w
	return nil
}

var guarded *os.File

func guardian(args []string) {
	dir := args[0]
	io.Copy(io.Discard, os.Stdin)
	mounts := mountsBelow(dir)
	for i := len(mounts) - 1; i >= 0; i-- {
		m := &mount{device: fuseDevice(mounts[i])}
		// First: a supervisor does not mount again what is gone.
		syscall.Unmount(mounts[i], syscall.MNT_DETACH)
		m.abort()
	}
	os.RemoveAll(dir)
}

// mountsBelow lists the mountpoints below dir in the order of mounting.
func mountsBelow(dir string) []string {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var found []string
	for line := range strings.Lines(string(info)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], filepath.Clean(dir)+"/") {
			found = append(found, f[4])
		}
	}
	return found
}

package tests

import (
	"encoding/json"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serverOf asks a mount for the pid of its server; 0: it does not answer.
func serverOf(dir string) int {
	buf := make([]byte, 16<<10)
	n, err := syscall.Getxattr(dir, "user.untorn.control", buf)
	var c struct {
		Pid int `json:"pid"`
	}
	if err != nil || json.Unmarshal(buf[:n], &c) != nil {
		return 0
	}
	return c.Pid
}

// awaitServer returns when a server other than the last one answers, and how long that took.
func (m *mount) awaitServer(t testing.TB) time.Duration {
	t.Helper()
	began := time.Now()
	if !poll(20*time.Second, func() bool {
		pid := serverOf(m.Dir)
		if pid == 0 || pid == m.server {
			return false
		}
		m.server = pid
		return true
	}) {
		t.Fatal("the mountpoint does not answer again")
	}
	m.device = fuseDevice(m.Dir)
	return time.Since(began)
}

// killAndWait ends a process that need not be a child of ours, and returns when all its threads are gone.
func killAndWait(t testing.TB, pid int) {
	t.Helper()
	if pid <= 0 {
		t.Fatalf("no process %d", pid)
	}
	p := openProcess(t, pid)
	syscall.Kill(pid, syscall.SIGKILL)
	p.awaitEnd(t)
}

// process is a descriptor of any process: its number is never somebody else's.
type process int

// openProcess returns -1 for a process that has ended.
func openProcess(t testing.TB, pid int) process {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return -1
	}
	if err != nil {
		t.Fatalf("pidfd_open: %v", err)
	}
	return process(fd)
}

// awaitEnd waits until all threads of the process are gone.
func (p process) awaitEnd(t testing.TB) {
	t.Helper()
	if p < 0 {
		return
	}
	defer unix.Close(int(p))
	ready := []unix.PollFd{{Fd: int32(p), Events: unix.POLLIN}}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if n, _ := unix.Poll(ready, 1000); n > 0 {
			return
		}
	}
	t.Fatal("a process does not end")
}

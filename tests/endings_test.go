package tests

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSignalWhileCovered: a mount that is told to end while something is mounted over it ends when that has gone. What
// covers it is left alone.
func TestSignalWhileCovered(t *testing.T) {
	needUntorn(t)
	needRoot(t)
	for name, flags := range map[string][]string{"supervised": nil, "alone": {"--no-supervise"}} {
		t.Run(name, func(t *testing.T) {
			m := newMount(t, flags...)
			sh(t, m.Dir, "echo old > f")
			if err := syscall.Mount("tmpfs", m.Dir, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			cover := func() error { return syscall.Unmount(m.Dir, syscall.MNT_DETACH) }
			for range 2 {
				if err := m.daemon.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				m.awaitLog(t, "covered by another mount")
				time.Sleep(100 * time.Millisecond)
			}
			if m.hasEnded() {
				t.Error("it has ended below what covers it")
			}
			if err := cover(); err != nil {
				t.Errorf("what covered it has gone: %v", err)
			}
			if !poll(settleTimeout, m.hasEnded) {
				t.Error("the signals are forgotten")
				m.daemon.Process.Signal(syscall.SIGTERM)
			}
			if err := cover(); !errors.Is(err, syscall.EINVAL) && m.hasEnded() {
				t.Errorf("still mounted: %v", err)
			}
		})
	}
}

// TestSecondSignal: the second signal detaches a busy mount, whichever process it is sent to; one to each of both is one.
func TestSecondSignal(t *testing.T) {
	needUntorn(t)
	for name, pid := range map[string]func(m *mount) int{
		"supervisor": func(m *mount) int { return m.daemon.Process.Pid },
		"server":     func(m *mount) int { return m.server },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMount(t)
			s := startSteps(t, m.Dir, "echo old > f; exec 5<f; step")
			s.await(t)
			syscall.Kill(m.server, syscall.SIGTERM)
			m.awaitLog(t, "sent to the server")
			m.daemon.Process.Signal(syscall.SIGTERM)
			m.awaitLog(t, "the mount is busy")
			time.Sleep(300 * time.Millisecond)
			if fuseDevice(m.Dir) == "" {
				t.Error("one signal to each process detached it")
			}
			syscall.Kill(pid(m), syscall.SIGTERM)
			eventually(t, "it is detached", func() bool { return fuseDevice(m.Dir) == "" })
			s.release(t)
			s.finish(t)
			m.awaitEnd(t)
		})
	}
}

// onTerminal runs a program on a terminal that stops who writes to it in the background, until its stdin ends.
const onTerminal = `
import os, pty, signal, sys, termios
pid, master = pty.fork()
if pid == 0:
    mode = termios.tcgetattr(2)
    mode[3] |= termios.TOSTOP
    termios.tcsetattr(2, termios.TCSANOW, mode)
    os.execv(sys.argv[1], sys.argv[1:])
os.read(0, 1)
os.kill(pid, signal.SIGTERM)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))`

// TestServerOnATerminal: with -f the server logs to the terminal, although a Ctrl-C is not for it.
func TestServerOnATerminal(t *testing.T) {
	needUntorn(t)
	dir := tempDir(t)
	backing, mnt := filepath.Join(dir, "backing"), filepath.Join(dir, "mnt")
	mustMkdir(t, backing)
	mustMkdir(t, mnt)
	cmd := command(t, "/usr/bin/python3", "-c", onTerminal, binary, "mount", "-f", backing, mnt)
	cmd.Env = cleanEnv()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the mount", func() bool { return fuseDevice(mnt) != "" })
	time.Sleep(100 * time.Millisecond) // it has logged by then
	for _, pid := range processesWith(t, "mount", backing, mnt) {
		if state := processState(pid); state == "T" {
			t.Errorf("process %d was stopped because it logged", pid)
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	in.Close()
	if err := cmd.Wait(); err != nil && !t.Failed() {
		t.Error(err)
	}
}

// processState is the letter of ps for what a process does.
func processState(pid int) string {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(stat), ") ")
	return after[:min(1, len(after))]
}

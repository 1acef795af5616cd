package tests

import (
	"errors"
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

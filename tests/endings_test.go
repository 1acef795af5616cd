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

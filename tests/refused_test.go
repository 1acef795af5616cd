package tests

import (
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An open for write takes two steps between untorn and the kernel. These are about opens that do not get to the second.

func init() {
	helpers["truncating-opens"] = func(args []string) {
		for {
			fd, err := unix.Open(args[0], unix.O_WRONLY|unix.O_TRUNC, 0)
			check(err)
			_, err = unix.Write(fd, []byte("a whole version, not an empty one\n"))
			check(err)
			check(unix.Close(fd))
		}
	}
	helpers["truncates"] = func(args []string) {
		for end := time.Now().Add(time.Second); time.Now().Before(end); {
			if err := unix.Truncate(args[0], 3); err != nil && !errors.Is(err, unix.ENOENT) {
				check(err)
			}
		}
	}
	helpers["renames-over"] = func(args []string) {
		for end := time.Now().Add(time.Second); time.Now().Before(end); {
			check(os.WriteFile(args[0]+".new", []byte("content"), 0o644))
			check(os.Rename(args[0]+".new", args[0]))
		}
	}
}

// TestKilledWhileOpening: a thread that dies inside open(O_TRUNC) has written nothing, so nothing is published.
func TestKilledWhileOpening(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, append(flags, "--durability=none")...)
		m.put(t, "f", "old")
		for range rounds(100) {
			cmd := helper(t, "truncating-opens", m.path("f"))
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the first version", func() bool {
				b, err := os.ReadFile(m.real("f"))
				return err == nil && len(b) > 3
			})
			cmd.Process.Kill()
			cmd.Wait()
		}
		// What such a thread leaves is given up after a second.
		poll(1500*time.Millisecond, func() bool { return emptyFile(m.real("f")) })
		if emptyFile(m.real("f")) {
			t.Error("an open that never became a file emptied the version")
		}
	})
}

func emptyFile(path string) bool {
	st, err := os.Stat(path)
	return err != nil || st.Size() == 0
}

// TestRefusedOpenChangesNothing: somebody who may not write a file that is being written, not even by replacing it.
func TestRefusedOpenChangesNothing(t *testing.T) {
	needRoot(t)
	const stranger = 1002
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		sh(t, m.Dir, "chmod 755 .; mkdir d; chmod 1777 d")
		s := startSteps(t, m.path("d"), `umask 077; exec 3> f; chown 1001 f; echo data >&3; step; exec 3>&-`)
		s.await(t)
		for _, script := range []string{"> f", ">> f", "echo mine > g; mv -f g f", "rm -f f; [ -e f ]"} {
			cmd := exec.Command("bash", "-c", script)
			cmd.Dir = m.path("d")
			asUser(stranger, cmd)
			if out, err := cmd.CombinedOutput(); err == nil {
				t.Errorf("%s: allowed: %s", script, out)
			}
		}
		s.release(t)
		s.finish(t)
		m.wantVersion(t, "d/f", "data\n")
		poll(1500*time.Millisecond, func() bool { return emptyFile(m.real("d/f")) })
		m.wantVersion(t, "d/f", "data\n")
	})
}

// TestTruncateAgainstRename: a kernel holds the lock of the inode in one and of the directory in the other; a server that
// wants the one for the other hangs both.
func TestTruncateAgainstRename(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, append(flags, "--durability=none")...)
		m.put(t, "f", "content")
		var cmds []*exec.Cmd
		for _, name := range []string{"truncates", "truncates", "renames-over"} {
			cmd := helper(t, name, m.path("f"))
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			cmds = append(cmds, cmd)
		}
		for _, cmd := range cmds {
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestFsyncPublishesOnce: with --fsync=publish what was synced is the version, and what is written after that is not,
// whatever is closed besides.
func TestFsyncPublishesOnce(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, append(flags, "--fsync=publish")...)
		m.put(t, "f", "old\n")
		s := startSteps(t, m.Dir, `py '
fd = os.open("f", os.O_RDWR | os.O_TRUNC)
os.write(fd, b"one\n"); os.fsync(fd); step()
os.write(fd, b"two\n"); os.close(os.dup(fd)); os.write(fd, b"half"); step()
os.kill(os.getpid(), 9)'`)
		s.await(t)
		m.wantVersion(t, "f", "one\n")
		s.release(t)
		s.await(t)
		m.wantVersion(t, "f", "one\n")
		s.release(t)
		s.wait() // it was killed
		m.awaitSalvaged(t, "f", 1)
		m.wantVersion(t, "f", "one\n")
	})
}

package proc

import (
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRights(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	cmd := exec.Command("cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: 1234, Gid: 1234, Groups: []uint32{77, 4321}},
		AmbientCaps: []uintptr{unix.CAP_CHOWN},
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	tid := uint32(cmd.Process.Pid)
	groups, capabilities, err := Rights(tid)
	if err != nil || !slices.Equal(groups, []uint32{77, 4321}) || capabilities != 1<<unix.CAP_CHOWN {
		t.Errorf("got groups %v, capabilities %x, %v", groups, capabilities, err)
	}
	if !Knows(tid, 0, 1<<31) {
		t.Error("in our own namespace everybody has a number")
	}
}

// TestKnows: to root of another user namespace only those are known that have a number there.
func TestKnows(t *testing.T) {
	cmd := exec.Command("cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skip("no user namespaces here:", err)
	}
	defer cmd.Wait()
	defer in.Close()
	tid, uid, gid := uint32(cmd.Process.Pid), uint32(os.Getuid()), uint32(os.Getgid())
	for _, c := range []struct {
		uid, gid uint32
		want     bool
	}{{uid, gid, true}, {uid + 1, gid, false}, {uid, gid + 1, false}, {uid - 1, gid, false}} {
		if got := Knows(tid, c.uid, c.gid); got != c.want {
			t.Errorf("owner %d:%d: %v", c.uid, c.gid, got)
		}
	}
	if Knows(1<<30, uid, gid) {
		t.Error("a thread that does not exist knows somebody")
	}
}

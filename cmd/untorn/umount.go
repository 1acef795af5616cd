package main

import (
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

type umountCmd struct {
	Mountpoint string `arg:"" help:"Where untorn is mounted."`
	Lazy       bool   `short:"l" help:"Detach it although it is busy: nobody can enter any more, and the last user ends it."`
}

const (
	// afterglow and leastTries bound the tries at a mount that is busy with nobody holding it: the kernel may still be about
	// to give back what a process had that has just ended. The search for holders may take all of that time.
	afterglow  = 500 * time.Millisecond
	leastTries = 10
	// goodbye bounds the wait for the daemon, which may have much to publish.
	goodbye = 2 * time.Minute
)

func (c *umountCmd) Run() error {
	path, err := resolve(c.Mountpoint)
	// A dead mount, one over a dead filesystem and that of another user can be unmounted all the same.
	if err != nil && !isUnanswered(err) {
		return fail(exitMountpoint, "%w\nGive the directory that untorn is mounted on.", err)
	}
	m, err := mountAt(path)
	if err != nil {
		return err
	}
	if m == nil || m.Type != mountType {
		return fail(exitMountpoint, "%s is not an untorn mount.\nThose that there are: findmnt -t %s", path, mountType)
	}
	// Neither our own program nor our working directory must be what keeps it busy.
	if mountIDOf(self) == strconv.Itoa(m.ID) {
		leave()
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	daemon := -1
	if ctl, err := readControl(path); err == nil && ctl.isHere() && !c.Lazy {
		pid := ctl.Pid
		if ctl.Supervisor != 0 {
			pid = ctl.Supervisor // it outlives the server
		}
		if daemon, err = unix.PidfdOpen(pid, 0); err == nil {
			defer unix.Close(daemon)
		}
	}
	if err := c.unmount(path); err != nil {
		return err
	}
	if daemon >= 0 && !ended(daemon, goodbye) {
		return fail(exitFailed, "%s is unmounted, but its daemon still runs: it publishes, or is mounted in another place too (another mount namespace, a bind mount).\nLook in its log.", path)
	}
	return nil
}

// leave goes on as a copy of this program in memory. It returns when that is impossible; then the program shows up among
// those that hold the mount.
func leave() {
	fd, err := unix.MemfdCreate("untorn", unix.MFD_CLOEXEC)
	if err != nil {
		return
	}
	to := os.NewFile(uintptr(fd), "memory")
	defer to.Close()
	from, err := os.Open(self)
	if err != nil {
		return
	}
	defer from.Close()
	if _, err := io.Copy(to, from); err != nil {
		return
	}
	unix.Exec("/proc/self/fd/"+strconv.Itoa(fd), os.Args, os.Environ())
}

func (c *umountCmd) unmount(path string) error {
	end := time.Now().Add(afterglow)
	for tries := 1; ; tries++ {
		err := unmount(path, c.Lazy)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EPERM):
			return fail(exitFailed, "unmounting %s: %w\nOnly who mounted it and root may.", path, err)
		case !errors.Is(err, unix.EBUSY):
			return fail(exitFailed, "unmounting %s: %w", path, err)
		}
		holders, err := findHolders(path)
		if err != nil {
			return err
		}
		// A supervisor looks at its mount for an instant when it replaces a dead one.
		held := slices.ContainsFunc(holders, func(h holder) bool { return !isSupervisor(h.PID) })
		if held || tries >= leastTries && time.Now().After(end) {
			return busy(path, holders)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// isSupervisor tells by the name that a supervisor gives itself.
func isSupervisor(pid int) bool {
	name, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	return err == nil && string(name) == "untorn\n" && pid != os.Getpid()
}

// ended waits for the process behind a pidfd.
func ended(pidfd int, limit time.Duration) bool {
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for end := time.Now().Add(limit); ; {
		left := time.Until(end)
		if left <= 0 {
			return false
		}
		n, err := unix.Poll(poll, int(left.Milliseconds())+1)
		if n > 0 || (err != nil && err != unix.EINTR) {
			return err == nil
		}
	}
}

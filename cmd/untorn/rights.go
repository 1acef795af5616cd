package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"untorn/fs"
)

const fuseDevice = "/dev/fuse"

// canMount finds out, before anything is touched, whether a mount has a chance.
func canMount(allowOther bool) error {
	if _, err := os.Stat(fuseDevice); err != nil {
		return advise(fmt.Errorf("%w: %w", fs.ErrNoDevice, err), "")
	}
	if hasCapability(unix.CAP_SYS_ADMIN) {
		fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return advise(fmt.Errorf("%w: opening %s: %w", fs.ErrNoDevice, fuseDevice, err), "")
		}
		return unix.Close(fd)
	}
	if os.Geteuid() == 0 {
		return advise(fmt.Errorf("%w: root without CAP_SYS_ADMIN", fs.ErrNotPermitted), "")
	}
	if _, err := fusermount(); err != nil {
		return fail(exitNoMount, "%w: %w\nInstall the package fuse3, or mount as root.", fs.ErrNotPermitted, err)
	}
	if set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil && set == 1 {
		return fail(exitNoMount, "%w: this process may gain no privileges (no_new_privs), which fusermount3 needs.\nMount as root, or outside of the sandbox.", fs.ErrNotPermitted)
	}
	if allowOther && !userAllowOther() {
		return fail(exitNoMount, "--allow-other: /etc/fuse.conf does not let users do that.\nHave root add the line user_allow_other there, or leave the flag away.")
	}
	return nil
}

// fusermount is the helper with which users mount.
func fusermount() (string, error) {
	path, err := exec.LookPath("fusermount3")
	if errors.Is(err, exec.ErrNotFound) {
		path, err = exec.LookPath("/bin/fusermount3")
	}
	if err != nil {
		return "", errors.New("fusermount3 is not installed")
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if info.Mode()&os.ModeSetuid == 0 {
		return path, fmt.Errorf("%s is not setuid root", path)
	}
	return path, nil
}

// userAllowOther reports whether /etc/fuse.conf has the line.
func userAllowOther() bool {
	f, err := os.Open("/etc/fuse.conf")
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if strings.TrimSpace(lines.Text()) == "user_allow_other" {
			return true
		}
	}
	return false
}

// hasCapability reports whether the process has a capability in effect.
func hasCapability(c int) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[c/32].Effective&(1<<(c%32)) != 0
}

// inInitialUserNamespace reports whether root is the real one, which passthrough asks for.
func inInitialUserNamespace() bool {
	const initial = "user:[4026531837]" // PROC_USER_INIT_INO, include/linux/proc_ns.h
	ns, err := os.Readlink("/proc/self/ns/user")
	return err == nil && ns == initial
}

func readNumber(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
}

// unmount ends the mount on a path: as root by itself, otherwise through fusermount3.
func unmount(path string, lazy bool) error {
	if hasCapability(unix.CAP_SYS_ADMIN) {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		return unix.Unmount(path, flags)
	}
	bin, err := fusermount()
	if err != nil {
		return err
	}
	args := []string{"-u"}
	if lazy {
		args = append(args, "-z")
	}
	out, err := exec.Command(bin, append(args, "--", path)...).CombinedOutput()
	if err == nil {
		return nil
	}
	if text := strings.TrimSpace(string(out)); !strings.Contains(text, "busy") {
		return errors.New(text)
	}
	return unix.EBUSY
}

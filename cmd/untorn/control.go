package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"untorn/fs"
)

// control is what a mount tells about itself, to its owner and to root.
type control fs.Control

// readControl asks the mount at a path. ENODATA or ENOTSUP: it is none.
func readControl(path string) (control, error) {
	var c control
	buf := make([]byte, 16<<10)
	n, err := unix.Getxattr(path, fs.ControlXattr, buf)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(buf[:n], &c); err != nil {
		return c, fmt.Errorf("the mount's answer cannot be understood: %w", err)
	}
	return c, nil
}

// fdPath leads to the backing directory through the daemon's descriptor, past a mount that covers it.
func (c control) fdPath() string {
	return "/proc/" + strconv.Itoa(c.Pid) + "/fd/" + strconv.Itoa(c.BackingFd)
}

// isHere reports whether the pid is that of the daemon in our pid namespace.
func (c control) isHere() bool {
	link, err := os.Readlink(c.fdPath())
	if err != nil || link == c.Backing {
		return err == nil
	}
	var st unix.Stat_t // it may have another name by now
	return unix.Stat(c.fdPath(), &st) == nil && uint64(st.Dev) == c.BackingDev && st.Ino == c.BackingIno
}

// openBacking opens the backing directory that is meant by a path: the directory itself, or, of an untorn mount and of a
// directory in one, that of the backing, which the mount may cover.
func openBacking(path string) (*os.File, error) {
	real, err := resolve(path)
	if errors.Is(err, unix.ENOTCONN) {
		return nil, fail(exitBacking, "%s: the untorn that was mounted there has died.\nDetach its mount: untorn umount %s", path, path)
	}
	if err != nil {
		return nil, fail(exitBacking, "%w\nGive the backing directory or its mountpoint.", err)
	}
	way, err := behind(real)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(way, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOTDIR) {
		return nil, fail(exitBacking, "%s is not a directory\nGive the backing directory or its mountpoint.", path)
	}
	if err != nil {
		return nil, fail(exitBacking, "%w\nGive a backing directory that you may read.", err)
	}
	return f, nil
}

// behind is the way to what an untorn mount shows at a path, past the mount; of what lies in none, the path itself.
func behind(real string) (string, error) {
	fd, err := unix.Open(real, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return real, nil // opening it will fail as well, and say why
	}
	defer unix.Close(fd)
	m, err := mountOf(fd)
	if err != nil {
		return "", err
	}
	if m == nil || m.Type != mountType {
		return real, nil
	}
	c, err := readControl(m.Point)
	if err != nil {
		return "", fail(exitBacking, "asking the mount on %s for its backing: %w\nOnly its owner and root may: run this as one of them.", m.Point, err)
	}
	if !c.isHere() {
		return "", fail(exitBacking, "the backing of %s cannot be reached: its daemon is out of sight (another pid namespace?).\nRun this beside the daemon, or on the backing directory.", m.Point)
	}
	rel, err := filepath.Rel(m.Point, real)
	if err != nil || !filepath.IsLocal(rel) {
		return "", fail(exitBacking, "%s lies in the mount on %s, but not below it (a bind mount?).\nGive the backing directory.", real, m.Point)
	}
	return filepath.Join(c.fdPath(), rel), nil
}

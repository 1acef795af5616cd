package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mountType is what /proc/mounts shows as the type of our mounts.
const mountType = "fuse.untorn"

// mountEntry is a line of /proc/PID/mountinfo (proc_pid_mountinfo(5)).
type mountEntry struct {
	ID     int
	Device string // major:minor, the same in every mount namespace
	Point  string
	Type   string
	Source string
	Super  string // options of the superblock
}

// mounts lists the mounts that a process sees; pid may be "self".
func mounts(pid string) ([]mountEntry, error) {
	f, err := os.Open("/proc/" + pid + "/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMounts(f)
}

func parseMounts(r io.Reader) (list []mountEntry, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		a, b := strings.Fields(before), strings.Fields(after)
		if !ok || len(a) < 6 || len(b) < 1 {
			return nil, fmt.Errorf("mountinfo: cannot understand %q", lines.Text())
		}
		id, err := strconv.Atoi(a[0])
		if err != nil {
			return nil, fmt.Errorf("mountinfo: %w", err)
		}
		m := mountEntry{ID: id, Device: a[2], Point: unescape(a[4]), Type: b[0]}
		// An empty source leaves one field fewer.
		if len(b) > 2 {
			m.Source = unescape(b[1])
		}
		m.Super = b[len(b)-1]
		list = append(list, m)
	}
	return list, lines.Err()
}

// unescape undoes the octal escapes of mountinfo: \040 for a blank, and for tab, newline and backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountAt is the mount that one sees at a path: the last one stacked there. nil: the path is no mountpoint.
func mountAt(path string) (*mountEntry, error) {
	list, err := mounts("self")
	if err != nil {
		return nil, err
	}
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].Point == path {
			return &list[i], nil
		}
	}
	return nil, nil
}

// mountOf is the mount that a descriptor lies on.
func mountOf(fd int) (*mountEntry, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return nil, err
	}
	list, err := mounts("self")
	if err != nil {
		return nil, err
	}
	for i := range list {
		if uint64(list[i].ID) == st.Mnt_id {
			return &list[i], nil
		}
	}
	return nil, nil
}

// covering is the mount that one sees a path on, as far as its name tells: the last one of the longest mountpoint.
func covering(path string) (*mountEntry, error) {
	list, err := mounts("self")
	if err != nil {
		return nil, err
	}
	var best *mountEntry
	for i := range list {
		rel, err := filepath.Rel(list[i].Point, path)
		if err == nil && filepath.IsLocal(rel) && (best == nil || len(list[i].Point) >= len(best.Point)) {
			best = &list[i]
		}
	}
	return best, nil
}

// unanswered are errors of a path that may well be right, but what is mounted there does not answer: a dead daemon; for
// root, the mount of another user; a backing whose filesystem, disk or server has failed.
var unanswered = []error{unix.ENOTCONN, unix.EACCES, unix.EIO, unix.ESTALE, unix.ETIMEDOUT, unix.ESHUTDOWN}

func isUnanswered(err error) bool {
	return slices.ContainsFunc(unanswered, func(e error) bool { return errors.Is(err, e) })
}

// resolve makes a path absolute and free of symlinks. ENOTCONN: it is, or lies in, a mount whose daemon is dead. EACCES: it
// cannot be looked at, which for root means that it is the mount of another user. The path that is returned with these and
// the other unanswered errors is resolved as far as possible.
func resolve(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	real, err := resolveOnce(abs)
	if errors.Is(err, unix.ECONNABORTED) { // the daemon has died while we asked it; there may be another already
		return resolveOnce(abs)
	}
	return real, err
}

func resolveOnce(abs string) (string, error) {
	real, err := filepath.EvalSymlinks(abs)
	if err == nil {
		// The kernel may still remember the attributes of a dead mount; statfs(2) always asks the daemon.
		var st unix.Statfs_t
		if unix.Statfs(real, &st) == unix.ENOTCONN {
			err = &os.PathError{Op: "statfs", Path: real, Err: unix.ENOTCONN}
		}
		return real, err
	}
	if !isUnanswered(err) {
		return "", err
	}
	dir, rest := filepath.Dir(abs), filepath.Base(abs)
	for {
		if parent, perr := filepath.EvalSymlinks(dir); perr == nil || dir == "/" {
			return filepath.Join(parent, rest), err
		}
		dir, rest = filepath.Dir(dir), filepath.Join(filepath.Base(dir), rest)
	}
}

// clearDead detaches the mount that a daemon left on a path when it died. Other dead mounts are not ours to touch.
func clearDead(path string) error {
	for range 16 { // they may be stacked
		real, err := resolve(path)
		if !errors.Is(err, unix.ENOTCONN) {
			return nil // whatever else is wrong, the checks that follow will say
		}
		m, err := covering(real)
		if err != nil {
			return err
		}
		if m == nil || m.Type != mountType || m.Point != real {
			where := real
			if m != nil {
				where = m.Point
			}
			return fail(exitMountpoint, "%s: the daemon of the mount on %s is dead.\nDetach that mount first: umount -l %s", real, where, where)
		}
		if err := unmount(real, true); err != nil {
			return fail(exitMountpoint, "%s has the mount of a dead untorn, and it cannot be detached: %w\nDetach it first: umount -l %s", real, err, real)
		}
		notice("detached the mount that a dead daemon left on %s", real)
	}
	return nil
}

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"untorn/fs"
)

// seat is where an untorn is mounted, again and again if its server dies.
type seat struct {
	*place
	allowOther bool
	// dir is the directory that is mounted on, without the mount: it leads there also when it was renamed meanwhile.
	dir int
}

func newSeat(at *place, allowOther bool) (*seat, error) {
	dir, err := unix.Open(at.mountpoint, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fail(exitMountpoint, "the mountpoint %s: %w", at.mountpoint, err)
	}
	return &seat{at, allowOther, dir}, nil
}

// attachment is one FUSE mount as those see it who make it, put it in its place and end it. Who serves it needs only the
// connection.
type attachment struct {
	Path   string // where it was put
	Device string // major:minor
	ID     int    // as mountinfo shows it; the kernel gives it to another mount later
	Unique uint64 // of this mount and never of another since Linux 6.8; before, the same as ID
	Dev    uint64 // Device as stat(2) shows it

	tree int // the mount while it has no place yet, otherwise -1
}

// mount makes a mount, and returns it with the descriptor of its connection. As root it has no place yet: place gives it
// one once it is served, so that nobody ever waits for a server that is about to start. For others fusermount3 mounts, which
// knows only paths, and at once.
func (s *seat) mount(readOnly bool) (*attachment, int, error) {
	a := &attachment{Path: s.mountpoint, tree: -1}
	var connection int
	var err error
	if hasCapability(unix.CAP_SYS_ADMIN) {
		connection, a.tree, err = s.detached(readOnly)
	} else {
		connection, err = s.fusermount(readOnly)
	}
	if err != nil {
		return nil, -1, fmt.Errorf("%w: %w", fs.ErrNotPermitted, err)
	}
	if err := a.identify(); err != nil {
		unix.Close(connection)
		a.drop()
		return nil, -1, fmt.Errorf("looking at the new mount: %w", err)
	}
	return a, connection, nil
}

// detached makes a mount that is nowhere in the tree (fsopen(2), fsmount(2); Linux 5.2). It vanishes with its descriptor.
func (s *seat) detached(readOnly bool) (connection, tree int, err error) {
	var back unix.Statfs_t
	if err := unix.Fstatfs(s.fd, &back); err != nil {
		return -1, -1, fmt.Errorf("looking at the filesystem of the backing: %w", err)
	}
	if connection, err = unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return -1, -1, fmt.Errorf("%w: %w", fs.ErrNoDevice, err)
	}
	defer func() {
		if err != nil {
			unix.Close(connection)
		}
	}()
	config, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, -1, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(config)
	for _, option := range append(s.options(readOnly), "source="+shownSource(s.backing), "fd="+strconv.Itoa(connection), "rootmode=40000",
		"user_id="+strconv.Itoa(os.Geteuid()), "group_id="+strconv.Itoa(os.Getegid())) {
		if key, value, ok := strings.Cut(option, "="); ok {
			err = unix.FsconfigSetString(config, key, value)
		} else {
			err = unix.FsconfigSetFlag(config, option)
		}
		if err != nil {
			return -1, -1, fmt.Errorf("mount option %s: %w", option, err)
		}
	}
	if err := unix.FsconfigCreate(config); err != nil {
		return -1, -1, os.NewSyscallError("fsconfig", err)
	}
	if tree, err = unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, attributes(back.Flags, readOnly)); err != nil {
		return -1, -1, os.NewSyscallError("fsmount", err)
	}
	return connection, tree, nil
}

// shownSource is what /proc/mounts is to show as the source: fsconfig(2) takes no value of more than 255 bytes, and of a
// longer path the end tells more.
func shownSource(path string) string {
	const most, cut = 255, "..."
	if len(path) <= most {
		return path
	}
	return cut + path[len(path)-most+len(cut):]
}

// options are those of the filesystem.
func (s *seat) options(readOnly bool) []string {
	list := []string{"default_permissions", "subtype=untorn", "max_read=" + strconv.Itoa(fs.MaxTransfer)}
	if s.allowOther {
		list = append(list, "allow_other")
	}
	if readOnly {
		list = append(list, "ro")
	}
	return list
}

// attributes are those of the mount: as root it shows devices and setuid files as the backing does.
func attributes(back int64, readOnly bool) (attr int) {
	for _, a := range []struct {
		flag int64
		attr int
	}{{unix.ST_NOSUID, unix.MOUNT_ATTR_NOSUID}, {unix.ST_NODEV, unix.MOUNT_ATTR_NODEV}, {unix.ST_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
		{unix.ST_RDONLY, unix.MOUNT_ATTR_RDONLY}} {
		if back&a.flag != 0 {
			attr |= a.attr
		}
	}
	if readOnly {
		attr |= unix.MOUNT_ATTR_RDONLY
	}
	return attr
}

// fusermount has fusermount3 mount, which sends the connection over a socket (fuse's util/fusermount.c).
func (s *seat) fusermount(readOnly bool) (int, error) {
	bin, err := fusermount()
	if err != nil {
		return -1, err
	}
	ours, theirs, err := socketpair()
	if err != nil {
		return -1, err
	}
	defer ours.Close()
	// Options are separated by commas; a backslash takes a special meaning away.
	source := strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(s.backing)
	options := strings.Join(append(s.options(readOnly), "fsname="+source), ",")
	cmd := exec.Command(bin, "-o", options, "--", s.mountpoint)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	out, err := cmd.CombinedOutput()
	theirs.Close()
	if text := strings.TrimSpace(string(out)); err != nil && text != "" {
		return -1, errors.New(text)
	} else if err != nil {
		return -1, err
	}
	_, connection, err := receive(ours, make([]byte, 16))
	if err == nil && connection < 0 {
		err = errors.New("fusermount3 sent no connection")
	}
	return connection, err
}

// identify notes by what the mount can be known again.
func (a *attachment) identify() error {
	fd := a.tree
	if fd < 0 {
		var err error
		if fd, err = unix.Open(a.Path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		defer unix.Close(fd)
	}
	for _, id := range []struct {
		mask int
		to   func(*unix.Statx_t)
	}{
		{unix.STATX_MNT_ID, func(st *unix.Statx_t) { a.ID = int(st.Mnt_id) }},
		{unix.STATX_MNT_ID_UNIQUE | unix.STATX_MNT_ID, func(st *unix.Statx_t) { a.Unique = st.Mnt_id }},
	} {
		st, err := quietStat(fd, id.mask)
		if err != nil {
			return err
		}
		id.to(&st)
		a.Device = fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor)
		a.Dev = unix.Mkdev(st.Dev_major, st.Dev_minor)
	}
	return nil
}

// quietStat tells device and mount of a descriptor. It asks no server (AT_STATX_DONT_SYNC; fuse_update_get_attr in
// fs/fuse/dir.c), so it works on a dead mount, and before there is a server.
func quietStat(fd, mask int) (st unix.Statx_t, err error) {
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, mask, &st)
	return st, os.NewSyscallError("statx", err)
}

// drop gives up a mount that was not put in a place.
func (a *attachment) drop() {
	if a.tree >= 0 {
		unix.Close(a.tree)
		a.tree = -1
	}
}

package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// moveMountBeneath is MOVE_MOUNT_BENEATH of linux/mount.h.
const moveMountBeneath = 0x200

var (
	// errGone: the mount is not where it was, or something covers it. Somebody did that on purpose.
	errGone = errors.New("the mount was taken away")
	// errCovered is an errGone that may pass.
	errCovered = fmt.Errorf("%w: it is %v", errGone, covered)
)

// where is what became of a mount.
type where int

const (
	gone    where = iota // unmounted or detached, at least in our mount namespace
	covered              // something else was mounted on it
	there
)

func (w where) String() string {
	return [...]string{"unmounted", "covered by another mount", "in place"}[w]
}

// find looks for the mount, which moves along when a directory above it is renamed. The path is where it is now, and the
// descriptor (O_PATH, the caller's; -1 unless it is there) its root. While that is open, the mount is busy.
func (a *attachment) find() (path string, root int, w where, err error) {
	list, err := mounts("self")
	if err != nil {
		return "", -1, gone, err
	}
	for _, m := range list {
		if m.ID != a.ID || m.Device != a.Device {
			continue
		}
		// Neither the lookup of a mount's root nor O_PATH calls a server.
		fd, err := unix.Open(m.Point, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", -1, gone, fmt.Errorf("looking at the mount: %w", err)
		}
		st, err := quietStat(fd, unix.STATX_MNT_ID|unix.STATX_MNT_ID_UNIQUE)
		if err == nil && st.Mnt_id == a.Unique {
			return m.Point, fd, there, nil
		}
		unix.Close(fd)
		return m.Point, -1, covered, err
	}
	return "", -1, gone, nil
}

// lies tells where the mount is.
func (a *attachment) lies() (string, where, error) {
	path, root, w, err := a.find()
	if root >= 0 {
		unix.Close(root)
	}
	return path, w, err
}

// place puts the mount where it belongs; a dead one that is there goes. errGone: that one is no more where it was, and
// nothing was put there.
//
// The new mount goes beneath the dead one (MOVE_MOUNT_BENEATH, Linux 6.5), which is taken off afterwards: at no instant is
// there none. Before Linux 6.5 there is, for some microseconds: over a backing the bare backing shows.
func (a *attachment) place(s *seat, dead *attachment) error {
	if a.tree < 0 {
		return nil // fusermount3 did it
	}
	defer a.drop()
	const flags = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	if dead == nil {
		return os.NewSyscallError("move_mount", unix.MoveMount(a.tree, "", s.dir, "", flags))
	}
	path, root, w, err := dead.find()
	if err != nil {
		return err
	}
	if w != there {
		return fmt.Errorf("%w: it is %v", errGone, w)
	}
	a.Path = path
	err = unix.MoveMount(a.tree, "", root, "", flags|moveMountBeneath)
	if err == unix.EINVAL { // an old kernel; or the mount was taken away just now
		unix.Close(root)
		if err := dead.detach(); err != nil {
			return err
		}
		return os.NewSyscallError("move_mount", unix.MoveMount(a.tree, "", s.dir, "", flags))
	}
	if err != nil {
		unix.Close(root)
		return os.NewSyscallError("move_mount", err)
	}
	// This descriptor cannot mean the new mount.
	err = unix.Unmount("/proc/self/fd/"+strconv.Itoa(root), unix.MNT_DETACH)
	unix.Close(root)
	if err == nil {
		return nil
	}
	// Whoever has unmounted the dead one in between meant the one beneath it too.
	return errors.Join(errGone, os.NewSyscallError("umount", err), a.detach())
}

// unmount ends the mount; unix.EBUSY while it is in use. errGone: it has ended already, or is covered.
func (a *attachment) unmount() error { return a.end(false) }

// detach takes the mount out of the tree. Those who use it go on, if it is alive; their last ends it.
func (a *attachment) detach() error { return a.end(true) }

func (a *attachment) end(lazy bool) error {
	path, w, err := a.lies()
	if err != nil {
		return err
	}
	switch w {
	case covered:
		return errCovered
	case gone:
		return fmt.Errorf("%w: it is %v", errGone, w)
	}
	return unmount(path, lazy)
}

// abort ends the connection of a mount that is there: whoever waits for an answer gets ECONNABORTED. The kernel does so by
// itself when the last descriptor of the connection is closed; but a server that is being killed keeps its descriptors for
// as long as one of its threads cannot be interrupted. The control file belongs to the user who mounted.
func (a *attachment) abort() error {
	_, root, w, err := a.find()
	if err != nil || w != there {
		return err
	}
	defer unix.Close(root) // until then the number is nobody else's
	_, minor, _ := strings.Cut(a.Device, ":")
	return os.WriteFile("/sys/fs/fuse/connections/"+minor+"/abort", []byte("1"), 0)
}

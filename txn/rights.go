package txn

import (
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// Rights are what somebody may do by himself.
type Rights struct {
	Cred
	Groups       []uint32 // supplementary
	Capabilities uint64   // effective
}

// ownGroups are the supplementary groups of the daemon.
var ownGroups, _ = unix.Getgroups()

// MayBecome reports whether this process can run something AsCaller.
func MayBecome() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	const need = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
	return daemonUid == 0 && unix.Capget(&hdr, &data[0]) == nil && data[0].Effective&need == need
}

// AsCaller changes the ids, groups and capabilities of one thread (setgroups(2): those of the others are the business of
// the C library, which is not asked here).
func (Linux) AsCaller(r Rights, f func() error) error {
	groups := make([]int, len(r.Groups))
	for i, g := range r.Groups {
		groups[i] = int(g)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if !slices.Equal(groups, ownGroups) {
		if err := unix.Setgroups(groups); err != nil {
			return err
		}
		defer unix.Setgroups(ownGroups)
	}
	setfs(unix.SYS_SETFSGID, r.Gid)
	setfs(unix.SYS_SETFSUID, r.Uid)
	defer func() {
		setfs(unix.SYS_SETFSUID, daemonUid)
		setfs(unix.SYS_SETFSGID, daemonGid)
	}()
	if err := effective(^r.Capabilities | 1<<unix.CAP_SYS_RESOURCE); err != nil {
		return err
	}
	defer effective(1 << unix.CAP_SYS_RESOURCE)
	return f()
}

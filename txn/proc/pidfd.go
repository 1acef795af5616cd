package proc

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// pidfdInfo is struct pidfd_info of linux/pidfd.h (its first version, 64 bytes).
type pidfdInfo struct {
	mask     uint64
	cgroupid uint64
	pid      uint32
	tgid     uint32
	ppid     uint32
	ruid     uint32
	rgid     uint32
	euid     uint32
	egid     uint32
	suid     uint32
	sgid     uint32
	fsuid    uint32
	fsgid    uint32
	exitCode int32
}

const (
	pidfdInfoExit = 1 << 3     // PIDFD_INFO_EXIT
	pidfdGetInfo  = 0xc040ff0b // _IOWR(0xFF, 11, struct pidfd_info)
)

// OpenPidfd returns a descriptor of the process of tid, or -1.
func OpenPidfd(tid uint32) int {
	fd, err := unix.PidfdOpen(int(Pid(tid)), 0)
	if err != nil {
		return -1
	}
	return fd
}

func pidfdExit(fd int) (status int32, ok bool) {
	if fd < 0 {
		return 0, false
	}
	info := pidfdInfo{mask: pidfdInfoExit}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if e != 0 || info.mask&pidfdInfoExit == 0 {
		return 0, false
	}
	return info.exitCode, true
}

// Alive reports whether the process behind a pidfd has not ended: such a descriptor becomes readable at the end
// (pidfd_open(2)).
func Alive(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err != nil || n == 0
}

package proc

import (
	"bytes"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// FileSizeLimit is the soft RLIMIT_FSIZE of a process in bytes; ok is false when there is none, or it cannot be read.
func FileSizeLimit(tid uint32) (limit uint64, ok bool) {
	if tid == 0 {
		return 0, false
	}
	var r unix.Rlimit
	if err := unix.Prlimit(int(tid), unix.RLIMIT_FSIZE, nil, &r); err == nil {
		return r.Cur, r.Cur != unix.RLIM_INFINITY
	}
	// prlimit(2) asks for the same ids; /proc/PID/limits does not.
	var buf [2048]byte
	text, err := read(dir(tid)+"/limits", buf[:])
	if err != nil {
		return 0, false
	}
	const title = "Max file size"
	i := bytes.Index(text, []byte(title))
	if i < 0 {
		return 0, false
	}
	f := bytes.Fields(text[i+len(title):])
	if len(f) == 0 {
		return 0, false
	}
	limit, err = strconv.ParseUint(string(f[0]), 10, 64)
	return limit, err == nil
}

// MountOptions returns the options of a mount, its own and those of its filesystem, from /proc/self/mountinfo.
func MountOptions(id string) (options []string, ok bool) {
	f, ok := mountOf("self", id)
	if !ok {
		return nil, false
	}
	return append(strings.Split(f[5], ","), strings.Split(f[len(f)-1], ",")...), true
}

// mountOf returns the fields of the line about a mount in the mountinfo of a process (proc_pid_mountinfo(5)).
func mountOf(who, id string) (fields []string, ok bool) {
	text, err := read(root+who+"/mountinfo", make([]byte, 64<<10))
	if err != nil {
		return nil, false
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) >= 10 && f[0] == id {
			return f, true
		}
	}
	return nil, false
}

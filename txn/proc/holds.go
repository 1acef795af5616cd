package proc

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Answer to a question about another process: there are things that one may not or cannot see.
type Answer uint8

const (
	Unknown Answer = iota
	No
	Yes
)

// File is how a file of the mount appears in /proc: by inode number, and by a mount id, which differs between bind mounts
// and mount namespaces and so is translated to a device.
type File struct {
	Inos []uint64 // any of these
	Dev  uint64   // as in stat(2); 0: any
	// Writing: only descriptors open for writing count, because the published version shows the same inode number.
	Writing bool
}

// Descriptors returns how many descriptors the process of tid has open, 0 also when it is exiting; Unknown rights or a
// kernel that does not tell (before 6.2) give -1. It never blocks.
func Descriptors(tid uint32) int {
	var st unix.Stat_t
	if err := unix.Stat(dir(tid)+"/fd", &st); err != nil {
		return -1
	}
	return int(st.Size)
}

// Holds tells whether the process of tid has a descriptor of f. It never blocks. No process is No.
func Holds(tid uint32, f File) Answer {
	if Descriptors(tid) > manyDescriptors {
		return Unknown
	}
	return eachFdinfo(tid, func(text []byte) Answer {
		if field(text, "SqMask") != nil {
			return Unknown // an io_uring, which may have the file registered (io_uring_register(2))
		}
		return shows(tid, text, f)
	})
}

// manyDescriptors is beyond which a process is not searched: each costs some microseconds at each close, and a program
// that closes thousands of files would wait for seconds.
const manyDescriptors = 512

// eachFdinfo asks about every descriptor of a process, until the answer is not No.
func eachFdinfo(tid uint32, ask func(text []byte) Answer) Answer {
	base := dir(tid) + "/fdinfo/"
	names, err := list(base)
	if err == unix.ENOENT || err == unix.ESRCH {
		return No // it exited, perhaps while we were reading
	}
	if err != nil {
		return Unknown
	}
	var buf [512]byte
	for _, name := range names {
		text, err := read(base+name, buf[:])
		if err == unix.ENOENT || err == unix.ESRCH {
			continue // closed meanwhile
		}
		if err != nil {
			return Unknown
		}
		if a := ask(text); a != No {
			return a
		}
	}
	return No
}

// direntNames lists the numeric names in a getdents buffer.
func direntNames(buf []byte) (names []string) {
	const nameOff = 19 // offsetof(struct linux_dirent64, d_name), getdents(2)
	for len(buf) > nameOff {
		reclen := int(buf[16]) | int(buf[17])<<8
		name := buf[nameOff:reclen]
		if i := bytes.IndexByte(name, 0); i >= 0 {
			name = name[:i]
		}
		if name[0] != '.' {
			names = append(names, string(name))
		}
		buf = buf[reclen:]
	}
	return names
}

// shows tells whether one fdinfo file is about f.
func shows(tid uint32, text []byte, f File) Answer {
	ino := field(text, "ino")
	if ino == nil {
		return Unknown // Linux before 5.14 does not tell
	}
	if v, err := strconv.ParseUint(string(ino), 10, 64); err != nil || !slices.Contains(f.Inos, v) {
		return No
	}
	if f.Writing {
		flags, err := strconv.ParseUint(string(field(text, "flags")), 8, 64)
		if err == nil && flags&unix.O_ACCMODE == unix.O_RDONLY {
			return No
		}
	}
	if f.Dev == 0 {
		return Yes
	}
	return onDevice(tid, string(field(text, "mnt_id")), f.Dev)
}

// ours are mount ids that were found to be of a device before: one string of "device mount-id" each. An id that is given
// out again after an unmount makes a Yes of a No at worst.
var ours sync.Map

// onDevice tells whether a mount id of a process belongs to a device.
func onDevice(tid uint32, mount string, dev uint64) Answer {
	key := strconv.FormatUint(dev, 10) + " " + mount
	if _, ok := ours.Load(key); ok {
		return Yes
	}
	for _, who := range []string{"self", strconv.FormatUint(uint64(tid), 10)} {
		fields, ok := mountOf(who, mount)
		if !ok {
			continue
		}
		if fields[2] != fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) {
			return No
		}
		ours.Store(key, true)
		return Yes
	}
	return Unknown
}

// HasSockets tells whether a process has a socket open over which a descriptor can be passed: their fdinfo counts those in
// flight (scm_fds, Linux 5.10).
func HasSockets(tid uint32) Answer {
	if !scmFds() {
		return Unknown
	}
	return eachFdinfo(tid, func(text []byte) Answer {
		if field(text, "scm_fds") != nil {
			return Yes
		}
		return No
	})
}

// scmFds reports whether this kernel tells sockets from other files in fdinfo.
var scmFds = sync.OnceValue(func() bool {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	var buf [512]byte
	text, err := read(root+"self/fdinfo/"+strconv.Itoa(fds[0]), buf[:])
	return err == nil && field(text, "scm_fds") != nil
})

// Maps tells whether the process of tid has a shared writable mapping of an inode with one of these numbers. A process
// that is inside execve makes it Unknown, after a moment.
func Maps(tid uint32, inos ...uint64) Answer {
	text, err := within(5*time.Millisecond, func() ([]byte, error) {
		return read(dir(tid)+"/maps", make([]byte, 64<<10))
	})
	if err == unix.ENOENT || err == unix.ESRCH {
		return No
	}
	if err != nil {
		return Unknown
	}
	for len(text) > 0 {
		line := text
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			text = nil
		}
		// address perms offset dev inode pathname (proc_pid_maps(5))
		f := bytes.Fields(line)
		if len(f) < 5 || len(f[1]) < 4 || f[1][1] != 'w' || f[1][3] != 's' {
			continue
		}
		ino, err := strconv.ParseUint(string(f[4]), 10, 64)
		if err != nil {
			continue
		}
		for _, want := range inos {
			if ino == want {
				return Yes
			}
		}
	}
	return No
}

// HeldBy is Holds for a whole process. The first thread of a process may have exited before the others: its own
// descriptor table is gone then, and another thread has to be asked.
func HeldBy(pid uint32, f File) Answer {
	a := Holds(pid, f)
	if a != No {
		return a
	}
	if Descriptors(pid) != 0 {
		return No
	}
	if p, err := Of(pid); err != nil || !p.Exiting {
		return No
	}
	names, err := list(dir(pid) + "/task")
	if err != nil {
		return No
	}
	for _, name := range names {
		tid := uint32(number([]byte(name)))
		if tid != pid {
			if p, err := Of(tid); err == nil && !p.Exiting {
				return Holds(tid, f)
			}
		}
	}
	return No
}

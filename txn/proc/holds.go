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
	a, _ := Search(tid, f)
	return a
}

// Search is Holds, and tells how many descriptors were looked at: 0 also for a process that is exiting.
func Search(tid uint32, f File) (a Answer, seen int) {
	return eachFdinfo(tid, func(text []byte) Answer {
		if field(text, "SqMask") != nil {
			return Unknown // an io_uring, which may have the file registered (io_uring_register(2))
		}
		return shows(tid, text, f)
	})
}

// manyDescriptors is how many descriptors of a process are searched: each costs some microseconds at each close, and a
// program that closes ten thousand files would wait for minutes.
const manyDescriptors = 2048

// eachFdinfo asks about every descriptor of a process, until the answer is not No.
func eachFdinfo(tid uint32, ask func(text []byte) Answer) (a Answer, seen int) {
	base := dir(tid) + "/fdinfo/"
	names, err := list(base)
	if err == unix.ENOENT || err == unix.ESRCH {
		return No, 0 // it exited, perhaps while we were reading
	}
	if err != nil {
		return Unknown, 0
	}
	if len(names) > manyDescriptors {
		return Unknown, len(names)
	}
	var buf [512]byte
	for _, name := range names {
		text, err := readRecord(base+name, buf[:])
		if err == unix.ENOENT || err == unix.ESRCH {
			continue // closed meanwhile
		}
		if err != nil {
			return Unknown, len(names)
		}
		if a := ask(text); a != No {
			return a, len(names)
		}
	}
	return No, len(names)
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
	a, _ := eachFdinfo(tid, func(text []byte) Answer {
		if field(text, "scm_fds") != nil {
			return Yes
		}
		return No
	})
	return a
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

// Maps tells whether the process of tid has a shared writable mapping of an inode with one of these numbers.
func Maps(tid uint32, inos ...uint64) Answer {
	if in, err := inExec(tid); err == unix.ENOENT || err == unix.ESRCH || in {
		return No // the memory that it had is gone, and the new one maps nothing yet
	}
	text, err := within(stuck, func() ([]byte, error) {
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

// stuck is when to give up on a process whose memory map cannot be read. None makes us wait for longer than a system call
// takes, see inExec, but one that is caught in a page fault on a filesystem that does not answer.
const stuck = 10 * time.Second

// inExec reports whether a process is past the point of no return in execve(2): it has a new memory already, in which
// nothing can be executed yet, not even the vdso. That is where it closes what is close-on-exec and waits for our answer,
// holding the lock that /proc/PID/maps takes. (exec_mmap() takes exec_update_lock, then sets the new memory;
// setup_new_exec(), after the closing, gives it back; load_elf_binary() maps the program after that: Linux 5.11 to 6.18.)
//
// So whoever reads the maps of a process that is not in execve may still have to wait for one that enters it then, and
// thus for the answer to that one's request, but never for itself: our caller is in execve, if at all, before we look at
// others, so that of any circle of such waits one would have been told that the next one is in execve.
func inExec(tid uint32) (bool, error) {
	var buf [4096]byte
	text, err := readRecord(dir(tid)+"/status", buf[:])
	if err != nil {
		return false, err
	}
	return string(field(text, "VmExe")) == "0 kB" && string(field(text, "VmLib")) == "0 kB", nil
}

// HeldBy is Holds for a whole process. The first thread of a process may have exited before the others: its own
// descriptor table is gone then, and another thread has to be asked.
func HeldBy(pid uint32, f File) Answer {
	a, seen := Search(pid, f)
	if a != No || seen > 0 {
		return a
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

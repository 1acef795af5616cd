// Package proc looks at the processes that use the mount: who holds a file, who is dying and of what.
//
// A FUSE request names the calling thread. Everything here is read from /proc while that thread waits inside close(2),
// execve(2) or exit(2), and some files of /proc block until such a call has ended: the links in /proc/TID/fd,
// /proc/TID/stat and /proc/TID/maps take a lock that execve holds (exec_update_lock, since Linux 5.11;
// cred_guard_mutex before), and the exec waits for our answer. /proc/TID/status, the size of /proc/TID/fd and all of
// /proc/TID/fdinfo never block (verified on Linux 6.18). So the blocking ones are read only when it is known that no
// exec is going on, or with a deadline.
package proc

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"untorn/txn/spare"
)

// root is where procfs is mounted.
const root = "/proc/"

func dir(tid uint32) string { return root + strconv.FormatUint(uint64(tid), 10) }

// read returns the content of a small file of /proc, using buf where it suffices.
func read(path string, buf []byte) ([]byte, error) {
	fd, err := open(path, 0)
	if err != nil {
		return nil, err
	}
	defer spare.Close(fd, unix.Close)
	n := 0
	for {
		m, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		n += m
		if m == 0 {
			return buf[:n], nil
		}
		if n == len(buf) {
			buf = append(buf, make([]byte, len(buf))...)
		}
	}
}

// open opens a file of /proc, also when the process has no descriptor left: that must keep nobody from publishing. It is
// to be given back by spare.Close before anything else is opened.
func open(path string, flags int) (int, error) {
	return spare.Brief(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|flags, 0) })
}

// list returns the numeric names in a directory of /proc.
func list(path string) (names []string, err error) {
	d, err := open(path, unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer spare.Close(d, unix.Close)
	var ents [8192]byte
	for {
		n, err := unix.Getdents(d, ents[:])
		if err != nil || n == 0 {
			return names, err
		}
		names = append(names, direntNames(ents[:n])...)
	}
}

// field returns the value of a "Key:\tvalue" line.
func field(text []byte, key string) []byte {
	for len(text) > 0 {
		line := text
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			text = nil
		}
		if len(line) > len(key) && line[len(key)] == ':' && string(line[:len(key)]) == key {
			return bytes.TrimSpace(line[len(key)+1:])
		}
	}
	return nil
}

func number(b []byte) int64 {
	if i := bytes.IndexAny(b, " \t"); i >= 0 {
		b = b[:i]
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// Process is what is known of the process that a thread belongs to.
type Process struct {
	Pid, Parent uint32
	Name        string // comm(5), at most 15 bytes
	// Exiting: the thread is in exit(2) and has given up its descriptors. Exit is meaningful then.
	Exiting bool
}

// Of reads /proc/TID/status. It never blocks. The error is unix.ENOENT when there is no such thread.
func Of(tid uint32) (Process, error) {
	var buf [4096]byte
	text, err := read(dir(tid)+"/status", buf[:])
	if err != nil {
		return Process{}, err
	}
	return Process{
		Pid:     uint32(number(field(text, "Tgid"))),
		Parent:  uint32(number(field(text, "PPid"))),
		Name:    string(field(text, "Name")),
		Exiting: number(field(text, "FDSize")) == 0,
	}, nil
}

// Leader reports whether tid is the first thread of its process, whose id is the pid: one cheap system call
// (pidfd_open(2) refuses any other thread).
func Leader(tid uint32) bool {
	fd, err := unix.PidfdOpen(int(tid), 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// Pid returns the process of a thread, and tid itself when that cannot be found out.
func Pid(tid uint32) uint32 {
	if tid == 0 || Leader(tid) {
		return tid
	}
	if p, err := Of(tid); err == nil {
		return p.Pid
	}
	return tid
}

// Descends reports whether the process of tid is pid, or has it among its ancestors. A process whose parents have died
// belongs to init (or a subreaper) and is not recognised.
func Descends(tid, pid uint32) bool {
	for range 64 { // deeper trees are not searched: each step is a read of /proc
		if tid == pid {
			return true
		}
		if tid <= 1 {
			return false
		}
		p, err := Of(tid)
		if err != nil {
			return false
		}
		if p.Pid == pid {
			return true
		}
		tid = p.Parent
	}
	return false
}

// MayInherit reports whether a process whose descriptors cannot be read may have been forked, at whatever remove, by one
// of these. A process whose parent died belongs to init, so that init's own children may; any other parent was there to be
// looked at itself.
func MayInherit(pid uint32, from []uint32) bool {
	p, err := Of(pid)
	if err != nil {
		return err != unix.ENOENT && err != unix.ESRCH
	}
	return p.Parent <= 1 || slices.ContainsFunc(from, func(f uint32) bool { return Descends(p.Parent, f) })
}

// Command returns the command line of a process with blanks between the arguments, or its short name in brackets where
// there is none. Never called while the process may be inside a request that waits for us in execve.
func Command(tid uint32) string {
	var buf [512]byte
	text, err := read(dir(tid)+"/cmdline", buf[:])
	if err != nil || len(text) == 0 {
		if text, err = read(dir(tid)+"/comm", buf[:]); err != nil {
			return ""
		}
		return string(bytes.TrimSpace(text))
	}
	if len(text) > 400 {
		text = text[:400]
	}
	return string(bytes.TrimSpace(bytes.ReplaceAll(text, []byte{0}, []byte{' '})))
}

// Newest is the most recent process id that this pid namespace has given out: the fifth field of /proc/loadavg. Two equal
// answers mean that nothing was forked in between.
type Newest struct{ f *os.File }

// OpenNewest keeps /proc/loadavg open, so that Pid is one pread (0.8 µs).
func OpenNewest() (Newest, error) {
	f, err := os.Open(root + "loadavg")
	return Newest{f}, err
}

// Pid returns the newest pid, or 0 when it cannot be read.
func (n Newest) Pid() uint32 {
	var buf [128]byte
	m, err := unix.Pread(int(n.f.Fd()), buf[:], 0)
	if err != nil {
		return 0
	}
	text := bytes.TrimSpace(buf[:m])
	return uint32(max(0, number(text[bytes.LastIndexByte(text, ' ')+1:])))
}

// Close gives the descriptor back.
func (n Newest) Close() error { return n.f.Close() }

// denseRange is up to how many pids it is cheaper to try each than to list /proc.
const denseRange = 64

// Since lists the living processes that have got their pids after one and up to another, in the order in which pids are
// given out, which wraps around at MaxPid. For a short range the list may contain pids that nobody has.
func Since(after, newest uint32) (pids []uint32, err error) {
	limit := MaxPid()
	n := (newest + limit - after) % limit
	if n <= denseRange {
		for i := uint32(1); i <= n; i++ {
			if pid := (after + i) % limit; pid != 0 {
				pids = append(pids, pid)
			}
		}
		return pids, nil
	}
	all, err := list(root)
	for _, name := range all {
		pid := number([]byte(name))
		if pid > 0 && (uint32(pid)+limit-after-1)%limit < n {
			pids = append(pids, uint32(pid))
		}
	}
	return pids, err
}

// MaxPid is where pids wrap around (/proc/sys/kernel/pid_max).
func MaxPid() uint32 {
	var buf [32]byte
	text, err := read(root+"sys/kernel/pid_max", buf[:])
	if err != nil {
		return 1 << 22
	}
	return uint32(number(bytes.TrimSpace(text)))
}

// errBlocked: the file of /proc could not be read in time, most likely because the process is inside execve.
var errBlocked = errors.New("blocked")

// within runs f, which may block until our answer to a request, and gives up after a moment. f then ends later by
// itself; it must not use anything that the caller reuses.
func within[T any](d time.Duration, f func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	c := make(chan result, 1)
	go func() {
		v, err := f()
		c <- result{v, err}
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case r := <-c:
		return r.v, r.err
	case <-t.C:
		var none T
		return none, errBlocked
	}
}

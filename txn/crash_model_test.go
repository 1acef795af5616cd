package txn

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// soak is how often random things are done: few times in CI, and as many as the flag is worth otherwise.
func soak(few, many int) int {
	switch {
	case os.Getenv("UNTORN_TEST_SOAK") != "":
		return many
	case testing.Short():
		return max(1, few/10)
	}
	return few
}

// twins is one directory of Linux and one disk, to which the same is done.
type twins struct {
	t    *testing.T
	rnd  *rand.Rand
	disk *disk
	top  string
	fds  [][2]int // open on both
	log  []string
	// seeks: this time holes are looked for, otherwise space is allocated.
	seeks bool
}

// TestDiskIsLinux does the same things, drawn by lot, on the disk and on Linux, and compares every result.
func TestDiskIsLinux(t *testing.T) {
	for seed := range soak(25, 5000) {
		top, err := os.MkdirTemp("/dev/shm", "untorn-disk")
		if err != nil {
			top = t.TempDir()
		}
		defer os.RemoveAll(top)
		tw := &twins{t: t, rnd: rand.New(rand.NewPCG(uint64(seed), 0)), disk: newDisk(features{}), top: top, seeks: seed%2 == 0}
		must(t, os.Chmod(top, 0o755))
		dir, err := unix.Open(top, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		tw.fds = [][2]int{{dir, tw.disk.mount()}}
		for range 400 {
			tw.step()
			if t.Failed() {
				t.Fatalf("seed %d: %s", seed, strings.Join(tw.log[max(0, len(tw.log)-25):], "\n"))
			}
		}
		for _, fd := range tw.fds {
			unix.Close(fd[0])
		}
	}
}

// both does something on both and compares what it comes to.
func (tw *twins) both(what string, f func(sys Sys, k int) (string, error)) bool {
	want, werr := f(Linux{}, 0)
	got, gerr := f(tw.disk, 1)
	tw.log = append(tw.log, fmt.Sprintf("%s: %s, %v", what, want, werr))
	if werr == nil && want != got || werr != gerr {
		tw.t.Errorf("%s: %q, %v; Linux says %q, %v", what, got, gerr, want, werr)
	}
	return werr == nil && gerr == nil
}

// open adds a descriptor.
func (tw *twins) open(what string, f func(sys Sys, k int) (int, error)) {
	var fds [2]int
	ok := tw.both(what, func(sys Sys, k int) (_ string, err error) { fds[k], err = f(sys, k); return "", err })
	if ok {
		tw.fds = append(tw.fds, fds)
	}
}

func (tw *twins) fd() (at [2]int, what string) {
	n := tw.rnd.IntN(len(tw.fds))
	if tw.rnd.IntN(3) == 0 {
		n = 0
	}
	return tw.fds[n], fmt.Sprint("fd ", n)
}

func (tw *twins) name() string { return []string{"a", "b", "c", "d", "e"}[tw.rnd.IntN(5)] }

func pickOf[T any](rnd *rand.Rand, list ...T) T { return list[rnd.IntN(len(list))] }

func (tw *twins) step() {
	if tw.rnd.IntN(2) == 0 {
		tw.names()
	} else {
		tw.data()
	}
}

func (tw *twins) names() {
	r := tw.rnd
	a, an := tw.fd()
	b, bn := tw.fd()
	name, other := tw.name(), tw.name()
	sa, sb := an+" "+name, bn+" "+other
	plain := func(what string, f func(sys Sys, k int) error) {
		tw.both(what, func(sys Sys, k int) (string, error) { return "", f(sys, k) })
	}
	switch r.IntN(16) {
	case 0, 1, 2, 3:
		flags := pickOf(r, unix.O_RDONLY, unix.O_RDWR, unix.O_WRONLY, unix.O_PATH, unix.O_RDWR|unix.O_TRUNC,
			unix.O_RDONLY|unix.O_DIRECTORY, unix.O_RDWR|unix.O_CREAT, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL,
			unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, unix.O_RDWR|unix.O_APPEND, unix.O_PATH|unix.O_DIRECTORY)
		if r.IntN(6) == 0 {
			name, flags = ".", pickOf(r, unix.O_RDWR|unix.O_TMPFILE, unix.O_WRONLY|unix.O_TMPFILE|unix.O_EXCL, unix.O_RDONLY, unix.O_PATH)
		}
		tw.open(fmt.Sprintf("open %s %s %#x", an, name, flags),
			func(sys Sys, k int) (int, error) { return sys.Open(a[k], name, flags|unix.O_NOFOLLOW, 0o644) })
	case 4, 5:
		plain("mkdir "+sa, func(sys Sys, k int) error { return sys.Mkdir(a[k], name, 0o755) })
	case 6:
		plain("link "+sa+" "+sb, func(sys Sys, k int) error { return sys.Link(a[k], name, b[k], other) })
	case 7:
		plain("linkfd "+an+" "+sb, func(sys Sys, k int) error { return sys.LinkFd(a[k], b[k], other) })
	case 8, 9, 10:
		flags := pickOf[uint](r, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE)
		plain(fmt.Sprint("rename ", sa, " ", sb, " ", flags),
			func(sys Sys, k int) error { return sys.Rename(a[k], name, b[k], other, flags) })
	case 11:
		plain("unlink "+sa, func(sys Sys, k int) error { return sys.Unlink(a[k], name) })
	case 12:
		plain("rmdir "+sa, func(sys Sys, k int) error { return sys.Rmdir(a[k], name) })
	case 13:
		plain("symlink "+sa, func(sys Sys, k int) error { return sys.Symlink("over/there", a[k], name) })
	case 14:
		tw.both("readlink "+sa, func(sys Sys, k int) (string, error) {
			var p [100]byte
			n, err := sys.Readlink(a[k], name, p[:])
			return string(p[:max(0, n)]), err
		})
	case 15:
		path := pickOf(r, ".", "a/b", "a/./c", "a/../b", "a/b/../../c", "a/../../b", "/a", "c")
		flags := pickOf(r, unix.O_RDONLY, unix.O_PATH, unix.O_RDONLY|unix.O_DIRECTORY)
		tw.open(fmt.Sprintf("open beneath %s %s %#x", an, path, flags),
			func(sys Sys, k int) (int, error) { return sys.OpenBeneath(a[k], path, flags) })
	}
	tw.look(a, sa, pickOf(r, "", name))
}

// look compares a file's attributes, and for directories the list of names.
func (tw *twins) look(at [2]int, what, name string) {
	same := tw.both("stat "+what, func(sys Sys, k int) (string, error) {
		var st unix.Statx_t
		err := sys.Stat(at[k], name, &st)
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			st.Size = 0
		}
		return fmt.Sprintf("%#o, %d links, %d bytes, owner %d %d", st.Mode, st.Nlink, st.Size, st.Uid, st.Gid), err
	})
	if !same {
		return
	}
	tw.both("list "+what, func(sys Sys, k int) (string, error) {
		list, err := names(sys, at[k])
		slices.Sort(list)
		return strings.Join(list, " "), err
	})
	tw.both("path "+what, func(sys Sys, k int) (string, error) {
		var st unix.Statx_t
		if err := sys.Stat(at[k], "", &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Nlink == 0 {
			return "", err
		}
		path, err := sys.Path(at[k])
		return "/" + strings.Trim(strings.TrimPrefix(path, tw.top), "/"), err
	})
}

func (tw *twins) data() {
	r := tw.rnd
	a, an := tw.fd()
	b, bn := tw.fd()
	off := int64(r.IntN(5) * r.IntN(3000))
	number := func(what string, f func(sys Sys, k int) (int, error)) {
		tw.both(what, func(sys Sys, k int) (string, error) { n, err := f(sys, k); return fmt.Sprint(n), err })
	}
	plain := func(what string, f func(sys Sys, k int) error) {
		number(what, func(sys Sys, k int) (int, error) { return 0, f(sys, k) })
	}
	op := r.IntN(13)
	if op == 4 && tw.seeks { // whether space that is only allocated is a hole depends on the filesystem
		op = 5
	} else if op == 5 && !tw.seeks {
		op = 4
	}
	switch op {
	case 0, 1, 2:
		p := bytes.Repeat([]byte{byte('a' + r.IntN(26))}, r.IntN(6000))
		number(fmt.Sprintf("write %s %d %d", an, off, len(p)), func(sys Sys, k int) (int, error) { return sys.Pwrite(a[k], p, off) })
	case 3:
		plain(fmt.Sprint("truncate ", an, off), func(sys Sys, k int) error { return sys.Truncate(a[k], off) })
	case 4:
		mode := pickOf[uint32](r, 0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE)
		plain(fmt.Sprint("fallocate ", an, mode, off), func(sys Sys, k int) error { return sys.Fallocate(a[k], mode, off, 5000) })
	case 5:
		whence := pickOf(r, unix.SEEK_DATA, unix.SEEK_HOLE, unix.SEEK_END)
		tw.both(fmt.Sprint("seek ", an, whence, off), func(sys Sys, k int) (string, error) {
			var st unix.Statx_t
			if sys.Stat(a[k], "", &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
				return "", nil
			}
			n, err := sys.Seek(a[k], off, whence)
			return fmt.Sprint(max(0, n)), err
		})
	case 6, 7:
		to := int64(r.IntN(9000))
		number(fmt.Sprint("copy ", an, off, bn, to),
			func(sys Sys, k int) (int, error) { return sys.CopyRange(a[k], off, b[k], to, 3000) })
	case 8:
		plain("chmod "+an, func(sys Sys, k int) error {
			var st unix.Statx_t
			if sys.Stat(a[k], "", &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFLNK {
				return nil
			}
			return sys.Chmod(a[k], 0o700|uint32(off&0o77))
		})
	case 9:
		tw.xattr(a, an)
	case 10:
		flags := pickOf(r, unix.O_RDONLY, unix.O_RDWR, unix.O_PATH, unix.O_RDONLY|unix.O_DIRECTORY)
		tw.open(fmt.Sprint("reopen ", an, flags), func(sys Sys, k int) (int, error) { return sys.Reopen(a[k], flags) })
	case 11:
		how := pickOf(r, unix.LOCK_EX|unix.LOCK_NB, unix.LOCK_UN, unix.LOCK_SH|unix.LOCK_NB)
		plain(fmt.Sprint("flock ", an, how), func(sys Sys, k int) error { return sys.Flock(a[k], how) })
		plain("fsync "+an, func(sys Sys, k int) error { return sys.Fsync(a[k]) })
	case 12:
		if n := r.IntN(len(tw.fds)); n > 0 && len(tw.fds) > 12 {
			c := tw.fds[n]
			tw.fds = slices.Delete(tw.fds, n, n+1)
			plain(fmt.Sprint("close ", n), func(sys Sys, k int) error { return sys.Close(c[k]) })
		}
	}
	tw.both("read "+an, func(sys Sys, k int) (string, error) {
		p := make([]byte, 40000)
		n, err := sys.Pread(a[k], p, 0)
		return string(p[:max(0, n)]), err
	})
	tw.look(a, an, "")
}

func (tw *twins) xattr(at [2]int, what string) {
	name := "user." + tw.name()
	flags := pickOf(tw.rnd, 0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE)
	size := tw.rnd.IntN(8)
	remove := tw.rnd.IntN(4) == 0
	tw.both("xattr "+what, func(sys Sys, k int) (string, error) {
		var st unix.Statx_t
		if sys.Stat(at[k], "", &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return "", nil
		}
		err := sys.Setxattr(at[k], name, []byte("value")[:size/2], flags)
		if remove {
			err = sys.Removexattr(at[k], name)
		}
		if err == unix.EOPNOTSUPP {
			return "", nil // tmpfs before Linux 6.6
		}
		p := make([]byte, size)
		n, gerr := sys.Getxattr(at[k], name, p)
		list, _ := xattrs(sys, at[k])
		slices.Sort(list)
		return fmt.Sprint(max(0, n), gerr, string(p[:max(0, n)*min(1, size)]), list), err
	})
}

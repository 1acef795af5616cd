package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// bench is a temporary directory on the filesystem to try things in.
type bench struct{ dir int }

// checkFilesystem looks at a directory and tries things out there.
func checkFilesystem(dir *os.File) []finding {
	m, err := mountOf(int(dir.Fd()))
	if err != nil || m == nil {
		m = &mountEntry{Type: "unknown"}
	}
	list := []finding{checkType(m), checkSpace(dir)}
	name := ".untorn-doctor-" + strconv.Itoa(os.Getpid())
	if err := unix.Mkdirat(int(dir.Fd()), name, 0o700); err != nil {
		result := err.Error()
		if errors.Is(err, unix.EROFS) {
			result = "read-only"
		}
		return append(list, finding{"writable", result, false, "a mount here is read-only; the rest was not tried"})
	}
	defer unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
	list = append(list, finding{"writable", "works", true, "files can be staged here"}, checkDurability(m), checkQuota(m))
	at, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return append(list, finding{"temporary directory", err.Error(), false, "the rest was not tried"})
	}
	defer unix.Close(at)
	b := bench{at}
	return append(list,
		tried("reflink", b.reflink(), "opening a big file to change it costs no copy", "opening a file to change it copies it; opening it with truncation does not"),
		tried("RENAME_NOREPLACE", b.rename(unix.RENAME_NOREPLACE), "new names are taken without a race", "new names are taken by link and unlink instead"),
		tried("RENAME_EXCHANGE", b.rename(unix.RENAME_EXCHANGE), "restoring from salvage exchanges files in one step", "mv --exchange is refused; restoring from salvage takes two steps"),
		tried("hard links", b.link(), "as on the filesystem itself; a replaced file leaves its other names behind", "there are none; salvaging takes a name with an empty file first"),
		tried("O_TMPFILE", b.tmpfile(), "new files come out as their directory wants them: group, ACL, labels", "new files are made in a twin of their directory, which takes longer"),
		tried("user xattrs", b.xattr("user.untorn", []byte("x")), "kept when a file is replaced", "there are none to keep"),
		tried("POSIX ACLs", b.xattr("system.posix_acl_access", minimalACL()), "kept when a file is replaced", "there are none to keep"),
		tried("leases", b.lease(), "a mapping that outlives its file is noticed, and waited for", "files that were mapped for writing go without passthrough"),
		tried("birth times", b.birth(), "inodes are told apart for certain", "inodes are told apart by number alone; a reused number is recognised by other signs"),
		tried("fsync of a directory", unix.Fsync(at), "a published name survives a power cut (durability full)", "use --durability=ordered: full cannot be kept here"),
	)
}

func (m *mountEntry) isFuse() bool {
	return m.Type == "fuse" || m.Type == "fuseblk" || strings.HasPrefix(m.Type, "fuse.")
}

// checkType says what is peculiar to a kind of filesystem.
func checkType(m *mountEntry) finding {
	const name = "filesystem"
	switch m.Type {
	case "unknown":
		return finding{name, m.Type, true, "it is judged by the checks below"}
	case "overlay", "ecryptfs":
		return finding{name, m.Type + " (stacked)", true, "works; keep data that matters on a volume rather than in a container's own layer"}
	case "nfs", "nfs4", "cifs", "smb3", "9p", "ceph":
		return finding{name, m.Type + " (network)", false, "what other machines write is seen late, and their locks may not be"}
	case "vfat", "msdos", "exfat", "ntfs3":
		return finding{name, m.Type, false, "owners and modes are those of the mount, and cannot be kept when a file is replaced"}
	}
	if m.isFuse() {
		return finding{name, m.Type + " (another FUSE filesystem)", true, "works as far as its server does; a server that hangs holds up those who use files there"}
	}
	return finding{name, m.Type, true, "works"}
}

// checkDurability says which --durability can be kept, as far as the kind of filesystem and its mount options tell.
func checkDurability(m *mountEntry) finding {
	const name = "durability"
	switch m.Type {
	case "tmpfs", "ramfs":
		return finding{name, "none", true, "it is in memory: nothing survives a power cut. --durability=none saves the useless fsync"}
	case "ext2", "vfat", "msdos", "exfat":
		return finding{name, "full, without a journal", false, "what was closed is on the disk; a power cut in the middle of a rename can damage the directory, so run fsck after one"}
	}
	if m.isFuse() {
		return finding{name, "up to its server", true, "fsync is passed to the server of " + m.Type + "; what that makes of it cannot be seen"}
	}
	for opt := range strings.SplitSeq(m.Super, ",") {
		switch opt {
		case "nobarrier", "barrier=0", "volatile":
			return finding{name, "none: mounted with " + opt, false, "fsync does not reach the disk: what was closed may be lost in a power cut, or torn"}
		}
	}
	return finding{name, "full", true, "what was closed survives a power cut, if the disk keeps what it has flushed"}
}

func checkQuota(m *mountEntry) finding {
	const name = "quotas"
	for opt := range strings.SplitSeq(m.Super, ",") {
		if strings.Contains(opt, "quota") && opt != "noquota" {
			return finding{name, opt, true, "hold for each user as on the filesystem itself; a staged file counts beside the version that it replaces"}
		}
	}
	return finding{name, "none in the mount options", true, "writes fail when the filesystem is full, not before"}
}

func checkSpace(dir *os.File) finding {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return finding{"free space", err.Error(), false, "it is not known whether staged files have room"}
	}
	free, all := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	result := fmt.Sprintf("%s of %s", showSize(free), showSize(all))
	// The same margin as that of the salvage.
	low := free < all/20 && free < 256<<20
	return found("free space", !low, result, "a file needs room for its old and its new version while it is written",
		"nearly full: the old and the new version of a file must both fit, and the salvage is given up")
}

// file makes an empty file and returns a descriptor of it.
func (b bench) file(name string, flags int) (int, error) {
	return unix.Openat(b.dir, name, flags|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
}

func (b bench) remove(names ...string) {
	for _, n := range names {
		unix.Unlinkat(b.dir, n, 0)
	}
}

func (b bench) reflink() error {
	defer b.remove("a", "b")
	src, err := b.file("a", unix.O_RDWR)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	if _, err := unix.Write(src, make([]byte, 64<<10)); err != nil {
		return err
	}
	dst, err := b.file("b", unix.O_RDWR)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	return unix.IoctlFileClone(dst, src)
}

func (b bench) rename(flag uint) error {
	defer b.remove("a", "b")
	names := []string{"a"}
	if flag == unix.RENAME_EXCHANGE {
		names = append(names, "b")
	}
	for _, n := range names {
		fd, err := b.file(n, unix.O_RDWR)
		if err != nil {
			return err
		}
		unix.Close(fd)
	}
	return unix.Renameat2(b.dir, "a", b.dir, "b", flag)
}

func (b bench) link() error {
	defer b.remove("a", "b")
	fd, err := b.file("a", unix.O_RDWR)
	if err != nil {
		return err
	}
	unix.Close(fd)
	return unix.Linkat(b.dir, "a", b.dir, "b", 0)
}

func (b bench) tmpfile() error {
	defer b.remove("a")
	fd, err := unix.Openat(b.dir, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), b.dir, "a", unix.AT_SYMLINK_FOLLOW)
}

func (b bench) xattr(name string, value []byte) error {
	defer b.remove("a")
	fd, err := b.file("a", unix.O_RDWR)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fsetxattr(fd, name, value, 0)
}

// minimalACL is an ACL that says no more than mode 0600, in the form of the kernel (linux/posix_acl_xattr.h): filesystems
// without ACLs refuse it all the same.
func minimalACL() []byte {
	const version, userObj, groupObj, other = 2, 0x01, 0x04, 0x20
	acl := binary.LittleEndian.AppendUint32(nil, version)
	for _, e := range [][2]uint16{{userObj, 6}, {groupObj, 0}, {other, 0}} {
		acl = binary.LittleEndian.AppendUint16(acl, e[0])
		acl = binary.LittleEndian.AppendUint16(acl, e[1])
		acl = binary.LittleEndian.AppendUint32(acl, 0xffffffff) // no id
	}
	return acl
}

func (b bench) lease() error {
	defer b.remove("a")
	fd, err := b.file("a", unix.O_RDWR)
	if err != nil {
		return err
	}
	unix.Close(fd)
	if fd, err = unix.Openat(b.dir, "a", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		return err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
	return err
}

func (b bench) birth() error {
	var st unix.Statx_t
	if err := unix.Statx(b.dir, "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &st); err != nil {
		return err
	}
	if st.Mask&unix.STATX_BTIME == 0 {
		return errors.New("not kept")
	}
	return nil
}

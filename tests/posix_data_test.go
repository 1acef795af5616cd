package tests

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Reading, writing, sizes, mappings and extended attributes.

func dataGroups() []posixGroup {
	return []posixGroup{
		{"data: seeks", dataSeeks},
		{"data: append", dataAppend},
		{"deviation: O_APPEND taken back", dataAppendNoMore},
		{"data: wrong descriptors", dataWrongDescriptors},
		{"data: truncate", dataTruncate},
		{"data: fallocate", dataFallocate},
		{"data: mappings", dataMappings},
		{"data: a mapping that outlives its descriptor", dataLastingMapping},
		{"data: copies in the kernel", dataKernelCopies},
		{"data: xattrs", dataXattrs},
		{"data: ACLs", dataACLs},
		{"data: statfs", func(b *bench) {
			var st unix.Statfs_t
			b.result("statfs", unix.Statfs(".", &st))
			b.log("names of %d bytes, blocks of %d, %d blocks, %d inodes", st.Namelen, st.Frsize, st.Blocks, st.Files)
		}},
	}
}

func dataSeeks(b *bench) {
	fd := b.open("f", unix.O_RDWR|unix.O_CREAT, 0o644)
	b.write(fd, "0123456789")
	b.seek(fd, 100000, unix.SEEK_SET)
	b.fstat(fd)
	b.read(fd, 5)
	b.write(fd, "far")
	b.fstat(fd)
	b.pread(fd, 12, 5)
	b.pread(fd, 12, 99995)
	b.pread(fd, 12, 200000)
	b.seek(fd, -3, unix.SEEK_END)
	b.seek(fd, -3, unix.SEEK_CUR)
	b.seek(fd, -1, unix.SEEK_SET)
	b.seek(fd, -200000, unix.SEEK_END)
	b.seek(fd, 0, 99)
	b.seek(fd, 0, unix.SEEK_DATA)
	b.seek(fd, 0, unix.SEEK_HOLE)
	b.seek(fd, 8192, unix.SEEK_DATA)
	b.seek(fd, 100003, unix.SEEK_DATA)
	b.seek(fd, 100003, unix.SEEK_HOLE)
	b.close(fd)
	fd = b.open("f", unix.O_RDONLY, 0)
	b.seek(fd, 8192, unix.SEEK_DATA)
	b.seek(fd, 0, unix.SEEK_HOLE)
	b.close(fd)
	b.stat("f")
}

func dataAppend(b *bench) {
	b.file("f", b.me, 0o644, "old ")
	one := b.open("f", unix.O_RDWR|unix.O_APPEND, 0)
	two := b.open("f", unix.O_WRONLY|unix.O_APPEND, 0)
	b.write(one, "one ")
	b.write(two, "two ")
	b.write(one, "three ")
	b.seek(one, 0, unix.SEEK_SET)
	b.write(one, "four ")
	b.seek(one, 0, unix.SEEK_CUR)
	b.pwrite(one, "five ", 0) // Linux appends all the same
	b.pread(one, 100, 0)
	b.close(one)
	b.close(two)
	b.content("f")
}

// dataAppendNoMore: O_APPEND can be taken back by fcntl(2).
func dataAppendNoMore(b *bench) {
	b.file("f", b.me, 0o644, "old ")
	fd := b.open("f", unix.O_RDWR|unix.O_APPEND, 0)
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0)
	b.result("F_SETFL", err)
	b.pwrite(fd, "OLD", 0)
	b.close(fd)
	b.content("f")
}

func dataWrongDescriptors(b *bench) {
	b.file("f", b.me, 0o644, "content")
	b.file("g", b.me, 0o644, "content")
	reader, writer, path, dir := b.open("g", unix.O_RDONLY, 0), b.open("f", unix.O_WRONLY, 0), b.open("g", unix.O_PATH, 0), b.open(".", unix.O_RDONLY, 0)
	for name, fd := range []int{reader, writer, path, dir, 999} {
		b.with("%s", [...]string{"reader", "writer", "path", "directory", "none"}[name])
		b.read(fd, 0)
		b.read(fd, 2)
		b.pread(fd, 2, -1)
		b.write(fd, "")
		b.write(fd, "x")
		b.pwrite(fd, "x", -1)
		b.seek(fd, 0, unix.SEEK_CUR)
		b.result("ftruncate", unix.Ftruncate(fd, 5))
		b.result("fallocate", unix.Fallocate(fd, 0, 0, 5))
		b.result("fchmod", unix.Fchmod(fd, 0o644))
		b.result("fsetxattr", unix.Fsetxattr(fd, "user.x", []byte("x"), 0))
		b.result("fchdir", unix.Fchdir(fd))
		b.result("fdatasync", unix.Fdatasync(fd))
		b.result("futimens", unix.UtimesNanoAt(fd, "", pastTimes, unix.AT_EMPTY_PATH))
		b.result("flock", unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB))
		b.result("close", unix.Close(fd))
		b.result("close again", unix.Close(fd))
	}
	b.content("f")
}

func dataTruncate(b *bench) {
	for _, size := range []int64{0, 3, 7, 8, 4096, 100000, 1 << 40, -1, 1 << 62} {
		b.cell(func() {
			b.with("%d", size)
			b.file("f", b.me, 0o644, "content")
			b.result("truncate", unix.Truncate("f", size))
			b.stat("f")
			fd := b.open("f", unix.O_RDWR, 0)
			b.pread(fd, 9, 2)
			b.result("ftruncate one more", unix.Ftruncate(fd, size+1))
			b.result("ftruncate 5", unix.Ftruncate(fd, 5))
			b.result("ftruncate 12", unix.Ftruncate(fd, 12))
			b.close(fd)
			b.content("f")
		})
	}
}

func dataFallocate(b *bench) {
	modes := map[string]uint32{
		"plain": 0, "keep": unix.FALLOC_FL_KEEP_SIZE,
		"punch": unix.FALLOC_FL_PUNCH_HOLE, "punch keep": unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE,
		"zero": unix.FALLOC_FL_ZERO_RANGE, "zero keep": unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE,
		"nonsense": 1 << 20,
	}
	ranges := [][2]int64{{0, 4096}, {4096, 4096}, {4096, 8192}, {100, 1000}, {20000, 4096}, {0, 0}, {-1, 5}, {0, -1}, {1 << 62, 1 << 62}}
	for _, name := range []string{"plain", "keep", "punch", "punch keep", "zero", "zero keep", "nonsense"} {
		for _, r := range ranges {
			b.cell(func() {
				b.file("f", b.me, 0o644, strings.Repeat("0123456789abcdef", 1024))
				fd := b.open("f", unix.O_RDWR, 0)
				b.with("%s %v", name, r)
				b.result("fallocate", unix.Fallocate(fd, modes[name], r[0], r[1]))
				b.fstat(fd)
				b.pread(fd, 20, 4090)
				b.pread(fd, 20, 95)
				b.close(fd)
				b.stat("f")
			})
		}
	}
}

func dataMappings(b *bench) {
	b.file("f", b.me, 0o644, strings.Repeat("x", 5000))
	fd := b.open("f", unix.O_RDWR, 0)
	shared, err := unix.Mmap(fd, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	b.result("mmap shared", err)
	private, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	b.result("mmap private", err)
	if shared == nil || private == nil {
		return
	}
	copy(shared[10:], "by mapping")
	b.pread(fd, 12, 9)
	b.pwrite(fd, "by write", 100)
	b.log("mapped: %q %q", shared[99:110], private[99:110])
	copy(private[10:], "in private")
	b.pread(fd, 12, 9)
	b.log("beyond the end: %q", shared[5000:5004])
	b.result("ftruncate", unix.Ftruncate(fd, 8000))
	copy(shared[7990:], "near end")
	b.pread(fd, 20, 7989)
	b.result("msync", unix.Msync(shared, unix.MS_SYNC))
	b.result("munmap", unix.Munmap(private))
	b.result("munmap", unix.Munmap(shared))
	b.close(fd)

	reader := b.open("f", unix.O_RDONLY, 0)
	_, err = unix.Mmap(reader, 0, 4096, unix.PROT_WRITE, unix.MAP_SHARED)
	b.result("mmap for writing a reader", err)
	mapped, err := unix.Mmap(reader, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	b.result("mmap for reading", err)
	b.close(reader)
	b.result("unlink", unix.Unlink("f"))
	b.log("mapped: %q", mapped[5:40])
	b.result("munmap", unix.Munmap(mapped))
}

// dataLastingMapping writes through a mapping that outlives its descriptor. When the
// kernel tells of its end is not defined: the content is awaited.
func dataLastingMapping(b *bench) {
	b.file("f", b.me, 0o644, strings.Repeat("x", 20))
	fd := b.open("f", unix.O_RDWR, 0)
	mapped, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	b.result("mmap", err)
	copy(mapped[2:], "before")
	b.close(fd)
	copy(mapped[10:], "after")
	b.result("munmap", unix.Munmap(mapped))
	poll(settleTimeout, func() bool {
		content, _ := os.ReadFile("f")
		return string(content) == "xxbeforexxafterxxxxx"
	})
	b.content("f")
}

func dataKernelCopies(b *bench) {
	b.file("from", b.me, 0o644, strings.Repeat("0123456789", 2000))
	from, to := b.open("from", unix.O_RDONLY, 0), b.open("to", unix.O_RDWR|unix.O_CREAT, 0o600)
	at, dest := int64(5), int64(100)
	n, err := unix.CopyFileRange(from, &at, to, &dest, 10000, 0)
	b.log("copy_file_range = %d %s, now at %d and %d", n, errnoName(err), at, dest)
	_, err = unix.CopyFileRange(to, nil, from, nil, 10, 0)
	b.result("copy_file_range to a reader", err)
	at, dest = 0, 5
	_, err = unix.CopyFileRange(to, &at, to, &dest, 100, 0)
	b.result("copy_file_range onto itself", err)
	_, err = unix.CopyFileRange(to, nil, to, nil, 10, 1)
	b.result("copy_file_range with flags", err)
	at = 19990
	n, err = unix.Sendfile(to, from, &at, 100)
	b.log("sendfile = %d %s", n, errnoName(err))
	b.pread(to, 30, 95)
	b.close(to)
	b.close(from)
	b.content("to")
	b.stat("to")
}

func dataXattrs(b *bench) {
	b.file("f", b.me, 0o644, "content")
	b.symlink("f", "l")
	b.dir("d", b.me, 0o755)
	long := strings.Repeat("n", 300)
	for _, name := range []string{"user.x", "user.", "trusted.x", "security.x", "foreign.x", "", "user." + long} {
		for _, p := range []string{"f", "l", "d"} {
			b.with("%s of %s", brief(name), p)
			b.result("lset "+p, unix.Lsetxattr(p, name, []byte("value"), 0))
			b.result("create again", unix.Lsetxattr(p, name, []byte("value"), unix.XATTR_CREATE))
			b.result("replace", unix.Lsetxattr(p, name, []byte("other"), unix.XATTR_REPLACE))
			buf := make([]byte, 20)
			n, err := unix.Lgetxattr(p, name, buf)
			b.log("get = %q %s", buf[:max(n, 0)], errnoName(err))
			_, err = unix.Lgetxattr(p, name, buf[:2])
			b.result("get into a small buffer", err)
			n, err = unix.Lgetxattr(p, name, nil)
			b.log("size = %d %s", n, errnoName(err))
			n, err = unix.Llistxattr(p, buf)
			b.log("list = %q %s", buf[:max(n, 0)], errnoName(err))
			_, err = unix.Llistxattr(p, buf[:1])
			b.result("list into a small buffer", err)
			b.result("remove", unix.Lremovexattr(p, name))
			b.result("remove again", unix.Lremovexattr(p, name))
			b.result("replace missing", unix.Lsetxattr(p, name, []byte("x"), unix.XATTR_REPLACE))
		}
	}
	b.with("f")
	b.result("too large", unix.Setxattr("f", "user.x", make([]byte, 65537), 0))
	fd := b.open("f", unix.O_RDWR, 0)
	b.result("fset", unix.Fsetxattr(fd, "user.kept", []byte("kept"), 0))
	b.pwrite(fd, "C", 0)
	b.close(fd)
	b.log("attributes:%s", describeXattrs("f"))
}

// aclFor is an ACL that gives something to one user: owner rw, he and the mask perm, group -, others -.
func aclFor(uid uint32, perm byte) []byte { return aclWith(2, uid, perm) }

func aclForGroup(gid uint32, perm byte) []byte { return aclWith(8, gid, perm) }

// aclWith is an ACL with one entry beyond the mode: an ACL_USER (2) comes before the group's, an ACL_GROUP (8) after it.
func aclWith(tag byte, id uint32, perm byte) []byte {
	entry := func(tag, perm byte, id uint32) string {
		return string([]byte{tag, 0, perm, 0, byte(id), byte(id >> 8), byte(id >> 16), byte(id >> 24)})
	}
	const undefined = 0xffffffff
	named := [2]string{}
	named[tag/8] = entry(tag, perm, id)
	return []byte("\x02\x00\x00\x00" + entry(1, 6, undefined) + named[0] + entry(4, 0, undefined) + named[1] + entry(16, perm, undefined) + entry(32, 0, undefined))
}

// dataACLs sets an access ACL and a default ACL, and looks at what becomes of them.
func dataACLs(b *bench) {
	acl := aclFor(posixOther, 6)
	b.file("f", b.me, 0o644, "content")
	b.dir("d", b.me, 0o755)
	b.result("set", unix.Setxattr("f", "system.posix_acl_access", acl, 0))
	b.result("set default", unix.Setxattr("d", "system.posix_acl_default", acl, 0))
	b.result("set default on a file", unix.Setxattr("f", "system.posix_acl_default", acl, 0))
	b.result("set nonsense", unix.Setxattr("f", "system.posix_acl_access", []byte("nonsense"), 0))
	fd := b.open("f", unix.O_WRONLY|unix.O_TRUNC, 0)
	b.close(fd)
	b.result("chmod", unix.Chmod("f", 0o640))
	fd = b.open("d/new", unix.O_WRONLY|unix.O_CREAT, 0o666)
	b.write(fd, "x")
	b.close(fd)
	b.result("mkdir", unix.Mkdir("d/sub", 0o777))
	b.result("mkfifo", unix.Mkfifo("d/pipe", 0o666))
	for _, p := range []string{"f", "d", "d/new", "d/sub", "d/pipe"} {
		b.log("%s:%s", p, describeXattrs(p))
	}
	b.state()
	b.result("remove", unix.Removexattr("f", "system.posix_acl_access"))
	b.log("f:%s", describeXattrs("f"))
}

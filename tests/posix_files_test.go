package tests

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Every combination of open flags on every type of file, and the life of open files.

// The short calls that the groups are made of. Each logs its result.

func (b *bench) open(name string, flags int, mode uint32) int {
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC, mode)
	b.result("open "+brief(name), err)
	return fd
}

func (b *bench) close(fd int) { b.result("close", unix.Close(fd)) }

func (b *bench) write(fd int, s string) {
	n, err := unix.Write(fd, []byte(s))
	b.log("write %s = %d %s", brief(s), n, errnoName(err))
}

func (b *bench) pwrite(fd int, s string, at int64) {
	n, err := unix.Pwrite(fd, []byte(s), at)
	b.log("pwrite %s at %d = %d %s", brief(s), at, n, errnoName(err))
}

func (b *bench) pread(fd, size int, at int64) {
	buf := make([]byte, size)
	n, err := unix.Pread(fd, buf, at)
	b.log("pread at %d = %s %s", at, brief(fmt.Sprintf("%q", buf[:max(n, 0)])), errnoName(err))
}

func (b *bench) read(fd, size int) {
	buf := make([]byte, size)
	n, err := unix.Read(fd, buf)
	b.log("read = %s %s", brief(fmt.Sprintf("%q", buf[:max(n, 0)])), errnoName(err))
}

func (b *bench) seek(fd int, offset int64, whence int) {
	at, err := unix.Seek(fd, offset, whence)
	b.log("seek %d from %d = %d %s", offset, whence, at, errnoName(err))
}

var openFlags = []struct {
	name  string
	flags int
}{
	{"", 0},
	{"CREAT", unix.O_CREAT},
	{"CREAT EXCL", unix.O_CREAT | unix.O_EXCL},
	{"CREAT NOFOLLOW", unix.O_CREAT | unix.O_NOFOLLOW},
	{"CREAT DIRECTORY", unix.O_CREAT | unix.O_DIRECTORY},
	{"TRUNC", unix.O_TRUNC},
	{"CREAT TRUNC", unix.O_CREAT | unix.O_TRUNC},
	{"TRUNC APPEND", unix.O_TRUNC | unix.O_APPEND},
	{"APPEND", unix.O_APPEND},
	{"CREAT APPEND", unix.O_CREAT | unix.O_APPEND},
	{"DIRECTORY", unix.O_DIRECTORY},
	{"NOFOLLOW", unix.O_NOFOLLOW},
	{"NOFOLLOW TRUNC", unix.O_NOFOLLOW | unix.O_TRUNC},
	{"DIRECTORY NOFOLLOW", unix.O_DIRECTORY | unix.O_NOFOLLOW},
	{"PATH", unix.O_PATH},
	{"PATH NOFOLLOW", unix.O_PATH | unix.O_NOFOLLOW},
	{"TMPFILE", unix.O_TMPFILE},
	{"TMPFILE EXCL", unix.O_TMPFILE | unix.O_EXCL},
	{"NOATIME", unix.O_NOATIME},
	{"SYNC", unix.O_SYNC},
	{"DSYNC CREAT", unix.O_DSYNC | unix.O_CREAT},
	{"EXCL", unix.O_EXCL},
}

func openGroups() []posixGroup {
	kinds := typedKinds()
	kinds = append(kinds,
		pathKind{name: "missing", path: "missing"},
		pathKind{"read-only", "f", func(b *bench) { b.file("f", b.me, 0o444, "content") }},
		pathKind{"theirs", "f", func(b *bench) { b.file("f", posixOther, 0o644, "content") }},
		pathKind{"their setuid", "f", func(b *bench) { b.file("f", posixOther, 0o6777, "content") }},
		pathKind{"missing in setgid directory", "d/x", func(b *bench) {
			b.dir("d", b.me, 0o755)
			b.asRoot(func() { check(unix.Chown("d", -1, posixOther)); check(unix.Chmod("d", 0o2777)) })
		}},
	)
	var groups []posixGroup
	for _, k := range kinds {
		groups = append(groups, posixGroup{"open: " + k.name, func(b *bench) {
			for access, accessName := range []string{"RDONLY", "WRONLY", "RDWR"} {
				for _, f := range openFlags {
					b.cell(func() {
						if k.build != nil {
							k.build(b)
						}
						b.with("%s %s", accessName, f.name)
						b.useOpened(k.path, access|f.flags)
						b.state()
					})
				}
			}
		}})
	}
	return groups
}

// useOpened opens a file and tries what can be done with the descriptor.
func (b *bench) useOpened(path string, flags int) {
	// Without O_NONBLOCK a FIFO waits for its other end.
	fd := b.open(path, flags|unix.O_NONBLOCK, 0o6751)
	if fd < 0 {
		return
	}
	got, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	b.log("flags = %o %s", got, errnoName(err))
	b.fstat(fd)
	b.read(fd, 3)
	b.write(fd, "ab")
	b.pread(fd, 3, 1)
	b.result("ftruncate", unix.Ftruncate(fd, 5))
	b.result("fchmod", unix.Fchmod(fd, 0o640))
	b.result("fchown", unix.Fchown(fd, -1, unix.Getgid()))
	b.fstat(fd)
	b.close(fd)
}

func fileGroups() []posixGroup {
	return []posixGroup{
		{"file: modes at creation", creationModes},
		{"file: unlinked while open", func(b *bench) {
			for _, flags := range []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR | unix.O_TRUNC} {
				b.cell(func() {
					b.file("f", b.me, 0o644, "content")
					fd := b.open("f", flags, 0)
					b.result("unlink", unix.Unlink("f"))
					b.fstat(fd)
					b.stat("f")
					b.pwrite(fd, "more", 4)
					b.pread(fd, 20, 0)
					b.result("fchmod", unix.Fchmod(fd, 0o600))
					b.fstat(fd)
					again := b.open("f", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
					b.close(fd)
					b.close(again)
					b.state()
				})
			}
		}},
		{"file: new, unlinked while open", func(b *bench) {
			fd := b.open("f", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o640)
			b.write(fd, "content")
			b.result("unlink", unix.Unlink("f"))
			b.fstat(fd)
			b.pread(fd, 20, 0)
			b.close(fd)
			b.state()
		}},
		{"file: renamed while open", renamedWhileOpen},
		{"file: replaced while open", replacedWhileOpen},
		{"file: new name while open", newNameWhileOpen},
		{"file: directory renamed while a file in it is open", func(b *bench) {
			b.dir("d", b.me, 0o755)
			b.file("d/old", b.me, 0o644, "old")
			oldFile, newFile := b.open("d/old", unix.O_WRONLY|unix.O_TRUNC, 0), b.open("d/new", unix.O_WRONLY|unix.O_CREAT, 0o600)
			b.result("rename", unix.Rename("d", "e"))
			b.write(oldFile, "OLD")
			b.write(newFile, "NEW")
			b.close(oldFile)
			b.close(newFile)
			b.content("e/old")
			b.content("e/new")
			b.state()
		}},
		{"file: changed under one of its names", func(b *bench) {
			for _, call := range []pathCall{
				{"truncate", func(p string) error { return unix.Truncate(p, 3) }},
				{"open TRUNC", func(p string) error { return tryOpen(p, unix.O_WRONLY|unix.O_TRUNC, 0) }},
				{"chmod", func(p string) error { return unix.Chmod(p, 0o600) }},
				{"utimens", func(p string) error { return unix.UtimesNanoAt(unix.AT_FDCWD, p, pastTimes, 0) }},
			} {
				b.cell(func() {
					b.file("f", b.me, 0o644, "content")
					b.result("link", unix.Link("f", "g"))
					b.result(call.name, call.do("f"))
					b.content("f")
				})
			}
		}},
		{"file: anonymous, then linked", func(b *bench) {
			fd := b.open(".", unix.O_RDWR|unix.O_TMPFILE, 0o640)
			b.write(fd, "content")
			b.fstat(fd)
			b.result("linkat", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, "f", unix.AT_SYMLINK_FOLLOW))
			b.fstat(fd)
			b.write(fd, " and more")
			b.close(fd)
			b.content("f")
			b.state()
		}},
		{"file: opened through /proc", func(b *bench) {
			b.file("f", b.me, 0o644, "content")
			fd := b.open("f", unix.O_RDONLY, 0)
			again := b.open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY, 0)
			b.read(again, 20)
			b.close(again)
			b.close(fd)
			path := b.open("f", unix.O_PATH, 0)
			again = b.open(fmt.Sprintf("/proc/self/fd/%d", path), unix.O_WRONLY|unix.O_APPEND, 0)
			b.write(again, " and more")
			b.close(again)
			b.close(path)
			b.content("f")
		}},
	}
}

// creationModes: what mode, umask and directory make of a new file.
func creationModes(b *bench) {
	for _, umask := range []int{0o000, 0o022, 0o077, 0o777} {
		for _, mode := range []uint32{0o000, 0o600, 0o666, 0o777, 0o1777, 0o2755, 0o4755, 0o7777} {
			b.cell(func() {
				old := unix.Umask(umask)
				b.with("umask %o mode %o", umask, mode)
				fd := b.open("f", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, mode)
				b.write(fd, "x") // the descriptor was opened before the mode applied
				b.fstat(fd)
				b.close(fd)
				b.result("mkdir", unix.Mkdir("d", mode))
				b.result("mkfifo", unix.Mkfifo("p", mode))
				b.result("mknod", unix.Mknod("n", unix.S_IFREG|mode, 0))
				b.result("symlink", unix.Symlink("f", "l"))
				unix.Umask(old)
				b.state()
			})
		}
	}
}

func renamedWhileOpen(b *bench) {
	for _, flags := range []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_WRONLY | unix.O_TRUNC, unix.O_WRONLY | unix.O_APPEND} {
		b.cell(func() {
			b.file("f", b.me, 0o644, "content")
			fd := b.open("f", flags, 0)
			b.result("rename", unix.Rename("f", "g"))
			b.write(fd, "CON")
			b.result("rename", unix.Rename("g", "h"))
			b.fstat(fd)
			b.close(fd)
			b.content("h")
			b.state()
		})
	}
}

func replacedWhileOpen(b *bench) {
	for _, flags := range []int{unix.O_RDONLY, unix.O_RDWR, unix.O_RDWR | unix.O_TRUNC} {
		b.cell(func() {
			b.file("f", b.me, 0o644, "old")
			b.file("g", b.me, 0o600, "replacement")
			fd := b.open("f", flags, 0)
			b.result("rename", unix.Rename("g", "f"))
			b.fstat(fd)
			b.pread(fd, 20, 0)
			b.pwrite(fd, "lost", 0)
			b.pread(fd, 20, 0)
			b.close(fd)
			b.content("f")
			b.state()
		})
	}
}

// newNameWhileOpen: all that a writer can do to its new file by its path.
func newNameWhileOpen(b *bench) {
	fd := b.open("f", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o640)
	b.write(fd, "content")
	b.stat("f")
	b.result("access", unix.Access("f", unix.R_OK))
	b.result("open EXCL", tryOpen("f", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0))
	b.result("mkdir", unix.Mkdir("f", 0o755))
	b.content("f")
	b.result("chmod", unix.Chmod("f", 0o604))
	b.result("setxattr", unix.Setxattr("f", "user.x", []byte("x"), 0))
	b.result("utimens", unix.UtimesNanoAt(unix.AT_FDCWD, "f", pastTimes, 0))
	b.fstat(fd)
	b.result("link", unix.Link("f", "g"))
	b.fstat(fd)
	b.result("rename", unix.Rename("f", strings.Repeat("h", 255)))
	b.stat("f")
	b.result("truncate", unix.Truncate(strings.Repeat("h", 255), 4))
	b.fstat(fd)
	b.result("unlink", unix.Unlink("g"))
	b.close(fd)
	b.content(strings.Repeat("h", 255))
	b.state()
}

func deviationGroups() []posixGroup {
	return []posixGroup{
		{"deviation: hard links", func(b *bench) {
			b.file("f", b.me, 0o644, "old")
			b.result("link", unix.Link("f", "g"))
			fd := b.open("f", unix.O_WRONLY|unix.O_TRUNC, 0)
			b.write(fd, "new")
			b.close(fd)
			b.content("g")
		}},
		{"deviation: reads by a writer", func(b *bench) {
			b.file("f", b.me, 0o644, "old")
			b.asRoot(func() { check(unix.UtimesNanoAt(unix.AT_FDCWD, "f", pastTimes, 0)) })
			fd := b.open("f", unix.O_RDWR, 0)
			b.read(fd, 3)
			b.close(fd)
			b.times("f")
		}},
		{"deviation: collapse and insert", func(b *bench) {
			b.file("f", b.me, 0o644, strings.Repeat("x", 16384))
			fd := b.open("f", unix.O_RDWR, 0)
			b.result("collapse", unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096))
			b.result("insert", unix.Fallocate(fd, unix.FALLOC_FL_INSERT_RANGE, 0, 4096))
			b.close(fd)
		}},
		{"deviation: largest offset", func(b *bench) {
			b.file("f", b.me, 0o644, "content")
			fd := b.open("f", unix.O_RDONLY, 0)
			b.seek(fd, 1<<62, unix.SEEK_SET)
			b.close(fd)
		}},
		{"deviation: read while open", func(b *bench) {
			b.file("f", b.me, 0o644, "old")
			fd := b.open("f", unix.O_WRONLY|unix.O_TRUNC, 0)
			b.write(fd, "new")
			b.content("f")
			b.close(fd)
			b.content("f")
		}},
		{"deviation: new inode number", func(b *bench) {
			b.file("f", b.me, 0o644, "old")
			var before, after unix.Stat_t
			b.result("stat", unix.Stat("f", &before))
			b.result("write", tryOpen("f", unix.O_WRONLY|unix.O_TRUNC, 0))
			b.result("stat", unix.Stat("f", &after))
			b.log("same inode: %v", before.Ino == after.Ino)
		}},
	}
}

package tests

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Rights, setuid bits and times.

func rightsGroups() []posixGroup {
	return []posixGroup{
		{"rights: access by mode", rightsByMode},
		{"rights: access by ACL", rightsByACL},
		{"rights: setuid bits after a change", rightsSetuid},
		{"rights: chmod and chown", rightsChmodChown},
		{"rights: attributes through one of two names", func(b *bench) { b.ofTwoNames(0o664) }},
		{"rights: setuid bits through one of two names", func(b *bench) { b.ofTwoNames(0o6775) }},
		{"rights: sticky directories", rightsSticky},
		{"rights: utimensat", rightsUtimens},
		{"times: changes of files", timesOfFiles},
		{"times: changes of names", timesOfNames},
		{"times: set while open", timesSetWhileOpen},
	}
}

// rightsByMode: access(2) and open(2), which must agree, for owner, group and others.
func rightsByMode(b *bench) {
	for _, owner := range []int{b.me, posixOther} {
		for _, team := range []bool{true, false} {
			for mode := range uint32(0o10) {
				for _, shift := range []uint32{0, 3, 6} {
					b.cell(func() {
						b.file("f", owner, mode<<shift, "x")
						b.dir("d", owner, mode<<shift)
						b.file("d/x", posixOther, 0o666, "x")
						if team {
							b.asRoot(func() {
								check(unix.Chown("f", -1, posixTeam))
								check(unix.Chown("d", -1, posixTeam))
							})
						}
						b.with("owner %d, team %v, mode %o", owner, team, mode<<shift)
						b.accessAll("f")
						b.accessAll("d")
						b.accessAll("d/x")
						b.result("create", tryOpen("d/new", unix.O_WRONLY|unix.O_CREAT, 0o600))
						b.result("unlink", unix.Unlink("d/x"))
					})
				}
			}
		}
	}
}

func (b *bench) accessAll(name string) {
	for how := range uint32(8) {
		b.result(fmt.Sprintf("access %s %d", name, how), unix.Access(name, how))
		b.result("faccessat", unix.Faccessat(unix.AT_FDCWD, name, how, unix.AT_EACCESS))
	}
	for access := range 3 {
		b.result(fmt.Sprintf("open %s %d", name, access), tryOpen(name, access, 0))
	}
}

// rightsByACL: what an entry for the user, or for a group of his, gives on somebody else's file and directory.
func rightsByACL(b *bench) {
	for _, perm := range []byte{0, 1, 2, 4, 6, 7} {
		for _, mask := range []uint32{0o070, 0o040, 0o000} { // chmod of the group bits sets it
			for i, acl := range [][]byte{aclFor(uint32(b.me), perm), aclForGroup(posixTeam, perm)} {
				b.cell(func() {
					b.with("%s, entry %o, mask %o", []string{"user", "team"}[i], perm, mask)
					b.file("f", posixOther, 0o600, "content")
					b.dir("d", posixOther, 0o700)
					b.file("d/x", posixOther, 0o600, "x")
					b.asRoot(func() {
						for _, path := range []string{"f", "d", "d/x"} {
							check(unix.Setxattr(path, "system.posix_acl_access", acl, 0))
							check(unix.Chmod(path, 0o600|mask))
						}
					})
					b.accessAll("f")
					b.accessAll("d/x")
					b.tryChanges("f")
					b.result("create", tryOpen("d/new", unix.O_WRONLY|unix.O_CREAT, 0o600))
					b.result("unlink", unix.Unlink("d/x"))
					b.state()
				})
			}
		}
	}
}

// tryChanges tries what only the owner may do, or only who may write.
func (b *bench) tryChanges(path string) {
	now := unix.Timespec{Nsec: unix.UTIME_NOW}
	b.result("chmod", unix.Chmod(path, 0o666))
	b.result("chown", unix.Chown(path, b.me, -1))
	b.result("chgrp", unix.Chown(path, -1, posixTeam))
	b.result("utimens", unix.UtimesNanoAt(unix.AT_FDCWD, path, pastTimes[:2], 0))
	b.result("utimens now", unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{now, now}, 0))
	b.result("setxattr", unix.Setxattr(path, "user.x", []byte("x"), 0))
	b.result("removexattr", unix.Removexattr(path, "user.x"))
	b.result("set ACL", unix.Setxattr(path, "system.posix_acl_access", aclFor(uint32(b.me), 7), 0))
	b.result("trusted", unix.Setxattr(path, "trusted.x", []byte("x"), 0))
	b.result("truncate", unix.Truncate(path, 3))
	b.result("link", unix.Link(path, "linked"))
}

func rightsSetuid(b *bench) {
	changes := map[string]func(){
		"write":         func() { fd := b.open("f", unix.O_WRONLY, 0); b.write(fd, "x"); b.fstat(fd); b.close(fd) },
		"append":        func() { fd := b.open("f", unix.O_WRONLY|unix.O_APPEND, 0); b.write(fd, "x"); b.close(fd) },
		"write nothing": func() { fd := b.open("f", unix.O_WRONLY, 0); b.write(fd, ""); b.close(fd) },
		"open TRUNC":    func() { b.result("open", tryOpen("f", unix.O_WRONLY|unix.O_TRUNC, 0)) },
		"truncate":      func() { b.result("truncate", unix.Truncate("f", 3)) },
		"truncate same": func() { b.result("truncate", unix.Truncate("f", 7)) },
		"ftruncate":     func() { fd := b.open("f", unix.O_WRONLY, 0); b.result("ftruncate", unix.Ftruncate(fd, 3)); b.close(fd) },
		"fallocate": func() {
			fd := b.open("f", unix.O_WRONLY, 0)
			b.result("fallocate", unix.Fallocate(fd, 0, 0, 99))
			b.close(fd)
		},
		"chown": func() { b.result("chown", unix.Chown("f", -1, unix.Getgid())) },
		// Its errno is not compared: for somebody else's setuid file it is EPERM, which a FUSE server cannot tell from what
		// precedes a write.
		"chown nobody": func() { unix.Chown("f", -1, -1) },
		"chmod":        func() { b.result("chmod", unix.Chmod("f", 0o6751)) },
		"link":         func() { b.result("link", unix.Link("f", "g")) },
		"setxattr":     func() { b.result("setxattr", unix.Setxattr("f", "user.x", nil, 0)) },
		"utimens":      func() { b.result("utimens", unix.UtimesNanoAt(unix.AT_FDCWD, "f", nil, 0)) },
		"write and chmod": func() {
			fd := b.open("f", unix.O_WRONLY, 0)
			b.write(fd, "x")
			b.result("fchmod", unix.Fchmod(fd, 0o6755))
			b.close(fd)
		},
		"copy_file_range": func() {
			b.file("from", b.me, 0o644, "bytes")
			from, to := b.open("from", unix.O_RDONLY, 0), b.open("f", unix.O_WRONLY, 0)
			_, err := unix.CopyFileRange(from, nil, to, nil, 5, 0)
			b.result("copy_file_range", err)
			b.close(from)
			b.close(to)
		},
	}
	for _, name := range sortedKeys(changes) {
		for _, owner := range []int{b.me, posixOther} {
			for _, mode := range []uint32{0o6777, 0o4777, 0o2777, 0o2767, 0o6766} {
				b.cell(func() {
					b.file("f", owner, mode, "content")
					b.with("%s, owner %d, mode %o", name, owner, mode)
					changes[name]()
					b.stat("f")
				})
			}
		}
	}
	b.cell(func() {
		b.file("f", b.me, 0o755, "content")
		b.asRoot(func() { // cap_net_raw, version 2
			check(unix.Setxattr("f", "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
		})
		b.log("capability:%s", describeXattrs("f"))
		fd := b.open("f", unix.O_WRONLY, 0)
		b.write(fd, "x")
		b.close(fd)
		b.log("capability after a write:%s", describeXattrs("f"))
	})
}

func rightsChmodChown(b *bench) {
	groups := map[string]int{"own": b.me, "team": posixTeam, "foreign": posixOther}
	for _, owner := range []int{b.me, posixOther} {
		for _, group := range sortedKeys(groups) {
			b.cell(func() {
				b.with("owner %d, group %s", owner, group)
				b.file("f", owner, 0o644, "x")
				b.dir("d", owner, 0o755)
				b.asRoot(func() { check(unix.Chown("f", -1, groups[group])); check(unix.Chown("d", -1, groups[group])) })
				for _, mode := range []uint32{0o7777, 0o2755, 0o1644, 0o000, 0o4755} {
					b.result(fmt.Sprintf("chmod %o", mode), unix.Chmod("f", mode))
					b.stat("f")
					b.result("chmod directory", unix.Chmod("d", mode))
					b.stat("d")
				}
				for _, to := range [][2]int{{-1, b.me}, {-1, posixTeam}, {-1, posixOther}, {b.me, -1}, {posixOther, -1}, {0, 0}} {
					b.result(fmt.Sprintf("chown %d:%d", to[0], to[1]), unix.Chown("f", to[0], to[1]))
					b.stat("f")
				}
			})
		}
	}
}

// ofTwoNames: attributes that are changed through a descriptor are those of all names.
func (b *bench) ofTwoNames(mode uint32) {
	changes := map[string]func(fd int) error{
		"futimens":     futimens,
		"futimens now": func(fd int) error { return unix.UtimesNanoAt(fd, "", nil, unix.AT_EMPTY_PATH) },
		"futimens atime": func(fd int) error {
			return unix.UtimesNanoAt(fd, "", []unix.Timespec{pastTimes[0], {Nsec: unix.UTIME_OMIT}}, unix.AT_EMPTY_PATH)
		},
		"fchmod":       func(fd int) error { return unix.Fchmod(fd, 0o4751) },
		"fchown":       func(fd int) error { return unix.Fchown(fd, -1, posixTeam) },
		"fsetxattr":    func(fd int) error { return unix.Fsetxattr(fd, "user.x", []byte("x"), 0) },
		"fremovexattr": func(fd int) error { return unix.Fremovexattr(fd, "user.gone") },
		"acl":          func(fd int) error { return unix.Fsetxattr(fd, "system.posix_acl_access", aclFor(posixOther, 4), 0) },
		"same bytes":   func(fd int) error { _, err := unix.Pwrite(fd, []byte("content"), 0); return err },
	}
	for _, name := range sortedKeys(changes) {
		for _, access := range []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR} {
			b.cell(func() {
				b.with("%s, access %d", name, access)
				b.file("f", b.me, mode, "content")
				b.asRoot(func() {
					check(unix.Setxattr("f", "user.gone", []byte("x"), 0))
					check(unix.Link("f", "g"))
					check(unix.UtimesNanoAt(unix.AT_FDCWD, "f", pastTimes[:2], 0))
				})
				b.times("g")
				fd := b.open("f", access, 0)
				b.result("change", changes[name](fd))
				b.close(fd)
				for _, path := range []string{"f", "g"} {
					b.stat(path)
					b.times(path)
					b.log("xattrs of %s:%s", path, describeXattrs(path))
				}
			})
		}
	}
}

func rightsSticky(b *bench) {
	for _, dirOwner := range []int{b.me, posixOther} {
		for _, fileOwner := range []int{b.me, posixOther} {
			for _, mode := range []uint32{0o777, 0o1777} {
				b.cell(func() {
					b.with("directory of %d with %o, files of %d", dirOwner, mode, fileOwner)
					b.dir("d", dirOwner, mode)
					for _, name := range []string{"unlink", "rename", "target"} {
						b.file("d/"+name, fileOwner, 0o666, "x")
					}
					b.dir("d/rmdir", fileOwner, 0o777)
					b.dir("d/move", fileOwner, 0o777)
					b.file("mine", b.me, 0o644, "x")
					b.result("unlink", unix.Unlink("d/unlink"))
					b.result("rename", unix.Rename("d/rename", "d/renamed"))
					b.result("rename onto", unix.Rename("mine", "d/target"))
					b.result("rmdir", unix.Rmdir("d/rmdir"))
					b.result("move directory", unix.Rename("d/move", "moved"))
					b.result("create", tryOpen("d/new", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o644))
					b.result("open CREAT", tryOpen("d/target", unix.O_WRONLY|unix.O_CREAT, 0o644)) // protected_regular
					b.result("link", unix.Link("d/target", "linked"))
					b.state()
				})
			}
		}
	}
}

func rightsUtimens(b *bench) {
	now, omit := unix.Timespec{Nsec: unix.UTIME_NOW}, unix.Timespec{Nsec: unix.UTIME_OMIT}
	set := pastTimes[0]
	for _, owner := range []int{b.me, posixOther} {
		for _, mode := range []uint32{0o666, 0o644, 0o444, 0o000} {
			for i, times := range [][]unix.Timespec{
				{now, now}, {now, omit}, {omit, now}, {omit, omit}, {set, set}, {set, omit}, {omit, set}, {now, set},
				{set, {Nsec: 999999999}}, {{Nsec: 1000000000}, set}, {{Sec: -1, Nsec: 5}, {Sec: 1 << 33}},
			} {
				b.cell(func() {
					b.file("f", owner, mode, "x")
					b.asRoot(func() { check(unix.UtimesNanoAt(unix.AT_FDCWD, "f", pastTimes, 0)) })
					b.with("times %d, owner %d, mode %o", i, owner, mode)
					b.result("utimens", unix.UtimesNanoAt(unix.AT_FDCWD, "f", times, 0))
					b.times("f")
				})
			}
		}
	}
}

// times logs atime and mtime; what is not of the distant past is of this run.
func (b *bench) times(name string) {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		b.result("lstat "+name, err)
		return
	}
	b.log("%s: atime %s mtime %s", name, pastOrNow(st.Atim), pastOrNow(st.Mtim))
}

func pastOrNow(ts unix.Timespec) string {
	if age := time.Since(time.Unix(ts.Unix())); age > -time.Hour && age < time.Hour {
		return "now"
	}
	return fmt.Sprintf("%d.%09d", ts.Sec, ts.Nsec)
}

// moved logs which times of the paths a change moves.
func (b *bench) moved(do func(), paths ...string) {
	before := make([]unix.Stat_t, len(paths))
	for i, p := range paths {
		b.asRoot(func() {
			check(unix.UtimesNanoAt(unix.AT_FDCWD, p, pastTimes, unix.AT_SYMLINK_NOFOLLOW))
			check(unix.Lstat(p, &before[i]))
		})
	}
	awaitTick(before[len(before)-1].Ctim)
	do()
	for i, p := range paths {
		var after unix.Stat_t
		if err := unix.Lstat(p, &after); err != nil {
			b.result("lstat "+p, err)
			continue
		}
		b.log("%s: mtime %s, ctime moved %v", p, pastOrNow(after.Mtim), after.Ctim != before[i].Ctim)
	}
}

// awaitTick returns when the clock of the file times has passed t.
func awaitTick(t unix.Timespec) {
	for {
		var now unix.Timespec
		check(unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &now))
		if now.Nano() > t.Nano() {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func timesOfFiles(b *bench) {
	with := func(flags int, do func(fd int)) func() {
		return func() {
			fd := b.open("f", flags, 0)
			do(fd)
			b.close(fd)
		}
	}
	changes := map[string]func(){
		"open for write":    with(unix.O_RDWR, func(int) {}),
		"open to append":    with(unix.O_WRONLY|unix.O_APPEND, func(int) {}),
		"open TRUNC":        with(unix.O_WRONLY|unix.O_TRUNC, func(int) {}),
		"write":             with(unix.O_WRONLY, func(fd int) { b.write(fd, "x") }),
		"write nothing":     with(unix.O_WRONLY, func(fd int) { b.write(fd, "") }),
		"append":            with(unix.O_WRONLY|unix.O_APPEND, func(fd int) { b.write(fd, "x") }),
		"read":              with(unix.O_RDONLY, func(fd int) { b.read(fd, 5) }),
		"ftruncate":         with(unix.O_WRONLY, func(fd int) { b.result("ftruncate", unix.Ftruncate(fd, 3)) }),
		"ftruncate same":    with(unix.O_WRONLY, func(fd int) { b.result("ftruncate", unix.Ftruncate(fd, 7)) }),
		"fallocate":         with(unix.O_WRONLY, func(fd int) { b.result("fallocate", unix.Fallocate(fd, 0, 0, 99)) }),
		"fsync":             with(unix.O_WRONLY, func(fd int) { b.result("fsync", unix.Fsync(fd)) }),
		"fchmod by reader":  with(unix.O_RDONLY, func(fd int) { b.result("fchmod", unix.Fchmod(fd, 0o600)) }),
		"fchmod by writer":  with(unix.O_WRONLY, func(fd int) { b.result("fchmod", unix.Fchmod(fd, 0o600)) }),
		"truncate":          func() { b.result("truncate", unix.Truncate("f", 3)) },
		"truncate same":     func() { b.result("truncate", unix.Truncate("f", 7)) },
		"truncate extend":   func() { b.result("truncate", unix.Truncate("f", 100)) },
		"chmod":             func() { b.result("chmod", unix.Chmod("f", 0o600)) },
		"chmod same":        func() { b.result("chmod", unix.Chmod("f", 0o644)) },
		"chown":             func() { b.result("chown", unix.Chown("f", unix.Getuid(), unix.Getgid())) },
		"utimens":           func() { b.result("utimens", unix.UtimesNanoAt(unix.AT_FDCWD, "f", nil, 0)) },
		"setxattr":          func() { b.result("setxattr", unix.Setxattr("f", "user.x", []byte("x"), 0)) },
		"access":            func() { b.result("access", unix.Access("f", unix.R_OK)) },
		"mapped write":      with(unix.O_RDWR, func(fd int) { b.mappedWrite(fd) }),
		"write, then times": with(unix.O_WRONLY, func(fd int) { b.write(fd, "x"); b.result("futimens", futimens(fd)) }),
		"times, then write": with(unix.O_WRONLY, func(fd int) { b.result("futimens", futimens(fd)); b.write(fd, "x") }),
	}
	for _, name := range sortedKeys(changes) {
		b.cell(func() {
			b.file("f", b.me, 0o644, "content")
			b.with("%s", name)
			b.moved(changes[name], "f")
			b.times("f")
		})
	}
}

func (b *bench) mappedWrite(fd int) {
	m, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	b.result("mmap", err)
	m[0] = 'X'
	b.result("msync", unix.Msync(m, unix.MS_SYNC))
	b.result("munmap", unix.Munmap(m))
}

func futimens(fd int) error {
	return unix.UtimesNanoAt(fd, "", pastTimes, unix.AT_EMPTY_PATH)
}

func timesOfNames(b *bench) {
	changes := map[string]func(){
		"create":           func() { fd := b.open("d/new", unix.O_WRONLY|unix.O_CREAT, 0o644); b.write(fd, "x"); b.close(fd) },
		"mkdir":            func() { b.result("mkdir", unix.Mkdir("d/new", 0o755)) },
		"mknod":            func() { b.result("mkfifo", unix.Mkfifo("d/new", 0o644)) },
		"symlink":          func() { b.result("symlink", unix.Symlink("x", "d/new")) },
		"link":             func() { b.result("link", unix.Link("d/f", "e/new")) },
		"unlink":           func() { b.result("unlink", unix.Unlink("d/f")) },
		"unlink one link":  func() { b.result("unlink", unix.Unlink("d/g")) },
		"rmdir":            func() { b.result("rmdir", unix.Rmdir("d/sub")) },
		"rename":           func() { b.result("rename", unix.Rename("d/f", "d/new")) },
		"move":             func() { b.result("rename", unix.Rename("d/f", "e/f")) },
		"move directory":   func() { b.result("rename", unix.Rename("d/sub", "e/sub")) },
		"replace":          func() { b.result("rename", unix.Rename("d/f", "d/g")) },
		"failed create":    func() { b.result("open", tryOpen("d/f", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o644)) },
		"failed rmdir":     func() { b.result("rmdir", unix.Rmdir("d")) },
		"failed rename":    func() { b.result("rename", unix.Rename("d/f", "d/sub")) },
		"readdir":          func() { _, err := os.ReadDir("d"); b.result("readdir", err) },
		"lchown a symlink": func() { b.result("lchown", unix.Lchown("d/l", unix.Getuid(), unix.Getgid())) },
	}
	for _, name := range sortedKeys(changes) {
		b.cell(func() {
			b.dir("d", b.me, 0o755)
			b.dir("e", b.me, 0o755)
			b.dir("d/sub", b.me, 0o755)
			b.file("d/f", b.me, 0o644, "f")
			b.file("d/h", b.me, 0o644, "h")
			b.asRoot(func() { check(unix.Link("d/h", "d/g")) })
			b.symlink("f", "d/l")
			b.with("%s", name)
			b.moved(changes[name], "d/f", "d/h", "d/sub", "d/l", "d", "e")
			b.state()
		})
	}
}

// timesSetWhileOpen: publishing must not touch the times that the program has set.
func timesSetWhileOpen(b *bench) {
	fd := b.open("f", unix.O_WRONLY|unix.O_CREAT, 0o644)
	b.write(fd, "x")
	b.result("utimens", unix.UtimesNanoAt(unix.AT_FDCWD, "f", pastTimes, 0))
	b.times("f")
	b.close(fd)
	b.times("f")
	fd = b.open("f", unix.O_WRONLY|unix.O_TRUNC, 0o644)
	b.write(fd, "y")
	b.result("futimens", futimens(fd))
	b.close(fd)
	b.times("f")
	fd = b.open("f", unix.O_RDONLY, 0)
	b.result("futimens by a reader", futimens(fd))
	b.close(fd)
	b.times("f")
}

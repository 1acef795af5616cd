package tests

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Every call that takes a path, on every kind of path.

// pathCall is a call with one path of interest.
type pathCall struct {
	name string
	do   func(path string) error
}

// pathReads are the calls that change nothing: they share a cell.
var pathReads = []pathCall{
	{"stat", func(p string) error { return unix.Stat(p, new(unix.Stat_t)) }},
	{"lstat", func(p string) error { return unix.Lstat(p, new(unix.Stat_t)) }},
	{"statfs", func(p string) error { return unix.Statfs(p, new(unix.Statfs_t)) }},
	{"access F", func(p string) error { return unix.Access(p, unix.F_OK) }},
	{"access R", func(p string) error { return unix.Access(p, unix.R_OK) }},
	{"access W", func(p string) error { return unix.Access(p, unix.W_OK) }},
	{"access X", func(p string) error { return unix.Access(p, unix.X_OK) }},
	{"open RDONLY", func(p string) error { return tryOpen(p, unix.O_RDONLY, 0) }},
	{"open DIRECTORY", func(p string) error { return tryOpen(p, unix.O_RDONLY|unix.O_DIRECTORY, 0) }},
	{"open PATH", func(p string) error { return tryOpen(p, unix.O_PATH|unix.O_NOFOLLOW, 0) }},
	{"readlink", func(p string) error { _, err := unix.Readlink(p, make([]byte, 100)); return err }},
	{"getxattr", func(p string) error { _, err := unix.Getxattr(p, "user.x", make([]byte, 9)); return err }},
	{"listxattr", func(p string) error { _, err := unix.Listxattr(p, make([]byte, 999)); return err }},
}

func tryOpen(path string, flags int, mode uint32) error {
	fd, err := unix.Open(path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC, mode)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// helperFile and helperDir are the other party of renames and links.
const helperFile, helperDir = "helper-file", "helper-dir"

var pathCalls = []pathCall{
	{"open WRONLY", func(p string) error { return tryOpen(p, unix.O_WRONLY, 0) }},
	{"open RDWR", func(p string) error { return tryOpen(p, unix.O_RDWR, 0) }},
	{"open TRUNC", func(p string) error { return tryOpen(p, unix.O_WRONLY|unix.O_TRUNC, 0) }},
	{"open CREAT", func(p string) error { return tryOpen(p, unix.O_WRONLY|unix.O_CREAT, 0o640) }},
	{"open CREAT TRUNC", func(p string) error { return tryOpen(p, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC, 0o640) }},
	{"open CREAT EXCL", func(p string) error { return tryOpen(p, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o640) }},
	{"open TMPFILE", func(p string) error { return tryOpen(p, unix.O_RDWR|unix.O_TMPFILE, 0o600) }},
	{"mkdir", func(p string) error { return unix.Mkdir(p, 0o750) }},
	{"rmdir", unix.Rmdir},
	{"unlink", unix.Unlink},
	{"mkfifo", func(p string) error { return unix.Mkfifo(p, 0o640) }},
	{"mknod file", func(p string) error { return unix.Mknod(p, unix.S_IFREG|0o640, 0) }},
	{"mknod char", func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o640, int(unix.Mkdev(1, 3))) }},
	{"symlink there", func(p string) error { return unix.Symlink("target", p) }},
	{"link from", func(p string) error { return unix.Link(p, "new-link") }},
	{"link followed", func(p string) error {
		return unix.Linkat(unix.AT_FDCWD, p, unix.AT_FDCWD, "new-link", unix.AT_SYMLINK_FOLLOW)
	}},
	{"link to", func(p string) error { return unix.Link(helperFile, p) }},
	{"rename from", func(p string) error { return unix.Rename(p, "new-name") }},
	{"rename file to", func(p string) error { return unix.Rename(helperFile, p) }},
	{"rename dir to", func(p string) error { return unix.Rename(helperDir, p) }},
	{"rename to itself", func(p string) error { return unix.Rename(p, p) }},
	{"rename NOREPLACE to", func(p string) error {
		return unix.Renameat2(unix.AT_FDCWD, helperFile, unix.AT_FDCWD, p, unix.RENAME_NOREPLACE)
	}},
	{"rename EXCHANGE", func(p string) error {
		return unix.Renameat2(unix.AT_FDCWD, helperDir, unix.AT_FDCWD, p, unix.RENAME_EXCHANGE)
	}},
	{"chmod", func(p string) error { return unix.Chmod(p, 0o751) }},
	{"chown self", func(p string) error { return unix.Chown(p, unix.Getuid(), unix.Getgid()) }},
	{"chown team", func(p string) error { return unix.Chown(p, -1, posixTeam) }},
	{"chown other", func(p string) error { return unix.Chown(p, posixOther, posixOther) }},
	{"lchown self", func(p string) error { return unix.Lchown(p, unix.Getuid(), unix.Getgid()) }},
	{"truncate", func(p string) error { return unix.Truncate(p, 3) }},
	{"utimens now", func(p string) error { return unix.UtimesNanoAt(unix.AT_FDCWD, p, nil, 0) }},
	{"utimens set", func(p string) error { return unix.UtimesNanoAt(unix.AT_FDCWD, p, pastTimes, 0) }},
	{"lutimens set", func(p string) error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, pastTimes, unix.AT_SYMLINK_NOFOLLOW)
	}},
	{"setxattr", func(p string) error { return unix.Setxattr(p, "user.x", []byte("x"), 0) }},
	{"lsetxattr trusted", func(p string) error { return unix.Lsetxattr(p, "trusted.x", []byte("x"), 0) }},
	{"removexattr", func(p string) error { return unix.Removexattr(p, "user.x") }},
	{"bind socket", bindSocket},
}

// pastTimes are atime and mtime.
var pastTimes = []unix.Timespec{{Sec: 1000000000, Nsec: 1}, {Sec: 1000000001, Nsec: 2}}

func bindSocket(p string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Bind(fd, &unix.SockaddrUnix{Name: p})
}

// pathKind is a path with what it needs.
type pathKind struct {
	name, path string
	build      func(b *bench)
}

func pathGroups() []posixGroup {
	var groups []posixGroup
	for _, k := range pathKinds() {
		groups = append(groups, posixGroup{"path: " + k.name, func(b *bench) {
			b.onPath(k, pathReads...)
			for _, call := range pathCalls {
				if call.name == "bind socket" && len(k.path) > 100 {
					continue // sun_path has no room for it
				}
				b.onPath(k, call)
			}
		}})
	}
	return groups
}

// onPath makes calls on a path in a fresh cell.
func (b *bench) onPath(k pathKind, calls ...pathCall) {
	b.cell(func() {
		b.file(helperFile, b.me, 0o644, "helper")
		b.dir(helperDir, b.me, 0o755)
		if k.build != nil {
			k.build(b)
		}
		for _, call := range calls {
			b.with("%s", call.name)
			b.result(call.name, call.do(k.path))
		}
		b.state()
	})
}

func pathKinds() []pathKind {
	kinds := []pathKind{
		{name: "empty"},
		{name: "missing", path: "missing"},
		{name: "below missing", path: "missing/x"},
		{name: "missing with slash", path: "missing/"},
		{name: "dot", path: "."},
		{name: "dot dot", path: ".."},
		{name: "longest name", path: strings.Repeat("n", 255)},
		{name: "longer name", path: strings.Repeat("n", 256)},
		{name: "below longer name", path: strings.Repeat("n", 256) + "/x"},
		{name: "longest path", path: strings.Repeat("./", 2047) + "x"},
		{name: "longer path", path: strings.Repeat("./", 2047) + "xx"},
		{name: "not UTF-8", path: "\xff\xfe\n\\"},
	}
	kinds = append(kinds, typedKinds()...)
	return append(kinds, rightsKinds()...)
}

// typedKinds are paths of each type of file.
func typedKinds() []pathKind {
	file := func(b *bench) { b.file("f", b.me, 0o644, "content") }
	dir := func(b *bench) { b.dir("d", b.me, 0o755) }
	full := func(b *bench) { dir(b); b.file("d/x", b.me, 0o644, "x") }
	link := func(target string) func(b *bench) {
		return func(b *bench) { file(b); dir(b); b.symlink(target, "l") }
	}
	loop := func(b *bench) { b.symlink("loop2", "loop"); b.symlink("loop", "loop2") }
	return []pathKind{
		{"file", "f", file},
		{"file with slash", "f/", file},
		{"below file", "f/x", file},
		{"directory", "d", dir},
		{"directory with slash", "d/", dir},
		{"directory dot", "d/.", dir},
		{"directory dot dot", "d/..", full},
		{"full directory", "d", full},
		{"in directory", "d/x", full},
		{"link to file", "l", link("f")},
		{"link to file with slash", "l/", link("f")},
		{"link to directory", "l", link("d")},
		{"link to directory with slash", "l/", link("d")},
		{"dangling link", "l", link("nowhere")},
		{"dangling link with slash", "l/", link("nowhere")},
		{"loop", "loop", loop},
		{"below loop", "loop/x", loop},
		{"fifo", "p", func(b *bench) { b.node("p", unix.S_IFIFO|0o644, 0) }},
		{"socket", "s", func(b *bench) { b.node("s", unix.S_IFSOCK|0o644, 0) }},
		{"character device", "c", func(b *bench) { b.node("c", unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3))) }},
		{"block device", "v", func(b *bench) { b.node("v", unix.S_IFBLK|0o644, int(unix.Mkdev(240, 7))) }},
	}
}

// rightsKinds are paths that not everybody may use.
func rightsKinds() []pathKind {
	below := func(owner int, mode uint32, existing bool) func(b *bench) {
		return func(b *bench) {
			b.dir("d", ownerOf(b, owner), mode)
			if existing {
				b.file("d/x", b.me, 0o644, "mine")
			}
		}
	}
	theirs := func(dirMode, fileMode uint32) func(b *bench) {
		return func(b *bench) {
			b.dir("d", posixOther, dirMode)
			b.file("d/x", posixOther, fileMode, "theirs")
		}
	}
	return []pathKind{
		{"in my closed directory", "d/x", below(mine, 0o000, true)},
		{"in my directory without search", "d/x", below(mine, 0o600, true)},
		{"in my directory without read", "d/x", below(mine, 0o300, true)},
		{"in my directory without write", "d/x", below(mine, 0o500, true)},
		{"missing in my directory without write", "d/x", below(mine, 0o500, false)},
		{"mine in theirs", "d/x", below(posixOther, 0o755, true)},
		{"missing in theirs", "d/x", below(posixOther, 0o755, false)},
		{"mine in public", "d/x", below(posixOther, 0o777, true)},
		{"missing in public", "d/x", below(posixOther, 0o777, false)},
		{"mine in sticky", "d/x", below(posixOther, 0o1777, true)},
		{"theirs in public", "d/x", theirs(0o777, 0o644)},
		{"theirs in sticky", "d/x", theirs(0o1777, 0o666)},
		{"theirs in my sticky", "d/x", func(b *bench) {
			b.dir("d", b.me, 0o1777)
			b.file("d/x", posixOther, 0o644, "theirs")
		}},
		{"their directory in sticky", "d/x", func(b *bench) { b.dir("d", posixOther, 0o1777); b.dir("d/x", posixOther, 0o777) }},
		{"their secret", "d/x", theirs(0o755, 0o600)},
		{"their public file", "d/x", theirs(0o755, 0o666)},
		{"their program", "d/x", theirs(0o755, 0o711)},
		{"team file", "d/x", func(b *bench) { theirs(0o755, 0o660)(b); b.asRoot(func() { check(unix.Chown("d/x", -1, posixTeam)) }) }},
		{"file closed to its owner", "f", func(b *bench) { b.file("f", b.me, 0o077, "mine") }},
		{"file closed to its group", "f", func(b *bench) {
			b.file("f", posixOther, 0o604, "theirs")
			b.asRoot(func() { check(unix.Chown("f", -1, posixTeam)) })
		}},
		{"setuid file", "f", func(b *bench) { b.file("f", b.me, 0o6755, "program") }},
		{"their setuid file", "f", func(b *bench) { b.file("f", posixOther, 0o6777, "program") }},
		{"setgid directory", "d/x", func(b *bench) {
			b.dir("d", b.me, 0o755)
			b.asRoot(func() { check(unix.Chown("d", -1, posixOther)); check(unix.Chmod("d", 0o2777)) })
		}},
	}
}

// mine stands for the tested user.
const mine = -1

func ownerOf(b *bench, owner int) int {
	if owner == mine {
		return b.me
	}
	return owner
}

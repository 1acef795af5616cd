package tests

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Names: renames and links of everything onto everything, and directories.

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func nameGroups() []posixGroup {
	return []posixGroup{
		{"names: rename", func(b *bench) { b.ontoEachOther("rename", 0) }},
		{"names: rename NOREPLACE", func(b *bench) { b.ontoEachOther("rename", unix.RENAME_NOREPLACE) }},
		{"names: rename EXCHANGE", func(b *bench) { b.ontoEachOther("rename", unix.RENAME_EXCHANGE) }},
		{"names: rename WHITEOUT", func(b *bench) { b.ontoEachOther("rename", unix.RENAME_WHITEOUT) }},
		{"names: rename with nonsense", func(b *bench) {
			b.ontoEachOther("rename", unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE)
			b.ontoEachOther("rename", 64)
		}},
		{"names: link", func(b *bench) { b.ontoEachOther("link", 0) }},
		{"names: directories into themselves", func(b *bench) {
			b.asRoot(func() {
				check(os.MkdirAll("a/b/c", 0o777))
				check(unix.Chown("a", b.me, b.me))
				check(unix.Chown("a/b", b.me, b.me))
			})
			b.result("into child", unix.Rename("a", "a/x"))
			b.result("into grandchild", unix.Rename("a", "a/b/x"))
			b.result("onto parent", unix.Rename("a/b", "a"))
			b.result("dot", unix.Rename("a/.", "x"))
			b.result("dot dot", unix.Rename("a/b/..", "x"))
			b.result("rmdir dot", unix.Rmdir("a/."))
			b.result("rmdir dot dot", unix.Rmdir("a/b/.."))
			b.result("unlink directory", unix.Unlink("a"))
			b.result("link directory", unix.Link("a", "x"))
			b.state()
		}},
		{"names: link counts", nameLinkCounts},
		{"names: devices", func(b *bench) {
			for _, kind := range []uint32{unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFREG} {
				b.cell(func() { b.result("mknod", unix.Mknod("n", kind|0o4751, int(unix.Mkdev(259, 70000)))); b.state() })
			}
			b.result("mknod directory", unix.Mknod("d", unix.S_IFDIR|0o755, 0))
			b.result("mknod symlink", unix.Mknod("l", unix.S_IFLNK|0o755, 0))
			b.result("mknod nothing", unix.Mknod("n", 0o640, 0))
			b.state()
		}},
		{"names: symlinks", func(b *bench) {
			for _, size := range []int{1, 59, 60, 255, 4095, 4096} {
				target := strings.Repeat("t", size)
				b.cell(func() {
					b.result(fmt.Sprintf("symlink of %d", size), unix.Symlink(target, "l"))
					buf := make([]byte, 5000)
					n, err := unix.Readlink("l", buf)
					b.log("readlink = %d %s", n, errnoName(err))
					n, err = unix.Readlink("l", buf[:1])
					b.log("readlink of one byte = %d %s", n, errnoName(err))
					b.state()
				})
			}
			b.result("empty target", unix.Symlink("", "l"))
			chain := "end"
			b.file("end", b.me, 0o644, "end")
			for i := range 41 {
				next := fmt.Sprintf("link%d", i)
				b.symlink(chain, next)
				b.result(next, unix.Access(next, unix.F_OK)) // the kernel follows 40
				chain = next
			}
		}},
	}
}

// ontoEachOther moves or links each type of file onto each other.
func (b *bench) ontoEachOther(call string, flags uint) {
	types := map[string]func(name string){
		"missing": func(string) {},
		"file":    func(n string) { b.file(n, b.me, 0o644, "content of "+n) },
		"theirs":  func(n string) { b.file(n, posixOther, 0o600, "theirs") },
		"empty":   func(n string) { b.dir(n, b.me, 0o755) },
		"full":    func(n string) { b.dir(n, b.me, 0o755); b.file(n+"/x", b.me, 0o644, "x") },
		"their directory": func(n string) {
			b.dir(n, posixOther, 0o755)
		},
		"symlink": func(n string) { b.symlink("target of "+n, n) },
		"fifo":    func(n string) { b.node(n, unix.S_IFIFO|0o644, 0) },
	}
	for _, from := range sortedKeys(types) {
		for _, to := range append(sortedKeys(types), "itself", "a link of it") {
			b.cell(func() {
				b.with("%s to %s with %d", from, to, flags)
				b.dir("d", b.me, 0o755)
				types[from]("from")
				target := "d/to"
				switch to {
				case "itself":
					target = "from"
				case "a link of it":
					unix.Link("from", "d/to") // cannot be made of everything
				default:
					types[to]("d/to")
				}
				if call == "link" {
					b.result("link", unix.Link("from", target))
				} else {
					b.result("rename", unix.Renameat2(unix.AT_FDCWD, "from", unix.AT_FDCWD, target, flags))
				}
				b.state()
			})
		}
	}
}

func nameLinkCounts(b *bench) {
	b.file("f", b.me, 0o644, "content")
	for i := range 20 {
		b.result("link", unix.Link("f", fmt.Sprintf("f%d", i)))
	}
	fd := b.open("f3", unix.O_RDONLY, 0)
	b.fstat(fd)
	for i := range 10 {
		b.result("unlink", unix.Unlink(fmt.Sprintf("f%d", i)))
	}
	b.fstat(fd)
	b.result("rename", unix.Rename("f10", "f11"))
	b.result("rename", unix.Rename("f12", "new"))
	b.fstat(fd)
	b.close(fd)
	b.dir("d", b.me, 0o755)
	for i := range 5 {
		b.result("mkdir", unix.Mkdir(fmt.Sprintf("d/%d", i), 0o755))
	}
	b.stat("d")
	b.result("rmdir", unix.Rmdir("d/0"))
	b.result("move", unix.Rename("d/1", "moved"))
	b.result("replace", unix.Rename("d/2", "d/3"))
	b.state()
}

func directoryGroups() []posixGroup {
	return []posixGroup{
		{"directory: listing", directoryListing},
		{"directory: changes while it is read", directoryChanges},
		{"directory: removed while open", func(b *bench) {
			b.dir("d", b.me, 0o755)
			fd := b.open("d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
			b.result("rmdir", unix.Rmdir("d"))
			b.fstat(fd)
			_, err := unix.Getdents(fd, make([]byte, 4096))
			b.result("getdents", err)
			_, err = unix.Openat(fd, "x", unix.O_WRONLY|unix.O_CREAT, 0o644)
			b.result("openat", err)
			b.result("mkdirat", unix.Mkdirat(fd, "x", 0o755))
			b.result("fstatat dot dot", unix.Fstatat(fd, "..", new(unix.Stat_t), 0))
			b.result("mkdir again", unix.Mkdir("d", 0o700))
			b.fstat(fd)
			b.close(fd)
			b.state()
		}},
		{"directory: working directory", func(b *bench) {
			b.asRoot(func() {
				check(os.MkdirAll("a/b", 0o755))
				check(unix.Chown("a", b.me, b.me))
				check(unix.Chown("a/b", b.me, b.me))
			})
			here := b.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
			b.result("chdir", unix.Chdir("a/b"))
			b.result("rename above", unix.Renameat(here, "a", here, "c"))
			b.result("create", tryOpen("f", unix.O_WRONLY|unix.O_CREAT, 0o644))
			b.result("stat", unix.Stat("../b/f", new(unix.Stat_t)))
			b.result("unlink", unix.Unlink("f"))
			b.result("rmdir", unix.Rmdir("../b"))
			b.result("create in nothing", tryOpen("f", unix.O_WRONLY|unix.O_CREAT, 0o644))
			b.result("dot", unix.Stat(".", new(unix.Stat_t)))
			b.result("dot dot", unix.Stat("..", new(unix.Stat_t)))
			b.result("fchdir", unix.Fchdir(here))
			b.close(here)
			b.state()
		}},
	}
}

// dirent is one entry of getdents64.
type dirent struct {
	name   string
	kind   byte
	offset int64
}

// entries reads a directory from where it is, through a small buffer.
func (b *bench) entries(fd int) []dirent {
	var all []dirent
	buf := make([]byte, 1024)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			b.result("getdents", err)
		}
		if n <= 0 {
			return all
		}
		all = append(all, parseDirents(buf[:n])...)
	}
}

// parseDirents takes struct linux_dirent64 apart: ino, off, reclen, type, name.
func parseDirents(buf []byte) (all []dirent) {
	for len(buf) > 19 {
		length := int(buf[16]) | int(buf[17])<<8
		name, _, _ := strings.Cut(string(buf[19:length]), "\x00")
		offset := int64(0)
		for i := range 8 {
			offset |= int64(buf[8+i]) << (8 * i)
		}
		all = append(all, dirent{name, buf[18], offset})
		buf = buf[length:]
	}
	return all
}

func names(all []dirent) string {
	var list []string
	for _, e := range all {
		list = append(list, fmt.Sprintf("%s(%d)", e.name, e.kind))
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func directoryListing(b *bench) {
	b.dir("d", b.me, 0o755)
	b.file("d/file", b.me, 0o644, "x")
	b.dir("d/directory", b.me, 0o755)
	b.symlink("x", "d/symlink")
	b.node("d/fifo", unix.S_IFIFO|0o644, 0)
	b.node("d/socket", unix.S_IFSOCK|0o644, 0)
	b.node("d/character", unix.S_IFCHR|0o644, 0x103)
	b.file("d/"+strings.Repeat("n", 255), b.me, 0o644, "x")
	for i := range 200 {
		b.file(fmt.Sprintf("d/number %d", i), b.me, 0o644, "")
	}
	fd := b.open("d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	all := b.entries(fd)
	b.log("%d entries: %s", len(all), names(all))
	b.log("at the end: %d more", len(b.entries(fd)))
	// From each position, what followed it before follows again.
	for i := 0; i < len(all); i += 17 {
		_, err := unix.Seek(fd, all[i].offset, unix.SEEK_SET)
		b.log("from entry %d: same rest %v %s", i, slices.Equal(b.entries(fd), all[i+1:]), errnoName(err))
	}
	b.seek(fd, 0, unix.SEEK_SET)
	b.file("d/late", b.me, 0o644, "x")
	b.log("rewound: %s", names(b.entries(fd)))
	b.result("getdents of a file", func() error { _, err := unix.Getdents(999, make([]byte, 100)); return err }())
	_, err := unix.Getdents(fd, make([]byte, 0))
	b.log("into no buffer: %s", errnoName(err))
	b.close(fd)
}

// directoryChanges: what is there all the time is listed once, whatever else goes.
func directoryChanges(b *bench) {
	b.dir("d", b.me, 0o755)
	for i := range 400 {
		b.file(fmt.Sprintf("d/%03d", i), b.me, 0o644, "")
	}
	fd := b.open("d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	buf := make([]byte, 2048)
	n, err := unix.Getdents(fd, buf)
	b.result("getdents", err)
	seen := map[string]int{}
	for _, e := range parseDirents(buf[:n]) {
		seen[e.name]++
	}
	for i := 0; i < 400; i += 2 {
		check(unix.Unlink(fmt.Sprintf("d/%03d", i)))
	}
	for i := range 50 {
		check(tryOpen(fmt.Sprintf("d/late%d", i), unix.O_WRONLY|unix.O_CREAT, 0o644))
	}
	for _, e := range b.entries(fd) {
		seen[e.name]++
	}
	for i := 1; i < 400; i += 2 {
		if name := fmt.Sprintf("%03d", i); seen[name] != 1 {
			b.log("%s was listed %d times", name, seen[name])
		}
	}
	b.seek(fd, 0, unix.SEEK_SET)
	b.log("rewound: %s", names(b.entries(fd)))
	b.close(fd)
	// As rm -r does it: remove while reading.
	fd = b.open("d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil || n == 0 {
			b.result("getdents", err)
			break
		}
		for _, e := range parseDirents(buf[:n]) {
			if e.name != "." && e.name != ".." {
				check(unix.Unlink("d/" + e.name))
			}
		}
	}
	b.close(fd)
	b.result("rmdir", unix.Rmdir("d"))
}

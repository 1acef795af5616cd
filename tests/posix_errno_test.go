package tests

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Conformance: a long table of small steps runs in a plain directory and on the mount,
// as root and as an ordinary user. Every result must be equal: errnos, types, modes,
// owners, link counts, sizes, and which times moved.

// posixGroup is a named part of the table.
type posixGroup struct {
	name string
	run  func(b *bench)
}

func posixTable() []posixGroup {
	return slices.Concat(pathGroups(), openGroups(), fileGroups(), dataGroups(), rightsGroups(), nameGroups(), directoryGroups(), deviationGroups())
}

// posixDeviations lists the groups that differ on purpose, with the reason.
var posixDeviations = map[string]string{
	"deviation: hard links":          "replacing a file gives its path a new inode; other links keep the old version",
	"deviation: read while open":     "a reader sees the whole old version until the writer has closed",
	"deviation: new inode number":    "each version of a file is an inode of its own",
	"deviation: reads by a writer":   "the atime of a version does not move when a writer reads its own staged copy",
	"deviation: collapse and insert": "the kernel's FUSE client knows no other fallocate modes than to allocate, punch and zero",
	"deviation: O_APPEND taken back": "passthrough: the kernel opens the backing file with the flags of the open",
	"deviation: largest offset":      "the kernel's FUSE client allows offsets that the backing filesystem does not",
}

const (
	posixUser  = 1001
	posixOther = 1002
	posixTeam  = 2001 // a supplementary group of posixUser
)

func init() { helpers["posix"] = posixHelper }

// TestPosixErrno compares the table's results.
func TestPosixErrno(t *testing.T) {
	needRoot(t)
	for _, uid := range []int{0, posixUser} {
		t.Run(fmt.Sprintf("uid %d", uid), func(t *testing.T) {
			want := runPosixTable(t, tempDir(t), uid)
			eachPath(t, func(t *testing.T, flags []string) {
				m := newMount(t, append(flags, "--durability=none")...)
				got := runPosixTable(t, m.Dir, uid)
				for _, g := range posixTable() {
					t.Run(g.name, func(t *testing.T) { comparePosixGroup(t, g.name, len(flags) > 0, want[g.name], got[g.name]) })
				}
			})
		})
	}
}

func comparePosixGroup(t *testing.T, name string, plain bool, want, got string) {
	if want == "" {
		t.Fatal("no results, not even in a plain directory")
	}
	diff := diffLines(want, got)
	reason := posixDeviations[name]
	if diff != "" && reason == "" {
		t.Errorf("- plain directory, + mount:\n%s", diff)
	}
	if strings.HasPrefix(reason, "passthrough: ") && plain {
		return
	}
	if diff == "" && reason != "" && !native {
		t.Errorf("does not deviate any more (%s): strike it off the list and out of the documentation", reason)
	}
}

// runPosixTable returns the results of each group.
func runPosixTable(t *testing.T, dir string, uid int) map[string]string {
	t.Helper()
	cmd := helper(t, "posix", strconv.Itoa(uid))
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	results, last := posixResults(stdout.String())
	if err != nil {
		t.Errorf("the table was not finished: %v\n%s\nlast result: %s", err, stderr.String(), last)
	}
	return results
}

// posixResults takes apart what the helper prints, by group.
func posixResults(text string) (results map[string]string, last string) {
	results = map[string]string{}
	for line := range strings.Lines(text) {
		group, result, _ := strings.Cut(line, "\t")
		results[group] += result
		last = line
	}
	return results, last
}

// posixHelper UID [PREFIX] runs the groups whose names begin like that.
func posixHelper(args []string) {
	uid, err := strconv.Atoi(args[0])
	check(err)
	runtime.LockOSThread()
	syscall.Umask(0o022)
	b := &bench{me: uid, out: bufio.NewWriter(os.Stdout)}
	become(uid)
	for _, g := range posixTable() {
		if len(args) > 1 && !strings.HasPrefix(g.name, args[1]) {
			continue
		}
		b.group = g.name
		b.cell(func() { g.run(b) })
		b.out.Flush()
	}
}

// bench is what a group works with. Its cells are fresh directories; results are
// logged; whatever prepares a cell is done as root and must succeed.
type bench struct {
	me    int
	group string
	cells int
	about string // what the results of this cell belong to
	out   *bufio.Writer
}

// cell runs f as the tested user in a fresh directory of his.
func (b *bench) cell(f func()) {
	b.cells++
	name := fmt.Sprintf("cell%d", b.cells)
	here, err := unix.Open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	check(err)
	defer unix.Close(here)
	b.asRoot(func() {
		check(os.Mkdir(name, 0o755))
		check(os.Chown(name, b.me, b.me))
		check(os.Chdir(name))
	})
	about := b.about
	f()
	b.about = about
	b.asRoot(func() {
		check(unix.Fchdir(here))
		check(os.RemoveAll(name))
	})
}

// asRoot prepares things.
func (b *bench) asRoot(f func()) {
	if b.me == 0 {
		f()
		return
	}
	become(0)
	f()
	become(b.me)
}

// become switches the real and effective ids of this thread, as threads have their own
// in Linux; the saved ones stay root's, for the way back.
func become(uid int) {
	groups := []uint32{uint32(uid), posixTeam}
	count := len(groups)
	if uid == 0 {
		count = 0
	}
	id := uintptr(uid)
	for _, call := range [][4]uintptr{
		{unix.SYS_SETRESUID, 0, 0, 0},
		{unix.SYS_SETGROUPS, uintptr(count), uintptr(unsafe.Pointer(&groups[0]))},
		{unix.SYS_SETRESGID, id, id, 0},
		{unix.SYS_SETRESUID, id, id, 0},
	} {
		if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
			check(errno)
		}
	}
}

// with names what the following results of the cell belong to.
func (b *bench) with(format string, args ...any) { b.about = fmt.Sprintf("["+format+"] ", args...) }

func (b *bench) log(format string, args ...any) {
	fmt.Fprintf(b.out, "%s\t%s%s\n", b.group, b.about, fmt.Sprintf(format, args...))
}

// result logs how a call ended.
func (b *bench) result(call string, err error) { b.log("%s = %s", call, errnoName(err)) }

func errnoName(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// file, dir and friends make what a cell needs, as root.

func (b *bench) file(name string, owner int, mode uint32, content string) {
	b.asRoot(func() {
		check(os.WriteFile(name, []byte(content), 0o600))
		check(unix.Chown(name, owner, owner))
		check(unix.Chmod(name, mode))
	})
}

func (b *bench) dir(name string, owner int, mode uint32) {
	b.asRoot(func() {
		check(os.Mkdir(name, 0o700))
		check(unix.Chown(name, owner, owner))
		check(unix.Chmod(name, mode))
	})
}

func (b *bench) symlink(target, name string) {
	b.asRoot(func() {
		check(os.Symlink(target, name))
		check(os.Lchown(name, b.me, b.me))
	})
}

func (b *bench) node(name string, mode uint32, dev int) {
	b.asRoot(func() {
		check(unix.Mknod(name, mode, dev))
		check(unix.Chown(name, b.me, b.me))
	})
}

// stat logs what a path is.
func (b *bench) stat(name string) {
	var st unix.Stat_t
	err := unix.Lstat(name, &st)
	b.log("lstat %q = %s", brief(name), statLine(&st, err))
}

func (b *bench) fstat(fd int) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	b.log("fstat = %s", statLine(&st, err))
}

func statLine(st *unix.Stat_t, err error) string {
	if err != nil {
		return errnoName(err)
	}
	line := fmt.Sprintf("mode=%o owner=%d:%d links=%d", st.Mode, st.Uid, st.Gid, st.Nlink)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR { // the size of a directory is its filesystem's affair
		line += fmt.Sprintf(" size=%d", st.Size)
	}
	if st.Rdev != 0 {
		line += fmt.Sprintf(" rdev=%x", st.Rdev)
	}
	return line
}

// state logs the whole cell.
func (b *bench) state() {
	b.asRoot(func() {
		check(filepath.WalkDir(".", func(name string, e fs.DirEntry, err error) error {
			check(err)
			b.stat(name)
			return nil
		}))
	})
}

// content logs the bytes of a file, in short.
func (b *bench) content(name string) {
	data, err := os.ReadFile(name)
	b.log("content of %s = %s %s", brief(name), brief(fmt.Sprintf("%q", data)), errnoName(err))
}

func brief(s string) string {
	if len(s) > 80 {
		return fmt.Sprintf("%s...(%d)", s[:60], len(s))
	}
	return s
}

// TestPosixTable checks the table itself.
func TestPosixTable(t *testing.T) {
	names := map[string]bool{}
	for _, g := range posixTable() {
		if names[g.name] {
			t.Errorf("two groups are called %q", g.name)
		}
		names[g.name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(posixDeviations)) {
		if !names[name] {
			t.Errorf("a deviation is listed for %q, which is no group", name)
		}
	}
}

package tests

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() { helpers["sys"] = sysHelper }

// sysPrelude gives scripts `sys VERB ARGS...`: system calls that no command makes.
const sysPrelude = `sys() { UNTORN_TEST_HELPER=sys untorn-tests "$@"; }
`

var sysVerbs = map[string]func(args []string) error{
	"rename2":    sysRename2,
	"tmpfile":    sysTmpfile,
	"direct":     sysDirect,
	"mapped":     sysMapped,
	"copyrange":  sysCopyRange,
	"holes":      sysHoles,
	"deepfile":   sysDeepFile,
	"seekdir":    sysSeekDir,
	"manywrites": sysManyWrites,
}

// sysHelper prints the name of the errno on failure.
func sysHelper(args []string) {
	verb, ok := sysVerbs[args[0]]
	if !ok {
		check(fmt.Errorf("no verb %q", args[0]))
	}
	err := verb(args[1:])
	var errno unix.Errno
	if errors.As(err, &errno) {
		fmt.Println(unix.ErrnoName(errno))
		os.Exit(1)
	}
	check(err)
}

// sysRename2 FLAG OLD NEW
func sysRename2(args []string) error {
	flags := map[string]uint{"noreplace": unix.RENAME_NOREPLACE, "exchange": unix.RENAME_EXCHANGE}[args[0]]
	return unix.Renameat2(unix.AT_FDCWD, args[1], unix.AT_FDCWD, args[2], flags)
}

// sysTmpfile DIR NAME CONTENT makes an unnamed file and links it.
func sysTmpfile(args []string) error {
	fd, err := unix.Open(args[0], unix.O_TMPFILE|unix.O_RDWR, 0o640)
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte(args[2])); err != nil {
		return err
	}
	if _, err := os.Stat(args[1]); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("before the link: %v", err)
	}
	proc := fmt.Sprintf("/proc/self/fd/%d", fd)
	if err := unix.Linkat(unix.AT_FDCWD, proc, unix.AT_FDCWD, args[1], unix.AT_SYMLINK_FOLLOW); err != nil {
		return err
	}
	b, err := os.ReadFile(args[1])
	if err != nil || string(b) != args[2] {
		return fmt.Errorf("before the close: %q, %v", b, err)
	}
	return unix.Close(fd)
}

// sysDirect PATH ALIGNMENT writes and reads with O_DIRECT from a buffer that is so much
// out of alignment.
func sysDirect(args []string) error {
	off, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	const size = 8192
	raw, err := unix.Mmap(-1, 0, size+4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	buf := raw[off : off+size]
	for i := range buf {
		buf[i] = byte(i)
	}
	fd, err := unix.Open(args[0], unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC|unix.O_DIRECT, 0o644)
	if err != nil {
		return err
	}
	if _, err := unix.Pwrite(fd, buf, 0); err != nil {
		return err
	}
	want := bytes.Clone(buf)
	clear(buf)
	if n, err := unix.Pread(fd, buf, 0); err != nil || !bytes.Equal(buf, want) {
		return fmt.Errorf("read back %d bytes: %w", n, err)
	}
	return unix.Close(fd)
}

// sysMapped PATH TEXT ORDER writes TEXT at the start of a file through a shared mapping.
// ORDER is what is closed first: the map or the descriptor.
func sysMapped(args []string) error {
	fd, err := unix.Open(args[0], unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	b, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	closeFirst := args[2] == "descriptor"
	if closeFirst {
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	copy(b, args[1])
	if len(args) > 3 { // stop while the mapping lives
		os.Stdout.WriteString("mapped\n")
		os.Stdin.Read(make([]byte, 1))
	}
	if err := unix.Munmap(b); err != nil {
		return err
	}
	if closeFirst {
		return nil
	}
	return unix.Close(fd)
}

// sysCopyRange FROM TO
func sysCopyRange(args []string) error {
	in, err := os.Open(args[0])
	if err != nil {
		return err
	}
	out, err := os.OpenFile(args[1], os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	total := 0
	for {
		n, err := unix.CopyFileRange(int(in.Fd()), nil, int(out.Fd()), nil, 1<<20, 0)
		if err != nil {
			return err
		}
		if n == 0 {
			fmt.Println(total)
			return out.Close()
		}
		total += n
	}
}

// sysHoles PATH prints the data ranges of a file.
func sysHoles(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	var at int64
	for {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		if at, err = unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE); err != nil {
			return err
		}
		fmt.Println(data, at)
	}
}

// sysDeepFile LEVELS writes, checks and removes a file so deep that its path is longer
// than any path that can be given.
func sysDeepFile(args []string) error {
	levels, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	name := strings.Repeat("d", 250)
	for range levels {
		if err := unix.Mkdir(name, 0o755); err != nil {
			return err
		}
		if err := unix.Chdir(name); err != nil {
			return err
		}
	}
	if err := os.WriteFile("f", []byte("first"), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile("f", []byte("second"), 0o644); err != nil {
		return err
	}
	if b, err := os.ReadFile("f"); err != nil || string(b) != "second" {
		return fmt.Errorf("read %q: %w", b, err)
	}
	if err := os.Rename("f", "g"); err != nil {
		return err
	}
	if err := os.Remove("g"); err != nil {
		return err
	}
	for range levels {
		if err := unix.Chdir(".."); err != nil {
			return err
		}
		if err := unix.Rmdir(name); err != nil {
			return err
		}
	}
	return nil
}

// sysSeekDir DIR reads a directory in small pieces, goes back to a remembered place in the
// middle, and prints whether the same names follow.
func sysSeekDir(args []string) error {
	fd, err := unix.Open(args[0], unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	var pieces [][]byte
	var offsets []int64
	for {
		at, err := unix.Seek(fd, 0, unix.SEEK_CUR)
		if err != nil {
			return err
		}
		buf := make([]byte, 2048)
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		offsets, pieces = append(offsets, at), append(pieces, buf[:n])
	}
	for _, i := range []int{len(pieces) / 2, len(pieces) / 3, 0} {
		if _, err := unix.Seek(fd, offsets[i], unix.SEEK_SET); err != nil {
			return err
		}
		buf := make([]byte, 2048)
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return err
		}
		fmt.Println(firstName(buf[:n]) == firstName(pieces[i]))
	}
	return nil
}

func firstName(dents []byte) string {
	d := (*unix.Dirent)(unsafe.Pointer(&dents[0]))
	name := dents[unsafe.Offsetof(d.Name):d.Reclen]
	return string(name[:bytes.IndexByte(name, 0)])
}

// sysManyWrites DIR COUNT has COUNT new files open for write at once.
func sysManyWrites(args []string) error {
	count, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	var fds []int
	for i := range count {
		fd, err := unix.Open(filepath.Join(args[0], fmt.Sprint(i)), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return fmt.Errorf("file %d: %w", i, err)
		}
		fds = append(fds, fd)
	}
	for i, fd := range fds {
		if _, err := unix.Write(fd, fmt.Appendf(nil, "%d\n", i)); err != nil {
			return err
		}
	}
	for _, fd := range fds {
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	return nil
}

package txn

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFirstMountCut ends the very first mount after every system call; recovery says that all is well, and the next mount
// finishes it.
func TestFirstMountCut(t *testing.T) {
	for n := 0; ; n++ {
		s := &shop{t: t, sys: &brokenSys{left: n, fail: unix.EIO}}
		s.path, s.dir = backing(t)
		s.Store = &Store{o: quiet(s.sys), fd: -1, salvage: -1, origins: -1, base: -1}
		base, err := openBase(s.sys, s.dir, true)
		if err == nil {
			s.base = base
			err = s.Store.open()
		}
		s.crash()
		if n%2 == 0 {
			must(t, second(Recover(Linux{}, s.dir)))
		}
		v, oerr := OpenSalvage(Linux{}, s.dir)
		must(t, oerr)
		must(t, v.Close())
		s.open()
		s.Store.close()
		if !s.sys.broken {
			must(t, err)
			equal(t, "calls", n > 10, true)
			return
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestFormat: what is unfinished is finished, what is not understood is refused and left as it is.
func TestFormat(t *testing.T) {
	const missing = "missing"
	for _, c := range []struct {
		name, text string
		used       bool // something is in the salvage
		want       error
	}{
		{"right", "untorn 1\n", true, nil},
		{"right without a newline", "untorn 1", true, nil},
		{"empty", "", false, nil},
		{"zeroes", strings.Repeat("\x00", 9), false, nil},
		{"missing", missing, false, nil},
		{"empty, in use", "", true, ErrFormat},
		{"zeroes, in use", strings.Repeat("\x00", 9), true, ErrFormat},
		{"missing, in use", missing, true, ErrFormat},
		{"newer", "untorn 2\n", false, ErrFormat},
		{"much newer", "untorn 99999999999999999999\n", false, ErrFormat},
		{"none", "untorn 0\n", false, ErrFormat},
		{"negative", "untorn -1\n", false, ErrFormat},
		{"garbage", "\xff\xfe garbage", false, ErrFormat},
		{"half", "untor", false, ErrFormat},
		{"long", "untorn 1\n" + strings.Repeat(" ", 100), false, ErrFormat},
		{"huge", "untorn 1\n" + strings.Repeat("1", 1<<20), false, ErrFormat},
	} {
		path, dir := backing(t)
		format := filepath.Join(path, Hidden, formatName)
		write(t, format, c.text)
		if c.text == missing {
			must(t, os.Remove(format))
		}
		for _, sub := range []string{stageName, journalName, salvageName} {
			must(t, os.Mkdir(filepath.Join(path, Hidden, sub), 0o700))
		}
		if c.used {
			write(t, filepath.Join(path, Hidden, salvageName, "20261120-093015-3f2a"), "bytes")
		}
		before := tree(t, path)
		v, err := OpenSalvage(Linux{}, dir)
		is(t, err, c.want)
		if err == nil {
			v.Close()
		}
		equal(t, c.name+": after looking", tree(t, path), before)
		_, err = Recover(Linux{}, dir)
		is(t, err, c.want)
		base, err := openBase(Linux{}, dir, true)
		is(t, err, c.want)
		if err == nil {
			unix.Close(base)
			equal(t, c.name+": format", strings.TrimSpace(read(t, format)), "untorn 1")
		} else {
			equal(t, c.name+": after the refusal", tree(t, path), before)
		}
	}
	for name, plant := range map[string]func(string) error{
		"symlink": func(p string) error { return os.Symlink("/etc/passwd", p) },
		"fifo":    func(p string) error { return unix.Mkfifo(p, 0o600) },
		"dir":     func(p string) error { return os.Mkdir(p, 0o700) },
	} {
		path, dir := backing(t)
		must(t, os.Mkdir(filepath.Join(path, Hidden), 0o700))
		must(t, plant(filepath.Join(path, Hidden, formatName)))
		before := tree(t, path)
		if _, err := openBase(Linux{}, dir, true); true {
			is(t, err, ErrPlanted)
		}
		equal(t, name, tree(t, path), before)
	}
}

// tree describes everything below a directory, so that any change shows: contents, inodes, modes, links and times.
func tree(t *testing.T, path string) string {
	t.Helper()
	var lines []string
	must(t, filepath.Walk(path, func(path string, info os.FileInfo, err error) error {
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Lstat(path, &st))
		lines = append(lines, fmt.Sprint(path, st.Ino, st.Mode, st.Uid, st.Size, st.Nlink, st.Mtim, st.Ctim))
		return nil
	}))
	return strings.Join(lines, "\n")
}

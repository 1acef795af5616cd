package tests

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// program is a script of ordinary programs. It runs in an empty directory of its own,
// once in a plain directory and once on each kind of mount. What it prints and what it
// leaves behind must be identical.
type program struct {
	name   string
	needs  []string // commands beyond those of every Debian
	flags  []string // of the mount; default: --durability=none
	script string
	// ignore lists patterns of paths, relative to the script's directory, whose
	// content differs between any two runs, on any filesystem.
	ignore []string
}

// prelude makes the programs independent of who runs them, where and when.
const prelude = `
export LC_ALL=C TZ=UTC HOME=$PWD TMPDIR=$PWD PYTHONDONTWRITEBYTECODE=1
umask 022
`

// comparePrograms runs each program in a subtest.
func comparePrograms(t *testing.T, programs []program) {
	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) { p.compare(t) })
	}
}

func (p program) compare(t *testing.T) {
	for _, name := range p.needs {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatalf("not installed: %v", err)
		}
	}
	plain := tempDir(t)
	wantOutput := p.run(t, plain)
	want := p.manifest(t, plain)

	eachPath(t, func(t *testing.T, flags []string) {
		if p.flags == nil {
			flags = append(flags, "--durability=none")
		}
		m := newMount(t, append(flags, p.flags...)...)
		if diff := diffLines(wantOutput, p.run(t, m.Dir)); diff != "" {
			t.Errorf("the output differs (- plain directory, + mount):\n%s", diff)
		}
		// At once: what the script has closed is there.
		if diff := diffLines(want, p.manifest(t, m.Dir)); diff != "" {
			t.Errorf("the mount differs (- plain directory, + mount):\n%s", diff)
		}
		m.Unmount(t)
		if diff := diffLines(want, p.manifest(t, m.Backing)); diff != "" {
			t.Errorf("the backing differs (- plain directory, + backing):\n%s", diff)
		}
		for _, e := range m.Salvaged(t) {
			t.Errorf("salvaged although every program ended well: %+v", e)
		}
	})
}

// workName is the directory that a script runs in. The root of a mount is no plain
// directory: its backing has .untorn in it.
const workName = "w"

func (p program) run(t *testing.T, dir string) string {
	t.Helper()
	work := filepath.Join(dir, workName)
	mustMkdir(t, work)
	return sh(t, work, prelude+p.script)
}

// manifest describes everything that the script left, one entry per line.
func (p program) manifest(t *testing.T, dir string) string {
	t.Helper()
	work := filepath.Join(dir, workName)
	var lines strings.Builder
	err := filepath.WalkDir(work, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(work, path)
		if slices.ContainsFunc(p.ignore, func(pattern string) bool { ok, _ := filepath.Match(pattern, rel); return ok }) {
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		line, err := describe(path)
		fmt.Fprintf(&lines, "%s %s\n", rel, line)
		return err
	})
	if err != nil {
		t.Errorf("manifest: %v", err)
	}
	return lines.String()
}

// describe is all of one file that a program can decide about.
func describe(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	line := fmt.Sprintf("mode=%06o owner=%d:%d links=%d", st.Mode, st.Uid, st.Gid, st.Nlink)
	// A time that a program has set lies in the past; all others are of this run.
	if mtime := time.Unix(st.Mtim.Unix()); time.Since(mtime) > 24*time.Hour {
		line += " mtime=" + mtime.UTC().Format(time.RFC3339Nano)
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		content, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		line += fmt.Sprintf(" size=%d sha256=%.8x", st.Size, sha256.Sum256(content))
		if len(content) != int(st.Size) {
			line += fmt.Sprintf(" but %d bytes were read", len(content))
		}
		if bytes.IndexFunc(content, func(r rune) bool { return r < ' ' && r != '\n' }) < 0 && len(content) <= 60 {
			line += fmt.Sprintf(" %q", content)
		}
	case syscall.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		line += " -> " + target
	case syscall.S_IFCHR, syscall.S_IFBLK:
		line += fmt.Sprintf(" rdev=%x", st.Rdev)
	}
	return line + describeXattrs(path), nil
}

func describeXattrs(path string) string {
	names := make([]byte, 4096)
	n, err := unix.Llistxattr(path, names)
	if err != nil || n == 0 {
		return ""
	}
	var all []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, name, value)
		all = append(all, fmt.Sprintf(" %s=%q (%v)", name, value[:max(n, 0)], err))
	}
	slices.Sort(all)
	return strings.Join(all, "")
}

// diffLines is "" for equal texts, or else the lines that differ.
func diffLines(want, got string) string {
	if want == got {
		return ""
	}
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	const most = 60
	var out []string
	// Equal lines cost little: the shorter way to the next pair of equal lines decides.
	for len(a) > 0 || len(b) > 0 {
		if len(a) > 0 && len(b) > 0 && a[0] == b[0] {
			a, b = a[1:], b[1:]
			continue
		}
		inB, inA := -1, -1
		if len(a) > 0 {
			inB = slices.Index(b, a[0])
		}
		if len(b) > 0 {
			inA = slices.Index(a, b[0])
		}
		if len(b) > 0 && (inA < 0 || len(a) == 0 || inB >= 0 && inB <= inA) {
			out, b = append(out, "+ "+b[0]), b[1:]
		} else {
			out, a = append(out, "- "+a[0]), a[1:]
		}
	}
	if len(out) > most {
		out = append(out[:most], fmt.Sprintf("... and %d more", len(out)-most))
	}
	return strings.Join(out, "\n")
}

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// metaWorkloads: names and attributes, without contents.
func metaWorkloads() []*workload {
	row := func(name, unit string, run func(b *bench, s *subject) (float64, error)) *workload {
		return &workload{name: name, unit: unit, base: "native", setup: makeTree, run: run}
	}
	last := row("rm -rf 10,000", "s", removeTree)
	last.clean = func(_ *bench, s *subject) { os.RemoveAll(tree(s)) }
	return []*workload{
		row("stat, cold", "µs", statCold),
		row("stat, cached", "µs", statCached),
		row("readdir 10,000", "ms", readdir),
		row("find", "ms", find),
		{name: "git status", unit: "ms", base: "native", setup: makeRepository, run: gitStatus, clean: func(_ *bench, s *subject) {
			os.RemoveAll(repository(s))
		}},
		last,
	}
}

func tree(s *subject) string { return filepath.Join(s.dir, "tree") }

// makeTree makes one directory of 10,000 files behind the subject's back, as if they had always been there. That of
// gocryptfs, which changes names, is made through it.
func makeTree(b *bench, s *subject) error {
	dir := tree(s)
	if err := os.Mkdir(dir, 0o755); os.IsExist(err) {
		return nil
	} else if err != nil {
		return err
	}
	for i := range b.count(10000) {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("file%05d", i)))
		if err != nil {
			return err
		}
		f.Close()
	}
	return syncAll(b)
}

// dropCaches makes the next access cold, in the filesystem below as well.
func dropCaches(b *bench) error {
	if err := syncAll(b); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

func statCold(b *bench, s *subject) (float64, error) {
	if err := dropCaches(b); err != nil {
		return 0, err
	}
	return statAll(b, s, 1)
}

func statCached(b *bench, s *subject) (float64, error) {
	if _, err := statAll(b, s, 1); err != nil {
		return 0, err
	}
	return statAll(b, s, 5)
}

// statAll returns the time of a stat in µs.
func statAll(b *bench, s *subject, times int) (float64, error) {
	fd, err := unix.Open(tree(s), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	n := b.count(10000)
	names := make([]string, n)
	for i := range n {
		names[i] = fmt.Sprintf("file%05d", i)
	}
	began := time.Now()
	for range times {
		for _, name := range names {
			var st unix.Stat_t
			if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return 0, err
			}
		}
	}
	return float64(time.Since(began).Nanoseconds()) / 1000 / float64(n*times), nil
}

func readdir(b *bench, s *subject) (float64, error) {
	began := time.Now()
	const times = 5
	for range times {
		f, err := os.Open(tree(s))
		if err != nil {
			return 0, err
		}
		names, err := f.Readdirnames(-1)
		f.Close()
		if err != nil || len(names) != b.count(10000) {
			return 0, fmt.Errorf("readdir: %d names, %w", len(names), err)
		}
	}
	return float64(time.Since(began).Microseconds()) / 1000 / times, nil
}

func find(b *bench, s *subject) (float64, error) {
	return timed(exec.Command("find", tree(s), "-type", "f", "-size", "+1"))
}

func removeTree(b *bench, s *subject) (float64, error) {
	if err := makeTree(b, s); err != nil {
		return 0, err
	}
	ms, err := timed(exec.Command("rm", "-rf", tree(s)))
	return ms / 1000, err
}

// timed runs a command and returns its time in ms.
func timed(cmd *exec.Cmd) (float64, error) {
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	return float64(time.Since(began).Microseconds()) / 1000, nil
}

func repository(s *subject) string { return filepath.Join(s.dir, "repository") }

// makeRepository makes a git repository with 2,000 files.
func makeRepository(b *bench, s *subject) error {
	dir := repository(s)
	for i := range b.count(2000) {
		sub := filepath.Join(dir, fmt.Sprintf("d%d", i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%d.c", i)), fmt.Appendf(nil, "int f%d;\n", i), 0o644); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"init", "-q"}, {"add", "."}, {"-c", "user.name=b", "-c", "user.email=b@b", "commit", "-qm", "all"}} {
		if _, err := output("git", append([]string{"-C", dir}, args...)...); err != nil {
			return err
		}
	}
	return nil
}

func gitStatus(b *bench, s *subject) (float64, error) {
	return timed(exec.Command("git", "-C", repository(s), "status", "--short"))
}

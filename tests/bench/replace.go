package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// block is what the small files hold.
var block = make([]byte, 4096)

// replaceWorkloads: existing files of 4 KiB are written anew.
func replaceWorkloads() []*workload {
	var list []*workload
	for _, d := range []string{"full", "ordered", "none", "batch"} {
		only := func(s *subject) bool {
			return s.class == native || s.durability == d || s.class == peer && d == "none"
		}
		list = append(list,
			&workload{name: "replace-4k " + d, unit: "µs", base: careful, durability: d, only: only, setup: makeFiles, clean: removeFiles,
				run: func(b *bench, s *subject) (float64, error) { return replaceAll(b, s, d, 1) }},
			&workload{name: "replace-4k-p16 " + d, unit: "µs", base: careful, durability: d, only: only, setup: makeFiles, clean: removeFiles,
				run: func(b *bench, s *subject) (float64, error) { return replaceAll(b, s, d, 16) }})
	}
	return list
}

// replaceDirs and replaceFiles are how many directories there are, and files in each.
const (
	replaceDirs  = 8
	replaceFiles = 250
)

func filesDir(s *subject, i int) string { return filepath.Join(s.dir, fmt.Sprintf("replace%d", i)) }

func makeFiles(b *bench, s *subject) error {
	for i := range replaceDirs {
		if err := os.Mkdir(filesDir(s, i), 0o755); err != nil {
			return err
		}
		for j := range replaceFiles {
			if err := os.WriteFile(filepath.Join(filesDir(s, i), fmt.Sprint(j)), block, 0o644); err != nil {
				return err
			}
		}
	}
	return syncAll(b)
}

func removeFiles(b *bench, s *subject) {
	for i := range replaceDirs {
		os.RemoveAll(filesDir(s, i))
	}
}

// syncAll leaves no writes of a preparation for the measurement.
func syncAll(b *bench) error {
	fd, err := unix.Open(b.disk.top, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}

// replaceAll has n processes replace 2,000 files in all, and returns the time per file: that of the clock on the wall.
func replaceAll(b *bench, s *subject, durability string, n int) (float64, error) {
	style := "in-place"
	if s.name == careful {
		style = durability
		if style == "batch" {
			style = "none" // what it promises at the moment at which close returns
		}
	}
	total := b.count(2000) / n * n
	var cmds []*exec.Cmd
	var starts []*os.File
	for i := range n {
		r, w, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		cmd := exec.Command("/proc/self/exe", "replace", style, filesDir(s, i%replaceDirs), fmt.Sprint(total/n), fmt.Sprint(i/replaceDirs))
		cmd.Stdin, cmd.Stderr = r, os.Stderr
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		r.Close()
		cmds, starts = append(cmds, cmd), append(starts, w)
	}
	began := time.Now()
	for _, w := range starts {
		w.Close()
	}
	var first error
	for _, cmd := range cmds {
		if err := cmd.Wait(); err != nil && first == nil {
			first = err
		}
	}
	return float64(time.Since(began).Microseconds()) / float64(total), first
}

// replaceCmd is one of the writers. It begins when its standard input is closed.
type replaceCmd struct {
	Style string `arg:""`
	Dir   string `arg:""`
	Count int    `arg:""`
	From  int    `arg:""`
}

func (c *replaceCmd) Run() error {
	dir, err := os.Open(c.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	os.Stdin.Read(make([]byte, 1))
	for i := range c.Count {
		name := fmt.Sprint((c.From*c.Count + i) % replaceFiles)
		if c.Style == "in-place" {
			err = writeInPlace(int(dir.Fd()), name, block)
		} else {
			err = writeCarefully(int(dir.Fd()), name, block, c.Style)
		}
		if err != nil {
			return fmt.Errorf("replacing %s: %w", name, err)
		}
	}
	return nil
}

// writeInPlace is what ordinary programs do.
func writeInPlace(dir int, name string, p []byte) error {
	return write(dir, name, p, unix.O_TRUNC, false)
}

func write(dir int, name string, p []byte, flags int, sync bool) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC|flags, 0o644)
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, p); err != nil {
		unix.Close(fd)
		return err
	}
	if sync {
		if err := unix.Fsync(fd); err != nil {
			unix.Close(fd)
			return err
		}
	}
	return unix.Close(fd)
}

// writeCarefully is what careful programs do: a temp beside the file, synced, renamed, and the directory synced.
func writeCarefully(dir int, name string, p []byte, durability string) error {
	temp := fmt.Sprintf(".%s.%d.tmp", name, os.Getpid())
	if err := write(dir, temp, p, unix.O_EXCL, durability == "full" || durability == "ordered"); err != nil {
		return err
	}
	if err := unix.Renameat(dir, temp, dir, name); err != nil {
		return err
	}
	if durability == "full" {
		return unix.Fsync(dir)
	}
	return nil
}

package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// fileWorkloads: new files, and appending to old ones.
func fileWorkloads() []*workload {
	all := func(s *subject) bool { return true }
	return []*workload{
		{name: "create-4k", unit: "µs", base: "native", only: all, run: create},
		{name: "untar", unit: "s", base: "native", only: all, setup: makeTar, run: untar},
		{name: "append 1 MiB", unit: "µs", base: "native", setup: makeLog(1 << 20), run: appendTo, clean: removeLog},
		{name: "append 1 GiB", unit: "µs", base: "native", once: true, setup: makeLog(1 << 30), run: appendTo, clean: removeLog},
	}
}

// create makes 1,000 files and returns the time for each.
func create(b *bench, s *subject) (float64, error) {
	dir := filepath.Join(s.dir, "create")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	n := b.count(1000)
	began := time.Now()
	for i := range n {
		if s.name == careful {
			err = writeCarefully(fd, fmt.Sprint(i), block, "full")
		} else {
			err = writeInPlace(fd, fmt.Sprint(i), block)
		}
		if err != nil {
			return 0, err
		}
	}
	return float64(time.Since(began).Microseconds()) / float64(n), nil
}

// tarFiles is how many files the archive has, of 1 to 8 KiB, in 100 directories.
const tarFiles = 10000

func tarPath(b *bench) string { return filepath.Join(b.work, "files.tar") }

// makeTar writes the archive once.
func makeTar(b *bench, _ *subject) error {
	f, err := os.OpenFile(tarPath(b), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for i := range b.count(tarFiles) {
		if i%100 == 0 {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("d%d/", i/100), Mode: 0o755}); err != nil {
				return err
			}
		}
		body := make([]byte, 1024*(1+i%8))
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("d%d/f%d", i/100, i), Mode: 0o644, Size: int64(len(body))}); err != nil {
			return err
		}
		if _, err := w.Write(body); err != nil {
			return err
		}
	}
	return w.Close()
}

// untar unpacks the archive with tar(1), or, as the careful writer, file by file. The time of the removal is not counted.
func untar(b *bench, s *subject) (float64, error) {
	dir := filepath.Join(s.dir, "untar")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := syncAll(b); err != nil {
		return 0, err
	}
	began := time.Now()
	var err error
	if s.name == careful {
		err = untarCarefully(tarPath(b), dir)
	} else {
		var out []byte
		if out, err = exec.Command("tar", "-xf", tarPath(b), "-C", dir).CombinedOutput(); err != nil {
			err = fmt.Errorf("tar: %w: %s", err, out)
		}
	}
	return time.Since(began).Seconds(), err
}

func untarCarefully(archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	top, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(top)
	in := -1
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			unix.Close(in)
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeDir {
			if err := unix.Mkdirat(top, h.Name, 0o755); err != nil {
				return err
			}
			unix.Close(in)
			if in, err = unix.Openat(top, h.Name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
				return err
			}
			continue
		}
		body, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if err := writeCarefully(in, filepath.Base(h.Name), body, "full"); err != nil {
			return err
		}
	}
}

func makeLog(size int64) func(b *bench, s *subject) error {
	return func(b *bench, s *subject) error {
		f, err := os.Create(filepath.Join(s.dir, "log"))
		if err != nil {
			return err
		}
		chunk := make([]byte, 1<<20)
		for i := range chunk {
			chunk[i] = byte(i * 7) // no filesystem stores it as a hole
		}
		for range size >> 20 {
			if _, err := f.Write(chunk); err != nil {
				f.Close()
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
		return syncAll(b)
	}
}

func removeLog(_ *bench, s *subject) { os.Remove(filepath.Join(s.dir, "log")) }

// appendTo opens the log, appends a line and closes it, and returns the time for each. It ends after some seconds: where
// the log has to be copied each time, that is enough to know.
func appendTo(b *bench, s *subject) (float64, error) {
	line := []byte("a line of a log, of the usual length, with a time and a level and some words\n")
	began := time.Now()
	n := 0
	for ; n < b.count(1000) && time.Since(began) < 20*time.Second; n++ {
		f, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return 0, err
		}
		if _, err := f.Write(line); err != nil {
			return 0, err
		}
		if err := f.Close(); err != nil {
			return 0, err
		}
	}
	return float64(time.Since(began).Microseconds()) / float64(n), nil
}

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// idleWorkloads: what a mount costs while nothing is written.
func idleWorkloads() []*workload {
	mounted := func(s *subject) bool { return s.class == peer || s.class == untorn && s.durability == "full" }
	return []*workload{
		{name: "idle CPU", unit: "ms/s", only: mounted, once: true, run: idleCPU},
		{name: "open staged file", unit: "KiB", only: mounted, once: true, run: openFiles},
		{name: "memory, walked", unit: "MiB", only: mounted, once: true, setup: makeForest, run: walked,
			clean: func(_ *bench, s *subject) { exec.Command("rm", "-rf", filepath.Join(s.dir, "forest")).Run() }},
	}
}

// resident is the memory of all processes of the subject, in bytes.
func resident(s *subject) (sum float64) {
	for _, pid := range s.pids() {
		sum += field(pid, "VmRSS:") * 1024
	}
	return sum
}

// field reads a number from /proc/PID/status.
func field(pid int, name string) float64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			v, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return v
		}
	}
	return 0
}

// cpu is the time that the processes of the subject have used, in clock ticks of 10 ms (proc_pid_stat(5)).
func cpu(s *subject) (ticks float64) {
	for _, pid := range s.pids() {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		for _, i := range []int{11, 12} {
			v, _ := strconv.ParseFloat(f[i], 64)
			ticks += v
		}
	}
	return ticks
}

func idleCPU(b *bench, s *subject) (float64, error) {
	wait := 10 * time.Second
	if b.quick {
		wait = time.Second
	}
	before := cpu(s)
	time.Sleep(wait)
	return (cpu(s) - before) * 10 / wait.Seconds(), nil
}

// openFiles is what the memory of the subject grows by for each of 1,000 files that are open for writing.
func openFiles(b *bench, s *subject) (float64, error) {
	dir := filepath.Join(s.dir, "open")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := s.remount(); err != nil {
		return 0, err
	}
	n := b.count(1000)
	before := resident(s)
	files, err := writing(dir, n)
	defer closeAll(files)
	if err != nil {
		return 0, err
	}
	return max(0, resident(s)-before) / 1024 / float64(n), nil
}

// writing opens n new files and writes to them. Those that were opened are returned with an error as well.
func writing(dir string, n int) (files []*os.File, err error) {
	for i := range n {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			return files, err
		}
		files = append(files, f)
		if _, err := f.Write(block); err != nil {
			return files, err
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// makeForest makes 500,000 files in 1,000 directories.
func makeForest(b *bench, s *subject) error {
	at := s.back // behind its back: this is no measurement of creation
	if s.name == "gocryptfs" {
		at = s.dir
	}
	for i := range b.count(1000) {
		dir := filepath.Join(at, "forest", fmt.Sprintf("directory%04d", i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for j := range 500 {
			fd, err := unix.Open(filepath.Join(dir, fmt.Sprintf("file%04d.txt", j)), unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
			if err != nil {
				return err
			}
			unix.Close(fd)
		}
	}
	return syncAll(b)
}

// walked is the memory after all files were looked at.
func walked(b *bench, s *subject) (float64, error) {
	if err := s.remount(); err != nil {
		return 0, err
	}
	if _, err := timed(exec.Command("find", filepath.Join(s.dir, "forest"), "-size", "+1")); err != nil {
		return 0, err
	}
	return resident(s) / (1 << 20), nil
}

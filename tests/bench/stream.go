package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// streamWorkloads: a large file, written, read and read again, mapped, and at random, by fio.
func streamWorkloads() []*workload {
	row := func(name string, args ...string) *workload {
		return &workload{name: name, unit: "MiB/s", more: true, base: "native", only: streaming,
			setup: layOut, run: func(b *bench, s *subject) (float64, error) { return fio(b, s, args...) }, clean: removeLarge}
	}
	write := row("stream write", "--rw=write", "--bs=1M", "--end_fsync=1")
	write.setup = nil
	// A fresh cache for each reading; untorn and its peers must not profit from each other's.
	read := row("stream read", "--rw=read", "--bs=1M", "--invalidate=1")
	reread := row("stream re-read", "--rw=read", "--bs=1M", "--invalidate=0", "--loops=3")
	return []*workload{write, read, reread,
		row("mmap read", "--rw=read", "--bs=1M", "--ioengine=mmap", "--invalidate=0"),
		row("random read 4k", "--rw=randread", "--bs=4k", "--invalidate=0", "--io_size=256M"),
		row("random write 4k", "--rw=randwrite", "--bs=4k", "--invalidate=0", "--io_size=64M", "--end_fsync=1"),
	}
}

func streaming(s *subject) bool {
	return usual(s)
}

func large(s *subject) string { return filepath.Join(s.dir, "large") }

func removeLarge(_ *bench, s *subject) { os.Remove(large(s)) }

func (b *bench) largeSize() string {
	if b.quick {
		return "64M"
	}
	return "1G"
}

// layOut writes the large file.
func layOut(b *bench, s *subject) error {
	if _, err := fio(b, s, "--rw=write", "--bs=1M", "--end_fsync=1"); err != nil {
		return err
	}
	return syncAll(b)
}

// fio runs one job on the large file and returns its throughput.
func fio(b *bench, s *subject, args ...string) (float64, error) {
	common := []string{"--name=job", "--filename=" + large(s), "--size=" + b.largeSize(), "--output-format=json", "--thread",
		"--overwrite=0", "--fallocate=none"}
	cmd := exec.Command("fio", append(common, args...)...)
	cmd.Dir = b.work // fio leaves files where it runs
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("fio %v: %w: %s", args, err, out)
	}
	var report struct {
		Jobs []struct {
			Read, Write struct {
				Bytes   float64 `json:"io_bytes"`
				Runtime float64 `json:"runtime"` // ms
			}
		}
	}
	if err := json.Unmarshal(out, &report); err != nil || len(report.Jobs) != 1 {
		return 0, fmt.Errorf("reading the report of fio: %w", err)
	}
	j := report.Jobs[0]
	ms := max(j.Read.Runtime, j.Write.Runtime)
	if ms == 0 {
		ms = 1
	}
	return (j.Read.Bytes + j.Write.Bytes) / (1 << 20) / (ms / 1000), nil
}

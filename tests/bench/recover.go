package main

import (
	"os"
	"path/filepath"
	"time"
)

// recoverWorkloads: the daemon dies with 10,000 files staged, and is started again.
func recoverWorkloads() []*workload {
	return []*workload{{
		name: "recover 10,000", unit: "s", once: true, run: recovery,
		only: func(s *subject) bool { return s.name == "untorn full" },
	}}
}

func recovery(b *bench, s *subject) (float64, error) {
	dir := filepath.Join(s.dir, "recover")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, err
	}
	files, err := writing(dir, b.count(10000))
	if err != nil {
		closeAll(files)
		return 0, err
	}
	s.kill()
	closeAll(files)
	if err := syncAll(b); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := s.start(s); err != nil {
		return 0, err
	}
	took := time.Since(began).Seconds()
	s.mounted = true
	// Nothing may be missing: what does not fit into the salvage by its bounds is gone by its rules, which these obey.
	if _, err := output(s.needs, "salvage", "purge", s.dir, "--all"); err != nil {
		return 0, err
	}
	return took, os.RemoveAll(dir)
}

package txn

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// golden copies a directory of testdata to a backing, as .untorn: git keeps neither modes nor empty directories.
func golden(t *testing.T, name string) *shop {
	t.Helper()
	s := &shop{Store: &Store{}, t: t, sys: &brokenSys{}}
	s.path, s.dir = backing(t)
	from := os.DirFS(filepath.Join("testdata", name, "untorn"))
	must(t, fs.WalkDir(from, ".", func(path string, e fs.DirEntry, err error) error {
		must(t, err)
		to := filepath.Join(s.path, Hidden, path)
		if e.IsDir() {
			return os.MkdirAll(to, 0o700)
		}
		text, err := fs.ReadFile(from, path)
		must(t, err)
		return os.WriteFile(to, text, 0o600)
	}))
	must(t, os.Mkdir(filepath.Join(s.path, Hidden, journalName), 0o700))
	return s
}

// entriesIn describes the salvage, with all that is not of this machine.
func (s *shop) entriesIn() []string {
	var lines []string
	for _, r := range s.records() {
		id := r.ID
		if id > "20261120-0931" {
			id = "new"
		}
		text := read(s.t, filepath.Join(s.path, Hidden, salvageName, r.ID))
		lines = append(lines, fmt.Sprintf("%s %q %d %d %q %q: %q", id, r.Path, r.Size, r.Pid, r.Command, r.Reason, text))
	}
	slices.Sort(lines)
	return lines
}

// TestFormat1: what this version has once written, later ones understand.
func TestFormat1(t *testing.T) {
	s := golden(t, "format-1")
	kept := []string{
		`20261120-093015-3f2a "a/b" 16 4711 "bash -c 'seq 500'" "killed by signal 9 (SIGKILL)": "killed half way\n"`,
		`20261120-093016-0001 "caf\xe9" 6 12 "cp \xe9" "publish failed: putting it in place: no space left on device": "bytes\n"`,
		`20261120-093017-0000 "" 10 0 "" "record damaged": "no record\n"`,
		`20261120-093019-0000 "torn.txt" 12 0 "" "record damaged": "torn record\n"`,
	}
	equal(t, "entries", strings.Join(s.entriesIn(), "\n"), strings.Join(kept, "\n"))
	s.instance = "0123456789abcdef"
	equal(t, "found", fmt.Sprint(s.found()), "[0 /salvage/20261120-093017-0000 0 /salvage/20261120-093018-0000.json "+
		"0 /salvage/20261120-093019-0000.json 0 /salvage/20261120-093020-0000.json 0 /stage/INSTANCE 0 /stage/INSTANCE/origins]")

	report, err := Recover(Linux{}, s.dir)
	must(t, err)
	equal(t, "problems", fmt.Sprint(report.Problems), "[]")
	equal(t, "salvaged and dropped", []int{report.Salvaged, report.Dropped}, []int{4, 1})
	kept[2] = `20261120-093017-0000 "" 10 0 "" "its record was lost": "no record\n"`
	kept = append(kept,
		`20261120-093018-0000 "begun.txt" 6 13 "tee begun.txt" "killed by signal 15 (SIGTERM)": "begun\n"`,
		`new "" 9 0 "" "the daemon died while it was being written": "of whom?\n"`,
		`new "caf\xe9" 12 9 "" "the daemon died while it was being written": "in a helper\n"`,
		`new "docs/report.txt" 7 7 "report --all" "the daemon died while it was being written": "staged\n"`)
	slices.Sort(kept)
	equal(t, "entries", strings.Join(s.entriesIn(), "\n"), strings.Join(kept, "\n"))
	equal(t, "found", fmt.Sprint(s.found()), "[]")
	if mode := s.salvaged().mode(t, "20261120-093016-0001"); mode != 0o4755 {
		t.Errorf("mode %o", mode)
	}
	o, err := Open(context.Background(), s.dir, Options{Limits: Limits{Age: 1 << 62}})
	must(t, err)
	must(t, o.Close())
	equal(t, "entries after a mount", strings.Join(s.entriesIn(), "\n"), strings.Join(kept, "\n"))
	equal(t, "found", fmt.Sprint(s.found()), "[]")
}

func (s *Salvage) mode(t *testing.T, id string) uint32 {
	t.Helper()
	rec, err := s.find(id)
	must(t, err)
	return rec.Mode
}

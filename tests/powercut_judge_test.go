package tests

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// state is one of the states that a path goes through: a version, or none.
type state struct {
	path   string // that the version was written under; a rename keeps it
	n      int    // 0: there is no file
	begun  int    // position in the log from which on the path may be in this state
	acked  int    // ... from which on it must be in this one or a later one; never: 0
	synced int    // ... from which on the bytes must be there, as a version or in the salvage; never: 0
	to     string // this is the absence that a rename to that path leaves
}

// history has the states of each path, in the order in which its only writer made them.
type history map[string][]*state

// add enters an event of the log.
func (h history) add(at int, event string) error {
	f := strings.Fields(event)
	if len(f) < 2 {
		return fmt.Errorf("event %q", event)
	}
	path := f[1]
	n := 0
	if len(f) > 2 && f[0] != eventMove {
		var err error
		if n, err = strconv.Atoi(f[2]); err != nil {
			return fmt.Errorf("event %q: %w", event, err)
		}
	}
	switch f[0] {
	case eventBegin:
		if h[path] == nil && n != 1 {
			h[path] = []*state{{begun: 0}}
		}
		h[path] = append(h[path], &state{path: path, n: n, begun: at})
	case eventAck:
		h.last(path).acked = at
	case eventSynced:
		h.last(path).synced = at
	case eventRemove:
		h[path] = append(h[path], &state{begun: at})
	case eventMove:
		to := f[2]
		if h[to] == nil {
			h[to] = []*state{{begun: 0}}
		}
		h[to] = append(h[to], &state{path: h.last(path).path, n: h.last(path).n, begun: at})
		h[path] = append(h[path], &state{begun: at, to: to})
	default:
		return fmt.Errorf("event %q", event)
	}
	return nil
}

func (h history) last(path string) *state { return h[path][len(h[path])-1] }

// found is a file after a cut.
type found struct {
	path string
	n    int // 0: there is none
	err  error
}

// verdict is what was wrong after a cut.
type verdict struct {
	torn    []string // paths that hold something else than a whole version of theirs
	lost    []string // promised versions that are not there
	trouble []string // anything else: not mountable, not recoverable, not consistent
}

func (v *verdict) add(w verdict) {
	v.torn, v.lost, v.trouble = append(v.torn, w.torn...), append(v.lost, w.lost...), append(v.trouble, w.trouble...)
}

// judge compares files after a cut with what they may and must be. kept tells whether the salvage has a version.
func (h history) judge(at int, files map[string]found, kept func(path string, n int) bool) (v verdict) {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if h[name] == nil {
			v.torn = append(v.torn, fmt.Sprintf("%s: there should be no such file", name))
		}
	}
	reached := map[string]int{} // index of the state in which a path is
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if i, wrong := h.reached(name, at, files[name]); wrong != "" {
			v.torn = append(v.torn, name+": "+wrong)
		} else {
			reached[name] = i
		}
	}
	for name, i := range reached {
		for j, s := range h[name] {
			if j > i && s.acked != 0 && s.acked <= at {
				v.lost = append(v.lost, fmt.Sprintf("%s: version %d, but %d was promised", name, h[name][i].n, s.n))
			}
			if j > i && s.synced != 0 && s.synced <= at && !kept(s.path, s.n) {
				const text = "%s: version %d, which was synced, is neither there nor in the salvage"
				v.lost = append(v.lost, fmt.Sprintf(text, name, s.n))
			}
		}
		if s := h[name][i]; s.to != "" && h[name][i-1].acked != 0 {
			if k, ok := reached[s.to]; ok && h[s.to][k].begun < s.begun {
				v.lost = append(v.lost, fmt.Sprintf("%s: version %d is neither there nor at %s", name, h[name][i-1].n, s.to))
			}
		}
	}
	slices.Sort(v.lost)
	return v
}

// reached finds the state in which a path is: the latest of those that look like it.
func (h history) reached(name string, at int, f found) (i int, wrong string) {
	if f.err != nil {
		return 0, f.err.Error()
	}
	for i := len(h[name]) - 1; i >= 0; i-- {
		s := h[name][i]
		if s.begun <= at && s.n == f.n && s.path == f.path {
			return i, ""
		}
	}
	if f.n == 0 {
		return 0, "it is gone"
	}
	return 0, fmt.Sprintf("it holds version %d of %q, which it never had", f.n, f.path)
}

// readTree reads all files below dir but those of untorn.
func readTree(dir string) (map[string]found, error) {
	files := map[string]found{}
	err := filepath.WalkDir(dir, func(at string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, at)
		if err != nil {
			return err
		}
		if e.IsDir() {
			if name == ".untorn" {
				return filepath.SkipDir
			}
			return nil
		}
		content, err := os.ReadFile(at)
		if err != nil {
			return err
		}
		var f found
		if f.path, f.n, f.err = parseVersion(content); f.err != nil {
			f.err = fmt.Errorf("%d bytes: %w", len(content), f.err)
		}
		files[name] = f
		return nil
	})
	return files, err
}

// readSalvage reads the salvage of a backing and tells what is not consistent in it, or left in the stage.
func readSalvage(backing string) (kept map[found]bool, trouble []string) {
	kept = map[found]bool{}
	for _, f := range stagedFiles(backing) {
		trouble = append(trouble, "still in the stage: "+f)
	}
	dir := filepath.Join(backing, ".untorn", "salvage")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return kept, append(trouble, err.Error())
	}
	bare := map[string]int{}
	for _, e := range entries {
		name, isRecord := strings.CutSuffix(e.Name(), ".json")
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			trouble = append(trouble, err.Error())
		}
		if !isRecord {
			bare[name]--
			if path, n, err := parseVersion(content); err == nil {
				kept[found{path: path, n: n}] = true
			}
			continue
		}
		bare[name]++
		var record salvageEntry
		if err := json.Unmarshal(content, &record); err != nil || record.ID != name || record.Reason == "" {
			trouble = append(trouble, fmt.Sprintf("record %s: %v, %.100q", name, err, content))
		}
	}
	for id, n := range bare {
		if n != 0 {
			trouble = append(trouble, fmt.Sprintf("salvage entry %s lacks its record or its bytes", id))
		}
	}
	return kept, trouble
}

// age makes half-made files of untorn look old: a recovery leaves alone what somebody may be writing right now.
func age(backing string) error {
	long := time.Now().Add(-time.Hour)
	return filepath.WalkDir(filepath.Join(backing, ".untorn"), func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && (strings.Contains(e.Name(), ".tmp-") || strings.HasSuffix(e.Name(), ".json")) {
			err = os.Chtimes(path, long, long)
		}
		return err
	})
}

// judgeBacking recovers a backing after a cut and judges it. With thorough it also recovers once more, which must find
// nothing to do.
func judgeBacking(t testing.TB, h history, at int, backing string, thorough bool) (v verdict) {
	t.Helper()
	trouble := func(format string, args ...any) { v.trouble = append(v.trouble, fmt.Sprintf(format, args...)) }
	if err := age(backing); err != nil {
		trouble("%v", err)
	}
	if _, stderr, code := untorn(t, "recover", backing); code != 0 {
		trouble("recover: exit code %d: %s", code, stderr)
	}
	kept, inconsistent := readSalvage(backing)
	v.trouble = append(v.trouble, inconsistent...)
	files, err := readTree(backing)
	if err != nil {
		trouble("%v", err)
		return v
	}
	v.add(h.judge(at, files, func(path string, n int) bool { return kept[found{path: path, n: n}] }))
	if !thorough {
		return v
	}
	before := everything(t, backing)
	if stdout, stderr, code := untorn(t, "recover", backing); code != 0 {
		trouble("a second recover: exit code %d: %s%s", code, stdout, stderr)
	}
	if after := everything(t, backing); !maps.Equal(before, after) {
		trouble("a second recover changed something:\nfrom %v\nto   %v", before, after)
	}
	// What a killed writer had not synced may be missing in the salvage after a power cut; and btrfs may count two links
	// of a temp that was renamed between its fsync and the cut.
	stdout, stderr, code := untorn(t, "check", backing)
	for line := range strings.Lines(stdout) {
		passes := strings.Contains(line, "Somebody wrote to it after it was kept") ||
			strings.Contains(line, "it has another name outside of .untorn")
		if code != 0 && !passes {
			trouble("check: exit code %d: %s%s", code, line, stderr)
		}
	}
	return v
}

package tests

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// manifest describes all files below dir but those of untorn: what must not change when
// nothing was published.
func manifest(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := everything(t, dir)
	maps.DeleteFunc(all, func(name, _ string) bool {
		return name == ".untorn" || len(name) > 8 && name[:8] == ".untorn/"
	})
	// A directory's times and link count change when a temp comes and goes.
	for name, v := range all {
		if v[0] == 'd' {
			all[name] = v[:10]
		}
	}
	return all
}

// everything describes all files below dir.
func everything(t testing.TB, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		found[name], err = describeFile(path, e)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func describeFile(path string, e fs.DirEntry) (string, error) {
	fi, err := e.Info()
	if err != nil {
		return "", err
	}
	st := fi.Sys().(*syscall.Stat_t)
	content := ""
	switch {
	case fi.Mode().IsRegular():
		b, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		content = fmt.Sprintf("%x", sha256.Sum256(b))
	case fi.Mode()&fs.ModeSymlink != 0:
		if content, err = os.Readlink(path); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%-10v ino %d links %d owner %d:%d size %d modified %d.%09d %s", fi.Mode(), st.Ino, st.Nlink,
		st.Uid, st.Gid, st.Size, st.Mtim.Sec, st.Mtim.Nsec, content), nil
}

func wantSame(t testing.TB, before, after map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if after[name] != before[name] {
			t.Errorf("%q changed:\nfrom %s\nto   %s", name, before[name], after[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if _, ok := before[name]; !ok {
			t.Errorf("%q appeared: %s", name, after[name])
		}
	}
}

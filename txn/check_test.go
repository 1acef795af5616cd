package txn

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// found lists what Check finds, as "remedy where", and makes sure that it has changed nothing.
func (s *shop) found() []string {
	s.t.Helper()
	before := tree(s.t, s.path)
	list, err := Check(Linux{}, s.dir)
	must(s.t, err)
	equal(s.t, "tree after the check", tree(s.t, s.path), before)
	var lines []string
	for _, f := range list {
		if f.What == "" || strings.Contains(f.What, "%!") {
			s.t.Errorf("a finding without words: %+v", f)
		}
		where := strings.ReplaceAll(strings.TrimPrefix(f.Where, Hidden), s.instance, "INSTANCE")
		lines = append(lines, fmt.Sprint(f.Remedy, " ", where))
	}
	slices.Sort(lines)
	return lines
}

// TestCheckFindsWhatIsWrong plants one thing after the other.
func TestCheckFindsWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		plant func(s *shop, top string) // top is .untorn
		want  []string
	}{
		"nothing": {func(*shop, string) {}, nil},
		"a live stage": {func(s *shop, top string) {
			s.temp("1", "staged")
			s.temp("2.d/2", "in a helper")
			write(t, filepath.Join(top, stageName, s.instance, originsName), "{torn")
		}, nil},
		"a record whose bytes are on their way": {func(s *shop, top string) {
			id := s.keepNew("1", "x", Record{})
			must(t, os.Rename(filepath.Join(top, salvageName, id), filepath.Join(top, stageName, s.instance, "1")))
		}, nil},
		"mode":       {func(_ *shop, top string) { must(t, os.Chmod(top, 0o750)) }, []string{"3 "}},
		"stage mode": {func(_ *shop, top string) { must(t, os.Chmod(top+"/stage", 0o777)) }, []string{"3 /stage"}},
		"no directory": {func(_ *shop, top string) {
			must(t, os.Remove(top+"/journal"))
			must(t, os.Symlink("/tmp", top+"/journal"))
		}, []string{"1 /journal"}},
		"newer":          {func(_ *shop, top string) { write(t, top+"/format", "untorn 2\n") }, []string{"4 /format"}},
		"journal":        {func(_ *shop, top string) { write(t, top+"/journal/1", "") }, []string{"1 /journal/1"}},
		"strange":        {func(_ *shop, top string) { write(t, top+"/readme", "") }, []string{"1 /readme"}},
		"strange inside": {func(_ *shop, top string) { write(t, top+"/salvage/readme", "") }, []string{"1 /salvage/readme"}},
		"strange stage":  {func(_ *shop, top string) { write(t, top+"/stage/readme", "") }, []string{"1 /stage/readme"}},
		"no regular file": {func(s *shop, top string) {
			must(t, unix.Mkfifo(filepath.Join(top, stageName, s.instance, "1"), 0o600))
			must(t, os.Symlink("/etc/passwd", filepath.Join(top, clockName+"s")))
		}, []string{"1 /clocks", "1 /stage/INSTANCE/1"}},
		"unfinished": {func(_ *shop, top string) {
			write(t, top+"/format.tmp-1", "")
			write(t, top+"/salvage/20261120-093015-3f2a.json.tmp-1", "")
		}, []string{"0 /format.tmp-1", "0 /salvage/20261120-093015-3f2a.json.tmp-1"}},
		"no record": {func(_ *shop, top string) { write(t, top+"/salvage/20261120-093015-3f2a", "") },
			[]string{"0 /salvage/20261120-093015-3f2a"}},
		"no bytes": {func(_ *shop, top string) { write(t, top+"/salvage/20261120-093015-3f2a.json", "{}") },
			[]string{"0 /salvage/20261120-093015-3f2a.json"}},
		"damaged record": {func(_ *shop, top string) {
			write(t, top+"/salvage/20261120-093015-3f2a.json", "\x00")
			write(t, top+"/salvage/20261120-093015-3f2a", "")
		}, []string{"0 /salvage/20261120-093015-3f2a.json"}},
		"another size": {func(_ *shop, top string) {
			write(t, top+"/salvage/20261120-093015-3f2a.json", `{"size": 5}`)
			write(t, top+"/salvage/20261120-093015-3f2a", "six...")
		}, []string{"5 /salvage/20261120-093015-3f2a"}},
		"dead": {func(s *shop, top string) {
			s.temp("1", "staged")
			write(t, filepath.Join(top, stageName, s.instance, originsName), "\n{torn\n{}")
			s.crash()
		}, []string{"0 /stage/INSTANCE", "0 /stage/INSTANCE/origins"}},
		"a name in the tree": {func(s *shop, top string) {
			s.temp("1", "staged")
			must(t, os.Link(filepath.Join(top, stageName, s.instance, "1"), filepath.Join(s.path, "seen")))
			must(t, os.Link(filepath.Join(top, salvageName, s.keepNew("2", "kept", Record{})), filepath.Join(s.path, "too")))
		}, []string{"6 /salvage/ID", "6 /stage/INSTANCE/1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShop(t)
			c.plant(s, filepath.Join(s.path, Hidden))
			got := s.found()
			if name == "a name in the tree" && len(got) > 0 {
				got[0] = got[0][:len("6 /salvage/")] + "ID"
			}
			equal(t, "found", fmt.Sprint(got), fmt.Sprint(c.want))
		})
	}
}

// TestCheckAfterRecovery: there is much to find, and nothing once it is recovered, also when that was interrupted before.
func TestCheckAfterRecovery(t *testing.T) {
	for n := 0; ; n += 7 {
		s := ruin(t)
		if n == 0 && len(s.found()) < 8 {
			t.Errorf("found no more than %q", s.found())
		}
		sys := &brokenSys{left: n, fail: unix.EIO}
		Recover(sys, s.dir)
		_, err := Recover(&brokenSys{}, s.dir)
		must(t, err)
		equal(t, fmt.Sprintf("found after a recovery that was cut after %d calls", n), fmt.Sprint(s.found()), "[]")
		if !sys.broken {
			return
		}
	}
}

func TestCheckWithoutUntorn(t *testing.T) {
	path, dir := backing(t)
	for what, plant := range map[string]func(string) error{
		"nothing":           func(string) error { return nil },
		"a first mount cut": func(p string) error { return os.Mkdir(p, 0o700) },
		"a symlink":         func(p string) error { return os.Symlink("/tmp", p) },
		"a file":            func(p string) error { return os.WriteFile(p, nil, 0o600) },
	} {
		must(t, plant(filepath.Join(path, Hidden)))
		list, err := Check(Linux{}, dir)
		must(t, err)
		equal(t, what, len(list) > 0, what == "a symlink" || what == "a file")
		os.Remove(filepath.Join(path, Hidden))
	}
}

package txn

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ruin makes a backing with everything in it that a recovery knows, and returns it with the daemon dead.
func ruin(t *testing.T) *shop {
	t.Helper()
	s := newShop(t)
	stage := filepath.Join(s.path, Hidden, stageName, s.instance)
	salvage := filepath.Join(s.path, Hidden, salvageName)

	s.temp("1", "written")
	must(t, s.note(Origin{Temp: "1", Path: "old", Pid: 7}))
	must(t, s.note(Origin{Temp: "1", Path: "d/one", Pid: 7, Command: "dd", Time: time.Now()}))
	s.temp("2", "nobody knows")
	s.temp("3", "")
	must(t, s.note(Origin{Temp: "3", Path: "empty"}))
	for _, name := range []string{"4", "5"} {
		s.temp(name, "a copy")
		var st unix.Statx_t
		must(t, Linux{}.Stat(s.fd, name, &st))
		must(t, s.note(Origin{Temp: name, Path: "copy" + name, Clean: cleanOf(&st)}))
	}
	f, err := os.OpenFile(filepath.Join(stage, "5"), os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString("A COPY")
	must(t, err)
	must(t, f.Close())
	s.temp("6.d/6", "in a helper")
	must(t, s.note(Origin{Temp: "6", Path: "six"}))
	must(t, os.Mkdir(filepath.Join(stage, "7.d"), 0o755))
	must(t, os.Symlink("/etc/passwd", filepath.Join(stage, "link")))
	must(t, unix.Mkfifo(filepath.Join(stage, "fifo"), 0o600))
	s.temp("origins.tmp-1234", "half")
	s.temp("8", "two names")
	must(t, os.Link(filepath.Join(stage, "8"), filepath.Join(stage, "8.1")))
	must(t, s.note(Origin{Temp: "8", Path: "eight"}))

	s.keepNew("9", "kept before", Record{Path: "nine", Reason: "killed"})
	lost := s.keepNew("10", "without a record", Record{Path: "ten"})
	must(t, os.Remove(filepath.Join(salvage, lost+recordSuffix)))
	bare := s.keepNew("11", "without bytes", Record{Path: "eleven"})
	must(t, os.Remove(filepath.Join(salvage, bare)))
	begun := s.keepNew("12", "half way", Record{Path: "twelve", Reason: "killed by signal 9"})
	must(t, os.Rename(filepath.Join(salvage, begun), filepath.Join(stage, "12")))
	twice := s.keepNew("13", "has both names", Record{Path: "thirteen"})
	must(t, os.Link(filepath.Join(salvage, twice), filepath.Join(stage, "13")))
	foreign := s.keepNew("14", "by a restore", Record{})
	must(t, os.Remove(filepath.Join(salvage, foreign)))
	write(t, filepath.Join(salvage, foreign+recordSuffix), `{"path": "x"}`)
	write(t, filepath.Join(salvage, foreign+".json.tmp-12"), "half")
	torn := s.keepNew("15", "torn", Record{Path: "fifteen", Reason: "killed"})
	text := read(t, filepath.Join(salvage, torn+recordSuffix))
	write(t, filepath.Join(salvage, torn+recordSuffix), text[:strings.Index(text, "time")]+strings.Repeat("\x00", 99))
	write(t, filepath.Join(s.path, Hidden, "format.tmp-12"), "half")
	s.crash()
	return s
}

// state describes the backing after a recovery, without what differs from time to time.
func (s *shop) state() string {
	s.t.Helper()
	var lines []string
	for _, rec := range s.records() {
		lines = append(lines, fmt.Sprintf("%s: %q, %d: %s", read(s.t, filepath.Join(s.path, Hidden, salvageName, rec.ID)),
			rec.Path, rec.Pid, rec.Reason))
	}
	slices.Sort(lines)
	files := 0
	filepath.Walk(filepath.Join(s.path, Hidden), func(path string, info os.FileInfo, err error) error {
		must(s.t, err)
		if filepath.Base(filepath.Dir(path)) == salvageName {
			files++
		} else {
			lines = append(lines, strings.TrimPrefix(path, s.path))
		}
		return nil
	})
	return strings.Join(append(lines, fmt.Sprint(files, " files in the salvage")), "\n")
}

const recovered = `A COPY: "copy5", 0: the daemon died while it was being written
half way: "twelve", 0: killed by signal 9
has both names: "thirteen", 0: 
in a helper: "six", 0: the daemon died while it was being written
kept before: "nine", 0: killed
nobody knows: "", 0: the daemon died while it was being written
torn: "fifteen", 0: record damaged
two names: "eight", 0: the daemon died while it was being written
without a record: "", 0: its record was lost
written: "d/one", 7: the daemon died while it was being written
/.untorn
/.untorn/clock
/.untorn/format
/.untorn/journal
/.untorn/salvage
/.untorn/stage
20 files in the salvage`

func TestRecover(t *testing.T) {
	s := ruin(t)
	report, err := Recover(Linux{}, s.dir)
	must(t, err)
	equal(t, "state", s.state(), recovered)
	equal(t, "salvaged", report.Salvaged, 6)
	equal(t, "dropped", report.Dropped, 4) // 3, 4, 8.1, 13
	equal(t, "bytes", report.Bytes, int64(len("A COPY"+"half way"+"in a helper"+"nobody knows"+"two names"+"written")))
	equal(t, "entries", len(report.Entries), 6)
	equal(t, "problems", len(report.Problems), 0)
	for _, rec := range report.Entries {
		if _, ok := idTime(rec.ID); !ok {
			t.Errorf("an entry without an id: %+v", rec)
		}
	}
	report, err = Recover(Linux{}, s.dir)
	must(t, err)
	equal(t, "a second recovery", report, Report{})
	s.open() // and a daemon can start
}

// TestRecoverInterrupted ends a recovery after every system call, and the next one finishes it.
func TestRecoverInterrupted(t *testing.T) {
	t.Parallel()
	for _, only := range []string{"", "norenameat2"} {
		for n := 0; ; n++ {
			s := ruin(t)
			sys := &brokenSys{left: n, fail: unix.EIO, only: only}
			if only != "" {
				sys.only = "norenameat2 open reopen write fsync stat statfs mkdir rename link unlink rmdir"
			}
			_, err := Recover(sys, s.dir)
			if !sys.broken {
				must(t, err)
				equal(t, "state", s.state(), recovered)
				break
			}
			if err == nil && n < 100 {
				t.Errorf("after %d calls: no error", n)
			}
			if _, err := Recover(&brokenSys{}, s.dir); err != nil {
				t.Fatal(err)
			}
			if got := s.state(); got != recovered {
				t.Fatalf("interrupted after %d calls:\n%s\nwant:\n%s", n, got, recovered)
			}
		}
	}
}

// TestRecoverFaults fails a single system call: whatever it was, nothing is lost and the next recovery finishes it.
func TestRecoverFaults(t *testing.T) {
	t.Parallel()
	for _, fault := range []error{unix.EIO, unix.ENOSPC, unix.EMFILE} {
		for n := 0; ; n++ {
			s := ruin(t)
			sys := &faultSys{brokenSys: brokenSys{left: n, fail: fault}}
			Recover(sys, s.dir)
			if !sys.broken {
				break
			}
			if _, err := Recover(&brokenSys{}, s.dir); err != nil {
				t.Fatal(err)
			}
			got := s.state()
			if fault != unix.EIO {
				equal(t, fmt.Sprintf("state after %v at call %d", fault, n), got, recovered)
				continue
			}
			// A list of origins that could not be read takes the paths with it, and what tells an untouched copy.
			bytes := func(state string) (list []string) {
				for line := range strings.Lines(state) {
					if content, _, ok := strings.Cut(line, ": "); ok && content != "a copy" {
						list = append(list, content)
					}
				}
				return list
			}
			equal(t, fmt.Sprintf("bytes after %v at call %d", fault, n), bytes(got), bytes(recovered))
		}
	}
}

// faultSys fails one operation only.
type faultSys struct{ brokenSys }

func (f *faultSys) disarm() {
	if f.broken {
		f.fail = nil
	}
}

func (f *faultSys) Pwrite(fd int, p []byte, off int64) (int, error) {
	defer f.disarm()
	return f.brokenSys.Pwrite(fd, p, off)
}

func (f *faultSys) Open(dir int, name string, flags int, mode uint32) (int, error) {
	defer f.disarm()
	return f.brokenSys.Open(dir, name, flags, mode)
}

func (f *faultSys) Rename(odir int, oname string, dir int, name string, flags uint) error {
	defer f.disarm()
	return f.brokenSys.Rename(odir, oname, dir, name, flags)
}

func (f *faultSys) Unlink(dir int, name string) error {
	defer f.disarm()
	return f.brokenSys.Unlink(dir, name)
}

func (f *faultSys) Stat(dir int, name string, st *unix.Statx_t) error {
	defer f.disarm()
	return f.brokenSys.Stat(dir, name, st)
}

func TestScanChangesNothing(t *testing.T) {
	s := ruin(t)
	before := tree(t, s.path)
	base, err := openBase(Linux{}, s.dir, false)
	must(t, err)
	defer unix.Close(base)
	plan, err := scan(Linux{}, base)
	must(t, err)
	equal(t, "tree", tree(t, s.path), before)
	for _, a := range plan.Actions {
		if text := a.String(); text == "" || strings.Contains(text, "!") {
			t.Errorf("an action prints as %q", text)
		}
	}
	again, err := scan(Linux{}, base) // while the first plan holds the instance
	must(t, err)
	for _, a := range again.Actions {
		if a.Instance != "" {
			t.Errorf("two plans have %v", a)
		}
	}
	again.Release()
	plan.Release()
	_, err = plan.apply(Linux{}, base)
	if err == nil {
		t.Error("a released plan can be applied")
	}
	_, err = Recover(Linux{}, s.dir)
	must(t, err)
	equal(t, "state", s.state(), recovered)
}

func TestLiveInstancesAreLeftAlone(t *testing.T) {
	s := newShop(t)
	s.temp("1", "being written")
	must(t, s.note(Origin{Temp: "1", Path: "one"}))
	s.temp("2", "about to be kept")
	id := s.keepNew("3", "x", Record{Path: "three"}) // a record whose bytes have not come yet
	salvage := filepath.Join(s.path, Hidden, salvageName)
	must(t, os.Rename(filepath.Join(salvage, id), filepath.Join(s.path, Hidden, stageName, s.instance, "3")))
	write(t, filepath.Join(salvage, id+".json.tmp-1"), "being written")
	write(t, filepath.Join(s.path, Hidden, "format.tmp-1"), "being written")
	for _, dir := range []int{s.salvaged().fd, s.base} {
		defer writing(Linux{}, dir)()
	}
	before := s.state()
	report, err := Recover(Linux{}, s.dir)
	must(t, err)
	equal(t, "report", report, Report{})
	equal(t, "state", s.state(), before)
}

func TestRecoverLeavesWhatIsNotOurs(t *testing.T) {
	s := newShop(t)
	s.temp("1", "bytes")
	stage := filepath.Join(s.path, Hidden, stageName)
	write(t, filepath.Join(stage, s.instance, "dir/file"), "what is this")
	write(t, filepath.Join(stage, s.instance, "2.d/dir/file"), "what is this")
	write(t, filepath.Join(stage, "file"), "what is this")
	must(t, os.Symlink("/tmp", filepath.Join(stage, "link")))
	must(t, os.Mkdir(filepath.Join(stage, "open"), 0o700))
	must(t, os.Chmod(filepath.Join(stage, "open"), 0o777))
	write(t, filepath.Join(s.path, Hidden, salvageName, "readme"), "what is this")
	must(t, os.Symlink("/etc/passwd", filepath.Join(s.path, Hidden, salvageName, "20261120-093015-3f2a")))
	s.crash()
	report, err := Recover(Linux{}, s.dir)
	must(t, err)
	equal(t, "salvaged", s.contents(), []string{"bytes"})
	for _, what := range []string{"dir is a directory", "2.d/dir is a directory", "2.d stays", "stage/file", "stage/link", "stage/open",
		"readme", "3f2a"} {
		if !slices.ContainsFunc(report.Problems, func(p string) bool { return strings.Contains(p, what) }) {
			t.Errorf("no word of %s in %q", what, report.Problems)
		}
	}
	equal(t, "problems", len(report.Problems), 8)
	equal(t, "left alone", read(t, filepath.Join(stage, s.instance, "dir/file")), "what is this")
}

func TestRecoverOnFullDisk(t *testing.T) {
	s := newShop(t)
	s.temp("1", "bytes")
	must(t, s.note(Origin{Temp: "1", Path: "one"}))
	s.crash()
	report, err := Recover(&brokenSys{fail: unix.ENOSPC, only: "write"}, s.dir)
	must(t, err) // a mount must be possible
	if len(report.Problems) != 1 || !strings.Contains(report.Problems[0], "no space") || report.Salvaged != 0 {
		t.Errorf("report: %+v", report)
	}
	report, err = Recover(Linux{}, s.dir)
	must(t, err)
	if report.Salvaged != 1 || report.Entries[0].Path != "one" {
		t.Errorf("report: %+v", report)
	}
}

func TestRecoverGivesUpOldEntriesForSpace(t *testing.T) {
	s := newShop(t)
	s.keepNew("old", strings.Repeat("x", 8192), Record{Path: "old"})
	s.temp("1", "bytes")
	s.crash()
	sys := &fullOnce{brokenSys: &brokenSys{statfs: func(st *unix.Statfs_t) { st.Bavail = 0 }}}
	report, err := Recover(sys, s.dir)
	must(t, err)
	equal(t, "salvage", s.contents(), []string{"bytes"})
	if len(report.Problems) != 1 || !strings.Contains(report.Problems[0], "path=old") {
		t.Errorf("problems: %q", report.Problems)
	}
}

func TestDroppedOnlyWhatStillHoldsNothing(t *testing.T) {
	s := newShop(t)
	s.temp("1", "")
	base, err := unix.Dup(s.base)
	must(t, err)
	defer unix.Close(base)
	s.crash()
	plan, err := scan(Linux{}, base)
	must(t, err)
	// A program that outlived the daemon writes on.
	write(t, filepath.Join(s.path, Hidden, stageName, s.instance, "1"), "late")
	report, err := plan.apply(Linux{}, base)
	must(t, err)
	equal(t, "dropped", report.Dropped, 0)
	_, err = Recover(Linux{}, s.dir)
	must(t, err)
	equal(t, "salvaged", s.contents(), []string{"late"})
}

func TestRecoverReadOnly(t *testing.T) {
	s := newShop(t)
	s.temp("1", "bytes")
	s.crash()
	_, err := Recover(&brokenSys{fail: unix.EROFS, only: "write unlink rmdir rename"}, s.dir)
	is(t, err, ErrReadOnly)
}

// TestKeepInterrupted ends keep after every system call: the bytes are found, once, with their path.
func TestKeepInterrupted(t *testing.T) {
	for n := 0; ; n++ {
		s := newShop(t)
		s.temp("1", "bytes")
		must(t, s.note(Origin{Temp: "1", Path: "one"}))
		s.sys.left, s.sys.fail = n, unix.EIO
		_, err := s.keep("1", Record{Path: "one", Reason: "killed"})
		done := !s.sys.broken
		s.sys.fail = nil
		s.crash()
		if _, err := Recover(&brokenSys{}, s.dir); err != nil {
			t.Fatal(err)
		}
		list := s.records()
		if len(list) != 1 || list[0].Path != "one" || s.contents()[0] != "bytes" {
			t.Fatalf("after %d calls: %+v", n, list)
		}
		left, _ := os.ReadDir(filepath.Join(s.path, Hidden, salvageName))
		equal(t, "files in the salvage", len(left), 2)
		if done {
			must(t, err)
			return
		}
	}
}

package txn

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestIDsSortByTimeAndComeBack(t *testing.T) {
	at := time.Date(2026, 11, 20, 9, 30, 15, 0, time.UTC)
	last := ""
	for range 2000 {
		id := idAt(at)
		back, ok := idTime(id)
		if !ok || back.Sub(at).Abs() > time.Second/ticks+1 {
			t.Fatalf("%v became %s, which is %v, %v", at, id, back, ok)
		}
		if id <= last {
			t.Fatalf("%s follows %s", id, last)
		}
		last = id
		at = at.Add(time.Second/ticks + 1)
	}
	for _, bad := range []string{"", ".", "..", "../x", "20261120-093015", "20261120-093015-3F2A", "20261320-093015-3f2a",
		"20261120-093015-3f2a.json", "20261120-093015/3f2a", "20261120-093015-+f2a", "20261120_093015-3f2a"} {
		if _, ok := idTime(bad); ok {
			t.Errorf("%q passes for an id", bad)
		}
	}
}

func TestRecordKeepsBytesAndStaysReadable(t *testing.T) {
	for _, path := range []string{"a/b", "naïve\n\u2028<&>", "caf\xe9/\xff\xfe", "\ufffd", ""} {
		rec := Record{ID: "20261120-093015-3f2a", Path: path, Command: "cp " + path, Mode: 0o4755, Time: time.Unix(5, 7).UTC(), Temp: "i/1"}
		text, err := json.Marshal(rec)
		must(t, err)
		var back Record
		must(t, json.Unmarshal(text, &back))
		if back != rec {
			t.Errorf("%+v came back as %+v", rec, back)
		}

		o := Origin{Temp: "1", Path: path, Command: path, Clean: &Clean{1, 2, 3}}
		text, err = json.Marshal(o)
		must(t, err)
		var other Origin
		must(t, json.Unmarshal(text, &other))
		equal(t, "clean", *other.Clean, *o.Clean)
		if other.Path != path || other.Command != path {
			t.Errorf("%q came back as %q and %q", path, other.Path, other.Command)
		}
	}
	text, err := json.Marshal(Record{Path: "ü", Mode: 0o644})
	must(t, err)
	want := `{"id":"","path":"ü","size":0,"time":"0001-01-01T00:00:00Z","pid":0,"command":"","reason":"","uid":0,"gid":0,"mode":"0644"}`
	equal(t, "the JSON for scripts", string(text), want)
}

func TestKeepAndOpen(t *testing.T) {
	s := newShop(t)
	id := s.keepNew("7", "hello", Record{Path: "d/f", Pid: 42, Command: "sh -c x", Reason: "killed by signal 9"})
	list := s.records()
	if len(list) != 1 {
		t.Fatalf("entries: %+v", list)
	}
	rec := list[0]
	if rec.ID != id || rec.Path != "d/f" || rec.Size != 5 || rec.Pid != 42 || rec.Command != "sh -c x" ||
		rec.Reason != "killed by signal 9" || rec.Mode != 0o600 || rec.Uid != daemonUid || rec.Temp != s.instance+"/7" ||
		time.Since(rec.Time).Abs() > time.Minute {
		t.Errorf("record: %+v", rec)
	}
	v := s.salvaged()
	for _, name := range []string{id, id[:10], id[:1]} {
		fd, got, err := v.Open(name)
		must(t, err)
		var buf [10]byte
		n, _ := unix.Pread(fd, buf[:], 0)
		unix.Close(fd)
		equal(t, "bytes", string(buf[:n]), "hello")
		equal(t, "id", got.ID, id)
	}
	for _, bad := range []string{"", "x", id + "x", "../" + id, "./" + id, id + ".json", "/", "."} {
		_, _, err := v.Open(bad)
		is(t, err, ErrNoEntry)
	}
	s.keepNew("8", "other", Record{})
	_, _, err := v.Open(id[:8])
	is(t, err, ErrNoEntry)
	if err == nil || !strings.Contains(err.Error(), "2 ids begin with") {
		t.Errorf("an ambiguous id: %v", err)
	}
	_, err = s.keep("missing", Record{})
	is(t, err, unix.ENOENT)
	must(t, os.Symlink("/etc/passwd", filepath.Join(s.path, Hidden, stageName, s.instance, "link")))
	_, err = s.keep("link", Record{})
	is(t, err, ErrPlanted)
	equal(t, "entries", len(s.records()), 2)
}

func TestKeepManyAtOnce(t *testing.T) {
	s := newShop(t)
	var wg sync.WaitGroup
	for i := range 200 {
		name := fmt.Sprint("t", i)
		s.temp(name, name)
		wg.Go(func() {
			if _, err := s.keep(name, Record{Path: name}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	list := s.records()
	equal(t, "entries", len(list), 200)
	for i, rec := range list {
		equal(t, "bytes", read(t, filepath.Join(s.path, Hidden, salvageName, rec.ID)), rec.Path)
		if i > 0 && list[i-1].ID >= rec.ID {
			t.Errorf("%s before %s", list[i-1].ID, rec.ID)
		}
	}
}

func TestDamagedRecordsAreListed(t *testing.T) {
	s := newShop(t)
	var ids []string
	for i := range 5 {
		ids = append(ids, s.keepNew(fmt.Sprint(i), strings.Repeat("x", i+1), Record{Path: fmt.Sprint("p", i)}))
	}
	record := func(i int) string { return filepath.Join(s.path, Hidden, salvageName, ids[i]+recordSuffix) }
	must(t, os.WriteFile(record(0), []byte(`{"id": "../../x", "path": 5`), 0o600))
	must(t, os.Remove(record(1)))
	must(t, os.Remove(record(2)))
	must(t, os.Symlink("/etc/passwd", record(2)))
	must(t, os.WriteFile(record(3), []byte(`{"id": "../../x", "path": "ok"}`), 0o600))
	list := s.records()
	equal(t, "entries", len(list), 5)
	for i, rec := range list {
		equal(t, "id", rec.ID, ids[i])
		equal(t, "size", rec.Size, int64(i+1))
		switch {
		case i < 3 && (rec.Path != "" || rec.Reason != "record damaged" || time.Since(rec.Time).Abs() > time.Minute):
			t.Errorf("damaged record: %+v", rec)
		case i == 3 && rec.Path != "ok":
			t.Errorf("record: %+v", rec)
		}
	}
	is(t, s.salvaged().Restore(ids[0], "", false), unix.EINVAL)
	must(t, s.salvaged().Restore(ids[0], "found", false))
	equal(t, "restored", read(t, filepath.Join(s.path, "found")), "x")
}

func TestPurge(t *testing.T) {
	s := newShop(t)
	for i := range 4 {
		s.keepNew(fmt.Sprint(i), "1234", Record{Path: fmt.Sprint("p", i)})
	}
	n, bytes, err := s.salvaged().Purge(func(r Record) bool { return r.Path == "p2" })
	must(t, err)
	equal(t, "purged", []int64{int64(n), bytes}, []int64{3, 12})
	list := s.records()
	if len(list) != 1 || list[0].Path != "p2" {
		t.Errorf("left: %+v", list)
	}
	left, err := os.ReadDir(filepath.Join(s.path, Hidden, salvageName))
	must(t, err)
	equal(t, "files left", len(left), 2)
}

// entries are n kept files, a day and a block apart, oldest first.
func entries(n int) (list []kept, now time.Time) {
	now = time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	for i := range n {
		list = append(list, kept{id: fmt.Sprint(i), at: now.AddDate(0, 0, i-n), alloc: 100})
	}
	return list, now
}

func TestLimits(t *testing.T) {
	huge := func(list []kept, i int) []kept { list[i].alloc = 5 << 30; return list }
	list, now := entries(40)
	for _, c := range []struct {
		name   string
		limits Limits
		list   []kept
		gone   string
	}{
		{"defaults", Limits{}, list[11:], ""},
		{"older than 30 days", Limits{}, list[8:], "8 9"},
		{"count", Limits{Count: 3}, list[35:], "35 36"},
		{"bytes", Limits{Bytes: 250}, list[36:], "36 37"},
		{"age", Limits{Age: 36 * time.Hour}, list[37:], "37 38"},
		{"nothing", Limits{Count: -1}, list[37:], "37 38 39"},
		{"too large alone", Limits{Age: 1e18}, huge(slices.Clone(list[:3]), 2), "2"},
		{"too large and old", Limits{Age: 1e18, Count: 1}, huge(slices.Clone(list[:3]), 0), "0 1"},
		{"none", Limits{}, nil, ""},
	} {
		stay, gone := c.limits.excess(c.list, now)
		var ids []string
		for _, k := range gone {
			ids = append(ids, k.id)
		}
		equal(t, c.name, strings.Join(ids, " "), c.gone)
		equal(t, c.name+": all", len(stay)+len(gone), len(c.list))
	}
}

func TestSweepGivesUpOldestAndSaysSo(t *testing.T) {
	s := newShop(t)
	s.o.opt.Limits = Limits{Count: 2}
	for i := range 5 {
		s.keepNew(fmt.Sprint(i), fmt.Sprint("bytes ", i), Record{Path: fmt.Sprint("p", i)})
	}
	equal(t, "left", s.contents(), []string{"bytes 3", "bytes 4"})
	for i := range 3 {
		if !strings.Contains(s.log.String(), fmt.Sprintf("path=p%d", i)) {
			t.Errorf("nothing in the log about p%d:\n%s", i, &s.log)
		}
	}
}

func TestSalvageNeverFillsTheDisk(t *testing.T) {
	s := newShop(t)
	for i := range 5 {
		s.keepNew(fmt.Sprint(i), strings.Repeat("x", 8192), Record{})
	}
	// The filesystem lacks a little less than two such files of its margin.
	s.sys.statfs = func(st *unix.Statfs_t) {
		st.Frsize, st.Blocks, st.Bavail = 1, 1<<20, 1<<20/lowShare-10000
	}
	s.sweep(Limits{})
	equal(t, "left", len(s.contents()), 3)
	// It is full, and nothing helps: the youngest stays, until somebody asks for room.
	s.sys.statfs = func(st *unix.Statfs_t) { st.Bavail = 0 }
	id := s.keepNew("new", "what filled it", Record{})
	list := s.records()
	if len(list) != 1 || list[0].ID != id {
		t.Errorf("left: %+v", list)
	}
	if s.room() == 0 || s.room() != 0 {
		t.Error("room must give up the last entry, once")
	}
	equal(t, "left", len(s.contents()), 0)
}

func TestKeepOnFullDisk(t *testing.T) {
	s := newShop(t)
	s.keepNew("old", strings.Repeat("x", 8192), Record{Path: "old"})
	s.temp("new", "new")
	// The first write finds no space; the next ones do, since the old entry is given up.
	full := &fullOnce{brokenSys: s.sys}
	s.o.sys = full
	s.sys.statfs = func(st *unix.Statfs_t) { st.Bavail = 0 }
	_, err := s.keep("new", Record{Path: "new"})
	must(t, err)
	equal(t, "left", s.contents(), []string{"new"})

	// With nothing to give up the temp stays where it is.
	s.temp("newer", "newer")
	s.sys.fail, s.sys.only = unix.ENOSPC, "write"
	_, err = s.keep("newer", Record{Path: "newer"})
	is(t, err, unix.ENOSPC)
	equal(t, "temp", read(t, filepath.Join(s.path, Hidden, stageName, s.instance, "newer")), "newer")
}

type fullOnce struct {
	*brokenSys
	done bool
}

func (f *fullOnce) Pwrite(fd int, p []byte, off int64) (int, error) {
	if !f.done {
		f.done = true
		return 0, unix.ENOSPC
	}
	return f.brokenSys.Pwrite(fd, p, off)
}

func TestOpenSalvageOfWhatIsNotOurs(t *testing.T) {
	for name, c := range map[string]struct {
		make func(path string) error
		want error
	}{
		"nothing":        {func(string) error { return nil }, nil},
		"symlink":        {func(p string) error { return os.Symlink("/tmp", p) }, ErrPlanted},
		"file":           {func(p string) error { return os.WriteFile(p, nil, 0o600) }, ErrPlanted},
		"open to others": {func(p string) error { os.Mkdir(p, 0o700); return os.Chmod(p, 0o777) }, ErrPlanted},
		"no format":      {func(p string) error { return os.Mkdir(p, 0o700) }, nil},
		"newer format": {func(p string) error {
			os.Mkdir(p, 0o700)
			return os.WriteFile(p+"/format", []byte("untorn 999\n"), 0o600)
		}, ErrFormat},
		"no salvage": {func(p string) error {
			os.Mkdir(p, 0o700)
			return os.WriteFile(p+"/format", []byte("untorn 1\n"), 0o600)
		}, nil},
		"salvage symlink": {func(p string) error {
			os.Mkdir(p, 0o700)
			os.WriteFile(p+"/format", []byte("untorn 1\n"), 0o600)
			return os.Symlink("/tmp", p+"/salvage")
		}, ErrPlanted},
	} {
		path, dir := backing(t)
		must(t, c.make(filepath.Join(path, Hidden)))
		v, err := OpenSalvage(Linux{}, dir)
		is(t, err, c.want)
		if err == nil {
			list, err := v.List()
			must(t, err)
			equal(t, name, len(list), 0)
			_, _, err = v.Open("2026")
			is(t, err, ErrNoEntry)
			must(t, v.Close())
		}
		if report, err := Recover(Linux{}, dir); c.want != nil || name == "nothing" {
			is(t, err, c.want)
			equal(t, name, report, Report{})
		}
	}
}

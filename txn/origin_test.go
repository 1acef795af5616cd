package txn

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// all wants every origin.
func all(string) bool { return true }

func TestOriginsTakeGarbage(t *testing.T) {
	good := func(temp, path string) string {
		text, err := json.Marshal(Origin{Temp: temp, Path: path})
		must(t, err)
		return string(text)
	}
	for name, c := range map[string]struct{ text, want string }{
		"empty":             {"", "map[]"},
		"torn":              {"\n" + good("1", "a") + "\n" + good("2", "b")[:20], "map[1:a]"},
		"torn twice":        {"\n" + good("1", "a")[:9] + "\n" + good("2", "b") + "\n\n", "map[2:b]"},
		"later":             {good("1", "a") + "\n" + good("1", "b"), "map[1:b]"},
		"garbage":           {"\x00\xff{}\n[]\nnull\n7\n{\"temp\":5}\n{}\n" + good("1", "a") + "\n\"", "map[1:a]"},
		"zeroes at the end": {"\n" + good("1", "a") + "\n" + good("2", "b") + strings.Repeat("\x00", 3*maxLine), "map[1:a 2:b]"},
		"zeroes in it":      {"\n" + good("1", "a") + strings.Repeat("\x00", 4096) + good("2", "b") + "\n" + good("3", "c"), "map[1:a 2:b 3:c]"},
		"zeroes over lines": {"\n" + good("1", "a") + "\n" + good("2", "b")[:9] + strings.Repeat("\x00", 999) + "\"}\n" + good("3", "c"), "map[1:a 3:c]"},
		"zeroes first":      {strings.Repeat("\x00", 2*maxLine) + good("1", "a"), "map[1:a]"},
		"nested":            {strings.Repeat("[", 100000) + "\n" + good("1", "a"), "map[1:a]"},
		"long line":         {strings.Repeat("x", maxLine+1) + "\n" + good("1", strings.Repeat("y", maxLine)) + "\n" + good("2", "b"), "map[2:b]"},
	} {
		path, dir := backing(t)
		write(t, filepath.Join(path, originsName), c.text)
		list, err := readOrigins(Linux{}, dir, all)
		must(t, err)
		got := map[string]string{}
		for temp, o := range list {
			got[temp] = o.Path
		}
		equal(t, name, fmt.Sprint(got), c.want)
	}
	path, dir := backing(t)
	list, err := readOrigins(Linux{}, dir, all)
	must(t, err)
	equal(t, "missing", len(list), 0)
	write(t, filepath.Join(path, "elsewhere"), good("1", "a"))
	for name, plant := range map[string]func(string) error{
		"symlink": func(p string) error { return os.Symlink("elsewhere", p) },
		"fifo":    func(p string) error { return unix.Mkfifo(p, 0o600) },
		"dir":     func(p string) error { return os.Mkdir(p, 0o700) },
	} {
		must(t, plant(filepath.Join(path, originsName)))
		list, err := readOrigins(Linux{}, dir, all)
		is(t, err, ErrPlanted)
		equal(t, name, len(list), 0)
		must(t, os.Remove(filepath.Join(path, originsName)))
	}
	// Of a huge list the end counts.
	f, err := os.Create(filepath.Join(path, originsName))
	must(t, err)
	must(t, f.Truncate(1<<40))
	_, err = f.WriteAt([]byte("\n"+good("1", "a")), 1<<40)
	must(t, err)
	must(t, f.Close())
	list, err = readOrigins(Linux{}, dir, all)
	must(t, err)
	equal(t, "huge", list["1"].Path, "a")
}

func TestOriginsAreRewritten(t *testing.T) {
	s := newShop(t)
	s.counter.Store(1 << 20) // the temps below are old, but for those with letters
	must(t, s.note(Origin{Temp: "stays", Path: "p"}))
	s.temp("stays", "x")
	must(t, s.note(Origin{Temp: "young", Path: "y", Time: time.Now()})) // its temp is about to come
	long := strings.Repeat("long/", 200)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 600 {
				if err := s.note(Origin{Temp: fmt.Sprintf("%d.%d", i, j), Path: long}); err != nil {
					t.Error(err)
				}
			}
			must(t, s.note(Origin{Temp: fmt.Sprint("last", i), Path: "l", Time: time.Now()}))
			must(t, s.syncOrigins())
		})
	}
	wg.Wait()
	var st unix.Stat_t
	must(t, unix.Fstat(s.origins, &st))
	if st.Size > compactEvery {
		t.Errorf("the list has grown to %d bytes", st.Size)
	}
	list, err := readOrigins(Linux{}, s.fd, all)
	must(t, err)
	equal(t, "paths", list["stays"].Path+list["young"].Path, "py")
	for i := range 8 {
		equal(t, "last", list[fmt.Sprint("last", i)].Path, "l")
	}
}

func TestNoteAfterTornLine(t *testing.T) {
	s := newShop(t)
	s.o.sys = &tornSys{brokenSys: s.sys}
	is(t, s.note(Origin{Temp: "1", Path: "a"}), unix.ENOSPC)
	s.o.sys = s.sys
	must(t, s.note(Origin{Temp: "2", Path: "b"}))
	list, err := readOrigins(Linux{}, s.fd, all)
	must(t, err)
	equal(t, "list", len(list), 1)
	equal(t, "path", list["2"].Path, "b")
}

// tornSys writes half of what it is given.
type tornSys struct{ *brokenSys }

func (s *tornSys) Pwrite(fd int, p []byte, off int64) (int, error) {
	return s.brokenSys.Pwrite(fd, p[:len(p)/2], off)
}

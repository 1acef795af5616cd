package txn

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// heap is a backing with more leftovers than are salvaged one by one, and one of each kind that is.
func heap(t *testing.T) (s *shop, want []string) {
	t.Helper()
	s = newShop(t)
	for i := range 2 * many {
		name := fmt.Sprint(100 + i)
		s.temp(name, "bytes "+name)
		must(t, s.note(Origin{Temp: name, Path: "path " + name}))
		want = append(want, name)
	}
	s.temp("99.d/99", "bytes 99")
	must(t, s.note(Origin{Temp: "99", Path: "path 99"}))
	begun := s.keepNew("98", "bytes 98", Record{Path: "path 98"})
	must(t, os.Rename(filepath.Join(s.path, Hidden, salvageName, begun), filepath.Join(s.path, Hidden, stageName, s.instance, "98")))
	s.crash()
	return s, append(want, "98", "99")
}

// whole checks that all bytes are in the salvage, once, each with its own path, and that nothing else is left.
func (s *shop) whole(what string, want []string) {
	s.t.Helper()
	var got []string
	for _, rec := range s.records() {
		var name string
		fmt.Sscanf(rec.Path, "path %s", &name)
		got = append(got, name)
		equal(s.t, what, read(s.t, filepath.Join(s.path, Hidden, salvageName, rec.ID)), "bytes "+name)
	}
	slices.Sort(got)
	slices.Sort(want)
	equal(s.t, what, fmt.Sprint(got), fmt.Sprint(want))
	equal(s.t, what, fmt.Sprint(s.found()), "[]")
}

// TestRecoverManyInterrupted ends the recovery of many files after a system call, and the next one finishes it.
func TestRecoverManyInterrupted(t *testing.T) {
	for n := 0; ; n += 61 {
		s, want := heap(t)
		sys := &brokenSys{left: n, fail: unix.EIO}
		first, err := Recover(sys, s.dir)
		if !sys.broken {
			must(t, err)
			equal(t, "salvaged", first.Salvaged, len(want))
			s.whole("not interrupted", want)
			return
		}
		rest, err := Recover(&brokenSys{}, s.dir)
		must(t, err)
		if first.Salvaged+rest.Salvaged < len(want)-1 { // one may have been moved just before
			t.Errorf("salvaged %d and %d of %d", first.Salvaged, rest.Salvaged, len(want))
		}
		s.whole(fmt.Sprintf("after %d calls", n), want)
	}
}

// order watches what is durable before what.
type order struct {
	Linux
	t      *testing.T
	synced bool // since the last draft was written
	moved  int
	fail   error // of Syncfs
}

func (o *order) Pwrite(fd int, p []byte, off int64) (int, error) {
	o.synced = false
	return o.Linux.Pwrite(fd, p, off)
}

func (o *order) Fsync(int) error { o.synced = true; return nil }

func (o *order) Syncfs(int) error { o.synced = o.fail == nil; return o.fail }

func (o *order) Rename(odir int, oname string, dir int, name string, flags uint) error {
	if _, ok := idTime(name); ok {
		o.moved++
		if !o.synced && oname != "98" { // whose record has been there for long
			o.t.Errorf("%s is moved although its record is not durable", oname)
		}
	}
	return o.Linux.Rename(odir, oname, dir, name, flags)
}

// TestRecordsAreDurableFirst, for many files and for few, and where syncing the whole filesystem fails.
func TestRecordsAreDurableFirst(t *testing.T) {
	for _, fail := range []error{nil, unix.EIO} {
		s, want := heap(t)
		sys := &order{t: t, fail: fail}
		_, err := Recover(sys, s.dir)
		must(t, err)
		equal(t, "moved", sys.moved, len(want))
		s.whole("all", want)
	}
}

// TestRecoverManyPowerCut cuts the power during the recovery of many files, at every call. The next recovery has all of
// them, with their paths.
func TestRecoverManyPowerCut(t *testing.T) {
	d := newDisk(features{})
	top := d.mount()
	base, err := openBase(d, top, true)
	must(t, err)
	s := &Store{o: quiet(d), base: base, fd: -1, salvage: -1, origins: -1}
	must(t, s.open())
	for i := range many {
		name := fmt.Sprint(100 + i)
		fd, err := d.Open(s.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
		must(t, err)
		_, err = d.Pwrite(fd, []byte("bytes "+name), 0)
		must(t, err)
		must(t, d.Close(fd))
		must(t, s.note(Origin{Temp: name, Path: "path " + name}))
	}
	d.sync()
	d = d.crash(killed, nil)

	rnd := rand.New(rand.NewPCG(1, 2))
	var left []*disk
	d.cut = func() {
		for range soak(2, 20) {
			left = append(left, d.crash(wild, rnd))
		}
	}
	_, err = Recover(d, d.mount())
	must(t, err)
	for k, d := range left {
		top := d.mount()
		_, err := Recover(d, top)
		must(t, err)
		v, err := OpenSalvage(d, top)
		must(t, err)
		list, err := v.List()
		must(t, err)
		paths := map[string]bool{}
		for _, rec := range list {
			paths[rec.Path] = true
		}
		if len(list) != many || len(paths) != many || paths[""] {
			t.Fatalf("crash %d: %d entries of %d paths, some unknown: %v", k, len(list), len(paths), paths[""])
		}
	}
}

package txn

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// places are what somebody may plant something at, below .untorn.
var places = []string{
	".", "format", "clock", "format.tmp-1", "stage", "journal", "journal/1", "salvage",
	"stage/0123456789abcdef", "stage/0123456789abcdef/origins", "stage/0123456789abcdef/1", "stage/0123456789abcdef/4.d",
	"stage/0123456789abcdef/4.d/4", "stage/strange", "stage/0123456789abcdef/x.tmp-1", "salvage/20261120-093015-3f2a",
	"salvage/20261120-093015-3f2a.json", "salvage/20261120-093018-0000.json", "salvage/20261120-093018-0000",
	"salvage/20261120-093020-0000.json", "salvage/99991231-235959-ffff", "salvage/x.json.tmp-1", "salvage/strange", "other",
}

// plants are what is planted there; outside is a directory that looks like a .untorn, and text is the fuzzer's.
var plants = []func(at, outside string, text []byte){
	func(at, _ string, text []byte) {
		if f, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0o600); err == nil {
			f.Write(text)
			f.Close()
		}
	},
	func(at, _ string, text []byte) { // over a part of what is there
		if f, err := os.OpenFile(at, os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0); err == nil {
			f.WriteAt(text, int64(len(text)%64))
			f.Close()
		}
	},
	func(at, outside string, _ []byte) { os.RemoveAll(at); os.Symlink(outside, at) },
	func(at, outside string, _ []byte) { os.RemoveAll(at); os.Symlink(outside+"/format", at) },
	func(at, outside string, _ []byte) { os.RemoveAll(at); os.Symlink(outside+"/none", at) },
	func(at, outside string, _ []byte) { os.RemoveAll(at); os.Link(outside+"/format", at) },
	func(at, _ string, _ []byte) { os.RemoveAll(at); os.Mkdir(at, 0o700) },
	func(at, _ string, _ []byte) { os.RemoveAll(at); unix.Mkfifo(at, 0o600) },
	func(at, _ string, _ []byte) { os.RemoveAll(at); unix.Mknod(at, unix.S_IFSOCK|0o600, 0) },
	func(at, _ string, _ []byte) { os.RemoveAll(at) },
	func(at, _ string, _ []byte) { os.Chmod(at, 0o777) },
	func(at, _ string, _ []byte) { os.Chmod(at, 0) },
	func(at, _ string, _ []byte) { os.Lchown(at, 1, 1) },
	func(at, _ string, text []byte) { // huge, with something at its end
		if f, err := os.OpenFile(at, os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0); err == nil {
			f.Truncate(1 << 40)
			f.WriteAt(text, 1<<40)
			f.Close()
		}
	},
}

// FuzzPlanted plants things in a .untorn in which there is something to recover, and then does with it all that there is
// to be done. Whatever it is, it is refused or handled: no panic, nothing outside is touched, the files in the backing
// stay, and the memory that it takes is bounded.
func FuzzPlanted(f *testing.F) {
	for place := range len(places) / 2 { // two at a time
		for plant := range plants {
			f.Add([]byte{byte(place), byte(plant), 0, byte(place + len(places)/2), byte(plant), 0})
		}
	}
	for _, text := range []string{"untorn 2\n", "\x00\x00\x00", `{"temp":"1","path":"../../x"}`, `{"path": "../../../x", "size": -1}`,
		"[[[[[[[[", `{"swap": "20261120-093015-3f2a", "ino": 1}`, "2026-11-01T08:00:00Z 9999-11-20T09:30:00Z"} {
		for _, place := range []int{1, 2, 9, 16, 19} { // where text is read
			f.Add(append([]byte{byte(place), 0, byte(len(text))}, text...))
			f.Add(append(append([]byte{byte(place), 13, byte(len(text))}, text...), 4, 10, 0))
		}
	}
	pause = 0
	f.Fuzz(func(t *testing.T, script []byte) {
		s := golden(t, "format-1")
		s.path = filepath.Clean(s.path)
		write(t, filepath.Join(s.path, "a/b"), "current")
		outside := filepath.Join(t.TempDir(), "outside")
		for _, name := range []string{"format", "salvage/20261120-093015-3f2a", "stage/0123456789abcdef/1", "origins"} {
			write(t, filepath.Join(outside, name), "untorn 1\n")
		}
		for range 16 {
			if len(script) < 3 {
				break
			}
			at := filepath.Join(s.path, Hidden, places[int(script[0])%len(places)])
			plant, n := plants[int(script[1])%len(plants)], min(int(script[2]), len(script)-3)
			if ownDirs(filepath.Join(s.path, Hidden), filepath.Dir(at)) {
				plant(at, outside, script[3:3+n])
			}
			script = script[3+n:]
		}
		before := contentsOf(t, outside)
		var mem, after runtime.MemStats
		runtime.ReadMemStats(&mem)
		s.doAll()
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - mem.TotalAlloc; took > 128<<20 {
			t.Errorf("it took %d MiB", took>>20)
		}
		equal(t, "what is outside", contentsOf(t, outside), before)
		if b, err := os.ReadFile(filepath.Join(s.path, "a/b")); err != nil || string(b) != "current" {
			t.Errorf("the version is %q, %v", b, err)
		}
		// For the next one, and for the removal: what was closed with chmod.
		filepath.WalkDir(s.path, func(path string, e os.DirEntry, _ error) error {
			if e != nil && e.IsDir() {
				os.Chmod(path, 0o700)
			}
			return nil
		})
	})
}

// ownDirs reports whether dir and all above it up to top are directories still: the planting must not go astray either.
func ownDirs(top, dir string) bool {
	for ; len(dir) >= len(top); dir = filepath.Dir(dir) {
		if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
			return false
		}
	}
	return true
}

// doAll does what there is to be done with a .untorn; each may refuse.
func (s *shop) doAll() {
	look := func() {
		Check(Linux{}, s.dir)
		v, err := OpenSalvage(&brokenSys{}, s.dir)
		if err != nil {
			return
		}
		defer v.Close()
		list, _ := v.List()
		for _, rec := range list {
			if fd, _, err := v.Open(rec.ID); err == nil {
				unix.Close(fd)
			}
			v.Restore(rec.ID, "", false)
		}
		v.Purge(func(r Record) bool { return r.ID > "20261120-0931" })
	}
	look()
	Recover(&brokenSys{}, s.dir)
	Recover(&brokenSys{}, s.dir)
	look()
	if o, err := Open(context.Background(), s.dir, Options{Sys: &brokenSys{}}); err == nil {
		o.Close()
	}
}

// contentsOf is what is in a directory: names and bytes.
func contentsOf(t *testing.T, dir string) (all string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		must(t, err)
		all += path + "\n"
		if e.Type().IsRegular() {
			all += read(t, path) + "\n"
		}
		return nil
	}))
	return all
}

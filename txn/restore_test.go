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

func TestRestore(t *testing.T) {
	s := newShop(t)
	must(t, os.MkdirAll(filepath.Join(s.path, "d/e"), 0o755))
	id := s.keepNew("1", "kept", Record{Path: "d/e/f"})
	v := s.salvaged()
	must(t, v.Restore(id, "", false))
	equal(t, "restored", read(t, filepath.Join(s.path, "d/e/f")), "kept")
	is(t, v.Restore(id, "", false), ErrNoEntry)
	left, _ := os.ReadDir(filepath.Join(s.path, Hidden, salvageName))
	equal(t, "files left", len(left), 0)
}

func TestRestoreNeverReplacesUnasked(t *testing.T) {
	for _, only := range []string{"", "norenameat2"} {
		s := newShop(t)
		write(t, filepath.Join(s.path, "f"), "current")
		id := s.keepNew("1", "kept", Record{Path: "f", Reason: "killed"})
		v := s.salvaged()
		v.sys = &brokenSys{only: only}
		is(t, v.Restore(id, "", false), ErrExists)
		equal(t, "target", read(t, filepath.Join(s.path, "f")), "current")

		must(t, v.Restore(id, "", true))
		equal(t, "target", read(t, filepath.Join(s.path, "f")), "kept")
		list := s.records()
		if len(list) != 1 || list[0].Reason != "replaced by restore" || list[0].Path != "f" || list[0].Size != 7 {
			t.Fatalf("entries: %+v", list)
		}
		must(t, v.Restore(list[0].ID, "", true)) // and back again
		equal(t, "target", read(t, filepath.Join(s.path, "f")), "current")
		equal(t, "salvage", s.contents(), []string{"kept"})
	}
}

func TestRestoreRefuses(t *testing.T) {
	s := newShop(t)
	outside := t.TempDir()
	must(t, os.Symlink(outside, filepath.Join(s.path, "link")))
	must(t, os.Symlink(filepath.Join(outside, "x"), filepath.Join(s.path, "file-link")))
	must(t, os.Mkdir(filepath.Join(s.path, "dir"), 0o755))
	must(t, unix.Mkfifo(filepath.Join(s.path, "fifo"), 0o600))
	id := s.keepNew("1", "kept", Record{Path: "gone/f"})
	v := s.salvaged()
	for to, want := range map[string]error{
		"":               unix.ENOENT, // gone/f
		"/abs":           unix.EINVAL,
		"../up":          unix.EINVAL,
		"dir/../x":       unix.EINVAL,
		"./x":            unix.EINVAL,
		"x/":             unix.EINVAL,
		".untorn/format": unix.EINVAL,
		"dir/.untorn":    unix.EINVAL,
		"link/x":         unix.ELOOP,
		"file-link/x":    unix.ELOOP,
		"file-link":      unix.EEXIST,
		"dir":            unix.EEXIST,
		"fifo":           unix.EEXIST,
		"fifo/x":         unix.ENOTDIR,
	} {
		if err := v.Restore(id, to, true); err == nil {
			t.Errorf("restored to %q", to)
		} else {
			is(t, err, want)
		}
	}
	equal(t, "salvage", s.contents(), []string{"kept"})
	left, _ := os.ReadDir(filepath.Join(s.path, Hidden, salvageName))
	equal(t, "files in the salvage", len(left), 2)
	left, _ = os.ReadDir(outside)
	equal(t, "files outside", len(left), 0)
}

func TestRestoreToLongPath(t *testing.T) {
	s := newShop(t)
	part := strings.Repeat("n", 200)
	at, err := unix.Dup(s.dir)
	must(t, err)
	for range 30 {
		must(t, unix.Mkdirat(at, part, 0o755))
		next, err := unix.Openat(at, part, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		unix.Close(at)
		at = next
	}
	defer unix.Close(at)
	id := s.keepNew("1", "kept", Record{Path: strings.Repeat(part+"/", 30) + "f"})
	must(t, s.salvaged().Restore(id, "", false))
	var st unix.Stat_t
	must(t, unix.Fstatat(at, "f", &st, 0))
	equal(t, "size", st.Size, 4)
}

func TestRestoreElsewhereFails(t *testing.T) {
	s := newShop(t)
	id := s.keepNew("1", "kept", Record{Path: "f"})
	v := s.salvaged()
	v.sys = &brokenSys{fail: unix.EXDEV, only: "rename"}
	err := v.Restore(id, "", false)
	is(t, err, unix.EXDEV)
	if err == nil || !strings.Contains(err.Error(), "must be copied") {
		t.Error(err)
	}
	v.sys = &brokenSys{fail: unix.EIO, only: "fsync"}
	is(t, v.Restore(id, "", false), unix.EIO)
	equal(t, "salvage", s.contents(), []string{"kept"})
}

// TestRestoreInterrupted ends a restore after every system call: the target has one of the two files whole, the salvage
// has the other, and nothing else is left once recovered.
func TestRestoreInterrupted(t *testing.T) {
	for n := 0; ; n++ {
		s := newShop(t)
		target := filepath.Join(s.path, "f")
		write(t, target, "current")
		id := s.keepNew("1", "kept", Record{Path: "f", Reason: "killed"})
		s.crash()
		v := s.salvaged()
		sys := &brokenSys{left: n, fail: unix.EIO}
		v.sys = sys
		err := v.Restore(id, "", true)
		if _, err := Recover(&brokenSys{}, s.dir); err != nil {
			t.Fatal(err)
		}
		all := append(s.contents(), read(t, target))
		slices.Sort(all)
		if fmt.Sprint(all) != "[current kept]" {
			t.Fatalf("after %d calls: %q, error %v", n, all, err)
		}
		// And the record is that of the bytes.
		want := map[string]string{"kept": "replaced by restore", "current": "killed"}[read(t, target)]
		if rec := s.records()[0]; rec.Reason != want || rec.Path != "f" || rec.Size != int64(len(s.contents()[0])) {
			t.Errorf("after %d calls, with %q in place: %+v", n, read(t, target), rec)
		}
		left, _ := os.ReadDir(filepath.Join(s.path, Hidden, salvageName))
		equal(t, fmt.Sprintf("files in the salvage after %d calls", n), len(left), 2)
		if !sys.broken {
			must(t, err)
			equal(t, "calls", n > 10, true)
			return
		}
	}
}

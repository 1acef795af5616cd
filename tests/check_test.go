package tests

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCheck: what a living mount stages and keeps is in order, by the backing and by the mountpoint; what a dead one left
// is not, until it is recovered. Looking changes nothing, not even an access time.
func TestCheck(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		m.put(t, "f", oldVersion)
		salvageOne(t, m, "kept", "kept")
		s := startSteps(t, m.Dir, `exec 5>f; echo staged >&5; step`)
		s.await(t)
		same := untouched(t, m.Backing)
		for _, dir := range []string{m.Backing, m.Dir} {
			if out := mustUntorn(t, "check", dir); out != "Nothing is wrong.\n" {
				t.Errorf("check: %s", out)
			}
		}
		if out := mustUntorn(t, "check", "--json", m.Backing); strings.TrimSpace(out) != "[]" {
			t.Errorf("check --json: %s", out)
		}
		same()

		m.Kill(t)
		s.kill(t)
		same = untouched(t, m.Backing)
		stdout, stderr, code := untorn(t, "check", m.Backing)
		if code != 8 || !strings.Contains(stdout, "untorn recover "+m.Backing) || !strings.Contains(stderr, "1 thing is wrong") {
			t.Errorf("exit code %d: %s%s", code, stdout, stderr)
		}
		stdout, _, code = untorn(t, "check", "--json", m.Backing)
		var list []struct{ Where, What, Do string }
		if err := json.Unmarshal([]byte(stdout), &list); err != nil || code != 8 || len(list) != 1 ||
			filepath.Dir(list[0].Where) != m.real(".untorn/stage") || list[0].What == "" || list[0].Do == "" {
			t.Errorf("exit code %d, %v: %s", code, err, stdout)
		}
		same()
		mustUntorn(t, "recover", m.Backing)
		mustUntorn(t, "check", m.Backing)
	})
}

// untouched returns a function that checks that nobody has touched .untorn since. The access times are set to long ago, or
// the kernel would not move them for a second look (relatime).
func untouched(t *testing.T, backing string) func() {
	t.Helper()
	before := map[string]string{}
	err := filepath.WalkDir(filepath.Join(backing, ".untorn"), func(path string, _ os.DirEntry, err error) error {
		before[path] = ""
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	look := func() map[string]string {
		state := map[string]string{}
		for path := range before {
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				t.Fatal(err)
			}
			state[path] = fmt.Sprint(st.Ino, st.Mode, st.Nlink, st.Size, st.Atim, st.Mtim, st.Ctim)
		}
		return state
	}
	for path := range before {
		long, same := unix.Timespec{Sec: 1}, unix.Timespec{Nsec: unix.UTIME_OMIT}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{long, same}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
	}
	before = look()
	return func() { t.Helper(); wantSame(t, before, look()) }
}

// TestCheckNested: the .untorn of a filesystem that is mounted below the backing is checked as well, also when the mount
// covers it.
func TestCheckNested(t *testing.T) {
	needUntorn(t)
	needRoot(t)
	dir := filepath.Join(tempDir(t), "dir")
	mustMkdir(t, dir)
	sh(t, dir, "mkdir sub; mount -t tmpfs none sub")
	t.Cleanup(func() { sh(t, dir, "umount sub") })
	sh(t, dir, "mkdir -m 700 sub/.untorn; echo untorn 1 > sub/.untorn/format; echo x > sub/.untorn/strange")
	m := &mount{Backing: dir, Dir: dir}
	m.start(t, dir)
	stdout, _, code := untorn(t, "check", dir)
	if code != 8 || !strings.Contains(stdout, dir+"/sub/.untorn/strange: ") {
		t.Errorf("exit code %d: %s", code, stdout)
	}
	mustUntorn(t, "umount", dir)
	sh(t, dir, "rm sub/.untorn/strange")
}

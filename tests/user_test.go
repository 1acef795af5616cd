package tests

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// TestOrdinaryUser mounts through fusermount3, without any right of root: no passthrough,
// and yet the promises hold.
func TestOrdinaryUser(t *testing.T) {
	needUntorn(t)
	needRoot(t)
	if _, err := exec.LookPath("fusermount3"); err != nil {
		t.Skip("no fusermount3 here")
	}
	openDevice(t)
	const uid = nobody // fusermount3 wants a user that has a name
	dir := tempDir(t)
	backing, mnt, home := filepath.Join(dir, "backing"), filepath.Join(dir, "mnt"), filepath.Join(dir, "home")
	for _, d := range []string{backing, mnt, home} {
		mustMkdir(t, d)
		if err := os.Chown(d, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	asOwner := func(name string, args ...string) string {
		t.Helper()
		cmd := command(t, name, args...)
		asUser(uid, cmd)
		cmd.Env = append(cleanEnv(), "HOME="+home)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v: %s", name, args, err, out)
		}
		return string(out)
	}
	asOwner(binary, "mount", backing, mnt)
	t.Cleanup(func() {
		if fuseDevice(mnt) != "" {
			syscall.Unmount(mnt, syscall.MNT_DETACH)
		}
	})
	asOwner("bash", "-euxc", `cd "$1"
		echo old > f; bash -c 'echo lost; kill -9 $$' > f || true; [ "$(cat f)" = old ]
		{ echo a; [ "$(cat f)" = old ]; echo b; } > f
		[ "$(cat f)" = $'a\nb' ]; [ "$(cat "$2/f")" = $'a\nb' ]
		for i in {1..100}; do echo $i > g; [ "$(cat "$2/g")" = $i ]; done
		chmod 600 g; mkdir d; mv g d/h; ln d/h i; rm -r d; [ "$(cat i)" = 100 ]`, "-", mnt, backing)
	if out := asOwner(binary, "salvage", "list", "--json", backing); len(out) < 20 {
		t.Errorf("salvage list: %s", out)
	}
	asOwner(binary, "umount", mnt)
	if fuseDevice(mnt) != "" {
		t.Error("still mounted")
	}
	for _, f := range stagedFiles(backing) {
		t.Errorf("still staged: %s", f)
	}
}

// openDevice lets everyone open /dev/fuse for the time of a test, as udev sets it up on
// most machines.
func openDevice(t testing.TB) {
	t.Helper()
	fi, err := os.Stat("/dev/fuse")
	if err != nil {
		t.Skip(err)
	}
	if fi.Mode().Perm()&0o006 == 0o006 {
		return
	}
	if err := os.Chmod("/dev/fuse", 0o666); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.Chmod("/dev/fuse", fi.Mode().Perm()) })
}

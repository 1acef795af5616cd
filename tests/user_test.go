package tests

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// userMount is a mount by somebody who is not root, in the background.
type userMount struct {
	mount
	home string
}

// newUserMount mounts through fusermount3, without any right of root.
func newUserMount(t *testing.T) *userMount {
	t.Helper()
	needRoot(t)
	if _, err := exec.LookPath("fusermount3"); err != nil {
		t.Skip("no fusermount3 here")
	}
	openDevice(t)
	dir := tempDir(t)
	u := &userMount{home: filepath.Join(dir, "home")}
	u.Backing, u.Dir = filepath.Join(dir, "backing"), filepath.Join(dir, "mnt")
	for _, d := range []string{u.Backing, u.Dir, u.home} {
		mustMkdir(t, d)
		if err := os.Chown(d, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	u.asOwner(t, binary, "mount", u.Backing, u.Dir)
	t.Cleanup(func() {
		if fuseDevice(u.Dir) != "" {
			syscall.Unmount(u.Dir, syscall.MNT_DETACH)
		}
	})
	return u
}

// asOwner runs a command as the user who mounted.
func (u *userMount) asOwner(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := u.tryAsOwner(t, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return out
}

func (u *userMount) tryAsOwner(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	cmd := command(t, name, args...)
	asUser(nobody, cmd) // fusermount3 wants a user that has a name
	cmd.Env = append(cleanEnv(), "HOME="+u.home)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestOrdinaryUser: no passthrough, and yet the promises hold.
func TestOrdinaryUser(t *testing.T) {
	needUntorn(t)
	u := newUserMount(t)
	u.asOwner(t, "bash", "-euxc", `cd "$1"
		echo old > f; bash -c 'echo lost; kill -9 $$' > f || true; [ "$(cat f)" = old ]
		{ echo a; [ "$(cat f)" = old ]; echo b; } > f
		[ "$(cat f)" = $'a\nb' ]; [ "$(cat "$2/f")" = $'a\nb' ]
		for i in {1..100}; do echo $i > g; [ "$(cat "$2/g")" = $i ]; done
		chmod 600 g; mkdir d; mv g d/h; ln d/h i; rm -r d; [ "$(cat i)" = 100 ]`, "-", u.Dir, u.Backing)
	if out := u.asOwner(t, binary, "salvage", "list", "--json", u.Backing); len(out) < 20 {
		t.Errorf("salvage list: %s", out)
	}
	u.asOwner(t, binary, "umount", u.Dir)
	if fuseDevice(u.Dir) != "" {
		t.Error("still mounted")
	}
	for _, f := range stagedFiles(u.Backing) {
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

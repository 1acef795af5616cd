package tests

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// makeFS makes a filesystem of the given size in a file, mounts it and returns where.
// opts are mount options; usrquota turns quotas on.
func makeFS(t testing.TB, fstype string, size int64, opts ...string) string {
	t.Helper()
	needRoot(t)
	base := tempDir(t)
	image, dir := filepath.Join(base, "image"), filepath.Join(base, "fs")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	f.Close()
	mkfs := map[string][]string{
		"ext4":  {"mkfs.ext4", "-q", "-F", "-m", "0"},
		"ext2":  {"mkfs.ext2", "-q", "-F", "-m", "0"},
		"xfs":   {"mkfs.xfs", "-q"},
		"btrfs": {"mkfs.btrfs", "-q"},
	}[fstype]
	if mkfs == nil {
		t.Fatalf("no way known to make a %s", fstype)
	}
	if slices.Contains(opts, "usrquota") {
		mkfs = append(mkfs, "-O", "quota")
	}
	if out, err := command(t, mkfs[0], append(mkfs[1:], image)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", mkfs[0], err, out)
	}
	mustMkdir(t, dir)
	options := strings.Join(append([]string{"loop"}, opts...), ",")
	if out, err := command(t, "mount", "-t", fstype, "-o", options, image, dir).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a %s here: %v\n%s", fstype, err, out)
	}
	t.Cleanup(func() {
		// umount(8) frees the loop device too. The mount below must be gone by then:
		// clean-ups run last in, first out.
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount of the test's %s: %v\n%s", fstype, err, out)
			syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	})
	return dir
}

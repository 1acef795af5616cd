package tests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRemountReadOnly: nobody can turn the backing read-only under a mount by accident, because the daemon has files open
// for writing there. When the mount has ended it goes, and the next mount is read-only.
func TestRemountReadOnly(t *testing.T) {
	needUntorn(t)
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fstype, func(t *testing.T) {
			backing := makeFS(t, fstype, 320<<20)
			m := newMountOn(t, backing)
			sh(t, m.Dir, "echo old > f")
			if out, err := trySh(t, "/", "mount -o remount,ro "+backing); err == nil || !strings.Contains(out, "busy") {
				t.Errorf("it was remounted: %v %s", err, out)
			}
			sh(t, m.Dir, "echo new > f")
			m.Unmount(t)
			sh(t, "/", "mount -o remount,ro "+backing)
			m = newMountOn(t, backing)
			sh(t, m.Dir, stepPrelude+`is f new; if : > f; then exit 1; fi; is f new`)
			m.Unmount(t)
			sh(t, "/", "mount -o remount,rw "+backing)
			m = newMountOn(t, backing)
			sh(t, m.Dir, "echo newer > f")
			m.wantVersion(t, "f", "newer\n")
		})
	}
}

// caught has a reader and a writer of f open, the writer half-way, when a filesystem dies.
const caught = `exec 7< f; py "
fd = os.open('f', os.O_WRONLY | os.O_TRUNC)
new = os.open('new', os.O_WRONLY | os.O_CREAT)
for d in fd, new:
    os.write(d, b'half')
    os.fsync(d)
step()
for d in fd, new:
    try: os.write(d, b'rest')
    except OSError as e: print('write', e.errno)
    try: os.close(d)
    except OSError as e: print('close', e.errno)
"
cat <&7 || true; exec 7<&-`

// filesystemDeaths are ways in which a filesystem stops taking writes at once.
var filesystemDeaths = []struct {
	name, fstype string
	strike       func(t *testing.T, dir string)
	readable     bool
}{
	{"ext4 error", "ext4", ext4Error, true}, // mounted with errors=remount-ro
	{"ext4 shutdown", "ext4", shutdownFS, false},
	{"xfs shutdown", "xfs", shutdownFS, false},
}

// ext4Error has the filesystem find an error in itself.
func ext4Error(t *testing.T, dir string) {
	sh(t, "/", `dev=$(losetup -nO NAME -j `+imageOf(dir)+`); echo 1 > /sys/fs/ext4/${dev#/dev/}/trigger_fs_error`)
}

// shutdownFS is the ioctl of ext4 and xfs that stops everything, without flushing the log.
func shutdownFS(t *testing.T, dir string) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	const goingdown, nologflush = 0x8004587d, 2
	if err := unix.IoctlSetPointerInt(fd, goingdown, nologflush); err != nil {
		t.Fatal(err)
	}
}

// imageOf is where makeFS has put the image of a filesystem.
func imageOf(dir string) string { return filepath.Join(filepath.Dir(dir), "image") }

// TestFilesystemDies: the filesystem of the backing stops taking writes while something is staged. Every close fails, the
// old version is intact, readers go on where the filesystem lets them, and the mount can be ended. When the filesystem has
// been mounted again, what the writers had synced is in the salvage.
func TestFilesystemDies(t *testing.T) {
	needUntorn(t)
	for _, death := range filesystemDeaths {
		t.Run(death.name, func(t *testing.T) {
			eachPath(t, func(t *testing.T, flags []string) {
				backing := makeFS(t, death.fstype, 320<<20)
				if death.readable {
					sh(t, "/", "mount -o remount,errors=remount-ro "+backing)
				}
				m := newMountOn(t, backing, flags...)
				sh(t, m.Dir, "echo old > f; sync -f .")
				s := startSteps(t, m.Dir, caught)
				s.await(t)
				death.strike(t, backing)
				s.release(t)
				s.finish(t)
				wantCaught(t, s.output.String(), death.readable)
				for _, name := range []string{"f", "newer"} {
					if err := os.WriteFile(m.path(name), nil, 0o644); err == nil {
						t.Errorf("%s can be written", name)
					}
				}
				if death.readable {
					m.wantVersion(t, "f", "old\n")
					m.wantNone(t, "new")
				}
				mustUntorn(t, "umount", m.Dir)
				m.awaitEnd(t)
				sh(t, "/", "umount "+backing+"; mount -o loop "+imageOf(backing)+" "+backing)
				m = newMountOn(t, backing, flags...)
				m.wantVersion(t, "f", "old\n")
				m.wantNone(t, "new")
				m.awaitSalvaged(t, "f", 1)
				m.awaitSalvaged(t, "new", 1)
				sh(t, m.Dir, "echo new > f")
				m.wantVersion(t, "f", "new\n")
			})
		})
	}
}

// wantCaught checks what the programs of caught were told.
func wantCaught(t *testing.T, out string, readable bool) {
	t.Helper()
	told := strings.Count(out, "close 5\n") == 2 || strings.Count(out, "close 30\n") == 2 // EIO, EROFS
	if !told || readable != strings.HasSuffix(out, "old\n") {
		t.Errorf("the programs were told:\n%s", out)
	}
}

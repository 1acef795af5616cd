package tests

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// everyday is what must hold on any filesystem: replace, append, rename, a half-written file, a killed writer.
const everyday = `
for i in {1..20}; do echo $i > f; is f $i; is "$B/f" $i; done
echo more >> f; is "$B/f" "20
more"
echo moved > tmp; mv tmp g; is "$B/g" moved
{ echo a; is "$B/g" moved; echo b; } > g; is "$B/g" "a
b"
bash -c 'seq 500; kill -9 $$' > g || true; is "$B/g" "a
b"
chmod 640 g; echo again > g; [ "$(stat -c %a "$B/g")" = 640 ]
truncate -s 3 g; is "$B/g" aga`

func doEveryday(t *testing.T, m *mount, at string) {
	t.Helper()
	t.Setenv("B", filepath.Join(m.Backing, at))
	sh(t, m.path(at), stepPrelude+everyday)
}

// mountAt mounts something on a directory until the test ends.
func mountAt(t *testing.T, dir string, args ...string) string {
	t.Helper()
	needRoot(t)
	if out, err := command(t, "mount", append(args, dir)...).CombinedOutput(); err != nil {
		t.Skipf("cannot mount that here: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	return dir
}

// TestNestedFilesystems: a filesystem below the backing has a stage of its own, found at first use, and a name does not
// move from one to the other.
func TestNestedFilesystems(t *testing.T) {
	nested := map[string]func(t *testing.T) string{
		"tmpfs": func(t *testing.T) string {
			backing := tempDir(t)
			mustMkdir(t, filepath.Join(backing, "sub"))
			mountAt(t, filepath.Join(backing, "sub"), "-t", "tmpfs", "none")
			return backing
		},
		"bind mount": func(t *testing.T) string {
			backing := tempDir(t)
			sh(t, backing, "mkdir sub other")
			mountAt(t, filepath.Join(backing, "sub"), "--bind", filepath.Join(backing, "other"))
			return backing
		},
		"btrfs subvolume": func(t *testing.T) string {
			backing := makeFS(t, "btrfs", 320<<20)
			sh(t, backing, "btrfs -q subvolume create sub")
			return backing
		},
		"xfs project": func(t *testing.T) string {
			backing := makeFS(t, "xfs", 320<<20)
			sh(t, backing, "mkdir sub; echo old > sub/f; echo old > sub/g; xfs_io -c 'chproj 42' -c 'chattr +P' sub")
			return backing
		},
	}
	for name, make := range nested {
		t.Run(name, func(t *testing.T) {
			eachPath(t, func(t *testing.T, flags []string) {
				m := newMountOn(t, make(t), flags...)
				doEveryday(t, m, "sub")
				if name == "xfs project" {
					return
				}
				sh(t, m.Dir, `exec 3> new; echo x >&3; if mv --no-copy new sub/new 2> /dev/null; then :; fi
					if ln new sub/new2; then exit 1; fi; exec 3>&-; [ "$(cat new sub/new 2> /dev/null)" = x ]`)
				if _, err := os.Stat(m.path("sub/.untorn")); !os.IsNotExist(err) {
					t.Errorf("the nested .untorn is reachable: %v", err)
				}
				if native {
					return
				}
				if out := mustUntorn(t, "salvage", "list", m.path("sub")); !strings.Contains(out, "sub/g") {
					t.Errorf("salvage list in the mount: %s", out)
				}
				_, notice, _ := untorn(t, "salvage", "list", m.Dir)
				if told := strings.Contains(notice, "sub has a salvage of its own"); told != (name != "btrfs subvolume") {
					t.Errorf("salvage list tells: %s", notice)
				}
			})
		})
	}
}

// TestNestedComesAndGoes: a filesystem that is mounted into the backing of a live mount is seen there, and it can be
// unmounted again when nobody uses it and the kernel has forgotten what it knew of it.
func TestNestedComesAndGoes(t *testing.T) {
	needUntorn(t)
	needRoot(t)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		sh(t, m.Dir, "mkdir sub; echo below > sub/below")
		for range 2 {
			sh(t, "/", "mount -t tmpfs none "+m.real("sub"))
			eventually(t, "the new filesystem is seen", func() bool {
				_, err := os.Stat(m.path("sub/below"))
				return os.IsNotExist(err)
			})
			doEveryday(t, m, "sub")
			if left := stagedFiles(m.real("sub")); len(left) > 0 {
				t.Errorf("staged: %v", left)
			}
			// Memory pressure would do the same in its time.
			eventually(t, "it can be unmounted", func() bool {
				os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0)
				_, err := trySh(t, "/", "umount "+m.real("sub"))
				return err == nil
			})
			eventually(t, "what was below is seen again", func() bool {
				b, err := os.ReadFile(m.path("sub/below"))
				return err == nil && string(b) == "below\n"
			})
			sh(t, m.Dir, "echo more >> sub/below; echo below > sub/below")
		}
	})
}

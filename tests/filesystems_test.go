package tests

import (
	"os"
	"os/exec"
	"path/filepath"
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
			})
		})
	}
}

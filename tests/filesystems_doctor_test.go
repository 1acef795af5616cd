package tests

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// doctored is what untorn doctor says about a directory, by check.
type doctored map[string]struct {
	Result  string
	OK      bool
	Meaning string
}

func askDoctor(t *testing.T, dir string) doctored {
	t.Helper()
	var list []struct {
		Check, Result, Meaning string
		OK                     bool
	}
	if err := json.Unmarshal([]byte(mustUntorn(t, "doctor", "--json", dir)), &list); err != nil {
		t.Fatal(err)
	}
	d := doctored{}
	for _, f := range list {
		d[f.Check] = struct {
			Result  string
			OK      bool
			Meaning string
		}{f.Result, f.OK, f.Meaning}
	}
	return d
}

// doctorTrials are what doctor claims to have tried, done by others: each succeeds where doctor says ok.
var doctorTrials = map[string]string{
	"reflink":                 `head -c 100K /dev/urandom > a; cp --reflink=always a b`,
	"RENAME_NOREPLACE":        `: > a; sys rename2 noreplace a b`,
	"RENAME_EXCHANGE":         `: > a; : > b; sys rename2 exchange a b`,
	"hard links":              `: > a; ln a b`,
	"O_TMPFILE":               `sys tmpfile . a content`,
	"user xattrs":             `: > a; setfattr -n user.x -v y a; [ "$(getfattr --only-values -n user.x a)" = y ]`,
	"POSIX ACLs":              `: > a; setfacl -m u:1234:r a; getfacl -c a | grep -q 1234`,
	"fsync of a directory":    `/usr/bin/python3 -c 'import os; os.fsync(os.open(".", os.O_RDONLY))'`,
	"writable":                `: > a`,
	"/proc: kills":            `: > a`,
	"/proc: fdinfo":           `: > a; exec 5< a; grep -q ino: /proc/$BASHPID/fdinfo/5`,
	"/proc: descriptor count": `[ "$(stat -Lc %s /proc/$BASHPID/fd)" -gt 2 ]`,
}

// madeFS is a filesystem that doctor is asked about, and what it must say.
type madeFS struct {
	make    func(t *testing.T) string
	lacks   []string // the trials that fail
	says    map[string]string
	nothing bool // cannot be written
}

func onDisk(fstype string, size int64) func(t *testing.T) string {
	return func(t *testing.T) string { return makeFS(t, fstype, size) }
}

var madeFilesystems = map[string]madeFS{
	"ext4": {
		make: onDisk("ext4", 32<<20), lacks: []string{"reflink"},
		says: map[string]string{"durability": "full", "passthrough": "possible"},
	},
	"ext2": {
		make: onDisk("ext2", 32<<20), lacks: []string{"reflink"},
		says: map[string]string{"durability": "without a journal"},
	},
	"xfs":   {make: onDisk("xfs", 300<<20), says: map[string]string{"durability": "full"}},
	"btrfs": {make: onDisk("btrfs", 120<<20), says: map[string]string{"durability": "full"}},
	"ext4 without barriers": {
		make:  func(t *testing.T) string { return makeFS(t, "ext4", 32<<20, "nobarrier") },
		lacks: []string{"reflink"}, says: map[string]string{"durability": "none: mounted with"},
	},
	"tmpfs": {
		make:  func(t *testing.T) string { return mountAt(t, tempDir(t), "-t", "tmpfs", "none") },
		lacks: []string{"reflink"}, says: map[string]string{"durability": "none", "filesystem": "tmpfs"},
	},
	"overlayfs": {
		make: makeOverlay, lacks: []string{"reflink"},
		says: map[string]string{"filesystem": "stacked"},
	},
	"squashfs": {
		make: makeSquashfs, nothing: true,
		says: map[string]string{"writable": "read-only", "filesystem": "squashfs"},
	},
	"bindfs": {
		make: makeBindfs, lacks: []string{"reflink", "O_TMPFILE", "RENAME_NOREPLACE", "RENAME_EXCHANGE"},
		says: map[string]string{"passthrough": "not over FUSE", "durability": "up to its server"},
	},
	"poor": {
		make: func(t *testing.T) string {
			f := newFaultyFS(t)
			f.poor(t)
			return f.Dir
		},
		lacks: []string{"reflink", "O_TMPFILE", "RENAME_NOREPLACE", "RENAME_EXCHANGE", "hard links", "user xattrs",
			"POSIX ACLs"},
		says: map[string]string{"passthrough": "not over FUSE", "filesystem": "another FUSE filesystem"},
	},
}

func makeOverlay(t *testing.T) string {
	base := mountAt(t, tempDir(t), "-t", "tmpfs", "none") // an overlay takes no overlay for its upper layer
	sh(t, base, "mkdir lower upper work merged; echo lower > lower/f; echo lower > lower/g")
	o := "lowerdir=" + base + "/lower,upperdir=" + base + "/upper,workdir=" + base + "/work"
	return mountAt(t, filepath.Join(base, "merged"), "-t", "overlay", "-o", o, "overlay")
}

func makeSquashfs(t *testing.T) string {
	if _, err := exec.LookPath("mksquashfs"); err != nil {
		t.Skip("no mksquashfs here")
	}
	base := tempDir(t)
	sh(t, base, "mkdir tree fs; echo old > tree/f; mksquashfs tree image -quiet -no-progress > /dev/null")
	return mountAt(t, filepath.Join(base, "fs"), "-t", "squashfs", "-o", "loop", filepath.Join(base, "image"))
}

func makeBindfs(t *testing.T) string {
	needRoot(t)
	if _, err := exec.LookPath("bindfs"); err != nil {
		t.Skip("no bindfs here")
	}
	base := tempDir(t)
	sh(t, base, "mkdir below fs; bindfs below fs")
	dir := filepath.Join(base, "fs")
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount of bindfs: %v\n%s", err, out)
		}
	})
	return dir
}

// TestDoctorTellsTheTruth: what doctor says about a filesystem is what happens there, and whatever it lacks, files are
// replaced whole.
func TestDoctorTellsTheTruth(t *testing.T) {
	needUntorn(t)
	for name, fs := range madeFilesystems {
		t.Run(name, func(t *testing.T) {
			backing := fs.make(t)
			said := askDoctor(t, backing)
			for check, want := range fs.says {
				if got := said[check].Result; !strings.Contains(got, want) {
					t.Errorf("%s: %q, want %q", check, got, want)
				}
			}
			if fs.nothing {
				m := newMountOn(t, backing)
				sh(t, m.Dir, stepPrelude+`is f old; if : > f; then exit 1; fi 2> /dev/null`)
				return
			}
			fs.compare(t, backing, said)
			eachPath(t, func(t *testing.T, flags []string) {
				m := newMountOn(t, backing, flags...)
				doEveryday(t, m, ".")
				path := "plain"
				if len(flags) == 0 && said["passthrough"].OK {
					path = "passthrough"
				}
				m.awaitLog(t, "data_path="+path)
				sh(t, m.Dir, "rm f g")
			})
		})
	}
}

func (fs madeFS) compare(t *testing.T, backing string, said doctored) {
	t.Helper()
	dir := filepath.Join(backing, "trial")
	for check, script := range doctorTrials {
		mustMkdir(t, dir)
		out, err := trySh(t, dir, sysPrelude+script)
		if claim, ok := said[check]; !ok || claim.OK != (err == nil) {
			t.Errorf("%s: doctor says %+v; %v: %s", check, claim, err, out)
		}
		if want := !slices.Contains(fs.lacks, check); want != (err == nil) {
			t.Errorf("%s: %v: %s", check, err, out)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

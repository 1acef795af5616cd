package tests

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// careless writes 100 pieces, ignores every error as many programs do, and prints the
// errors of write and of close.
//
//	careless.py PATH HOW SEED [LIMIT]
const careless = `
import json, os, resource, signal, sys
path, how, seed = sys.argv[1:4]
if len(sys.argv) > 4:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
flags = {"truncate": os.O_TRUNC, "new": os.O_CREAT | os.O_EXCL}[how]
fd = os.open(path, os.O_WRONLY | flags, 0o644)
report = {"write": 0, "close": 0, "written": 0}
for i in range(100):
    try: report["written"] += os.write(fd, (("%s:%d" % (seed, i)).ljust(99) + "\n").encode() * 37)
    except OSError as e: report["write"] = e.errno; break
try: os.close(fd)
except OSError as e: report["close"] = e.errno
print(json.dumps(report))`

type carelessReport struct{ Write, Close, Written int }

func runCareless(t testing.TB, uid int, args ...string) carelessReport {
	t.Helper()
	cmd := command(t, "/usr/bin/python3", append([]string{"-c", careless}, args...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if uid != 0 {
		asUser(uid, cmd)
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, errs.String())
	}
	var r carelessReport
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// wantPoisoned runs a careless writer that fails half-way and checks that nothing is
// published, that close said so, and that its bytes can be had again.
func wantPoisoned(t *testing.T, m *mount, uid int, how string, limit ...string) {
	t.Helper()
	m.put(t, "truncate", oldVersion)
	if err := os.Chown(m.real("truncate"), uid, uid); err != nil {
		t.Fatal(err)
	}
	seed := 7
	r := runCareless(t, uid, append([]string{m.path(how), how, strconv.Itoa(seed)}, limit...)...)
	if r.Write == 0 || r.Written == 0 {
		t.Fatalf("the writer did not fail half-way: %+v", r)
	}
	if how == "new" {
		m.wantNone(t, how)
	} else {
		m.wantVersion(t, how, oldVersion)
	}
	if r.Close != r.Write {
		t.Errorf("close(2) did not report why nothing was published: %+v", r)
	}
	e := m.awaitSalvaged(t, how, 1)[0]
	to := filepath.Join(tempDir(t), "restored")
	if _, stderr, code := untorn(t, "salvage", "restore", m.Backing, e.ID, "--to", to); code != 0 {
		t.Fatalf("salvage restore: %s", stderr)
	}
	if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, victimStream(seed, 100)[:r.Written]) {
		t.Errorf("restored %d bytes of %d, %v", len(got), r.Written, err)
	}
	if _, stderr, code := untorn(t, "salvage", "purge", m.Backing, "--all"); code != 0 {
		t.Errorf("salvage purge: %s", stderr)
	}
}

// fillDisk leaves about 200 KiB on the filesystem of dir.
func fillDisk(t testing.TB, dir string) {
	t.Helper()
	sh(t, dir, `free=$(($(stat -f -c '%a * %S' .) / 1024)); fallocate -l $((free - 200))K filler`)
}

// TestBrimfulDisk: not a single byte can be written. A program that ignores it has made an
// empty file, which must not replace the old one, nor appear where there was none.
func TestBrimfulDisk(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		backing := makeFS(t, "ext4", 32<<20)
		m := newMountOn(t, backing, flags...)
		m.put(t, "truncate", oldVersion)
		sh(t, backing, `for size in 1M 3700 3700; do dd if=/dev/zero of=filler bs=$size oflag=append conv=notrunc 2> /dev/null || true; sync; done`)
		for _, how := range []string{"truncate", "new"} {
			cmd := command(t, "/usr/bin/python3", "-c", careless, m.path(how), how, "1")
			if out, err := cmd.Output(); err == nil && !bytes.Contains(out, []byte(`"written": 0`)) {
				t.Fatalf("the disk is not full: %s", out)
			}
		}
		m.wantVersion(t, "truncate", oldVersion)
		m.wantNone(t, "new")
		sh(t, m.Dir, `rm filler; echo a > f; [ "$(cat f)" = a ]`)
	})
}

// TestFullDisk: writers that run into a full disk and ignore it.
func TestFullDisk(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		eachDurability(t, flags, func(t *testing.T, flags []string) {
			for _, how := range []string{"truncate", "new"} {
				t.Run(how, func(t *testing.T) {
					backing := makeFS(t, "ext4", 32<<20)
					m := newMountOn(t, backing, flags...)
					fillDisk(t, backing)
					wantPoisoned(t, m, 0, how)
					sh(t, m.Dir, `rm filler; echo a > f; [ "$(cat f)" = a ]`)
				})
			}
		})
	})
}

// TestReservedBlocksHold: a daemon that runs as root writes with its own rights, and yet
// the blocks reserved for root are not for everyone.
func TestReservedBlocksHold(t *testing.T) {
	const uid = 4321
	eachPath(t, func(t *testing.T, flags []string) {
		backing := makeFS(t, "ext4", 32<<20)
		m := newMountOn(t, backing, flags...)
		sh(t, backing, `chmod 777 .; tune2fs -m 20 "$(findmnt -no SOURCE --target .)"`)
		fillDisk(t, backing)
		wantPoisoned(t, m, uid, "truncate")
	})
}

// TestQuota: EDQUOT is like a full disk.
func TestQuota(t *testing.T) {
	const uid = 4321
	eachPath(t, func(t *testing.T, flags []string) {
		backing := makeFS(t, "ext4", 32<<20, "usrquota")
		m := newMountOn(t, backing, flags...)
		sh(t, backing, `chmod 777 .; setquota -u 4321 200 200 0 0 "$PWD"`)
		wantPoisoned(t, m, uid, "truncate")
	})
}

// TestFileSizeLimitIgnored: with SIGXFSZ ignored, the write fails with EFBIG in the kernel
// before untorn hears of it.
func TestFileSizeLimitIgnored(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		for _, how := range []string{"truncate", "new"} {
			t.Run(how, func(t *testing.T) {
				m := newMount(t, flags...)
				wantPoisoned(t, m, 0, how, "100000")
			})
		}
	})
}

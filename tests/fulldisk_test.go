package tests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
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
flags = {"truncate": os.O_TRUNC, "new": os.O_CREAT | os.O_EXCL, "append": os.O_APPEND}[how]
report = {"open": 0, "write": 0, "close": 0, "written": 0}
try: fd = os.open(path, os.O_WRONLY | flags, 0o644)
except OSError as e: report["open"] = e.errno; print(json.dumps(report)); sys.exit()
for i in range(100):
    try: report["written"] += os.write(fd, (("%s:%d" % (seed, i)).ljust(99) + "\n").encode() * 37)
    except OSError as e: report["write"] = e.errno; break
try: os.close(fd)
except OSError as e: report["close"] = e.errno
print(json.dumps(report))`

type carelessReport struct{ Open, Write, Close, Written int }

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

// TestNearlyFullDisk leaves less and less room, so that it ends at every place: the temp, the copy of the base, the bytes, a
// block of the directory, the record of the salvage. A close that returns 0 has published everything; any other nothing.
func TestNearlyFullDisk(t *testing.T) {
	needUntorn(t)
	disks := map[string]func(t *testing.T) string{
		"ext4":  func(t *testing.T) string { return makeFS(t, "ext4", 32<<20) },
		"xfs":   func(t *testing.T) string { return makeFS(t, "xfs", 300<<20) },
		"btrfs": func(t *testing.T) string { return makeFS(t, "btrfs", 320<<20) },
		"tmpfs": func(t *testing.T) string { return mountAt(t, tempDir(t), "-t", "tmpfs", "-o", "size=4m", "none") },
	}
	for name, disk := range disks {
		t.Run(name, func(t *testing.T) {
			eachPath(t, func(t *testing.T, flags []string) {
				backing := disk(t)
				m := newMountOn(t, backing, flags...)
				outcomes := map[bool]int{}
				for _, left := range []int{4000, 500, 300, 100, 28, 8, 0} {
					for _, how := range []string{"truncate", "new", "append"} {
						outcomes[writeNearlyFull(t, m, how, left)]++
					}
				}
				if outcomes[true] == 0 || outcomes[false] == 0 {
					t.Errorf("published: %v", outcomes)
				}
				sh(t, m.Dir, `rm filler; echo a > f; [ "$(cat f)" = a ]`)
			})
		})
	}
}

// writeNearlyFull writes a file in one of three ways with so many KiB left, and reports whether it was published.
func writeNearlyFull(t *testing.T, m *mount, how string, left int) (published bool) {
	t.Helper()
	name, old, want := how, "", string(victimStream(5, 100))
	sh(t, m.Backing, "rm -f filler new* truncate append")
	if how == "new" {
		name += strings.Repeat("w", 200) // to need a new block of the directory
	} else {
		old = strings.Repeat(oldVersion, 1000)
		m.put(t, name, old)
	}
	sh(t, m.Backing, fmt.Sprintf(`sync -f .; fallocate -l $(($(stat -f -c '%%a * %%S' .) - %d * 1024)) filler 2> /dev/null ||
		cat /dev/zero > filler 2> /dev/null || true`, left))
	r := runCareless(t, 0, m.path(name), how, "5")
	ok := r.Open == 0 && r.Close == 0
	if r.Write != 0 && ok {
		t.Errorf("%s: a write failed, and close(2) returned 0: %+v", how, r)
	}
	if how == "append" {
		want = old + want
	}
	switch {
	case ok:
		m.wantVersion(t, name, want)
	case how == "new":
		m.wantNone(t, name)
	default:
		m.wantVersion(t, name, old)
	}
	return ok
}

// TestInodesExhausted: a replacement needs an inode of its own. The salvage gives one up first.
func TestInodesExhausted(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		backing := mountAt(t, tempDir(t), "-t", "tmpfs", "-o", "size=8m,nr_inodes=100", "none")
		m := newMountOn(t, backing, flags...)
		for range 3 {
			salvageOne(t, m, "f", "kept")
		}
		m.put(t, "f", "old")
		sh(t, backing, `mkdir d; for i in {1..200}; do : > d/$i || break; done 2> /dev/null`)
		sh(t, m.Dir, `echo new > f; [ "$(cat f)" = new ]`)
		m.awaitLog(t, "gave up a salvaged file")
		mustUntorn(t, "salvage", "purge", backing, "--all")
		sh(t, backing, `for i in {1..200}; do : > d/more$i || break; done 2> /dev/null`)
		sh(t, m.Dir, `if echo newer > f; then exit 1; fi 2> /dev/null; [ "$(cat f)" = new ]
			rm -r d; echo newer > f; [ "$(cat f)" = newer ]`)
	})
}

// awaitLog waits for the daemon to say something.
func (m *mount) awaitLog(t testing.TB, text string) {
	t.Helper()
	eventually(t, "the log says "+text, func() bool { return strings.Contains(mustRead(t, m.log), text) })
}

// TestSalvageGivesWay: what is salvaged holds the room that a writer needs. Through the daemon he gets it at once. With
// passthrough his write fails before anybody is asked, and nothing is published; when he tries again there is room.
func TestSalvageGivesWay(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		backing := makeFS(t, "ext4", 128<<20)
		m := newMountOn(t, backing, flags...)
		sh(t, m.Dir, `bash -c 'head -c 40M /dev/zero; kill -9 $$' > lost || true`)
		m.awaitSalvaged(t, "lost", 1)
		sh(t, backing, `fallocate -l $(($(stat -f -c '%a * %S' .) - (20 << 20))) filler`)
		m.put(t, "f", oldVersion)
		const write = `head -c 30M /dev/zero > f`
		if len(flags) > 0 {
			sh(t, m.Dir, write)
		} else if _, err := trySh(t, m.Dir, write); err != nil {
			m.wantVersion(t, "f", oldVersion)
			sh(t, m.Dir, write)
		}
		m.awaitLog(t, "gave up a salvaged file")
		if fi, err := os.Stat(m.real("f")); err != nil || fi.Size() != 30<<20 {
			t.Errorf("published: %v, %v", fi, err)
		}
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

// TestGroupQuota: btrfs counts by subvolume, and says nothing of it in its mount options.
func TestGroupQuota(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		backing := makeFS(t, "btrfs", 320<<20)
		if out, err := trySh(t, backing, "btrfs quota enable ."); err != nil {
			t.Skipf("no quotas on btrfs here: %s", out)
		}
		m := newMountOn(t, backing, flags...)
		m.put(t, "truncate", oldVersion)
		sh(t, backing, "sync -f .; btrfs qgroup limit 300K .")
		r := runCareless(t, 0, m.path("truncate"), "truncate", "7")
		if syscall.Errno(r.Write) != syscall.EDQUOT || r.Close == 0 {
			t.Errorf("the writer was told %+v", r)
		}
		m.wantVersion(t, "truncate", oldVersion)
		sh(t, backing, "btrfs qgroup limit none .")
		sh(t, m.Dir, `echo a > f; [ "$(cat f)" = a ]`)
		m.awaitSalvaged(t, "truncate", 1)
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

package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestManyNames lists 100,000 names.
func TestManyNames(t *testing.T) {
	const count = 100_000
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		mustMkdir(t, m.real("d"))
		for i := range count {
			if err := os.WriteFile(filepath.Join(m.Backing, "d", fmt.Sprintf("name-%06d", i)), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		const listing = `ls -f d | sort | md5sum; ls -l d | wc -l; find d -type f | wc -l`
		if got, want := sh(t, m.Dir, listing), sh(t, m.Backing, listing); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		if out := sh(t, m.Dir, sysPrelude+`sys seekdir d`); strings.Contains(out, "false") {
			t.Errorf("after seeking, other names follow: %s", out)
		}
		sh(t, m.Dir, `echo x > d/name-050000; echo x > d/new; [ $(ls -f d | wc -l) = 100003 ]`)
	})
}

// TestManyOpenFiles has 2,000 files open for write at once.
func TestManyOpenFiles(t *testing.T) {
	const count = 2000
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		if out, err := trySh(t, m.Dir, `ulimit -Sn 2100`); err != nil {
			t.Skipf("too few descriptors here: %s", out)
		}
		sh(t, m.Dir, sysPrelude+fmt.Sprintf(`ulimit -Sn 2100; mkdir d; sys manywrites d %d`, count))
		for i := range count {
			m.wantVersion(t, fmt.Sprintf("d/%d", i), fmt.Sprintf("%d\n", i))
		}
	})
}

// TestLargeSparseFile writes 8 GiB of holes with some data, and copies it by appending.
func TestLargeSparseFile(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		sh(t, m.Dir, `
			/usr/bin/python3 -c '
fd = open("f", "wb")
for at in (0, 1 << 30, 5 << 30, (8 << 30) - 6):
    fd.seek(at); fd.write(b"marker")
'
			look() {
				[ $(stat -c %s f) = $1 ]
				for at in 0 $((1 << 30)) $((5 << 30)) $(((8 << 30) - 6)); do
					[ "$(dd if=f bs=1 skip=$at count=6 status=none)" = marker ]
				done
				[ $(($(stat -c '%b * %B' f))) -lt $((1 << 20)) ]
			}
			look $((8 << 30))
			echo x >> f
			look $(((8 << 30) + 2))
			printf marker | dd of=f bs=1 seek=$((1 << 30)) conv=notrunc status=none
			look $(((8 << 30) + 2))`)
		sh(t, m.Backing, `[ $(stat -c %s f) = $(((8 << 30) + 2)) ]; [ $(($(stat -c '%b * %B' f))) -lt $((1 << 20)) ]`)
	})
}

package tests

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestBackingUnmounted: the backing cannot be unmounted below the mount. Detached it can be; the mount goes on then, and
// what it publishes is there when the filesystem is mounted again.
func TestBackingUnmounted(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		backing := makeFS(t, "ext4", 32<<20)
		image := imageOf(backing)
		m := newMountOn(t, backing, flags...)
		sh(t, m.Dir, "echo old > old; mkdir d")
		if out, err := trySh(t, "/", "umount "+backing); err == nil || !strings.Contains(out, "busy") {
			t.Errorf("it was unmounted: %v %s", err, out)
		}
		s := startSteps(t, m.Dir, `exec 5> d/f; echo half >&5; step; echo rest >&5; exec 5>&-; is d/f "half
rest"; echo new > f; is f new; echo more >> f; mv f g; bash -c 'echo lost; kill -9 $$' > g || true; is g "new
more"`)
		s.await(t)
		sh(t, "/", "umount -l "+backing)
		s.release(t)
		s.finish(t)
		mustUntorn(t, "umount", m.Dir)
		m.awaitEnd(t)
		eventually(t, "the filesystem is given back", func() bool { // umount(2) has returned before its loop device is free
			_, err := trySh(t, "/", "mount -o loop "+image+" "+backing)
			return err == nil
		})
		m = newMountOn(t, backing, flags...)
		m.wantVersion(t, "g", "new\nmore\n")
		m.wantVersion(t, "d/f", "half\nrest\n")
		m.wantNone(t, "f")
		m.awaitSalvaged(t, "g", 1)
	})
}

// TestLazyUnmountUnderLoad: who is inside goes on in the detached mount to his end, and loses nothing.
func TestLazyUnmountUnderLoad(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		const writers = 4
		var load []*steps
		for i := range writers {
			// {fd} stays open across the unmount, and is published by the exit.
			s := startSteps(t, m.Dir, fmt.Sprintf(`n=%d; echo begun > $n.a; exec {fd}> $n.b; echo one >&$fd
				step
				for v in {1..25}; do echo $v > $n.c; echo $v >> $n.d; is $n.c $v; done
				echo two >&$fd`, i))
			load = append(load, s)
		}
		for _, s := range load {
			s.await(t)
		}
		for _, s := range load {
			s.release(t)
		}
		mustUntorn(t, "umount", "--lazy", m.Dir)
		if fuseDevice(m.Dir) != "" {
			t.Error("it is still mounted")
		}
		for _, s := range load {
			s.finish(t)
		}
		m.awaitEnd(t)
		for i := range writers {
			for name, want := range map[string]string{"a": "begun\n", "b": "one\ntwo\n", "c": "25\n"} {
				if got := mustRead(t, m.real(fmt.Sprintf("%d.%s", i, name))); got != want {
					t.Errorf("%d.%s is %q", i, name, got)
				}
			}
			if lines := strings.Count(mustRead(t, m.real(fmt.Sprintf("%d.d", i))), "\n"); lines != 25 {
				t.Errorf("%d.d has %d lines", i, lines)
			}
		}
	})
}

// TestDescriptorLimit: the daemon raises the limit that it was started with, and holds thousands of staged files.
func TestDescriptorLimit(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMountWithLimit(t, 256, append([]string{"--durability=none"}, flags...))
		const count = 400 // more than it was started with; TestManyOpenFiles has more
		sh(t, m.Dir, sysPrelude+fmt.Sprintf("ulimit -Sn %d; mkdir d; sys manywrites d %d", count+100, count))
		for i := range count {
			if got := mustRead(t, m.real(fmt.Sprintf("d/%d", i))); got != fmt.Sprintln(i) {
				t.Fatalf("%d is %q", i, got)
			}
		}
	})
}

// newMountWithLimit starts the daemon with a soft limit of descriptors.
func newMountWithLimit(t *testing.T, limit uint64, flags []string) *mount {
	t.Helper()
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: limit, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	defer syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was)
	return newMount(t, flags...)
}

// TestNoDescriptorsLeft: a daemon that has reached its limit refuses to stage more, says so, and gets over it.
func TestNoDescriptorsLeft(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		sh(t, m.Dir, "echo old > old; mkdir d")
		limit := unix.Rlimit{Cur: 160, Max: 160} // 64 of them are kept for closing
		if err := unix.Prlimit(m.server, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
			t.Fatal(err)
		}
		out, err := trySh(t, m.Dir, sysPrelude+"sys manywrites d 200")
		if err == nil || !strings.Contains(out, "EMFILE") {
			t.Errorf("200 files with 160 descriptors: %v: %s", err, out)
		}
		eventually(t, "an empty stage", func() bool { return len(stagedFiles(m.Backing)) == 0 })
		doEveryday(t, m, ".")
		m.wantVersion(t, "old", "old\n")
	})
}

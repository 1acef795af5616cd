package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func init() { helpers["swapper"] = swapper }

// swapper DIR A B exchanges two names until its input ends, and prints how often.
func swapper(args []string) {
	dir, err := unix.Open(args[0], unix.O_PATH|unix.O_DIRECTORY, 0)
	check(err)
	end := make(chan bool)
	go func() { os.Stdin.Read(make([]byte, 1)); close(end) }()
	for n := 0; ; n++ {
		select {
		case <-end:
			fmt.Println(n)
			return
		default:
			check(unix.Renameat2(dir, args[1], dir, args[2], unix.RENAME_EXCHANGE))
		}
	}
}

// swapping runs do while another user exchanges the directory d in dir for the symlink l.
func swapping(t *testing.T, dir string, do func()) {
	t.Helper()
	cmd := helper(t, "swapper", dir, "d", "l")
	asUser(posixUser, cmd)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	var out []byte
	go func() { out, err = cmd.CombinedOutput(); done <- err }()
	do()
	in.Close()
	if err := <-done; err != nil {
		t.Fatalf("swapper: %v: %s", err, out)
	}
	t.Logf("swapped %s", out)
}

// TestSwappedDirectory: a user exchanges his directory for a symlink, while root works in it by ways that follow none. All
// that root writes must come to that directory; outside, where the link leads, nothing may happen.
func TestSwappedDirectory(t *testing.T) {
	needRoot(t)
	tries := rounds(2500)
	for where, swapIn := range map[string]func(m *mount) string{
		"on the backing":    func(m *mount) string { return m.real("u") },
		"through the mount": func(m *mount) string { return m.path("u") },
	} {
		t.Run(where, func(t *testing.T) {
			eachPath(t, func(t *testing.T, flags []string) {
				// With a cache, what d was once would be looked at over and over.
				m := newMount(t, append(flags, "--durability=none", "--cache=0")...)
				outside := tempDir(t)
				sh(t, outside, "mkdir n s; for f in f g s/f n/f; do echo outside > $f; done; chmod -R a=rX .; touch -d @1000 f g s/f n/f")
				sh(t, m.Backing, fmt.Sprintf("mkdir -p u/d/s; ln -s %s u/l; chown -hR 1001:1001 u", outside))
				before := everything(t, outside)
				done := 0
				swapping(t, swapIn(m), func() {
					u, err := unix.Open(m.path("u"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
					if err != nil {
						t.Fatal(err)
					}
					defer unix.Close(u)
					for i := range tries {
						if workIn(u, i) {
							done++
						}
					}
				})
				wantSame(t, before, everything(t, outside))
				t.Logf("%d of %d went through", done, tries)
				if done == 0 {
					t.Error("nothing went through")
				}
			})
		})
	}
}

// workIn does one of several things in d/ or d/s/ below the directory u, following no symlink. Whether it succeeds depends
// on what d is at that moment.
func workIn(u, try int) bool {
	how := func(flags uint64) *unix.OpenHow {
		return &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH}
	}
	sub := []string{"d", "d/s"}[try%2]
	rewrite := func(name string, flags uint64) error {
		h := how(unix.O_WRONLY | flags)
		if flags&unix.O_CREAT != 0 {
			h.Mode = 0o644
		}
		fd, err := unix.Openat2(u, filepath.Join(sub, name), h)
		if err != nil {
			return err
		}
		unix.Write(fd, []byte("inside\n"))
		return unix.Close(fd)
	}
	if try/2%3 == 0 { // by path, the whole of it at once
		return rewrite("f", unix.O_CREAT|unix.O_TRUNC) == nil && rewrite("f", unix.O_APPEND) == nil
	}
	d, err := unix.Openat2(u, sub, how(unix.O_PATH|unix.O_DIRECTORY))
	if err != nil {
		return false
	}
	defer unix.Close(d)
	fd, err := unix.Openat(d, "f", unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return false
	}
	unix.Write(fd, []byte("inside\n"))
	unix.Fchmod(fd, 0o600)
	if err := unix.Close(fd); err != nil {
		return false
	}
	if try/2%3 == 1 {
		unix.Mkdirat(d, "n", 0o755)
		unix.Unlinkat(d, "n", unix.AT_REMOVEDIR)
		unix.Symlinkat("f", d, "x")
		unix.Unlinkat(d, "x", 0)
		return unix.Renameat(d, "f", d, "g") == nil
	}
	unix.UtimesNanoAt(d, "f", nil, unix.AT_SYMLINK_NOFOLLOW)
	unix.Fchownat(d, "f", 1001, 1001, unix.AT_SYMLINK_NOFOLLOW)
	unix.Linkat(d, "f", d, "h", 0)
	unix.Unlinkat(d, "h", 0)
	return unix.Unlinkat(d, "g", 0) == nil || unix.Unlinkat(d, "f", 0) == nil
}

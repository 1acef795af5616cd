package tests

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What is staged is nobody's business but its writer's and the daemon's; and .untorn is no way in.

func init() { helpers["peeper"] = peeper }

// peeper PIDS... tries every path that it reads from its input, as somebody would who knows all names, and the descriptors
// of those processes. It prints what it got at.
func peeper(args []string) {
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	check(err)
	try := func(path string) {
		if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
			unix.Close(fd)
			fmt.Println("opened", path)
		}
		if err := unix.Stat(path, new(unix.Stat_t)); err == nil {
			fmt.Println("looked at", path)
		}
		if _, err := unix.InotifyAddWatch(watch, path, unix.IN_ALL_EVENTS); err == nil {
			fmt.Println("watches", path)
		}
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		try(lines.Text())
		for _, pid := range args {
			for _, what := range []string{"fd", "map_files", "cwd", "root", "mem"} {
				dir := "/proc/" + pid + "/" + what
				if _, err := os.ReadDir(dir); err == nil {
					fmt.Println("listed", dir)
				}
				if what == "fd" {
					for fd := range 40 {
						try(fmt.Sprintf("%s/%d", dir, fd))
					}
				}
			}
		}
	}
	fmt.Println("end")
}

// TestTempsArePrivate: what is staged for a file that only its owner may read nobody else can read, by no name, at no
// moment; and the version is at no moment open to more than it was meant to be.
func TestTempsArePrivate(t *testing.T) {
	needUntorn(t)
	needRoot(t)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, append(flags, "--durability=none")...)
		peep := helper(t, "peeper", fmt.Sprint(m.daemon.Process.Pid), fmt.Sprint(os.Getpid()))
		asUser(posixOther, peep)
		paths, err := peep.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		peep.Stdout, peep.Stderr = &got, &got
		if err := peep.Start(); err != nil {
			t.Fatal(err)
		}
		stage := m.real(".untorn/stage")
		for _, dir := range []string{".untorn", ".untorn/stage", ".untorn/salvage", ".untorn/journal"} {
			if st := lstat(t, m.real(dir)); st.Mode&0o777 != 0o700 || st.Uid != 0 {
				t.Errorf("%s: mode %o, owner %d", dir, st.Mode, st.Uid)
			}
			fmt.Fprintln(paths, m.real(dir)+"/.")
		}
		for i := range rounds(100) {
			name := m.path("f")
			os.Remove(name)
			if i%2 == 0 { // an old one, that is closed to others while it is written
				if err := os.WriteFile(name, []byte("old"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			stopped := watchModes(stage, 0o644)
			flag := []int{unix.O_TRUNC, unix.O_CREAT, 0, unix.O_CREAT}[i%4]
			fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC|flag, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			unix.Write(fd, []byte("secret"))
			temps := stagedFiles(m.Backing)
			if len(temps) != 1 {
				t.Fatalf("staged: %q", temps)
			}
			fmt.Fprintln(paths, temps[0])
			if i%2 == 0 {
				if err := os.Chmod(name, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			wide := watchModes(m.Backing, 0o600) // from now on
			if err := unix.Close(fd); err != nil {
				t.Fatal(err)
			}
			for _, bad := range append(wide(), stopped()...) {
				t.Fatalf("round %d: open to others: %s", i, bad)
			}
			if st := lstat(t, m.real("f")); st.Mode&0o777 != 0o600 {
				t.Fatalf("round %d: mode %o", i, st.Mode)
			}
		}
		paths.Close()
		if err := peep.Wait(); err != nil || got.String() != "end\n" {
			t.Errorf("%v, another user %s", err, &got)
		}
	})
}

func lstat(t testing.TB, path string) (st unix.Stat_t) {
	t.Helper()
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st
}

// watchModes looks at all regular files below dir but those of untorn, over and over, until it is stopped, and returns those
// that had more rights than most.
func watchModes(dir string, most uint32) (stop func() []string) {
	end, result := make(chan bool), make(chan []string)
	go func() {
		var bad []string
		for {
			filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
				if err == nil && e.Name() == ".untorn" {
					return filepath.SkipDir
				}
				if err != nil || !e.Type().IsRegular() || e.Name() == "origins" || e.Name() == "format" {
					return nil
				}
				var st unix.Stat_t
				if unix.Lstat(path, &st) == nil && st.Mode&0o7777&^most != 0 && len(bad) < 5 {
					bad = append(bad, fmt.Sprintf("%s with mode %o", path, st.Mode))
				}
				return nil
			})
			select {
			case <-end:
				result <- bad
				return
			default:
			}
		}
	}()
	return func() []string { close(end); return <-result }
}

// planted are .untorn directories that somebody has prepared; the script runs as the user in his own directory, or as root
// where it says so. outside must never be touched.
var planted = []struct {
	name    string
	root    bool
	script  string
	handled bool // instead of being refused
}{
	{name: "a symlink", script: `ln -s ../outside .untorn`},
	{name: "a symlink to nowhere", script: `ln -s ../outside/none .untorn`},
	{name: "a symlink to what root made", script: `mv .untorn elsewhere; ln -s elsewhere .untorn`, root: true},
	{name: "a file", script: `echo x > .untorn`},
	{name: "a pipe", script: `mkfifo .untorn`},
	{name: "his own directory", script: `mkdir -m 700 .untorn`},
	{name: "his own, complete", script: `mkdir -m 700 -p .untorn/stage .untorn/salvage .untorn/journal; echo untorn 1 > .untorn/format`},
	{name: "open to a group", script: `chmod 770 .untorn`, root: true},
	{name: "open to all", script: `chmod 777 .untorn`, root: true},
	{name: "somebody else's", script: `chown 1001 .untorn`, root: true},
	{name: "the stage a symlink", script: `rmdir .untorn/stage; ln -s ../../outside .untorn/stage`, root: true},
	{name: "the salvage a symlink", script: `rmdir .untorn/salvage; ln -s ../../outside .untorn/salvage`, root: true},
	{name: "the journal a symlink", script: `rmdir .untorn/journal; ln -s ../../outside .untorn/journal`, root: true},
	{name: "the format a symlink", script: `mv .untorn/format f; ln -s ../f .untorn/format`, root: true},
	{name: "the format a pipe", script: `rm .untorn/format; mkfifo .untorn/format`, root: true},
	{name: "the stage somebody else's", script: `chown 1001 .untorn/stage`, root: true},
	{name: "an instance a symlink", script: `ln -s ../../../outside .untorn/stage/0123456789abcdef`, root: true, handled: true},
	{name: "a temp a symlink", script: `mkdir -m 700 .untorn/stage/0123456789abcdef; ln -s ../../../../outside/secret .untorn/stage/0123456789abcdef/1`, root: true, handled: true},
	{name: "a salvaged symlink", script: `ln -s ../../../outside/secret .untorn/salvage/20260101-000000-1`, root: true, handled: true},
}

func TestPlantedByAnother(t *testing.T) {
	needUntorn(t)
	needRoot(t)
	for _, p := range planted {
		t.Run(p.name, func(t *testing.T) {
			dir := tempDir(t)
			sh(t, dir, `mkdir backing mnt outside outside/stage outside/0123456789abcdef; echo secret | tee outside/secret outside/1 outside/stage/1
				chmod -R go= outside; echo f > backing/f; chown -R 1001:1001 backing`)
			backing, outside, mnt := filepath.Join(dir, "backing"), filepath.Join(dir, "outside"), filepath.Join(dir, "mnt")
			if p.root {
				if _, stderr, code := untorn(t, "mount", backing, mnt); code != 0 {
					t.Fatal(stderr)
				}
				untorn(t, "umount", mnt)
				sh(t, backing, p.script)
			} else {
				cmd := command(t, "bash", "-euc", p.script)
				cmd.Dir = backing
				asUser(posixUser, cmd)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			before, there := everything(t, outside), everything(t, backing)
			_, stderr, code := untorn(t, "mount", backing, mnt)
			if fuseDevice(mnt) != "" {
				sh(t, mnt, "echo new > f; echo new > g; ! ls -A | grep secret; bash -c 'echo lost; kill -9 $$' > f || true")
				untorn(t, "salvage", "list", backing)
				if _, stderr, code := untorn(t, "umount", mnt); code != 0 {
					t.Fatal(stderr)
				}
			}
			untorn(t, "recover", backing)
			untorn(t, "salvage", "list", backing)
			untorn(t, "salvage", "purge", "--all", backing)
			wantSame(t, before, everything(t, outside))
			if p.handled {
				if code != 0 {
					t.Errorf("exit code %d: %s", code, stderr)
				}
				return
			}
			if code != 6 || !strings.Contains(stderr, ".untorn") {
				t.Errorf("exit code %d, want 6: %s", code, stderr)
			}
			wantSame(t, there, everything(t, backing))
		})
	}
}

// TestStageMovedAway: whoever owns the directory can rename .untorn while it is in use, and plant another. The daemon goes
// by the one that it opened.
func TestStageMovedAway(t *testing.T) {
	needUntorn(t)
	needRoot(t)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		outside := tempDir(t)
		sh(t, outside, "mkdir stage salvage journal; echo outside | tee f stage/1 stage/2 > format")
		sh(t, m.Backing, "chown 1001:1001 .")
		before := everything(t, outside)
		sh(t, m.Dir, "echo old > f; echo old > g")
		s := startSteps(t, m.Dir, `exec 5>f; echo new >&5; step; exec 5>&-; bash -c 'echo lost; kill -9 $$' > g || true; echo new > h`)
		s.await(t)
		cmd := command(t, "bash", "-euc", `mv .untorn moved; ln -s "$1" .untorn`, "-", outside)
		cmd.Dir = m.Backing
		asUser(posixUser, cmd)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		s.release(t)
		s.finish(t)
		m.wantVersion(t, "f", "new\n")
		m.wantVersion(t, "g", "old\n")
		m.wantVersion(t, "h", "new\n")
		for _, way := range []string{"moved", "moved/stage", ".untorn", ".untorn/f"} {
			if _, err := os.Stat(m.path(way)); err == nil {
				t.Errorf("%s is reached through the mount", way)
			}
		}
		wantSame(t, before, everything(t, outside))
		sh(t, m.Backing, "rm .untorn; mv moved .untorn")
		m.awaitSalvaged(t, "g", 1)
	})
}

// TestUntornByOtherWays: file handles, bind mounts, and the descriptors of the daemon.
func TestUntornByOtherWays(t *testing.T) {
	needUntorn(t)
	needRoot(t)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		sh(t, m.Dir, "mkdir -p d/e; echo x > f; echo x > d/e/f")
		bound := filepath.Join(tempDir(t), "bound")
		mustMkdir(t, bound)
		if err := unix.Mount(m.path("d"), bound, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(bound, unix.MNT_DETACH)
		for _, script := range []string{
			`ls "$1/../.untorn"`, `ls "$1/.untorn"`, `ls "$1/e/../../.untorn"`, `cd "$1/e"; ls ../../.untorn`,
			`cd "$2/d"; ls /proc/self/cwd/../.untorn`, `cd "$2"; ls /proc/$$/cwd/.untorn`, `exec 5<"$2"; ls /proc/self/fd/5/.untorn`,
			`ls "$2/.untorn/."`, `ls "$2//.untorn//"`, `ls "$2/d/e/../../.untorn/stage"`, `ln -s .untorn/format "$2/x"; cat "$2/x"`,
			`mount --bind "$2/.untorn" "$1/e"`, `touch "$2/x"; mount --bind "$2/x" "$2/.untorn"`,
		} {
			if out, err := command(t, "bash", "-euc", script, "-", bound, m.Dir).CombinedOutput(); err == nil {
				t.Errorf("%s succeeded: %s", script, out)
			}
		}
		cmd := command(t, "bash", "-c", `for p in /proc/$1/{fd,cwd,root,map_files,task/$1/fd}; do ls -L $p/ && echo got $p; done 2> /dev/null; true`,
			"-", fmt.Sprint(m.daemon.Process.Pid))
		asUser(posixUser, cmd)
		if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "got ") {
			t.Errorf("the daemon's descriptors: %s, %v", out, err)
		}
		m.tryHandles(t)
		unix.Unmount(bound, 0)
	})
}

// tryHandles opens all file handles that can be made up for the mount (root may: open_by_handle_at(2)).
func (m *mount) tryHandles(t *testing.T) {
	t.Helper()
	dir, err := unix.Open(m.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dir)
	hidden := lstat(t, m.real(".untorn"))
	if _, _, err := unix.NameToHandleAt(dir, ".untorn", 0); err == nil {
		t.Error("there is a handle of .untorn")
	}
	own, _, err := unix.NameToHandleAt(dir, "f", 0)
	if err != nil {
		t.Logf("no file handles: %v", err)
		return
	}
	opened := 0
	for node := range uint64(300) {
		for generation := range uint32(3) {
			raw := bytes.Clone(own.Bytes()) // node id in two halves, and generation (fuse_encode_fh)
			halves := [3]uint32{uint32(node >> 32), uint32(node), generation}
			copy(raw, (*[12]byte)(unsafe.Pointer(&halves))[:])
			fd, err := unix.OpenByHandleAt(dir, unix.NewFileHandle(own.Type(), raw), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC)
			if err != nil {
				continue
			}
			opened++
			var st unix.Stat_t
			if unix.Fstat(fd, &st) == nil && st.Ino == hidden.Ino {
				t.Errorf("node %d is .untorn", node)
			}
			unix.Close(fd)
		}
	}
	t.Logf("%d handles lead to files", opened)
}

// dangerous are ioctls that would reach the backing with the rights of the daemon.
var dangerous = map[string]uint{
	"FS_IOC_GETFLAGS": unix.FS_IOC_GETFLAGS, "FS_IOC_SETFLAGS": unix.FS_IOC_SETFLAGS,
	"FS_IOC_FSGETXATTR": 0x801c581f, "FS_IOC_FSSETXATTR": 0x401c5820,
	"FS_IOC_SHUTDOWN": 0x8004587d, "FITRIM": 0xc0185879, "FIFREEZE": 0xc0045877,
	"EXT4_IOC_RESIZE_FS": 0x40086610, "EXT4_IOC_SWAP_BOOT": 0x6611, "EXT4_IOC_MOVE_EXT": 0xc028660f,
	"EXT4_IOC_SETFSUUID": 0x4008662c, "FS_IOC_SETVERSION": 0x40087602, "FS_IOC_SETFSLABEL": 0x41009432,
	"FS_IOC_ENABLE_VERITY": unix.FS_IOC_ENABLE_VERITY, "FS_IOC_ADD_ENCRYPTION_KEY": unix.FS_IOC_ADD_ENCRYPTION_KEY,
	"FS_IOC_SET_ENCRYPTION_POLICY": unix.FS_IOC_SET_ENCRYPTION_POLICY, "BTRFS_IOC_SNAP_DESTROY": 0x5000940f,
}

func init() {
	helpers["ioctls"] = func(paths []string) {
		for _, path := range paths {
			fd, err := unix.Open(path, unix.O_RDONLY, 0)
			check(err)
			for _, name := range sortedKeys(dangerous) {
				var arg [1 << 10]byte
				arg[0] = 2 // FS_IOC_SHUTDOWN: without writing the journal back
				if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(dangerous[name]), uintptr(unsafe.Pointer(&arg))); errno == 0 {
					fmt.Println(name, "of", path, "succeeded")
				}
			}
		}
	}
}

// TestIoctlsAreRefused, on a filesystem that nobody would miss.
func TestIoctlsAreRefused(t *testing.T) {
	needUntorn(t)
	backing := makeFS(t, "ext4", 64<<20)
	for _, uid := range []int{0, posixUser} {
		eachPath(t, func(t *testing.T, flags []string) {
			m := newMountOn(t, backing, flags...)
			sh(t, m.Dir, "mkdir -p d; echo x > f; chmod 755 . d; chown 1001 f d")
			cmd := helper(t, "ioctls", m.path("f"), m.path("d"), m.Dir)
			asUser(uid, cmd)
			if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("uid %d: %v: %s", uid, err, out)
			}
			sh(t, m.Dir, "echo y > f; mkdir d/e; rmdir d/e")
			m.wantVersion(t, "f", "y\n")
			if out := sh(t, backing, "lsattr -d f d"); strings.ContainsAny(strings.NewReplacer("f\n", "", "d\n", "").Replace(out), "iaA") {
				t.Errorf("flags: %s", out)
			}
		})
	}
}

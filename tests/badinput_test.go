package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const nobody = 65534

// badMounts are refused with an exit code and a message, and nothing changes on disk.
// BACKING, MNT, FILE, FULL and NONE in args are replaced by paths; setup runs in their
// directory, and around before untorn with its arguments.
var badMounts = []struct {
	name   string
	setup  string
	around []string
	args   string
	code   int
	says   string // part of the message
}{
	{name: "missing backing", args: "NONE MNT", code: 3, says: "NONE"},
	{name: "missing backing, over itself", args: "NONE", code: 3, says: "NONE"},
	{name: "backing is a file", args: "FILE MNT", code: 3, says: "FILE"},
	{name: "unreadable backing", setup: "chmod 700 backing; chmod 777 mnt", around: asNobody, args: "BACKING MNT", code: 3, says: "BACKING"},
	{name: "missing mountpoint", args: "BACKING NONE", code: 4, says: "NONE"},
	{name: "mountpoint is a file", args: "BACKING FILE", code: 4, says: "FILE"},
	{name: "mountpoint not empty", args: "BACKING FULL", code: 4, says: "FULL"},
	{name: "no device", around: []string{"unshare", "-m", "sh", "-c", `mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec "$@"`, "-"},
		args: "BACKING MNT", code: 5, says: "/dev/fuse"},
	{name: "no right to mount", setup: "chown -R 65534 .", around: append(asNobody, "--no-new-privs"), args: "BACKING MNT", code: 5},
	{name: "unknown flag", args: "--frobnicate BACKING MNT", code: 2, says: "--frobnicate"},
	{name: "malformed glob", args: "--direct [a BACKING MNT", code: 2, says: "[a"},
	{name: "malformed second glob", args: "--direct *.db --stage x[ BACKING MNT", code: 2, says: "x["},
	{name: "unknown durability", args: "--durability=most BACKING MNT", code: 2, says: "durability"},
	{name: "unknown on-kill", args: "--on-kill=keep BACKING MNT", code: 2, says: "on-kill"},
	{name: "unknown fsync", args: "--fsync=never BACKING MNT", code: 2, says: "fsync"},
	{name: "malformed duration", args: "--cache=soon BACKING MNT", code: 2, says: "cache"},
	{name: "no backing", args: "", code: 2},
	{name: "too many places", args: "BACKING MNT FULL", code: 2},
	{name: "newer format", setup: "untorn mount backing mnt && untorn umount mnt && sed -i 's/[0-9][0-9]*/999/' backing/.untorn/format && grep -q 999 backing/.untorn/format",
		args: "BACKING MNT", code: 6, says: "999"},
	{name: "damaged format", setup: `mkdir -m 700 backing/.untorn; printf '\x00\xff garbage' > backing/.untorn/format`,
		args: "BACKING MNT", code: 6, says: ".untorn"},
	{name: ".untorn is a file", setup: `echo mine > backing/.untorn`, args: "BACKING MNT", code: 6, says: ".untorn"},
}

var asNobody = []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}

func TestBadMounts(t *testing.T) {
	needUntorn(t)
	needRoot(t)
	for _, c := range badMounts {
		t.Run(c.name, func(t *testing.T) {
			dir := tempDir(t)
			sh(t, dir, `mkdir backing mnt full; echo content > backing/f; echo x > full/x; echo x > file`)
			sh(t, dir, c.setup)
			places := strings.NewReplacer("BACKING", dir+"/backing", "MNT", dir+"/mnt", "FILE", dir+"/file", "FULL", dir+"/full", "NONE", dir+"/none")
			before := everything(t, dir)
			argv := append(append(append([]string{}, c.around...), binary, "mount"), strings.Fields(places.Replace(c.args))...)
			cmd := command(t, argv[0], argv[1:]...)
			cmd.Env = cleanEnv()
			out, err := cmd.CombinedOutput()
			if got := cmd.ProcessState.ExitCode(); got != c.code {
				t.Errorf("exit code %d (%v), want %d", got, err, c.code)
			}
			if want := places.Replace(c.says); !strings.Contains(string(out), want) || len(out) < 10 {
				t.Errorf("the message does not tell %q: %s", want, out)
			}
			if strings.Contains(string(out), "goroutine ") {
				t.Errorf("a panic: %s", out)
			}
			if fuseDevice(dir+"/mnt") != "" {
				t.Error("it has mounted")
				untorn(t, "umount", dir+"/mnt")
			}
			wantSame(t, before, everything(t, dir))
		})
	}
}

func needUntorn(t testing.TB) {
	t.Helper()
	if native {
		t.Skip("needs untorn")
	}
}

// TestMountTwice: a mountpoint that is taken is refused; the first mount goes on.
func TestMountTwice(t *testing.T) {
	needUntorn(t)
	for name, mk := range map[string]func(testing.TB, ...string) *mount{"beside": newMount, "over": newOverMount} {
		t.Run(name, func(t *testing.T) {
			m := mk(t)
			sh(t, m.Dir, "echo content > f")
			args := []string{"mount", m.Backing, m.Dir}
			if name == "over" {
				args = args[:2]
			}
			_, stderr, code := untorn(t, args...)
			if code != 4 || !strings.Contains(stderr, m.Dir) {
				t.Errorf("exit code %d: %s", code, stderr)
			}
			m.wantVersion(t, "f", "content\n")
		})
	}
}

// TestReadOnlyBacking mounts read-only and says so.
func TestReadOnlyBacking(t *testing.T) {
	needUntorn(t)
	needRoot(t)
	eachPath(t, func(t *testing.T, flags []string) {
		dir := tempDir(t)
		sh(t, dir, `mkdir backing ro; echo content > backing/f; mount --bind backing ro; mount -o remount,bind,ro ro`)
		t.Cleanup(func() { sh(t, dir, "umount ro") })
		before := everything(t, filepath.Join(dir, "backing"))
		m := newMountOn(t, filepath.Join(dir, "ro"), flags...)
		m.wantVersion(t, "f", "content\n")
		for _, change := range []string{"echo x > f", "echo x > new", "echo x >> f", "rm f", "mkdir d", "chmod 600 f", "mv f g", "ln f g", "truncate -s 0 f"} {
			if out, err := trySh(t, m.Dir, change); err == nil || !strings.Contains(out, "Read-only file system") {
				t.Errorf("%s: %s, %v", change, out, err)
			}
		}
		m.Unmount(t)
		wantSame(t, before, everything(t, filepath.Join(dir, "backing")))
		if log, err := os.ReadFile(m.log); err != nil || !strings.Contains(strings.ToLower(string(log)), "read-only") {
			t.Errorf("no notice in the log: %s, %v", log, err)
		}
	})
}

// TestBusyUmount: who holds the mount is named; nothing is cut off.
func TestBusyUmount(t *testing.T) {
	needUntorn(t)
	m := newMount(t)
	s := startSteps(t, m.Dir, `exec 5>f; echo a >&5; step; echo b >&5`)
	s.await(t)
	stdout, stderr, code := untorn(t, "umount", m.Dir)
	if code != 7 || !strings.Contains(stdout+stderr, fmt.Sprint(s.cmd.Process.Pid)) || !strings.Contains(stdout+stderr, "bash") {
		t.Errorf("exit code %d, want 7 and process %d: %s%s", code, s.cmd.Process.Pid, stdout, stderr)
	}
	s.release(t)
	s.finish(t)
	m.wantVersion(t, "f", newVersion)
}

// TestBadCommands are refused by the other verbs. DIR is a mount with one salvaged file.
func TestBadCommands(t *testing.T) {
	needUntorn(t)
	m := newMount(t)
	m.put(t, "f", oldVersion)
	sh(t, m.Dir, `bash -c 'echo lost; kill -9 $$' > f || true`)
	id := m.awaitSalvaged(t, "f", 1)[0].ID
	before := everything(t, m.Backing)
	for _, c := range []struct {
		args string
		code int
	}{
		{"frobnicate", 2},
		{"", 2},
		{"umount", 2},
		{"umount NONE", 4},
		{"umount BACKING", 4},
		{"salvage list NONE", 3},
		{"salvage show BACKING nonsense", 1},
		{"salvage show BACKING ../../f", 1},
		{"salvage restore BACKING nonsense", 1},
		{"salvage restore BACKING ID", 1},
		{"salvage restore BACKING ID --to NONE/x", 1},
		{"salvage restore BACKING ID --to BACKING/f", 1},
		{"salvage purge BACKING nonsense", 1},
		{"salvage purge BACKING ../../f", 1},
		{"salvage purge BACKING --older-than soon", 2},
		{"salvage purge BACKING", 2},
		{"recover NONE", 3},
		{"check NONE", 3},
		{"check BACKING/f", 3},
		{"recover BACKING/f", 3},
		{"doctor NONE", 3},
		{"rules NONE", 3},
	} {
		args := strings.NewReplacer("BACKING", m.Backing, "NONE", m.Backing+"-none", "ID", id).Replace(c.args)
		stdout, stderr, code := untorn(t, strings.Fields(args)...)
		if code != c.code || len(stdout)+len(stderr) < 10 {
			t.Errorf("untorn %s: exit code %d, want %d: %s%s", c.args, code, c.code, stdout, stderr)
		}
	}
	wantSame(t, before, everything(t, m.Backing))
}

// TestHelp: every command and every flag is explained.
func TestHelp(t *testing.T) {
	needUntorn(t)
	flag := regexp.MustCompile(`(?m)^ +(-\w, +)?--[\w-]+(=\S+)?$`)
	for _, verb := range []string{"", "mount", "umount", "doctor", "salvage list", "salvage show", "salvage restore", "salvage purge", "recover", "check", "rules", "version"} {
		stdout, stderr, code := untorn(t, append(strings.Fields(verb), "--help")...)
		if code != 0 || !strings.Contains(stdout, "Usage") {
			t.Errorf("untorn %s --help: exit code %d: %s%s", verb, code, stdout, stderr)
		}
		// A flag alone on its line has its text on the next one, further in.
		for _, loc := range flag.FindAllStringIndex(stdout, -1) {
			if rest := stdout[loc[1]:]; !strings.HasPrefix(rest, "\n     ") {
				t.Errorf("untorn %s: a flag without help: %s", verb, stdout[loc[0]:loc[1]])
			}
		}
	}
}

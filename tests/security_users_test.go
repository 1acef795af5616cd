package tests

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// The everyday scripts and the table of rights for those who mount without being root: a user through fusermount3, a user
// who is root in a user namespace of his own, and root of a container, whose ids are others outside.

// who mounts, and how.
type who struct {
	name  string
	uid   int                 // the owner of everything, outside
	enter func(cmd *exec.Cmd) // makes cmd run as him
	check func(t *testing.T)  // whether that is possible here
	uids  []int               // those whose rights are compared
}

// containerUid is what root of the container is outside.
const containerUid = 200000

var others = []who{
	{
		name: "user", uid: nobody,
		enter: func(cmd *exec.Cmd) { asUser(nobody, cmd) },
		check: func(t *testing.T) {
			if _, err := exec.LookPath("fusermount3"); err != nil {
				t.Skip("no fusermount3 here")
			}
		},
	},
	{
		name: "user namespace", uid: nobody,
		enter: func(cmd *exec.Cmd) {
			asUser(nobody, cmd)
			cmd.Args = append([]string{"unshare", "-Urm"}, cmd.Args...)
			cmd.Path, cmd.Err = exec.LookPath("unshare")
		},
	},
	{
		name: "container", uid: containerUid, uids: []int{0, posixUser},
		enter: func(cmd *exec.Cmd) {
			ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: containerUid, Size: 70000}}
			cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS
			cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = ids, ids
			cmd.SysProcAttr.GidMappingsEnableSetgroups = true
			cmd.SysProcAttr.Credential = &syscall.Credential{}
		},
	},
}

// userScript runs what is in scripts in plain and on a mount; the output is left in out. The table of rights runs for all
// users in $TABLE.
const userScript = `cd "$1"
everything() {
	local s id
	for s in "$1"/../scripts/*; do
		mkdir "$1/${s##*/}"
		(cd "$1/${s##*/}" && exec bash -c "$(< "$s")") > "out/${s##*/}.$2" 2>&1 < /dev/null || true
	done
	for id in $TABLE; do
		mkdir "$1/table.$id"
		(cd "$1/table.$id"; UNTORN_TEST_HELPER=posix exec untorn-tests $id rights:) > "out/table.$id.$2" 2> "out/errors.$id.$2"
	done
}
everything "$PWD/plain" want
untorn mount --durability=none --log-file "$1/log" backing mnt
trap 'untorn umount mnt' EXIT
everything "$PWD/mnt" got
`

func TestWithoutRoot(t *testing.T) {
	needUntorn(t)
	needRoot(t)
	openDevice(t)
	for _, w := range others {
		t.Run(w.name, func(t *testing.T) {
			if w.check != nil {
				w.check(t)
			}
			dir := tempDir(t)
			sh(t, dir, "mkdir plain backing mnt scripts out home")
			if len(w.uids) == 0 {
				for name, script := range metaScripts {
					if err := os.WriteFile(filepath.Join(dir, "scripts", name), []byte(metaPrelude+script+"\ntrue"), 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
			sh(t, dir, fmt.Sprintf("chown -R %d:%d .", w.uid, w.uid))
			cmd := command(t, "bash", "-euo", "pipefail", "-c", userScript, "-", dir)
			cmd.Env = append(cleanEnv(), "HOME="+dir+"/home", "TABLE="+strings.Trim(fmt.Sprint(w.uids), "[]"))
			w.enter(cmd)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Run(); err != nil {
				if strings.Contains(err.Error()+out.String(), "Operation not permitted") {
					t.Skipf("no user namespaces here: %v: %s", err, &out)
				}
				log, _ := os.ReadFile(dir + "/log")
				t.Fatalf("%v: %s\n%s", err, &out, log)
			}
			w.compare(t, filepath.Join(dir, "out"))
			if fuseDevice(filepath.Join(dir, "mnt")) != "" {
				t.Error("still mounted")
			}
			for _, f := range stagedFiles(filepath.Join(dir, "backing")) {
				t.Errorf("still staged: %s", f)
			}
		})
	}
}

// compare compares what was left in dir for a plain directory and for the mount.
func (w *who) compare(t *testing.T, dir string) {
	t.Helper()
	read := func(name string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, uid := range w.uids {
		want, _ := posixResults(read(fmt.Sprintf("table.%d.want", uid)))
		got, _ := posixResults(read(fmt.Sprintf("table.%d.got", uid)))
		if errs := read(fmt.Sprintf("errors.%d.want", uid)) + read(fmt.Sprintf("errors.%d.got", uid)); errs != "" || len(want) < 5 {
			t.Errorf("the table was not finished: %s", errs)
		}
		for _, group := range slices.Sorted(maps.Keys(want)) {
			if strings.HasPrefix(group, "rights: setuid bits") {
				continue // the kernel asks for CAP_FSETID in the initial user namespace at some places, in the file's at others
			}
			comparePosixGroup(t, group, true, want[group], got[group])
		}
	}
	if len(w.uids) > 0 {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(metaScripts)) {
		if diff := diffLines(read(name+".want"), read(name+".got")); diff != "" {
			t.Errorf("%s (- plain directory, + mount):\n%s", name, diff)
		}
	}
}

// TestOthersStayOut: a user's mount is his alone. Only root lets others in, each with his own rights.
func TestOthersStayOut(t *testing.T) {
	needUntorn(t)
	needRoot(t)
	openDevice(t)
	if conf, err := os.ReadFile("/etc/fuse.conf"); err == nil && bytes.Contains(conf, []byte("\nuser_allow_other")) {
		t.Skip("/etc/fuse.conf lets users let others in")
	}
	dir := tempDir(t)
	sh(t, dir, fmt.Sprintf("mkdir backing mnt home; echo content > backing/f; chown -R %d:%d .", nobody, nobody))
	run := func(uid int, name string, args ...string) (string, error) {
		cmd := command(t, name, args...)
		cmd.Dir = dir
		cmd.Env = append(cleanEnv(), "HOME="+dir+"/home")
		asUser(uid, cmd)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run(nobody, binary, "mount", "--allow-other", "backing", "mnt"); err == nil || !strings.Contains(out, "user_allow_other") {
		t.Errorf("--allow-other: %s, %v", out, err)
	}
	if out, err := run(nobody, binary, "mount", "backing", "mnt"); err != nil {
		t.Fatalf("%s, %v", out, err)
	}
	t.Cleanup(func() { syscall.Unmount(filepath.Join(dir, "mnt"), syscall.MNT_DETACH) })
	for _, uid := range []int{posixUser, 0} {
		if out, err := run(uid, "cat", "mnt/f"); err == nil || !strings.Contains(out, "Permission denied") {
			t.Errorf("uid %d: %s, %v", uid, out, err)
		}
	}
	if out, err := run(nobody, "cat", "mnt/f"); err != nil || out != "content\n" {
		t.Errorf("the user himself: %s, %v", out, err)
	}
	if out, err := run(nobody, binary, "umount", "mnt"); err != nil {
		t.Errorf("%s, %v", out, err)
	}
}

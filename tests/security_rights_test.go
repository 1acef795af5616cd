package tests

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Through the mount nobody may do more than on the backing.

func init() { helpers["formerowner"] = formerOwner }

// formerAttempts are what a former owner may try, each on a file of its own that he has opened (fd) and looked at while
// it was his.
var formerAttempts = []struct {
	name string
	do   func(path string, fd int) error
}{
	{"fchmod", func(_ string, fd int) error { return unix.Fchmod(fd, 0o6777) }},
	{"chmod", func(path string, _ int) error { return unix.Chmod(path, 0o6777) }},
	{"fchown", func(_ string, fd int) error { return unix.Fchown(fd, posixUser, -1) }},
	{"fchown group", func(_ string, fd int) error { return unix.Fchown(fd, -1, posixUser) }},
	{"chown", func(path string, _ int) error { return unix.Chown(path, posixUser, posixUser) }},
	{"fsetxattr ACL", func(_ string, fd int) error {
		return unix.Fsetxattr(fd, "system.posix_acl_access", aclFor(posixUser, 6), 0)
	}},
	{"setxattr ACL", func(path string, _ int) error {
		return unix.Setxattr(path, "system.posix_acl_access", aclFor(posixUser, 6), 0)
	}},
	{"fremovexattr ACL", func(_ string, fd int) error { return unix.Fremovexattr(fd, "system.posix_acl_access") }},
	{"fsetxattr", func(_ string, fd int) error { return unix.Fsetxattr(fd, "user.mine", []byte("x"), 0) }},
	{"fremovexattr", func(_ string, fd int) error { return unix.Fremovexattr(fd, "user.kept") }},
	{"futimens", futimensOf},
	{"futimens now", func(_ string, fd int) error { return unix.UtimesNanoAt(fd, "", nil, unix.AT_EMPTY_PATH) }},
	{"link", func(path string, fd int) error {
		return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, path+"-mine", unix.AT_SYMLINK_FOLLOW)
	}},
}

func futimensOf(_ string, fd int) error { return futimens(fd) }

// formerOwner DIR FLAGS opens one file for each attempt, says so, waits for a byte, and tries.
func formerOwner(args []string) {
	access := unix.O_RDONLY
	if args[1] == "rw" {
		access = unix.O_RDWR
	}
	fds := make([]int, len(formerAttempts))
	for i := range formerAttempts {
		path := filepath.Join(args[0], fmt.Sprint(i))
		fd, err := unix.Open(path, access, 0)
		check(err)
		fds[i] = fd
		check(unix.Stat(path, new(unix.Stat_t)))
	}
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1))
	for i, a := range formerAttempts {
		fmt.Println(a.name, "=", errnoName(a.do(filepath.Join(args[0], fmt.Sprint(i)), fds[i])))
	}
	for _, fd := range fds {
		check(unix.Close(fd))
	}
}

// takeAway gives a user files, lets him open them in where, takes them away behind the mount's back in real, and returns
// what his attempts then came to, and what they left.
func takeAway(t *testing.T, where, real, access, how string) (results, left string) {
	t.Helper()
	sh(t, real, `rm -rf u; mkdir u; for i in {0..`+fmt.Sprint(len(formerAttempts)-1)+`}; do
		echo content > u/$i; setfattr -n user.kept -v 1 u/$i; setfacl -m u:7:r u/$i; touch -d @1000000000 u/$i; done
		chown -R 1001:1001 u`)
	cmd := helper(t, "formerowner", filepath.Join(where, "u"), access)
	asUser(posixUser, cmd)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	if line, err := r.ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v: %s", line, err, errs.String())
	}
	sh(t, real, how)
	fmt.Fprintln(in)
	rest, _ := io.ReadAll(r)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err, errs.String())
	}
	var b strings.Builder
	for i, a := range formerAttempts {
		path := filepath.Join(real, "u", fmt.Sprint(i))
		var st unix.Stat_t
		err := unix.Lstat(path, &st)
		fmt.Fprintf(&b, "%s: %s mtime %s%s\n", a.name, statLine(&st, err), pastOrNow(st.Mtim), describeXattrs(path))
	}
	return string(rest), b.String()
}

// TestOwnerChangedMeanwhile: the kernel asks the owner that it remembers, and behind a descriptor for ever. Without a check
// of its own, a daemon of root would make setuid root what the user once owned.
func TestOwnerChangedMeanwhile(t *testing.T) {
	needRoot(t)
	plain := tempDir(t)
	for name, how := range map[string]string{
		"owner":                "chown root:root u/*; chmod 644 u/*",
		"owner, still to read": "chown root:root u/*; chmod 600 u/*",
		"group":                "chown :2002 u/*",
		"mode":                 "chmod 400 u/*",
	} {
		t.Run(name, func(t *testing.T) {
			wantResults, wantLeft := takeAway(t, plain, plain, "r", how)
			eachPath(t, func(t *testing.T, flags []string) {
				m := newMount(t, append(flags, "--cache=1h", "--durability=none")...)
				results, left := takeAway(t, m.Dir, m.Backing, "r", how)
				if diff := diffLines(wantResults+wantLeft, results+left); diff != "" {
					t.Errorf("- plain directory, + mount:\n%s", diff)
				}
			})
		})
	}
}

// TestOwnerChangedWhileWritten: what is open for write is a file of its own, which its writer owns until it is closed. Then
// it looks as the new owner wants.
func TestOwnerChangedWhileWritten(t *testing.T) {
	needRoot(t)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, append(flags, "--cache=1h", "--durability=none")...)
		_, left := takeAway(t, m.Dir, m.Backing, "rw", "chown root:root u/*; setfacl -b u/*; chmod 640 u/*")
		for line := range strings.Lines(left) {
			if !strings.Contains(line, " mode=100640 owner=0:0 ") || strings.Contains(line, "user.mine") || strings.Contains(line, "acl") {
				t.Error(line)
			}
		}
	})
}

// TestOpenBeforeItExists: a file that has no version yet can be opened with O_CREAT by those who may write it, as if it
// were there. The kernel checks nothing, because it takes the name for free.
func TestOpenBeforeItExists(t *testing.T) {
	needRoot(t)
	attempt := func(dir string) (results string) {
		sh(t, dir, "chmod 777 .")
		for _, mode := range []string{"600", "620", "622", "602"} {
			s := startSteps(t, dir, `exec setpriv --reuid 1002 --regid 2001 --clear-groups bash -euc '
				umask $(printf %o $((0777 & ~0`+mode+`))); rm -f f; exec 5>f; echo a >&5; echo step >&8; read -r _ <&9; exec 5>&-'`)
			s.await(t)
			for _, who := range []string{
				"--reuid 0 --regid 0 --clear-groups", "--reuid 0 --regid 0 --clear-groups --bounding-set=-all --inh-caps=-all",
				"--reuid 1001 --regid 1001 --groups 2001", "--reuid 1001 --regid 1001 --clear-groups", "--reuid 1002 --regid 2001 --clear-groups",
			} {
				out, _ := trySh(t, dir, fmt.Sprintf(`setpriv %s bash -c 'echo secret >> f && echo written'`, who))
				results += fmt.Sprintf("%s: %s: %v\n", mode, who, strings.Contains(out, "written"))
			}
			s.release(t)
			s.finish(t)
		}
		return results
	}
	plain := attempt(tempDir(t))
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, append(flags, "--durability=none")...)
		if diff := diffLines(plain, attempt(m.Dir)); diff != "" {
			t.Errorf("- plain directory, + mount:\n%s", diff)
		}
	})
}

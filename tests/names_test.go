package tests

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
)

// holdNew is a writer that stays between its first and its second line of a new file.
const holdNew = `mkdir -p d; exec 5>d/new; echo a >&5; step; echo b >&5; exec 5>&-`

// TestNewNameIsReserved: to everyone else a file does not exist until it is closed, and
// yet nobody can take its name.
func TestNewNameIsReserved(t *testing.T) {
	// Each attempt is made by this process, which is not a descendant of the writer.
	attempts := map[string]struct {
		try  func(d string) error
		want error
	}{
		"stat":             {func(d string) error { _, err := os.Stat(d + "/new"); return err }, syscall.ENOENT},
		"open":             {func(d string) error { return openAndClose(d+"/new", os.O_RDONLY) }, syscall.ENOENT},
		"open for write":   {func(d string) error { return openAndClose(d+"/new", os.O_RDWR) }, syscall.ENOENT},
		"exclusive create": {func(d string) error { return openAndClose(d+"/new", os.O_WRONLY|os.O_CREATE|os.O_EXCL) }, syscall.EEXIST},
		"mkdir":            {func(d string) error { return os.Mkdir(d+"/new", 0o755) }, syscall.EEXIST},
		"symlink":          {func(d string) error { return os.Symlink("x", d+"/new") }, syscall.EEXIST},
		"link":             {func(d string) error { return syscall.Link(d+"/../other", d+"/new") }, syscall.EEXIST},
		"mkfifo":           {func(d string) error { return syscall.Mkfifo(d+"/new", 0o644) }, syscall.EEXIST},
		"rmdir":            {syscall.Rmdir, syscall.ENOTEMPTY},
		"unlink":           {func(d string) error { return syscall.Unlink(d + "/new") }, syscall.ENOENT},
		"rename":           {func(d string) error { return os.Rename(d+"/new", d+"/newer") }, syscall.ENOENT},
	}
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		m.put(t, "other", "other")
		s := startSteps(t, m.Dir, holdNew)
		s.await(t)
		for name, a := range attempts {
			if err := a.try(m.path("d")); !errors.Is(err, a.want) {
				t.Errorf("%s: got %v, want %v", name, err, a.want)
			}
		}
		if names, err := os.ReadDir(m.path("d")); err != nil || len(names) != 0 {
			t.Errorf("the directory lists %v, %v", names, err)
		}
		m.wantNone(t, "d/new")
		s.release(t)
		s.finish(t)
		m.wantVersion(t, "d/new", newVersion)
	})
}

func openAndClose(path string, flags int) error {
	f, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// TestCreateJoinsReservedName: who creates without insisting on a new or an empty file
// meets the first writer in its file.
func TestCreateJoinsReservedName(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		s := startSteps(t, m.Dir, `exec 5>>new; echo a >&5; step; echo c >&5; exec 5>&-`)
		s.await(t)
		startSteps(t, m.Dir, `echo b >> new`).finish(t)
		m.wantNone(t, "new")
		s.release(t)
		s.finish(t)
		m.wantVersion(t, "new", "a\nb\nc\n")
	})
}

// TestWriterSeesItsNewName: what a program does by path with a file that it has not closed
// yet, itself or by a child. After each script, `see` prints what there is.
func TestWriterSeesItsNewName(t *testing.T) {
	const see = `; shopt -s nullglob; ls; { stat -c '%n %a %u %h %Y %s' * 2> /dev/null || true; } | sed 's/ [0-9]\{10\} / recent /'; cat * < /dev/null`
	scripts := map[string]string{
		"stat":             `[ -f new ]; [ $(stat -c %s new) = 2 ]; echo b >&5; [ $(stat -c %s new) = 4 ]`,
		"read":             `[ "$(cat new)" = a ]; read -r x < new; [ $x = a ]; echo b >&5`,
		"chmod":            `chmod 640 new; echo b >&5`,
		"chown":            `chown 12:34 new; echo b >&5`,
		"utimes":           `echo b >&5; touch -d @1000 new`,
		"truncate":         `truncate -s 1 new`,
		"extended names":   `setfattr -n user.k -v v new; echo b >&5; getfattr --only-values -n user.k new`,
		"rename":           `mv new newer; echo b >&5; [ ! -e new ]; [ -e newer ]`,
		"rename twice":     `mv new newer; mv newer newest; echo b >&5`,
		"rename and again": `mv new newer; echo b >&5; echo second > new`,
		"rename over":      `echo other > other; mv new other; echo b >&5`,
		"rename into":      `mkdir s; mv new s/new; echo b >&5; exec 5>&-; mv s/new .; rmdir s`,
		"link":             `ln new other; echo b >&5; [ -e other ]`,
		"unlink":           `rm new; echo b >&5; [ ! -e new ]`,
		"unlink and again": `rm new; echo b >&5; echo second > new`,
		"own O_EXCL":       `(set -C; ! echo no > new) 2> /dev/null; echo b >&5`,
		"append":           `echo b >> new`,
		"truncate again":   `echo b > new`,
		"of a child":       `bash -c '[ -e new ] && chmod 600 new && (cat new)'; echo b >&5`,
		"directory moved":  `mkdir s; exec 6>s/x; echo x >&6; mv s r; [ -e r/x ]; exec 6>&-; mv r/x .; rmdir r; echo b >&5`,
	}
	eachPath(t, func(t *testing.T, flags []string) {
		for name, script := range scripts {
			t.Run(name, func(t *testing.T) {
				m, plain := newMount(t, flags...), tempDir(t)
				whole := `exec 5>new; echo a >&5; ` + script + `; exec 5>&-` + see
				want, got := sh(t, plain, whole), sh(t, m.Dir, whole)
				if got != want {
					t.Errorf("%s\ngot:\n%s\nwant:\n%s", script, got, want)
				}
			})
		}
	})
}

// TestOthersDoNotSeeTheNewName while its writer does things with it.
func TestOthersDoNotSeeTheNewName(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		s := startSteps(t, m.Dir, `exec 5>new; echo a >&5; chmod 600 new; step; ln new other; step; mv new newer; step; echo b >&5; exec 5>&-`)
		for range 3 {
			s.await(t)
			for _, name := range []string{"new", "other", "newer"} {
				m.wantNone(t, name)
			}
			s.release(t)
		}
		s.finish(t)
		m.wantNone(t, "new")
		m.wantVersion(t, "newer", newVersion)
		m.wantVersion(t, "other", newVersion)
	})
}

// TestStagedFileFollowsItsName: f is being replaced when somebody changes its name.
func TestStagedFileFollowsItsName(t *testing.T) {
	cases := map[string]struct {
		change string
		// during and after give the content of names, "" for none.
		during, after map[string]string
	}{
		"rename": {`mv d/f d/g`,
			map[string]string{"d/f": "", "d/g": oldVersion}, map[string]string{"d/f": "", "d/g": newVersion}},
		"rename over another": {`echo other > d/g; mv d/f d/g`,
			map[string]string{"d/f": "", "d/g": oldVersion}, map[string]string{"d/f": "", "d/g": newVersion}},
		"rename elsewhere": {`mv d/f g`,
			map[string]string{"d/f": "", "g": oldVersion}, map[string]string{"d/f": "", "g": newVersion}},
		"rename of its directory": {`mv d e`,
			map[string]string{"e/f": oldVersion}, map[string]string{"e/f": newVersion}},
		"rename above its directory": {`mkdir p; mv d p/q; mv p r`,
			map[string]string{"r/q/f": oldVersion}, map[string]string{"r/q/f": newVersion}},
		"exchange": {`echo other > g; sys rename2 exchange d/f g`,
			map[string]string{"d/f": "other\n", "g": oldVersion}, map[string]string{"d/f": "other\n", "g": newVersion}},
		"unlink": {`rm d/f`,
			map[string]string{"d/f": ""}, map[string]string{"d/f": ""}},
		"unlink and rmdir": {`rm -r d`,
			map[string]string{"d/f": ""}, map[string]string{"d/f": ""}},
		"replaced by rename": {`echo other > g; mv g d/f`,
			map[string]string{"d/f": "other\n"}, map[string]string{"d/f": "other\n"}},
		"unlink and create": {`rm d/f; echo other > d/f`,
			map[string]string{"d/f": "other\n"}, map[string]string{"d/f": "other\n"}},
		"rename and create": {`mv d/f g; echo other > d/f`,
			map[string]string{"d/f": "other\n", "g": oldVersion}, map[string]string{"d/f": "other\n", "g": newVersion}},
		"old link": {`ln d/f g`,
			map[string]string{"d/f": oldVersion, "g": oldVersion}, map[string]string{"d/f": newVersion, "g": oldVersion}},
	}
	eachPath(t, func(t *testing.T, flags []string) {
		for name, c := range cases {
			t.Run(name, func(t *testing.T) {
				m := newMount(t, flags...)
				mustMkdir(t, m.real("d"))
				m.put(t, "d/f", oldVersion)
				s := startSteps(t, m.Dir, `exec 5>d/f; echo a >&5; step; echo b >&5; exec 5>&-`)
				s.await(t)
				sh(t, m.Dir, sysPrelude+c.change)
				wantAll(t, m, c.during)
				s.release(t)
				s.finish(t)
				wantAll(t, m, c.after)
				wantOnly(t, m, c.after)
			})
		}
	})
}

func wantAll(t *testing.T, m *mount, files map[string]string) {
	t.Helper()
	for name, content := range files {
		if content == "" {
			m.wantNone(t, name)
		} else {
			m.wantVersion(t, name, content)
		}
	}
}

// wantOnly checks that the backing has no other files.
func wantOnly(t *testing.T, m *mount, files map[string]string) {
	t.Helper()
	for name, v := range manifest(t, m.Backing) {
		if v[0] == '-' && files[name] == "" {
			t.Errorf("out of place: %s", name)
		}
	}
}

// TestSalvageKnowsTheLastName: a writer whose directory was renamed is killed.
func TestSalvageKnowsTheLastName(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		s := startSteps(t, m.Dir, holdNew)
		s.await(t)
		sh(t, m.Dir, "mv d e")
		s.kill(t)
		m.wantNone(t, "e/new")
		m.awaitSalvaged(t, "e/new", 1)
	})
}

// TestUntornIsHidden: .untorn is not there, by no path, and cannot be made.
func TestUntornIsHidden(t *testing.T) {
	attempts := []string{
		"stat .untorn", "ls .untorn", "cd .untorn", "cat .untorn/format", "stat .untorn/stage", "ls d/../.untorn",
		"stat ./.untorn", "stat $PWD/.untorn", "readlink -e link/stage", "ls link/", "ls up/.untorn",
		"mkdir .untorn", "mkdir -p .untorn/x", "echo x > .untorn", "echo x >> .untorn", "echo x > .untorn/stage/x",
		"mv d .untorn", "mv -T f .untorn", "mv .untorn e", "ln f .untorn", "ln -s f .untorn", "ln .untorn/format g",
		"mkfifo .untorn", "rmdir .untorn", "rm .untorn", "mv f .untorn/f", "sys rename2 exchange d .untorn",
		"sys rename2 noreplace d .untorn", "chmod 777 .untorn", "touch .untorn", "getfattr -d .untorn",
		"truncate -s 0 .untorn/format", "sys tmpfile .untorn/stage x x",
	}
	eachPath(t, func(t *testing.T, flags []string) {
		for name, mk := range map[string]func(testing.TB, ...string) *mount{"beside": newMount, "over": newOverMount} {
			t.Run(name, func(t *testing.T) {
				m := mk(t, flags...)
				sh(t, m.Dir, "mkdir d; echo f > f; ln -s .untorn link; ln -s d/.. up")
				for _, a := range attempts {
					if out, err := trySh(t, m.Dir, sysPrelude+a); err == nil {
						t.Errorf("%s succeeded: %s", a, out)
					}
				}
				if out := sh(t, m.Dir, "ls -1a; find . -name .untorn; cd d; ls -1a ..; ls -1a ../d/.."); strings.Contains(out, ".untorn") {
					t.Errorf("listed:\n%s", out)
				}
				m.Unmount(t)
				if !native {
					sh(t, m.Backing, `[ -d .untorn ]; [ $(stat -c %a .untorn) = 700 ]; [ "$(cat f)" = f ]; [ -d d ]`)
				}
			})
		}
	})
}

package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// hasStaged writes to files that were opened in all ways before and after the test's step, closes them, and finds each
// published when close(2) has returned.
const hasStaged = `py '
files = {"replaced": os.O_WRONLY | os.O_TRUNC, "appended": os.O_WRONLY | os.O_APPEND, "updated": os.O_RDWR,
    "new": os.O_WRONLY | os.O_CREAT | os.O_EXCL}
prefix = "%s"
fds = {name: os.open(prefix + name, flags, 0o644) for name, flags in files.items()}
os.lseek(fds["updated"], 0, os.SEEK_END)
for fd in fds.values(): os.write(fd, b"1")
os.link(prefix + "new", prefix + "new2")
step()
for fd in fds.values(): os.write(fd, b"2")
for name, fd in fds.items():
    os.close(fd)
    got, want = open(prefix + name).read(), {"replaced": "12", "new": "12"}.get(name, "old12")
    if got != want: sys.exit("%%s holds %%r when close has returned" %% (name, got))
if os.stat(prefix + "new").st_ino != os.stat(prefix + "new2").st_ino: sys.exit("the two names are two files")
if os.stat(prefix + "replaced").st_mode & 0o777 != 0o751: sys.exit("the mode is lost")
'`

// TestStageRemoved: .untorn is removed by hand while files are being written, through one mount or two. Writers go on,
// what they close is published, what a killed one wrote is kept, and new opens work at once.
func TestStageRemoved(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		second := newMountOn(t, m.Backing, flags...)
		for round := range rounds(5) {
			prefix := [2]string{fmt.Sprint(round, "a"), fmt.Sprint(round, "b")}
			for _, p := range prefix {
				sh(t, m.Backing, fmt.Sprintf(`for f in %[1]s{replaced,appended,updated}; do printf old > $f; done; chmod 751 %[1]sreplaced`, p))
			}
			writers := []*steps{
				startSteps(t, m.Dir, fmt.Sprintf(hasStaged, prefix[0])),
				startSteps(t, second.Dir, fmt.Sprintf(hasStaged, prefix[1])),
				startSteps(t, m.Dir, fmt.Sprintf(`exec bash -c 'echo kept; echo step >&8; read -u 9; kill -9 $$' > %da`, round)),
			}
			for _, w := range writers {
				w.await(t)
			}
			if err := os.RemoveAll(filepath.Join(m.Backing, ".untorn")); err != nil {
				t.Fatal(err)
			}
			sh(t, m.Dir, `echo a > during; [ "$(cat during)" = a ]; echo b >> during; [ "$(cat during)" = $'a\nb' ]; rm during`)
			sh(t, second.Dir, `echo a > during; [ "$(cat during)" = a ]`)
			for _, w := range writers {
				w.release(t)
			}
			writers[0].finish(t)
			writers[1].finish(t)
			if writers[2].wait() == nil {
				t.Error("the killed writer lives")
			}
			m.wantNone(t, fmt.Sprint(round, "a"))
			m.awaitSalvaged(t, fmt.Sprint(round, "a"), 1)
		}
	})
}

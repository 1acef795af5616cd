package tests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// mountLimit is when a mount is taken for hung and its connection is aborted. Otherwise
// a hang would leave processes that not even SIGKILL ends.
const mountLimit = 8 * time.Minute

// mount is one live untorn mount of a fresh backing directory.
type mount struct {
	Backing, Dir string
	Flags        []string

	// daemon is our own child, in the foreground: the supervisor, or with --no-supervise the server itself.
	daemon   *exec.Cmd
	server   int // pid of who serves, as it was at the start
	ended    chan struct{}
	waitErr  error // of the daemon, once ended is closed
	log      string
	where    []string // its last arguments
	device   string   // "0:NN" of the mount; NN names the FUSE connection
	idle     []string
	watchdog *time.Timer
	unmount  sync.Once
	// killed is set when the test ended the daemon itself: what is staged then waits
	// for recovery.
	killed bool
	// shutDown is set when the test has shut down the filesystem of the backing.
	shutDown bool
}

// salvageEntry is one object of `untorn salvage list --json`.
type salvageEntry struct {
	ID      string    `json:"id"`
	Path    string    `json:"path"`
	Size    int64     `json:"size"`
	Time    time.Time `json:"time"`
	PID     int       `json:"pid"`
	Command string    `json:"command"`
	Reason  string    `json:"reason"`
}

// newMount mounts a fresh backing on a separate mountpoint.
func newMount(t testing.TB, flags ...string) *mount {
	t.Helper()
	backing := filepath.Join(tempDir(t), "backing")
	mustMkdir(t, backing)
	return newMountOn(t, backing, flags...)
}

// newMountOn mounts a given backing on a fresh mountpoint.
func newMountOn(t testing.TB, backing string, flags ...string) *mount {
	t.Helper()
	m := &mount{Backing: backing, Dir: backing, Flags: flags}
	if native {
		return m
	}
	m.Dir = filepath.Join(tempDir(t), "mnt")
	mustMkdir(t, m.Dir)
	m.start(t, backing, m.Dir)
	return m
}

// newOverMount mounts over the backing itself.
func newOverMount(t testing.TB, flags ...string) *mount {
	t.Helper()
	dir := filepath.Join(tempDir(t), "dir")
	mustMkdir(t, dir)
	m := &mount{Backing: dir, Dir: dir, Flags: flags}
	if !native {
		m.start(t, dir)
	}
	return m
}

func mustMkdir(t testing.TB, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

// start runs the daemon and returns when the mount answers.
func (m *mount) start(t testing.TB, where ...string) {
	t.Helper()
	logFile, err := os.CreateTemp(workDir, "daemon-*.log")
	if err != nil {
		t.Fatal(err)
	}
	logFile.Close()
	m.log, m.where = logFile.Name(), where
	t.Cleanup(func() {
		m.Unmount(t)
		m.dumpLog(t)
		os.Remove(m.log)
	})
	m.launch(t)
}

// launch starts the daemon, again after Kill.
func (m *mount) launch(t testing.TB) {
	t.Helper()
	logFile, err := os.OpenFile(m.log, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer logFile.Close()
	args := append([]string{"mount", "-f"}, m.Flags...)
	if level := os.Getenv("UNTORN_TEST_LOG"); level != "" {
		args = append(args, "--log-level="+level)
	}
	m.daemon = exec.Command(binary, append(args, m.where...)...)
	m.daemon.Env = cleanEnv()
	m.daemon.Stdout, m.daemon.Stderr = logFile, logFile
	m.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := m.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	m.killed = false
	daemon, ended := m.daemon, make(chan struct{})
	m.ended = ended
	go func() {
		m.waitErr = daemon.Wait()
		close(ended)
	}()

	m.server = 0
	if !poll(30*time.Second, func() bool { return m.hasEnded() || m.answers() }) || m.hasEnded() {
		m.daemon.Process.Kill()
		t.Fatalf("untorn %q did not mount", m.daemon.Args[1:])
	}
	if m.watchdog == nil {
		m.watchdog = time.AfterFunc(mountLimit, m.abort)
	}
	m.idle = m.descriptors()
}

func (m *mount) hasEnded() bool {
	select {
	case <-m.ended:
		return true
	default:
		return false
	}
}

// answers reports whether the mount is there, and remembers its device and who serves it.
func (m *mount) answers() bool {
	m.device = fuseDevice(m.Dir)
	if m.device != "" {
		m.server = serverOf(m.Dir)
	}
	return m.server != 0
}

// fuseDevice is the device number of the FUSE mount on dir, "" if there is none.
func fuseDevice(dir string) string {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(info)) {
		before, after, _ := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if len(f) > 4 && f[4] == dir && strings.HasPrefix(after, "fuse") {
			return f[2]
		}
	}
	return ""
}

// descriptors lists what the server has open. Directories opened with O_PATH are left
// out: they stand for inodes that the kernel may still look up, and go when it forgets
// them, under memory pressure or at the unmount, not when a file is closed. Left out as
// well are pipes and /dev/null: go-fuse keeps a pool of them for splicing; and the stage
// itself, because one is opened for each filesystem in the backing when it is first used.
func (m *mount) descriptors() []string {
	dir := fmt.Sprintf("/proc/%d", m.server)
	entries, _ := os.ReadDir(dir + "/fd")
	var open []string
	for _, e := range entries {
		link, err := os.Readlink(dir + "/fd/" + e.Name())
		if err != nil || link == "/dev/null" || strings.HasPrefix(link, "pipe:") || ofStage.MatchString(link) || m.isPathDirectory(dir, e.Name()) {
			continue
		}
		open = append(open, link)
	}
	slices.Sort(open)
	return open
}

// ofStage: .untorn, salvage, stage/INSTANCE, its list of origins, and the reserve of space, which is unlinked and small. A
// stage that was removed by hand is kept until the unmount.
var ofStage = regexp.MustCompile(`/\.untorn(/salvage|/stage/[0-9a-f]{16}(/origins|/reserve)?)?( \(deleted\))?$`)

func (m *mount) isPathDirectory(proc, fd string) bool {
	info, _ := os.ReadFile(proc + "/fdinfo/" + fd)
	var flags int64
	for line := range strings.Lines(string(info)) {
		if v, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, _ = strconv.ParseInt(strings.TrimSpace(v), 8, 64)
		}
	}
	const oPath = 0o10000000
	if flags&oPath == 0 {
		return false
	}
	fi, err := os.Stat(proc + "/fd/" + fd)
	return err == nil && fi.IsDir()
}

// checkDescriptors compares the daemon's descriptors with those of the idle mount. It
// polls because the kernel sends RELEASE asynchronously.
func (m *mount) checkDescriptors(t testing.TB) {
	t.Helper()
	var now []string
	if !poll(settleTimeout, func() bool { now = m.descriptors(); return len(now) <= len(m.idle) }) {
		t.Errorf("the daemon holds %d descriptors, %d when idle; now:\n%s\nidle:\n%s",
			len(now), len(m.idle), strings.Join(now, "\n"), strings.Join(m.idle, "\n"))
	}
}

// Unmount ends the mount and checks that nothing is left of it: no descriptor before,
// no process, no mount and no staged file after.
func (m *mount) Unmount(t testing.TB) {
	t.Helper()
	if m.daemon == nil {
		return
	}
	m.unmount.Do(func() {
		if m.watchdog != nil {
			defer m.watchdog.Stop()
		}
		if m.device != "" && !m.hasEnded() {
			m.checkDescriptors(t)
			if _, stderr, code := untorn(t, "umount", m.Dir); code != 0 {
				t.Errorf("untorn umount: exit code %d: %s\nopen files: %s", code, stderr, m.holders())
			}
		}
		m.awaitEnd(t)
		if fuseDevice(m.Dir) != "" {
			t.Errorf("%s is still mounted", m.Dir)
			syscall.Unmount(m.Dir, syscall.MNT_DETACH)
		}
		if !m.killed {
			for _, f := range stagedFiles(m.Backing) {
				t.Errorf("still staged after the unmount: %s", f)
			}
		}
		if !m.shutDown {
			m.check(t)
		}
	})
}

// check has untorn look for what is wrong in .untorn, as its owner. What a daemon left that the test has killed is
// recovered first.
func (m *mount) check(t testing.TB) {
	t.Helper()
	var st syscall.Stat_t
	if syscall.Lstat(filepath.Join(m.Backing, ".untorn"), &st) != nil {
		return
	}
	args := [][]string{{"check", m.Backing}}
	if m.killed {
		args = [][]string{{"recover", m.Backing}, {"check", m.Backing}}
	}
	for _, args := range args {
		cmd := command(t, binary, args...)
		cmd.Env = cleanEnv()
		if int(st.Uid) != os.Getuid() {
			asUser(int(st.Uid), cmd)
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("untorn %s: %v\n%s", args[0], err, out)
		}
	}
}

// awaitEnd waits for the daemon; one that hangs is taken down by force.
func (m *mount) awaitEnd(t testing.TB) {
	t.Helper()
	select {
	case <-m.ended:
	case <-time.After(15 * time.Second):
		t.Errorf("the daemon did not end; its stacks are in the log")
		if m.server > 0 {
			syscall.Kill(m.server, syscall.SIGQUIT)
		}
		m.abort()
		syscall.Unmount(m.Dir, syscall.MNT_DETACH)
		select {
		case <-m.ended:
		case <-time.After(5 * time.Second):
			m.daemon.Process.Kill()
			<-m.ended
		}
	}
	if m.waitErr != nil && !m.killed {
		t.Errorf("the daemon ended badly: %v", m.waitErr)
	}
}

// Kill ends the daemon with SIGKILL, as a crash of the machine would: supervisor first, so that nobody mounts again.
func (m *mount) Kill(t testing.TB) {
	t.Helper()
	m.killed = true
	m.daemon.Process.Kill()
	<-m.ended
	killAndWait(t, m.server)
	if err := syscall.Unmount(m.Dir, syscall.MNT_DETACH); err != nil {
		t.Errorf("unmounting after the crash: %v", err)
	}
}

// abort cuts the FUSE connection, so that whoever waits for the daemon gets an error.
func (m *mount) abort() {
	const control = "/sys/fs/fuse/connections"
	_, n, ok := strings.Cut(m.device, ":")
	if !ok {
		return
	}
	file := filepath.Join(control, n, "abort")
	if _, err := os.Stat(file); err != nil {
		syscall.Mount("fusectl", control, "fusectl", 0, "")
	}
	os.WriteFile(file, []byte("1"), 0o200)
}

// holders says who keeps the mount busy.
func (m *mount) holders() string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, "fuser", "-vm", m.Dir).CombinedOutput()
	return string(out)
}

func (m *mount) dumpLog(t testing.TB) {
	b, _ := os.ReadFile(m.log)
	text := string(b)
	for _, bad := range []string{"DATA RACE", "panic: ", "fatal error: "} {
		if strings.Contains(text, bad) {
			t.Errorf("the daemon's log has %q", bad)
		}
	}
	if !t.Failed() {
		return
	}
	const most = 16 << 10
	if len(text) > most {
		text = text[:most/2] + "\n[...]\n" + text[len(text)-most/2:]
	}
	t.Logf("log of untorn %q:\n%s", m.daemon.Args[1:], text)
}

// stagedFiles lists the files below .untorn/stage that hold somebody's bytes: all but
// the locks and the records of origin.
func stagedFiles(backing string) []string {
	var found []string
	filepath.WalkDir(filepath.Join(backing, ".untorn", "stage"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil
		}
		if !strings.HasPrefix(e.Name(), "origins") && !strings.HasPrefix(e.Name(), "lock") {
			found = append(found, path)
		}
		return nil
	})
	return found
}

// Salvaged lists what the mount has kept of unpublished versions.
func (m *mount) Salvaged(t testing.TB) []salvageEntry {
	t.Helper()
	if native {
		return nil
	}
	stdout, stderr, code := untorn(t, "salvage", "list", "--json", m.Backing)
	if code != 0 {
		t.Fatalf("salvage list: exit code %d: %s", code, stderr)
	}
	var entries []salvageEntry
	if err := json.Unmarshal([]byte(stdout), &entries); err != nil {
		t.Fatalf("salvage list --json: %v\n%s", err, stdout)
	}
	return entries
}

// awaitSalvaged waits until n versions of path are in the salvage.
func (m *mount) awaitSalvaged(t testing.TB, path string, n int) []salvageEntry {
	t.Helper()
	var found []salvageEntry
	ok := poll(settleTimeout, func() bool {
		found = nil
		for _, e := range m.Salvaged(t) {
			if e.Path == path {
				found = append(found, e)
			}
		}
		return len(found) >= n
	})
	if !ok || len(found) != n {
		t.Fatalf("the salvage has %d versions of %q, want %d: %+v", len(found), path, n, m.Salvaged(t))
	}
	return found
}

// path is a file below the mount; real is the same in the backing.
func (m *mount) path(name string) string { return filepath.Join(m.Dir, name) }
func (m *mount) real(name string) string { return filepath.Join(m.Backing, name) }

// put writes a file into the backing, behind the mount's back, before it is used.
func (m *mount) put(t testing.TB, name, content string) {
	t.Helper()
	if err := os.WriteFile(m.real(name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// wantVersion checks the content of name through the mount and in the backing.
func (m *mount) wantVersion(t testing.TB, name, want string) {
	t.Helper()
	for _, p := range []string{m.path(name), m.real(name)} {
		got, err := os.ReadFile(p)
		if err != nil || string(got) != want {
			t.Fatalf("%s: got %.80q (%v), want %.80q", p, got, err, want)
		}
	}
}

// wantNone checks that name exists neither in the mount, for this process, nor in the
// backing.
func (m *mount) wantNone(t testing.TB, name string) {
	t.Helper()
	for _, p := range []string{m.path(name), m.real(name)} {
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%s: want no such file, got %v", p, err)
		}
	}
}

// awaitVersion is wantVersion for what is published at RELEASE, after close(2).
func (m *mount) awaitVersion(t testing.TB, name, want string) {
	t.Helper()
	poll(settleTimeout, func() bool {
		got, err := os.ReadFile(m.path(name))
		return err == nil && string(got) == want
	})
	m.wantVersion(t, name, want)
}

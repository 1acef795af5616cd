package tests

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// How a workload is run and its disk cut.
const (
	withoutUntorn = "without untorn"
	dropsFlushes  = "full, flushes dropped"
)

// cutsPerRecording: then the workload is run again, with another seed.
const cutsPerRecording = 250

// cutCounts is how many cuts there are for each way on each filesystem, over both data paths.
func cutCounts(how string) int {
	if os.Getenv("UNTORN_TEST_SOAK") != "" {
		return 10000
	}
	if how == "full" {
		return rounds(1000)
	}
	return rounds(200)
}

// TestPowerCut cuts the power of real filesystems, in user space: a disk server logs what reaches it while programs
// write through a mount on it; then the disk is made as it may be after a cut at any position of that log, mounted,
// recovered and judged. What must be seen to break, or the rig would prove nothing, is in the same table: the same
// programs without untorn; a publish without the file's fsync (none); one without the directory's (ordered, which may
// lose what was promised); and a disk that takes no notice of flushes.
func TestPowerCut(t *testing.T) {
	needRoot(t)
	needUntorn(t)
	score := scores{}
	t.Run("cuts", func(t *testing.T) {
		for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
			for _, how := range []string{"full", "ordered", "none", withoutUntorn, dropsFlushes} {
				t.Run(fstype+"/"+how, func(t *testing.T) {
					t.Parallel()
					s := score.of(fstype, how)
					if how == withoutUntorn {
						cutPower(t, s, fstype, how, nil, cutCounts(how))
						return
					}
					eachPath(t, func(t *testing.T, flags []string) {
						cutPower(t, s, fstype, how, flags, cutCounts(how)/2)
					})
				})
			}
		}
	})
	t.Log(score.table())
	for at, s := range score {
		s.check(t, at)
	}
}

// score counts what was wrong after cuts.
type score struct {
	mu                         sync.Mutex
	cuts, torn, lost, troubled int // cuts after which something was
	broken                     int // any of them
}

type scoreKey struct{ fstype, how string }

type scores map[scoreKey]*score

var scoresMu sync.Mutex

func (s scores) of(fstype, how string) *score {
	scoresMu.Lock()
	defer scoresMu.Unlock()
	k := scoreKey{fstype, how}
	if s[k] == nil {
		s[k] = &score{}
	}
	return s[k]
}

func (s *score) add(v verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cuts++
	for _, c := range []struct {
		wrong []string
		count *int
	}{{v.torn, &s.torn}, {v.lost, &s.lost}, {v.trouble, &s.troubled}} {
		if len(c.wrong) > 0 {
			*c.count++
		}
	}
	if len(v.torn)+len(v.lost)+len(v.trouble) > 0 {
		s.broken++
	}
}

func (s scores) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-8s%-24s%8s%8s%8s%8s%8s\n", "", "", "cuts", "torn", "lost", "other", "any")
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		for _, how := range []string{withoutUntorn, "full", "ordered", "none", dropsFlushes} {
			if c := s[scoreKey{fstype, how}]; c != nil {
				fmt.Fprintf(&b, "%-8s%-24s%8d%8d%8d%8d%8d\n", fstype, how, c.cuts, c.torn, c.lost, c.troubled, c.broken)
			}
		}
	}
	return b.String()
}

// check fails the test if a control shows nothing. What must not break has failed at the cut itself.
func (s *score) check(t *testing.T, at scoreKey) {
	shown := map[string]int{withoutUntorn: s.broken, "none": s.torn, "ordered": s.lost, dropsFlushes: s.broken}
	if n, isControl := shown[at.how]; isControl && n*20 < s.cuts {
		t.Errorf("%s, %s: only %d of %d cuts show a shortcut that must show", at.fstype, at.how, n, s.cuts)
	}
}

// mustHold tells what of a verdict is a failure for a way of running.
func (v verdict) mustHold(how string) []string {
	switch how {
	case "full":
		return slices.Concat(v.torn, v.lost, v.trouble)
	case "ordered":
		return slices.Concat(v.torn, v.trouble)
	case "none":
		return v.trouble
	}
	return nil
}

// cutPower records workloads on one data path and cuts their power.
func cutPower(t *testing.T, s *score, fstype, how string, flags []string, count int) {
	for round := uint64(0); count > 0 && !t.Failed(); round++ {
		n := min(count, cutsPerRecording)
		count -= n
		r := recordWorkload(t, fstype, how, flags, round)
		r.cutOften(t, s, how, n, rand.New(rand.NewPCG(round, 3)))
		r.close()
	}
}

// cutOften cuts the power n times, from the beginning of a recording to its end.
func (r *recording) cutOften(t *testing.T, s *score, how string, n int, rng *rand.Rand) {
	dir := tempDir(t)
	for i := range n {
		span := r.to - r.from
		from, to := r.from+i*span/n, r.from+(i+1)*span/n
		c := cut{at: from + rng.IntN(max(1, to-from)), seed: rng.Uint64(), careless: how == dropsFlushes}
		v := r.judge(t, c, dir, how)
		s.add(v)
		if wrong := v.mustHold(how); len(wrong) > 0 {
			t.Errorf("cut %v of %d records:\n%s", c, len(r.records), strings.Join(wrong, "\n"))
			r.keep(t, c, how)
			return
		}
	}
}

// recordWorkload runs the workload on a fresh filesystem.
func recordWorkload(t *testing.T, fstype, how string, flags []string, seed uint64) *recording {
	t.Helper()
	r := &recording{fstype: fstype, image: newImage(t, fstype), log: memory(t, "log")}
	t.Run("record", func(t *testing.T) {
		top := filepath.Join(tempDir(t), "fs")
		mustMkdir(t, top)
		socket := startDisk(t, r.image, r.log, fstype, top)
		r.run(t, socket, top, how, flags, seed)
	})
	if t.Failed() {
		t.FailNow()
	}
	if err := r.load(); err != nil {
		t.Fatal(err)
	}
	return r
}

const cutWriters = 4

// run runs the programs of the workload.
func (r *recording) run(t *testing.T, socket, top, how string, flags []string, seed uint64) {
	data := filepath.Join(top, "data")
	layFiles(t, socket, top)
	ledger, err := dialLedger(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ledger.conn.Close()
	say := func(event string) {
		if err := ledger.say(event); err != nil {
			t.Fatal(err)
		}
	}
	say(eventStart)
	m := &mount{Dir: data}
	if how != withoutUntorn {
		durability, _, _ := strings.Cut(how, ",")
		m = newMountOn(t, data, append(slices.Clone(flags), "--durability="+durability)...)
	}
	startWorkload(t, socket, top, m, seed).await(t)
	m.Unmount(t)
	say(eventEnd)
}

// layFiles makes the files that the workload finds, and has them on the disk.
func layFiles(t testing.TB, socket, top string) {
	t.Helper()
	data := filepath.Join(top, "data")
	mustMkdir(t, data)
	for i := range cutWriters {
		runHelper(t, "cutwriter", data, socket, fmt.Sprint("w", i), "0", "0")
	}
	runHelper(t, "cutwriter", data, socket, "killed", "0", "0")
	f, err := os.Open(top)
	if err == nil {
		defer f.Close()
		err = unix.Syncfs(int(f.Fd()))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// workload is a set of programs that run at the same time.
type workload struct {
	programs []*exec.Cmd
	outputs  []*bytes.Buffer
	syncer   *exec.Cmd // runs until it is killed
}

// startWorkload starts the programs whose power is to be cut.
func startWorkload(t *testing.T, socket, top string, m *mount, seed uint64) *workload {
	t.Helper()
	w := &workload{}
	start := func(name string, args ...string) *exec.Cmd {
		cmd, out := helper(t, name, args...), &bytes.Buffer{}
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.outputs = append(w.outputs, out)
		return cmd
	}
	operations := 40
	if m.daemon == nil {
		operations = 400 // nothing is synced, so it takes less time
	}
	for i := range cutWriters {
		w.programs = append(w.programs, start("cutwriter", m.Dir, socket, fmt.Sprint("w", i),
			fmt.Sprint(seed+uint64(i)<<32), fmt.Sprint(operations)))
	}
	if m.daemon != nil {
		w.programs = append(w.programs, start("cutkiller", m.path("killed/f0"), m.path("killed/none"), "4"))
	}
	w.syncer = start("cutsyncer", filepath.Join(top, "unrelated"))
	return w
}

// await waits for the end of the programs.
func (w *workload) await(t testing.TB) {
	t.Helper()
	for i, cmd := range w.programs {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%q: %v\n%s", cmd.Args, err, w.outputs[i])
		}
	}
	w.syncer.Process.Kill()
	w.syncer.Wait()
}

// kill ends them where they are.
func (w *workload) kill() {
	for _, cmd := range append(w.programs, w.syncer) {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	for _, cmd := range append(w.programs, w.syncer) {
		cmd.Wait()
	}
}

// judge makes the disk of one cut, mounts it and looks at it.
func (r *recording) judge(t *testing.T, c cut, dir, how string) (v verdict) {
	image := r.disk(t, c)
	defer image.Close()
	if err := mountDisk(image, r.fstype, dir, 0); err != nil {
		v.trouble = append(v.trouble, fmt.Sprintf("mounting the %s: %v", r.fstype, err))
		return v
	}
	defer func() {
		if err := unmountDisk(dir); err != nil {
			t.Errorf("cut %v: unmounting: %v", c, err)
		}
	}()
	return judgeBacking(t, r.history, c.at, filepath.Join(dir, "data"), how == "full")
}

func (r *recording) close() {
	r.image.Close()
	r.log.Close()
}

// keep puts a recording and how to judge it again where people can look for it.
func (r *recording) keep(t *testing.T, c cut, how string) {
	dir, err := os.MkdirTemp("", "untorn-powercut-")
	if err != nil {
		t.Log(err)
		return
	}
	for name, f := range map[string]*os.File{"image": r.image, "log": r.log} {
		if err := copySparse(filepath.Join(dir, name), f); err != nil {
			t.Log(err)
		}
	}
	t.Logf("judge it again with: UNTORN_TEST_CUT=%s:%s:%s:%v scripts/test -v -run PowerCutAgain", dir, r.fstype, how, c)
}

func copySparse(to string, from *os.File) error {
	size, err := from.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	list, err := extents(from)
	if err != nil {
		return err
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, e := range list {
		if _, err := f.WriteAt(e.data, e.off); err != nil {
			return err
		}
	}
	return f.Truncate(size)
}

// TestPowerCutAgain judges one cut of a recording that was kept.
func TestPowerCutAgain(t *testing.T) {
	f := strings.Split(os.Getenv("UNTORN_TEST_CUT"), ":")
	if len(f) != 6 {
		t.Skip("UNTORN_TEST_CUT names no cut of a recording")
	}
	needRoot(t)
	r := &recording{fstype: f[1]}
	c := cut{careless: f[5] == "true"}
	var err error
	if c.at, err = strconv.Atoi(f[3]); err == nil {
		c.seed, err = strconv.ParseUint(f[4], 10, 64)
	}
	if err == nil {
		r.image, err = os.Open(filepath.Join(f[0], "image"))
	}
	if err == nil {
		r.log, err = os.Open(filepath.Join(f[0], "log"))
	}
	if err == nil {
		err = r.load()
	}
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	v := r.judge(t, c, tempDir(t), f[2])
	t.Logf("judged in %v:\ntorn: %q\nlost: %q\nother: %q", time.Since(began), v.torn, v.lost, v.trouble)
	if wrong := v.mustHold(f[2]); len(wrong) > 0 {
		t.Error(strings.Join(wrong, "\n"))
	}
}

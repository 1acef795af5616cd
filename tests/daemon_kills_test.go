package tests

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func init() { helpers["load"] = load }

// perMount is how many kills one mount, and one start of the programs, has to bear.
const perMount = 50

// TestDaemonKills: the daemon is killed at random points while programs write, append, rename and read: 1,000 times. Each
// time every path holds a whole version, that of the last close which returned or the one after it, and what was written of
// others is in the salvage.
func TestDaemonKills(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		kept := 0
		for i := range rounds(500 / perMount) {
			m := newMount(t, append(flags, "--no-supervise")...)
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			killUnderLoad(t, m, perMount, rng, func(states []loadState) {
				m.Kill(t)
				checkVersions(t, m.Backing, states)
				m.launch(t)
				kept += checkKept(t, m, states)
			})
		}
		t.Logf("%d unfinished files salvaged", kept)
		if kept == 0 {
			t.Error("never was a file being written")
		}
	})
}

// TestServerKillsUnderLoad: the same with a supervisor, which mounts again each time.
func TestServerKillsUnderLoad(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, append(flags, "--restarts=1000000")...)
		killUnderLoad(t, m, 20, rand.New(rand.NewPCG(3, 4)), func([]loadState) { m.awaitServer(t) })
	})
}

// killUnderLoad kills the server n times. mend is called when all programs have noticed, and returns when the mount answers.
func killUnderLoad(t *testing.T, m *mount, n int, rng *rand.Rand, mend func([]loadState)) {
	t.Helper()
	programs := startPrograms(t, m.Dir)
	for range n {
		programs.run(t)
		time.Sleep(time.Duration(rng.IntN(int(30 * time.Millisecond)))) // until a random point
		killAndWait(t, m.server)
		states := programs.await(t)
		mend(states)
		checkVersions(t, m.Dir, states)
	}
	programs.end(t)
	m.Unmount(t)
}

// loadState is what a program reports when the daemon has died under it: version Acked of its file was closed (or
// renamed, for "rename"), and of version Begun so many bytes were written.
type loadState struct {
	Kind         string
	Acked, Begun int
	Written      int
	Torn         string
}

// loadKinds are the programs; what they write carries their name.
var loadKinds = []string{"truncate", "append", "rename", "new", "read"}

// loadFile is the file that a version is written to, and the one that it comes to.
func loadFile(kind string, version int) (written, final string) {
	switch kind {
	case "rename":
		return "rename.temp", "rename"
	case "new":
		return "new" + strconv.Itoa(version), "new" + strconv.Itoa(version)
	}
	return kind, kind
}

// record is the content of one version, or of one appended piece: it names itself and is never like another.
func record(kind string, version int) []byte {
	rng := rand.New(rand.NewPCG(uint64(version), uint64(len(kind))))
	head := fmt.Sprintf("%s %d\n", kind, version)
	b := make([]byte, len(head)+1+rng.IntN(30000))
	for i := range b {
		b[i] = 'a' + byte(rng.UintN(26))
	}
	copy(b, head)
	b[len(b)-1] = '\n'
	return b
}

// versions splits content into whole records and returns their versions.
func versions(content []byte) (all []int, err error) {
	for len(content) > 0 {
		head, _, _ := bytes.Cut(content, []byte("\n"))
		kind, number, _ := strings.Cut(string(head), " ")
		version, err := strconv.Atoi(number)
		if err != nil {
			return nil, fmt.Errorf("no record begins with %.40q", content)
		}
		want := record(kind, version)
		if !bytes.HasPrefix(content, want) {
			return nil, fmt.Errorf("record %s %d is not whole", kind, version)
		}
		all = append(all, version)
		content = content[len(want):]
	}
	return all, nil
}

// perFile is how many records "append" puts into a file before it truncates it.
const perFile = 8

// load is the program. At each line on stdin, which tells the version that there is, it works until the daemon dies or it is
// signalled, and then prints its state.
func load(args []string) {
	dir, kind := args[0], args[1]
	s := loadState{Kind: kind}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGUSR1)
	check(json.NewEncoder(os.Stdout).Encode(s)) // ready for signals
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var err error
		s.Acked, err = strconv.Atoi(lines.Text())
		check(err)
		s.Begun, s.Written = s.Acked, 0
		for len(stop) == 0 {
			var err error
			if kind == "read" {
				err = s.read(dir)
			} else {
				err = s.write(dir)
			}
			if errors.Is(err, syscall.ENOTCONN) || errors.Is(err, syscall.ECONNABORTED) || errors.Is(err, syscall.EIO) {
				break
			}
			check(err)
		}
		select {
		case <-stop:
		default: // if it comes late, it ends the next run early
		}
		check(json.NewEncoder(os.Stdout).Encode(s))
	}
}

// write makes the next version.
func (s *loadState) write(dir string) error {
	s.Begun, s.Written = s.Begun+1, 0
	temp, final := loadFile(s.Kind, s.Begun)
	flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if s.Kind == "append" && s.Begun%perFile != 0 {
		flags = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	}
	// Not with os.OpenFile, which would poll and lose the error of close.
	fd, err := syscall.Open(filepath.Join(dir, temp), flags|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	for content := record(s.Kind, s.Begun); s.Written < len(content); {
		n, err := syscall.Write(fd, content[s.Written:min(s.Written+4000, len(content))])
		if err != nil {
			syscall.Close(fd)
			return err
		}
		s.Written += n
	}
	if err := syscall.Close(fd); err != nil {
		return err
	}
	if temp != final {
		if err := os.Rename(filepath.Join(dir, temp), filepath.Join(dir, final)); err != nil {
			return err
		}
	}
	s.Acked = s.Begun
	if _, old := loadFile(s.Kind, s.Begun-10); s.Kind == "new" && s.Begun > 10 {
		if err := os.Remove(filepath.Join(dir, old)); !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// read opens what the others write.
func (s *loadState) read(dir string) error {
	for _, kind := range loadKinds[:3] {
		content, err := os.ReadFile(filepath.Join(dir, kind))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if _, err := versions(content); err != nil {
			s.Torn = fmt.Sprintf("%s: %v", kind, err)
		}
	}
	return nil
}

// programs are the running ones.
type programs struct {
	cmds   []*exec.Cmd
	to     []io.WriteCloser
	from   []*json.Decoder
	states []loadState
}

func startPrograms(t testing.TB, dir string) *programs {
	t.Helper()
	p := &programs{states: make([]loadState, len(loadKinds))}
	for _, kind := range loadKinds {
		cmd := helper(t, "load", dir, kind)
		cmd.Stderr = os.Stderr
		to, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		from, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		p.cmds, p.to, p.from = append(p.cmds, cmd), append(p.to, to), append(p.from, json.NewDecoder(from))
	}
	for i, from := range p.from {
		if err := from.Decode(&p.states[i]); err != nil {
			t.Fatalf("%s: %v", loadKinds[i], err)
		}
	}
	return p
}

func (p *programs) run(t testing.TB) {
	t.Helper()
	for i, to := range p.to {
		if _, err := fmt.Fprintln(to, p.states[i].Acked); err != nil {
			t.Fatal(err)
		}
	}
}

// await returns the states of all when the daemon's death has reached them. Who was between two calls while it was dead has
// not noticed, and is told.
func (p *programs) await(t testing.TB) []loadState {
	t.Helper()
	for _, cmd := range p.cmds {
		cmd.Process.Signal(syscall.SIGUSR1)
	}
	for i, from := range p.from {
		p.states[i] = loadState{}
		if err := from.Decode(&p.states[i]); err != nil {
			t.Fatalf("%s: %v", loadKinds[i], err)
		}
		if p.states[i].Torn != "" {
			t.Fatalf("a reader saw a torn file: %s", p.states[i].Torn)
		}
	}
	return p.states
}

// end waits for the programs to end by themselves.
func (p *programs) end(t testing.TB) {
	t.Helper()
	for i, cmd := range p.cmds {
		p.to[i].Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", loadKinds[i], err)
		}
	}
}

// checkVersions looks at the files in dir, after the daemon's death or the next mount. Begun becomes Acked where the daemon
// finished before it died.
func checkVersions(t testing.TB, dir string, states []loadState) {
	t.Helper()
	for i := range states {
		s := &states[i]
		if s.Kind == "read" {
			continue
		}
		_, final := loadFile(s.Kind, s.Begun)
		content, err := os.ReadFile(filepath.Join(dir, final))
		if errors.Is(err, os.ErrNotExist) && s.Kind == "new" && s.Begun > s.Acked {
			_, final = loadFile(s.Kind, s.Acked)
			content, err = os.ReadFile(filepath.Join(dir, final))
		}
		if errors.Is(err, os.ErrNotExist) && s.Acked == 0 {
			continue
		}
		if err != nil {
			t.Fatalf("%+v: %v", *s, err)
		}
		all, err := versions(content)
		if err != nil || len(all) == 0 {
			t.Fatalf("%s, after %+v: %d bytes, %v", final, *s, len(content), err)
		}
		if last := all[len(all)-1]; last != s.Acked && last != s.Begun {
			t.Fatalf("%s has version %d, after %+v", final, last, *s)
		}
		if s.Kind == "append" {
			wantRow(t, all)
		} else if len(all) > 1 {
			t.Fatalf("%s has several versions: %d", final, all)
		}
		s.Acked = all[len(all)-1]
	}
}

// wantRow checks that no appended record is missing.
func wantRow(t testing.TB, all []int) {
	t.Helper()
	first := all[len(all)-1] / perFile * perFile
	for i, version := range all {
		// Version 0 was never written.
		if version != max(first, 1)+i {
			t.Fatalf("the appended records are %d", all)
		}
	}
}

// checkKept looks for what was written and not published in the salvage, which it empties, and returns how many files it
// found there.
func checkKept(t testing.TB, m *mount, states []loadState) (found int) {
	t.Helper()
	dir := m.real(".untorn/salvage")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var kept [][]byte
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !strings.HasSuffix(path, ".json") {
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			kept = append(kept, content)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range states {
		if s.Begun == s.Acked || s.Written == 0 {
			continue
		}
		temp, final := loadFile(s.Kind, s.Begun)
		if content, err := os.ReadFile(m.real(temp)); temp != final && err == nil && bytes.Equal(content, record(s.Kind, s.Begun)) {
			continue // closed, and not renamed
		}
		piece := record(s.Kind, s.Begun)[:s.Written]
		if !slices.ContainsFunc(kept, func(c []byte) bool { return bytes.Contains(c, piece) }) {
			t.Fatalf("%d bytes of %+v are not among %d files in the salvage", s.Written, s, len(kept))
		}
		found++
	}
	return found
}

package tests

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// TestNothingLeaks runs a mixture of everything that stages, and then compares the daemon
// with that of an idle mount: no descriptor, no staged file and no goroutine more.
func TestNothingLeaks(t *testing.T) {
	mixture := []string{
		`for i in {1..100}; do echo $i > f$((i % 7)); done`,
		`for i in {1..100}; do echo $i >> g$((i % 7)); done`,
		`for i in {1..50}; do exec 5<>f1; exec 5>&-; done`,
		`for i in {1..50}; do mkdir d; echo x > d/f; mv d e; rm -r e; done`,
		`for i in {1..50}; do exec 5>h; echo x >&5; rm h; exec 5>&-; done`,
		`for i in {1..50}; do exec 5>h; echo x >&5; mv h i; echo y > h; exec 5>&-; done`,
		`for i in {1..30}; do bash -c 'echo lost; kill -9 $$' > f2 || true; done`,
		`for i in {1..30}; do bash -c 'echo lost; kill -9 $$' > new$i || true; done`,
		`for i in {1..30}; do { echo a; (echo b); echo c; } > f3; done`,
		`seq 20000 > big; for i in {1..30}; do sort -R big > sorted; cp sorted copy; truncate -s $i copy; done`,
		`for i in {1..20}; do (set -C; echo x > f4) 2> /dev/null || true; mkdir f4 2> /dev/null || true; done`,
		`for i in {1..200}; do echo x > many$i; done; ls -l > /dev/null; rm many*`,
		`for i in {1..20}; do flock f5 -c 'echo x > f5'; done`,
		`find . -type f -exec cat {} + > /dev/null; find . | wc -l`,
	}
	eachPath(t, func(t *testing.T, flags []string) {
		flags = append(flags, "--no-supervise") // it would mount again when goroutines ends the daemon
		idle := newMount(t, flags...)
		used := newMount(t, flags...)
		for range 2 {
			for _, script := range mixture {
				sh(t, used.Dir, script)
			}
		}
		if native {
			return
		}
		used.checkDescriptors(t)
		eventually(t, "an empty stage", func() bool { return len(stagedFiles(used.Backing)) == 0 })
		before, after := goroutines(t, idle), goroutines(t, used)
		for where, n := range after {
			if n > before[where] {
				t.Errorf("%d goroutines of %s, %d in an idle daemon", n, where, before[where])
			}
		}
	})
}

// goroutines ends a daemon with a dump of its stacks and counts them by the function that
// started them. The readers of go-fuse are left out: it keeps as many as there were
// requests at once, up to a limit.
func goroutines(t testing.TB, m *mount) map[string]int {
	t.Helper()
	offset := 0
	if b, err := os.ReadFile(m.log); err == nil {
		offset = len(b)
	}
	m.killed = true
	m.daemon.Process.Signal(syscall.SIGQUIT)
	<-m.ended
	syscall.Unmount(m.Dir, syscall.MNT_DETACH)
	b, err := os.ReadFile(m.log)
	if err != nil {
		t.Fatal(err)
	}
	started := regexp.MustCompile(`(?m)^created by (\S+)`)
	counts := map[string]int{}
	for stack := range strings.SplitSeq(string(b[offset:]), "\n\n") {
		// Goroutine 0 is the scheduler, in the dump only if the signal met its thread idle.
		if !strings.HasPrefix(stack, "goroutine ") || strings.HasPrefix(stack, "goroutine 0 ") || strings.Contains(stack, "go-fuse/v2/fuse.(*Server)") {
			continue
		}
		where := "main"
		if by := started.FindStringSubmatch(stack); by != nil {
			where = by[1]
		}
		if strings.HasPrefix(where, "runtime.") {
			continue // the collector's own, started with the first collection
		}
		counts[where]++
	}
	if counts["main"] == 0 {
		t.Fatalf("no stacks in the log:\n%s", b[offset:])
	}
	return counts
}

// TestStagedFilesAreGivenBack: 300 files are staged at once; however they end, the daemon gives back
// what it holds for them.
func TestStagedFilesAreGivenBack(t *testing.T) {
	if native {
		t.Skip("needs a daemon")
	}
	endings := map[string]string{
		"closed":   `step`,
		"killed":   `step; kill -9 $BASHPID`,
		"unlinked": `step; rm d/*`,
		"moved":    `step; mv d e`,
	}
	eachPath(t, func(t *testing.T, flags []string) {
		for name, ending := range endings {
			t.Run(name, func(t *testing.T) {
				m := newMount(t, flags...)
				s := startSteps(t, m.Dir, fmt.Sprintf(`mkdir d; for fd in {20..319}; do eval "exec $fd> d/$fd"; echo x >&$fd; done; %s`, ending))
				s.await(t)
				if staged := stagedFiles(m.Backing); len(staged) < 300 {
					t.Errorf("%d staged files, want 300", len(staged))
				}
				s.release(t)
				s.wait()
				m.checkDescriptors(t)
				eventually(t, "an empty stage", func() bool { return len(stagedFiles(m.Backing)) == 0 })
				published := map[string]int{"closed": 300, "moved": 300}[name]
				if got := countFiles(manifest(t, m.Backing)); got != published {
					t.Errorf("%d files published, want %d", got, published)
				}
			})
		}
	})
}

// countFiles counts the regular files of a manifest.
func countFiles(all map[string]string) int {
	n := 0
	for _, v := range all {
		if v[0] == '-' {
			n++
		}
	}
	return n
}

package tests

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Lock protocols between processes: what a lock protects must behave as in a plain
// directory, although each writer of a file gets a staged one.

const (
	counterProcesses = 4
	counterRounds    = 500 // of each process
	appendLines      = 500 // of each process
	lockfileRacers   = 8
	lockfileRounds   = 100
)

func init() {
	helpers["lockfile"] = raceForLockfile
	helpers["count"] = countUnderLock
	helpers["append"] = appendByOpenAndClose
	helpers["holdlock"] = holdLock
}

// TestExclusiveLockfile lets processes race for an O_EXCL lockfile. Under it each one
// rewrites a counter, so that two holders at once would show as a lost update.
func TestExclusiveLockfile(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, append(flags, "--durability=none")...)
		mustWrite(t, m.path("counter"), "0")
		runTogether(t, lockfileRacers, func(int) *exec.Cmd {
			return helper(t, "lockfile", m.path("lock"), m.path("counter"))
		})
		m.wantVersion(t, "counter", strconv.Itoa(lockfileRacers*lockfileRounds))
		m.wantNone(t, "lock")
	})
}

func raceForLockfile(args []string) {
	lock, counter := args[0], args[1]
	for done := 0; done < lockfileRounds; {
		f, err := os.OpenFile(lock, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		check(err)
		_, err = fmt.Fprintln(f, os.Getpid())
		check(err)
		check(increment(counter))
		check(f.Close())
		check(os.Remove(lock))
		done++
	}
}

// TestCounterUnderLock is the protocol of most programs that share state: lock a
// lockfile that stays, read a file, write it anew.
func TestCounterUnderLock(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		for _, kind := range []string{"flock", "fcntl", "ofd"} {
			t.Run(kind, func(t *testing.T) {
				m := newMount(t, append(flags, "--durability=none")...)
				mustWrite(t, m.path("counter"), "0")
				runTogether(t, counterProcesses, func(int) *exec.Cmd {
					return helper(t, "count", kind, m.path("lock"), m.path("counter"))
				})
				m.wantVersion(t, "counter", strconv.Itoa(counterProcesses*counterRounds))
			})
		}
		// The lock is on the very file that is changed, in place, through its descriptor.
		t.Run("on the counter itself", func(t *testing.T) {
			m := newMount(t, append(flags, "--durability=none")...)
			mustWrite(t, m.path("counter"), "0")
			runTogether(t, counterProcesses, func(int) *exec.Cmd {
				return helper(t, "count", "flock", m.path("counter"), "")
			})
			m.awaitVersion(t, "counter", strconv.Itoa(counterProcesses*counterRounds))
		})
	})
}

func countUnderLock(args []string) {
	kind, lock, counter := args[0], args[1], args[2]
	for range counterRounds {
		f, err := os.OpenFile(lock, os.O_RDWR|os.O_CREATE, 0o644)
		check(err)
		check(lockFile(f, kind, true))
		if counter == "" {
			check(incrementIn(f))
		} else {
			check(increment(counter))
		}
		check(f.Close())
	}
}

// lockFile takes an exclusive lock, waiting for it or not.
func lockFile(f *os.File, kind string, wait bool) error {
	flock, fcntl, ofd := unix.LOCK_EX|unix.LOCK_NB, unix.F_SETLK, unix.F_OFD_SETLK
	if wait {
		flock, fcntl, ofd = unix.LOCK_EX, unix.F_SETLKW, unix.F_OFD_SETLKW
	}
	for {
		var err error
		whole := unix.Flock_t{Type: unix.F_WRLCK}
		switch kind {
		case "flock":
			err = unix.Flock(int(f.Fd()), flock)
		case "fcntl":
			err = unix.FcntlFlock(f.Fd(), fcntl, &whole)
		case "ofd":
			err = unix.FcntlFlock(f.Fd(), ofd, &whole)
		}
		if err != syscall.EINTR { // Go's own signals interrupt the wait
			return err
		}
	}
}

// increment writes a counter file anew.
func increment(name string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(string(text))
	if err != nil {
		return fmt.Errorf("%s is torn: %w", name, err)
	}
	return os.WriteFile(name, []byte(strconv.Itoa(n+1)), 0o644)
}

// incrementIn changes an open counter file.
func incrementIn(f *os.File) error {
	text := make([]byte, 20)
	size, err := f.ReadAt(text, 0)
	if size == 0 {
		return fmt.Errorf("the counter is empty: %w", err)
	}
	n, err := strconv.Atoi(string(text[:size]))
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(strconv.Itoa(n+1)), 0)
	return err
}

// TestAppendTogether lets processes append whole lines to one log, each by open, write
// and close.
func TestAppendTogether(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, append(flags, "--durability=none")...)
		runTogether(t, counterProcesses, func(i int) *exec.Cmd {
			return helper(t, "append", m.path("log"), strconv.Itoa(i))
		})
		missing := map[string]bool{}
		for i := range counterProcesses {
			for n := range appendLines {
				missing[logLine(strconv.Itoa(i), n)] = true
			}
		}
		complete := func() bool { return len(mustRead(t, m.real("log"))) == totalLength(missing) }
		poll(settleTimeout, complete) // the last of several writers may publish at RELEASE
		for line := range strings.Lines(mustRead(t, m.path("log"))) {
			if !missing[line] {
				t.Errorf("torn, foreign or repeated line: %q", line)
			}
			delete(missing, line)
		}
		if len(missing) > 0 {
			t.Errorf("%d lines are missing, one of them %q", len(missing), anyKey(missing))
		}
		m.wantVersion(t, "log", mustRead(t, m.path("log")))
	})
}

func appendByOpenAndClose(args []string) {
	for n := range appendLines {
		f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
		check(err)
		_, err = f.WriteString(logLine(args[1], n))
		check(err)
		check(f.Close())
	}
}

// logLine is long enough to straddle pages here and there.
func logLine(process string, n int) string {
	return fmt.Sprintf("process %s line %d %s\n", process, n, strings.Repeat(process, 60+n%40))
}

// TestLockIsReleasedByDeath kills the holder of a lock: whoever waits for it gets it.
func TestLockIsReleasedByDeath(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		for _, kind := range []string{"flock", "fcntl", "ofd"} {
			t.Run(kind, func(t *testing.T) {
				lock := m.path("lock-" + kind)
				mustWrite(t, lock, "")
				holder := startLocker(t, kind, lock)
				holder.expect("locked")
				waiter := startLocker(t, kind, lock)
				waiter.expect("busy")
				holder.end()
				waiter.expect("locked")
				waiter.end()
			})
		}
	})
}

// locker is a process that takes a lock and keeps it.
type locker struct {
	t       *testing.T
	cmd     *exec.Cmd
	reports *bufio.Reader
}

func startLocker(t *testing.T, kind, lock string) *locker {
	t.Helper()
	cmd := helper(t, "holdlock", kind, lock)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &locker{t, cmd, bufio.NewReader(out)}
}

func (l *locker) expect(report string) {
	l.t.Helper()
	if line, err := l.reports.ReadString('\n'); line != report+"\n" {
		l.t.Fatalf("got %q (%v), want %q", line, err, report)
	}
}

func (l *locker) end() {
	l.cmd.Process.Kill()
	l.cmd.Wait()
}

func holdLock(args []string) {
	f, err := os.OpenFile(args[1], os.O_RDWR, 0)
	check(err)
	if err := lockFile(f, args[0], false); err != nil {
		if err != syscall.EAGAIN {
			check(err)
		}
		fmt.Println("busy")
		check(lockFile(f, args[0], true))
	}
	fmt.Println("locked")
	select {}
}

// runTogether runs n processes at once and expects all of them to end well.
func runTogether(t *testing.T, n int, start func(i int) *exec.Cmd) {
	t.Helper()
	cmds := make([]*exec.Cmd, n)
	output := make([]bytes.Buffer, n)
	for i := range cmds {
		cmds[i] = start(i)
		cmds[i].Stdout, cmds[i].Stderr = &output[i], &output[i]
		if err := cmds[i].Start(); err != nil {
			t.Fatal(err)
		}
	}
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("process %d: %v\n%s", i, err, output[i].String())
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

func mustWrite(t testing.TB, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func anyKey(m map[string]bool) string {
	for k := range m {
		return k
	}
	return ""
}

func totalLength(lines map[string]bool) (n int) {
	for line := range lines {
		n += len(line)
	}
	return n
}

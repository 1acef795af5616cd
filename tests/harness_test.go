// Package tests drives the built untorn binary end to end: real mounts, real
// programs, real kills.
//
// Environment:
//
//	UNTORN_TEST_DIR       where backings are made (default /var/tmp; a disk, not a tmpfs)
//	UNTORN_TEST_RACE=1    build the binary with the race detector
//	UNTORN_TEST_LOG=LEVEL log level of the daemons
//	UNTORN_TEST_NATIVE=1  hand out plain directories without a mount: tests of plain
//	                      behaviour pass, tests of a promise fail. It proves that
//	                      they can.
//	UNTORN_TEST_CUT       one power cut to judge again; a failed one prints it
package tests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	commandTimeout = 2 * time.Minute
	// settleTimeout bounds the wait for what the kernel does asynchronously, RELEASE
	// above all.
	settleTimeout = 5 * time.Second
	standardPath  = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// helpers are small programs: the test binary runs itself under another name. Each
// file registers its own in init.
var helpers = map[string]func(args []string){}

var (
	native   = os.Getenv("UNTORN_TEST_NATIVE") == "1"
	workDir  string // of this run, removed at the end
	binary   string // untorn
	selfCopy string // this test binary, where other users can run it
)

func TestMain(m *testing.M) {
	if name := os.Getenv("UNTORN_TEST_HELPER"); name != "" {
		runHelperMain(name)
	}
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

func runHelperMain(name string) {
	run, ok := helpers[name]
	if !ok {
		fmt.Fprintln(os.Stderr, "no helper", name)
		os.Exit(2)
	}
	run(os.Args[1:])
	os.Exit(0)
}

func runTests(m *testing.M) (code int, err error) {
	parent := os.Getenv("UNTORN_TEST_DIR")
	if parent == "" {
		parent = "/var/tmp"
	}
	if workDir, err = os.MkdirTemp(parent, "untorn-test-"); err != nil {
		return 1, err
	}
	defer os.RemoveAll(workDir)
	// Other users run the helpers and enter the mounts.
	if err := os.Chmod(workDir, 0o755); err != nil {
		return 1, err
	}
	syscall.Umask(0o022)
	bin := filepath.Join(workDir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return 1, err
	}
	if err := copySelf(filepath.Join(bin, "untorn-tests")); err != nil {
		return 1, err
	}
	if err := startGuardian(); err != nil {
		return 1, err
	}
	os.Setenv("PATH", bin+":"+standardPath+":"+os.Getenv("PATH"))
	os.Setenv("LC_ALL", "C")
	if native {
		fmt.Println("tests: plain directories, no mount")
	} else if err := build(filepath.Join(bin, "untorn")); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// build makes the binary under test.
func build(to string) error {
	args := []string{"build", "-o", to, "./cmd/untorn"}
	cgo := "CGO_ENABLED=0"
	if os.Getenv("UNTORN_TEST_RACE") == "1" {
		args = []string{"build", "-race", "-o", to, "./cmd/untorn"}
		cgo = "CGO_ENABLED=1"
	}
	fmt.Println("tests:", cgo, "go", strings.Join(args, " "))
	cmd := exec.Command("go", args...)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building untorn: %w\n%s", err, out)
	}
	binary = to
	return nil
}

func copySelf(to string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	in, err := os.Open(self)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	selfCopy = to
	return out.Close()
}

// tempDir is a directory on the disk under test that every user can enter.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(workDir, "t")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("removing the test's directory: %v", err)
		}
	})
	return dir
}

// command prepares a command in a process group of its own, which ends with the test
// at the latest.
func command(t testing.TB, name string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	t.Cleanup(func() {
		cancel()
		if cmd.Process != nil && cmd.ProcessState == nil {
			reap(cmd)
		}
	})
	return cmd
}

// reap waits for a killed command, but not for one that even SIGKILL does not end: that
// is for the mount's watchdog.
func reap(cmd *exec.Cmd) {
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(settleTimeout):
	}
}

// untorn runs the binary under test.
func untorn(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	if native {
		t.Fatal("no untorn without a mount")
	}
	cmd := command(t, binary, args...)
	cmd.Env = cleanEnv()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("untorn %q: %v", args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// cleanEnv is the environment without the settings that untorn itself would read.
func cleanEnv() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "UNTORN_") {
			env = append(env, v)
		}
	}
	return env
}

// sh runs a bash script in dir and returns what it printed.
func sh(t testing.TB, dir, script string) string {
	t.Helper()
	out, err := trySh(t, dir, script)
	if err != nil {
		t.Fatalf("script failed: %v\n%s\n--- output\n%s", err, script, out)
	}
	return out
}

// trySh is sh for scripts that may fail.
func trySh(t testing.TB, dir, script string) (string, error) {
	t.Helper()
	cmd := command(t, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// asUser makes cmd run as another user with the group of the same number.
func asUser(uid int, cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
}

// helper prepares one of the registered programs.
func helper(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	if helpers[name] == nil {
		t.Fatalf("no helper %q", name)
	}
	cmd := command(t, selfCopy, args...)
	cmd.Env = append(os.Environ(), "UNTORN_TEST_HELPER="+name)
	return cmd
}

// runHelper runs a helper to its end and returns what it printed.
func runHelper(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := helper(t, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("helper %s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// check ends a helper program that cannot go on.
func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// eachPath runs f once for each data path: with passthrough where the kernel has it,
// and through plain FUSE reads and writes.
func eachPath(t *testing.T, f func(t *testing.T, flags []string)) {
	t.Helper()
	if native {
		t.Run("native", func(t *testing.T) { f(t, nil) })
		return
	}
	t.Run("passthrough", func(t *testing.T) { f(t, nil) })
	t.Run("plain", func(t *testing.T) { f(t, []string{"--no-passthrough"}) })
}

// eachDurability runs f under each durability of the autocommit mount.
func eachDurability(t *testing.T, flags []string, f func(t *testing.T, flags []string)) {
	t.Helper()
	for _, d := range []string{"full", "ordered", "none"} {
		t.Run(d, func(t *testing.T) {
			f(t, append([]string{"--durability=" + d}, flags...))
		})
	}
}

// eventually waits for a condition that the kernel brings about asynchronously.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	if !poll(settleTimeout, cond) {
		t.Fatalf("never happened: %s", what)
	}
}

func poll(limit time.Duration, cond func() bool) bool {
	for end := time.Now().Add(limit); ; time.Sleep(2 * time.Millisecond) {
		if cond() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// needRoot skips what only the superuser can set up.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

// rounds scales a loop: a tenth with -short, twenty times as long in a soak (scripts/test --soak).
func rounds(n int) int {
	switch {
	case os.Getenv("UNTORN_TEST_SOAK") != "":
		return 20 * n
	case testing.Short():
		return n / 10
	}
	return n
}

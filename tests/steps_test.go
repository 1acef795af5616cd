package tests

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"testing"
)

// stepPrelude gives a script `step`, which stops it until the test lets it go on, and
// `is FILE CONTENT`, which fails the script unless the file has that content (without
// the last newline). Python programs step with os.write(8, b"step\n"); os.read(9, 1).
const stepPrelude = `
step() { echo step >&8; read -r _ <&9; }
is() { local got; got=$(cat "$1"); [ "$got" = "$2" ] || { echo "$1: got '$got', want '$2'" >&2; exit 9; }; }
py() { /usr/bin/python3 -c "import os, sys
def step():
    os.write(8, b'step\n'); os.read(9, 1)
$1"; }
`

// steps is a running script that has stops.
type steps struct {
	cmd      *exec.Cmd
	reports  *bufio.Reader
	releases io.WriteCloser
	output   bytes.Buffer
}

// startSteps starts a bash script in dir.
func startSteps(t testing.TB, dir, script string) *steps {
	t.Helper()
	s := &steps{cmd: command(t, "bash", "-euo", "pipefail", "-c", stepPrelude+script)}
	s.cmd.Dir = dir
	s.cmd.Stdout, s.cmd.Stderr = &s.output, &s.output
	reportR, reportW := pipe(t)
	releaseR, releaseW := pipe(t)
	// They become descriptors 8 and 9, out of the way of the scripts' own.
	s.cmd.ExtraFiles = []*os.File{nil, nil, nil, nil, nil, reportW, releaseR}
	s.reports, s.releases = bufio.NewReader(reportR), releaseW
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	reportW.Close()
	releaseR.Close()
	return s
}

func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// await returns when the script has stopped.
func (s *steps) await(t testing.TB) {
	t.Helper()
	line, err := s.reports.ReadString('\n')
	if err != nil || line != "step\n" {
		s.cmd.Wait()
		t.Fatalf("the script did not reach its step: %q, %v\n%s", line, err, s.output.String())
	}
}

// release lets the script go on.
func (s *steps) release(t testing.TB) {
	t.Helper()
	if _, err := s.releases.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
}

// finish waits for the script and for all that it has left behind: the pipe ends when
// the last process that inherited it is gone.
func (s *steps) finish(t testing.TB) {
	t.Helper()
	if err := s.wait(); err != nil {
		t.Fatalf("the script failed: %v\n%s", err, s.output.String())
	}
}

// wait is finish for scripts that may fail.
func (s *steps) wait() error {
	err := s.cmd.Wait()
	io.Copy(io.Discard, s.reports)
	return err
}

// kill ends the script's processes.
func (s *steps) kill(t testing.TB) {
	t.Helper()
	if err := s.cmd.Cancel(); err != nil {
		t.Fatal(err)
	}
	if s.wait() == nil {
		t.Fatal("the script ended before it was killed")
	}
}

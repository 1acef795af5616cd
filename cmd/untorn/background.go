package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// readyVariable tells the background process which descriptor its parent waits at.
const readyVariable = "UNTORN_READY_FD"

// self leads to our own executable, also when it was replaced, or is covered by the mount that we serve.
const self = "/proc/self/exe"

// startInBackground runs this command again in a session of its own, and returns when its mount answers. When it fails,
// it has said why on the stderr that it shares with us, and its exit code becomes ours.
func startInBackground() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(self)
	cmd.Args = os.Args
	cmd.Env = append(os.Environ(), readyVariable+"=3")
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}

	if err := keepInherited(); err != nil {
		return err
	}

	// A Ctrl-C goes to us alone, the child being in another session.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("starting the background process: %w", err)
	}
	go func() {
		for s := range signals {
			cmd.Process.Signal(s)
		}
	}()
	if n, err := r.Read(make([]byte, 1)); n == 1 {
		return cmd.Process.Release()
	} else if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := cmd.Wait(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.Exited() {
			os.Exit(exit.ExitCode())
		}
		return fmt.Errorf("the background process: %w", err)
	}
	return nil // it was told to end before it was ready
}

// keepInherited sees to it that the processes that we start inherit nothing that we have inherited, the descriptor of a lock
// file say: it must not live as long as the mount.
func keepInherited() error {
	if unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return nil
	}
	// Before Linux 5.11, or in a sandbox that does not know the call.
	fds, err := numericNames("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("looking for inherited descriptors: %w", err)
	}
	for _, name := range fds {
		if fd, err := strconv.Atoi(name); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// readyPipe is the background process's end.
type readyPipe struct{ f *os.File }

// takeReadyPipe returns the pipe to the parent, nil if this process was not started by one.
func takeReadyPipe() *readyPipe {
	fd, err := strconv.Atoi(os.Getenv(readyVariable))
	os.Unsetenv(readyVariable)
	if err != nil || fd < 3 {
		return nil
	}
	unix.CloseOnExec(fd)
	return &readyPipe{os.NewFile(uintptr(fd), "ready")}
}

// ready lets the parent return.
func (p *readyPipe) ready() error {
	_, err := p.f.Write([]byte{1})
	p.f.Close()
	return err
}

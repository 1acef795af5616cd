package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"untorn/fs"
)

const (
	retryEvery  = 250 * time.Millisecond
	reportEvery = time.Minute
)

// server serves one mount to its end.
type server struct {
	m   *fs.Mounted
	at  *place
	log *slog.Logger
}

// catchSignals is called before the mount, so that a signal in between is not lost with the mount left behind.
func catchSignals() <-chan os.Signal {
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	c := make(chan os.Signal, 2)
	signal.Notify(c, unix.SIGTERM, unix.SIGINT)
	return c
}

// serve returns when the mount has ended, by whomever.
func (s *server) serve(stop <-chan os.Signal) {
	ended := make(chan struct{})
	go func() {
		s.m.Wait()
		close(ended)
	}()
	go s.obey(stop, ended)
	<-ended
	s.log.Info("unmounted", "mountpoint", s.at.mountpoint)
}

// obey ends the mount at the first signal, as soon as nobody uses it any more, and detaches it at the second.
func (s *server) obey(stop <-chan os.Signal, ended <-chan struct{}) {
	select {
	case sig := <-stop:
		s.log.Info("unmounting", "signal", sig.String())
	case <-ended:
		return
	}
	reported := time.Time{}
	for {
		err := s.m.Unmount()
		if err == nil {
			return
		}
		if time.Since(reported) > reportEvery {
			reported = time.Now()
			go s.explain(err)
		}
		select {
		case sig := <-stop:
			s.log.Warn("detaching the busy mount; it ends with its last user", "signal", sig.String())
			s.detach()
			return
		case <-ended:
			return
		case <-time.After(retryEvery):
		}
	}
}

func (s *server) detach() {
	if err := s.m.Detach(); err != nil {
		s.log.Error("detaching", "err", err)
	}
}

// explain logs why the mount could not be ended.
func (s *server) explain(err error) {
	if !errors.Is(err, unix.EBUSY) {
		s.log.Error("unmounting; will try again", "err", err)
		return
	}
	holders, scanErr := askHolders(s.at.mountpoint)
	s.log.Warn("the mount is busy; waiting until it is free, a second signal detaches it", "holders", len(holders))
	if scanErr != nil {
		s.log.Warn("looking for those who hold it", "err", scanErr)
	}
	for _, h := range holders {
		s.log.Warn("held", "pid", h.PID, "command", h.Command, "what", h.What)
	}
}

// askHolders has another process look: reading about a process that is inside an execve that waits for us would block us,
// and whatever touches the mount would call back into us.
func askHolders(mountpoint string) ([]holder, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "holders", mountpoint)
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	var list []holder
	return list, json.Unmarshal(out, &list)
}

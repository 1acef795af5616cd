package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

const (
	retryEvery  = 250 * time.Millisecond
	reportEvery = time.Minute
)

// catchSignals is called before the mount, so that a signal in between is not lost with the mount left behind.
func catchSignals() <-chan os.Signal {
	// SIGTTOU: the server logs to a terminal (-f) of which its process group is not the foreground (stty tostop).
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE, unix.SIGTTOU)
	c := make(chan os.Signal, 2)
	signal.Notify(c, unix.SIGTERM, unix.SIGINT)
	return c
}

// serveAlone mounts and serves in this one process. Nobody mounts again when it dies.
func (c *mountCmd) serveAlone(s *seat, log *logger, parent *readyPipe, stop <-chan os.Signal) error {
	server, err := c.open(s.backing, s.fd, log.Logger, 0)
	if err != nil {
		return err
	}
	a, connection, err := s.mount(server.ReadOnly())
	if err != nil {
		return errors.Join(advise(err, s.backing), server.Undo())
	}
	if err := server.Serve(connection, a.Dev); err != nil {
		a.drop()
		return errors.Join(err, server.Undo())
	}
	if err := a.place(s, nil); err != nil { // which ended the mount
		server.Wait()
		return fmt.Errorf("mounting on %s: %w", s.mountpoint, err)
	}
	c.logMounted(server, s.backing, a, log.Logger)
	c.noticeReadOnly(s.backing, server.ReadOnly())
	announce(parent, a, log)
	ended := make(chan struct{})
	go func() {
		server.Wait()
		close(ended)
	}()
	e := ender{a: a, log: log.Logger, ended: ended}
	go e.obey(stop)
	<-ended
	log.Info("unmounted", "mountpoint", a.Path)
	return nil
}

// announce lets the parent, if there is one, tell its user that the mount is there, and lets go of the terminal.
func announce(parent *readyPipe, a *attachment, log *logger) {
	if parent == nil {
		return
	}
	log.becomeStderr()
	if err := parent.ready(); err != nil {
		// Whoever asked for the mount has gone away before it was there.
		log.Warn("the parent is gone, so the mount is not wanted", "err", err)
		if err := a.detach(); err != nil {
			log.Error("detaching", "err", err)
		}
	}
}

// ender ends a mount that is asked to end by signals.
type ender struct {
	a     *attachment
	log   *slog.Logger
	asked <-chan struct{} // somebody else got a signal; nil: there is nobody
	ended <-chan struct{}
}

// obey ends the mount at the first signal, as soon as nobody uses it any more, and detaches it at the second. It returns
// whether there was a signal.
func (e ender) obey(stop <-chan os.Signal) bool {
	// The second is the second to the same process: who ends a service signals both at once.
	var here, there int
	select {
	case sig := <-stop:
		here++
		e.log.Info("unmounting", "signal", sig.String())
	case <-e.asked:
		there++
		e.log.Info("unmounting", "signal", "sent to the server")
	case <-e.ended:
		return false
	}
	e.unmount(stop, here, there)
	return true
}

// unmount is told how many signals there were, to this process and to the other.
func (e ender) unmount(stop <-chan os.Signal, here, there int) {
	reported := time.Time{}
	for {
		err := e.a.unmount()
		if err == nil || isGone(err) {
			return
		}
		if time.Since(reported) > reportEvery {
			reported = time.Now()
			go e.explain(err)
		}
		select {
		case <-stop:
			here++
		case <-e.asked:
			there++
		case <-e.ended:
			return
		case <-time.After(retryEvery):
			continue
		}
		if max(here, there) < 2 {
			continue
		}
		e.log.Warn("detaching the busy mount, because of a second signal; it ends with its last user")
		if err = e.a.detach(); err == nil || isGone(err) {
			return
		}
		e.log.Error("detaching", "err", err)
	}
}

// isGone reports whether a mount is not to be ended any more. One that is covered comes to light again when what covers it
// is unmounted.
func isGone(err error) bool { return errors.Is(err, errGone) && !errors.Is(err, errCovered) }

// explain logs why the mount could not be ended.
func (e ender) explain(err error) {
	if !errors.Is(err, unix.EBUSY) {
		e.log.Error("unmounting; will try again", "err", err)
		return
	}
	holders, scanErr := askHolders(e.a.Path)
	e.log.Warn("the mount is busy; waiting until it is free, a second signal detaches it", "holders", len(holders))
	if scanErr != nil {
		e.log.Warn("looking for those who hold it", "err", scanErr)
	}
	for _, h := range holders {
		e.log.Warn("held", "pid", h.PID, "command", h.Command, "what", h.What)
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

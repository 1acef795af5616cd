package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"untorn/fs"
)

// backingFd is where the server process finds the backing directory.
const backingFd = 4

// serveFor is the server process: it serves the mounts that its supervisor makes. It touches neither mount nor mountpoint.
// What it has to say to the user goes to the supervisor; its stderr is the log.
func (c *mountCmd) serveFor(l *link) error {
	unix.CloseOnExec(backingFd) // what this process starts has no business there
	nameProcess("untorn-server")
	log, err := c.Log.to(os.Stderr)
	if err != nil {
		return err
	}
	stop := catchSignals()
	s, a, backing, err := c.beginServing(l, log)
	if err != nil || s == nil {
		return l.fail(err)
	}
	if err := l.send(message{Kind: "serving"}, -1); err != nil {
		log.Warn("telling the supervisor", "err", err)
	}
	ended := make(chan struct{})
	go func() {
		s.Wait()
		close(ended)
	}()
	lost := make(chan struct{})
	go func() {
		for {
			m, _, err := l.receive()
			switch {
			case err != nil:
				close(lost)
				return
			case m.Kind == "unwanted":
				return
			case m.Kind == "placed":
				c.logMounted(s, backing, m.Mount, log)
			}
		}
	}()
	for {
		select {
		case <-stop:
			l.send(message{Kind: "stop"}, -1)
		case <-lost:
			s.Alone()
			log.Warn("the supervisor is gone; serving on, but nobody mounts again when this process dies too", "pid", os.Getpid())
			go ender{a: a, log: log, ended: ended}.obey(stop)
			<-ended
			log.Info("unmounted", "mountpoint", a.Path)
			return nil
		case <-ended:
			log.Info("unmounted", "mountpoint", a.Path)
			return nil
		}
	}
}

// beginServing does what the supervisor asks for until requests are answered. No server and no error: the supervisor has
// gone before there was a mount.
func (c *mountCmd) beginServing(l *link, log *slog.Logger) (*fs.Server, *attachment, string, error) {
	task, _, err := l.await("task")
	if err != nil {
		return nil, nil, "", err
	}
	s, err := c.open(task.Backing, backingFd, log, os.Getppid())
	if err != nil {
		return nil, nil, "", err
	}
	err = l.send(message{Kind: "prepared", ReadOnly: s.ReadOnly(), Salvaged: s.Overlay().Recovered()}, -1)
	if err != nil {
		return nil, nil, "", errors.Join(err, s.Undo())
	}
	m, connection, err := l.await("mount")
	if err != nil || connection < 0 {
		// It could not mount, and has told its user why.
		return nil, nil, "", s.Undo()
	}
	if err := s.Serve(connection, m.Mount.Dev); err != nil {
		return nil, nil, "", errors.Join(err, s.Undo())
	}
	m.Mount.tree = -1
	return s, m.Mount, task.Backing, nil
}

// fail hands an error to the supervisor, which reports it, and leaves only the exit code.
func (l *link) fail(err error) error {
	if err == nil {
		return nil
	}
	if serr := l.send(message{Kind: "failed", Code: codeOf(err), Text: err.Error()}, -1); serr != nil {
		return fmt.Errorf("%w (and there is no supervisor to tell: %w)", err, serr)
	}
	os.Exit(codeOf(err))
	return nil
}

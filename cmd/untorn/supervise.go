package main

import (
	"errors"
	"os"
	"time"
)

const (
	// early: a server that dies within this time of its start may do so again at once.
	early = 5 * time.Second
	// After an early death the next server is started at once, after the second in a row with this pause, which doubles up
	// to the longest.
	firstPause   = 50 * time.Millisecond
	longestPause = 200 * time.Millisecond
)

// supervisor keeps a mount alive: it mounts, has another process serve, and when that dies, mounts again with the next one,
// in the same place. It never serves, so it may touch the mount; and it does so little that it does not die itself.
//
// It ends when the mount is gone from its place by somebody's hand (umount, fusermount3 -u, another mount over it), or when
// a signal tells it to.
type supervisor struct {
	*mountCmd
	seat    *seat
	log     *logger
	stop    <-chan os.Signal
	mounted *attachment // nil: there is none in its place
	deaths  int         // of servers in a row, each early
}

// supervise mounts and returns when the mount has ended.
func (c *mountCmd) supervise(seat *seat, log *logger, parent *readyPipe, stop <-chan os.Signal) error {
	if err := keepInherited(); err != nil {
		return err
	}
	s := &supervisor{mountCmd: c, seat: seat, log: log, stop: stop}
	p, err := s.start()
	if err != nil {
		return errors.Join(err, s.clear())
	}
	c.noticeReadOnly(seat.backing, p.readOnly)
	announce(parent, s.mounted, log)
	for {
		ending := s.attend(p)
		again, err := s.judge(p, ending)
		if !again {
			return err
		}
		if p, err = s.restart(p); err != nil || p == nil {
			return err
		}
	}
}

// attend lets the server work, ends the mount when a signal asks for it, and returns when the server has ended; whether
// the mount was to end.
func (s *supervisor) attend(p *serverProcess) (ending bool) {
	e := ender{a: s.mounted, log: s.log.Logger, asked: p.asked, ended: p.ended}
	return e.obey(s.stop)
}

// judge decides whether to mount again after a server has ended. The error is the result of the supervisor otherwise.
func (s *supervisor) judge(p *serverProcess, ending bool) (again bool, err error) {
	<-p.ended
	_, w, err := s.mounted.lies()
	if err != nil {
		return false, err
	}
	if w == there && !ending {
		return true, nil
	}
	if w == there {
		s.log.Error("the server died while its mount was to end; what was staged is recovered by the next mount", "how", p.how())
		err = s.mounted.detach()
	}
	if p.state.Success() {
		return false, err
	}
	if w != there {
		s.log.Error("the server died; its mount is not missed", "how", p.how(), "mount", w.String())
	}
	return false, errors.Join(fail(exitFailed, "the server of %s %s", s.seat.mountpoint, p.how()), err)
}

// restart starts servers until one serves in the place of the dead one. No process and no error: nobody wants the mount
// any more.
func (s *supervisor) restart(dead *serverProcess) (*serverProcess, error) {
	began, how := time.Now(), dead.how()
	if dead.state.Success() {
		how = "ended although its mount is there: its connection was aborted"
	}
	s.log.Error("the server died; mounting again", "how", how, "pid", dead.state.Pid())
	if err := s.mounted.abort(); err != nil {
		s.log.Debug("aborting the connection", "err", err)
	}
	if s.deaths++; time.Since(dead.began) >= early {
		s.deaths = 0
	}
	for s.deaths < s.Restarts {
		if !s.pause() {
			s.log.Info("not mounting again, because of a signal")
			return nil, s.clear()
		}
		p, err := s.start()
		if err == nil {
			s.log.Warn("mounted again", "after_ms", time.Since(began).Milliseconds(), "salvaged", p.salvaged, "because", "the server "+how)
			return p, nil
		}
		if errors.Is(err, errGone) {
			s.log.Info("not mounting again", "because", err)
			return nil, nil
		}
		how = "could not start: " + err.Error()
		s.log.Error("mounting again", "err", err)
		s.deaths++
	}
	return nil, s.giveUp(how)
}

// giveUp ends a mount whose servers die again and again.
func (s *supervisor) giveUp(how string) error {
	s.log.Error("the server dies again and again; giving up", "deaths", s.deaths)
	return errors.Join(fail(exitCrashed, "the server of %s died %d times in a row, so the mount is ended. The last one %s.\n"+
		"What was staged is in salvage, or will be after: untorn recover %s", s.seat.mountpoint, s.deaths, how, s.seat.backing), s.clear())
}

// clear takes the dead mount away.
func (s *supervisor) clear() error {
	if s.mounted == nil {
		return nil
	}
	if err := s.mounted.detach(); !errors.Is(err, errGone) {
		return err
	}
	return nil
}

// pause waits before the next try, the longer the more have failed; false: a signal came.
func (s *supervisor) pause() bool {
	var wait time.Duration
	if s.deaths > 1 {
		wait = min(firstPause<<(min(s.deaths, 16)-2), longestPause)
	}
	select {
	case <-s.stop:
		return false
	case <-time.After(wait):
		return true
	}
}

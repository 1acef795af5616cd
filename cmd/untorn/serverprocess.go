package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lastWish is how long a server that is not wanted may take to end by itself.
const lastWish = 10 * time.Second

// serverProcess is the process that serves, as its supervisor sees it.
type serverProcess struct {
	cmd      *exec.Cmd
	link     *link
	began    time.Time
	readOnly bool
	salvaged int              // files of the one before
	asked    chan struct{}    // it was sent a signal that asks for the end of the mount
	ended    chan struct{}    // closed when it has ended: all its threads, and so all its descriptors
	state    *os.ProcessState // once ended is closed
}

// start starts a server and puts its mount in the place of the one before, if there is one. When it returns the
// mountpoint has answered. errGone: the one before was taken away meanwhile.
func (s *supervisor) start() (*serverProcess, error) {
	p, err := s.launch()
	if err != nil {
		return nil, err
	}
	if err = s.install(p); err == nil {
		go p.listen()
		return p, nil
	}
	p.dismiss()
	if errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) {
		err = fmt.Errorf("the server %s before it served; see the log", p.how())
	}
	return nil, err
}

// launch runs this program again as a server.
func (s *supervisor) launch() (*serverProcess, error) {
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	backing, err := unix.FcntlInt(uintptr(s.seat.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("duplicating the descriptor of the backing: %w", err)
	}
	dir := os.NewFile(uintptr(backing), s.seat.backing)
	defer dir.Close()
	p := &serverProcess{
		cmd: exec.Command(self), link: &link{ours}, began: time.Now(),
		asked: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	p.cmd.Args = os.Args
	p.cmd.Env = append(os.Environ(), linkVariable+"=3")
	p.cmd.ExtraFiles = []*os.File{theirs, dir} // backingFd is the second
	if s.log.file != nil {
		p.cmd.Stderr = s.log.file
	}
	// A Ctrl-C is for the supervisor.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("starting the server: %w", err)
	}
	go func() {
		p.cmd.Wait()
		p.state = p.cmd.ProcessState
		close(p.ended)
	}()
	return p, nil
}

// install has a server recover, gives it a mount, and puts that in its place. The connection must be the server's alone:
// the kernel aborts it when its last descriptor is closed, and so when the server dies.
func (s *supervisor) install(p *serverProcess) error {
	if err := p.link.send(message{Kind: "task", Backing: s.seat.backing}, -1); err != nil {
		return err
	}
	prepared, _, err := p.link.await("prepared")
	if err != nil {
		return err
	}
	p.readOnly, p.salvaged = prepared.ReadOnly, prepared.Salvaged
	a, err := s.attach(p)
	if err != nil {
		return err
	}
	if _, _, err = p.link.await("serving"); err == nil {
		err = a.place(s.seat, s.mounted)
	}
	if err != nil {
		a.drop()
		if s.mounted == nil {
			a.detach() // fusermount3 had put it there
		}
		return err
	}
	s.mounted = a
	// Nobody can say better than the mount itself whether it answers.
	var st unix.Statfs_t
	if err := unix.Statfs(a.Path, &st); err != nil {
		return fmt.Errorf("the new mount does not answer: %w", err)
	}
	return p.link.send(message{Kind: "placed", Mount: a}, -1)
}

// attach makes a mount and gives the server its connection.
func (s *supervisor) attach(p *serverProcess) (*attachment, error) {
	if err := s.makeRoom(); err != nil {
		return nil, err
	}
	a, connection, err := s.seat.mount(p.readOnly)
	if err != nil {
		return nil, advise(err, s.seat.backing)
	}
	defer unix.Close(connection)
	if err := p.link.send(message{Kind: "mount", Mount: a}, connection); err != nil {
		a.drop()
		return nil, err
	}
	return a, nil
}

// makeRoom takes a dead mount away where nothing can be put beneath it: fusermount3 mounts on top of it only, and cannot
// even look at it. Until the next mount is there, the mountpoint shows what is below.
func (s *supervisor) makeRoom() error {
	if s.mounted == nil || hasCapability(unix.CAP_SYS_ADMIN) {
		return nil
	}
	path, _, err := s.mounted.lies()
	if err != nil {
		return err
	}
	if err := s.mounted.detach(); err != nil {
		return err
	}
	s.mounted = nil
	s.seat.mountpoint = path
	return nil
}

// listen waits for what the server says while it serves.
func (p *serverProcess) listen() {
	defer p.link.socket.Close()
	for {
		m, _, err := p.link.receive()
		if err != nil {
			return
		}
		if m.Kind == "stop" {
			select {
			case p.asked <- struct{}{}:
			default: // it has been asked already
			}
		}
	}
}

// dismiss ends a server that has no mount, and waits for its end.
func (p *serverProcess) dismiss() {
	p.link.send(message{Kind: "unwanted"}, -1) // unless it is dead
	p.link.socket.Close()
	select {
	case <-p.ended:
	case <-time.After(lastWish):
		p.cmd.Process.Kill()
		<-p.ended
	}
}

// how tells how the server has ended.
func (p *serverProcess) how() string {
	<-p.ended
	switch status := p.state.Sys().(syscall.WaitStatus); {
	case status.Signaled():
		return fmt.Sprintf("was killed by signal %d (%s)", int(status.Signal()), unix.SignalName(status.Signal()))
	default:
		return fmt.Sprintf("ended with exit code %d", status.ExitStatus())
	}
}

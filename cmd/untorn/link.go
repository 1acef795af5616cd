package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// linkVariable tells the server process that it is one, and which descriptor is its link to the supervisor.
const linkVariable = "UNTORN_LINK_FD"

// link connects supervisor and server. When one of them dies, the other reads io.EOF.
type link struct{ socket *os.File }

// message is what they tell each other; the kinds, in order:
//
//	task      to the server: what to serve
//	prepared  from it: what was left over is recovered; it waits for a connection
//	mount     to it, with the connection
//	serving   from it: requests are answered
//	placed    to it: the mount is in its place
//	unwanted  to it, at any time: it is to end when its mount, which is nowhere to be seen, does
//	stop      from it: a signal asked it to end the mount
//	failed    from it, instead of prepared or serving: why it ends
type message struct {
	Kind     string
	Backing  string      `json:",omitempty"` // task
	ReadOnly bool        `json:",omitempty"` // prepared
	Salvaged int         `json:",omitempty"` // prepared
	Mount    *attachment `json:",omitempty"` // mount, placed
	Code     int         `json:",omitempty"` // failed: exit code
	Text     string      `json:",omitempty"` // failed
}

// socketpair is a pair of connected sockets that keep messages apart: our end, which the runtime polls, and one to be
// inherited.
func socketpair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "socket")
	if ours, err = polled(fds[0]); err != nil {
		theirs.Close()
	}
	return ours, theirs, err
}

// polled takes over a socket.
func polled(fd int) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "socket"), nil
}

// takeLink returns the link to the supervisor, nil if this process is no server of one.
func takeLink() (*link, error) {
	fd, err := strconv.Atoi(os.Getenv(linkVariable))
	os.Unsetenv(linkVariable)
	if err != nil || fd < 3 {
		return nil, nil
	}
	unix.CloseOnExec(fd)
	socket, err := polled(fd)
	if err != nil {
		return nil, fmt.Errorf("the link to the supervisor: %w", err)
	}
	return &link{socket}, nil
}

// send sends a message, with a descriptor unless that is -1.
func (l *link) send(m message, fd int) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	conn, err := l.socket.SyscallConn()
	if err != nil {
		return err
	}
	werr := conn.Write(func(s uintptr) bool {
		err = unix.Sendmsg(int(s), text, rights, nil, unix.MSG_NOSIGNAL)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	return errors.Join(werr, os.NewSyscallError("sendmsg", err))
}

// receive waits for the next message. io.EOF: the other side is dead. A descriptor that came along is the caller's.
func (l *link) receive() (m message, fd int, err error) {
	buf := make([]byte, 64<<10)
	n, fd, err := receive(l.socket, buf)
	if err == nil {
		err = json.Unmarshal(buf[:n], &m)
	}
	return m, fd, err
}

// await is receive for one kind of message; "failed" becomes the error that it tells.
func (l *link) await(kind string) (message, int, error) {
	m, fd, err := l.receive()
	switch {
	case err != nil:
	case m.Kind == "failed":
		err = &failure{m.Code, errors.New(m.Text)}
	case m.Kind != kind:
		err = fmt.Errorf("got the message %q, not %q", m.Kind, kind)
	}
	return m, fd, err
}

// receive reads one message and the descriptor that comes with it, -1 if there is none.
func receive(socket *os.File, buf []byte) (n, fd int, err error) {
	conn, err := socket.SyscallConn()
	if err != nil {
		return 0, -1, err
	}
	control := make([]byte, unix.CmsgSpace(4))
	var cn int
	rerr := conn.Read(func(s uintptr) bool {
		n, cn, _, _, err = unix.Recvmsg(int(s), buf, control, unix.MSG_CMSG_CLOEXEC)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	switch {
	case rerr != nil:
		return 0, -1, rerr
	case err == unix.ECONNRESET, err == nil && n == 0 && cn == 0: // it died, the first with messages of ours unread
		return 0, -1, io.EOF
	case err != nil:
		return 0, -1, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:cn])
	if err != nil || len(messages) == 0 {
		return n, -1, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return n, -1, err
	}
	return n, fds[0], nil
}

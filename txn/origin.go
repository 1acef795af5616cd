package txn

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// maxOrigins bounds what is read of a list of origins; of a longer one the end counts.
	maxOrigins = 64 << 20
	// maxLine bounds one line of it: a path, a command line, and the bytes of both in base64.
	maxLine = 256 << 10
	// maxCommand is how much of a command line is written down.
	maxCommand = 4 << 10
	// compactEvery is the growth after which the list is rewritten without what has come to its end.
	compactEvery = 4 << 20
	// unsettled is how many of the newest temps keep their origins whether their names are there or not: they may be on
	// their way. It is counted in temps, because a clock that is set in between must not take paths away.
	unsettled = 1024
)

// Origin is where a staged file belongs and who writes it. The list of them, stage/INSTANCE/origins, is for the recovery
// after a crash alone: the daemon that writes it never reads it.
type Origin struct {
	Temp    string    `json:"temp"`
	Path    string    `json:"path"` // below the backing root
	Pid     uint32    `json:"pid"`
	Command string    `json:"command,omitempty"`
	Time    time.Time `json:"time"`
	// Clean is there for a copy of a base: how the temp looked before anything was written. A temp that still looks like
	// it holds nothing new.
	Clean *Clean `json:"clean,omitempty"`
}

// Clean is what tells a file that was written to from one that was not. The times are nanoseconds since the epoch; nobody
// can set the change time.
type Clean struct {
	Size  uint64 `json:"size"`
	Mtime int64  `json:"mtime"`
	Ctime int64  `json:"ctime"`
}

// cleanOf takes the state of a file out of a statx result.
func cleanOf(st *unix.Statx_t) *Clean {
	return &Clean{
		Size:  st.Size,
		Mtime: st.Mtime.Sec*1e9 + int64(st.Mtime.Nsec),
		Ctime: st.Ctime.Sec*1e9 + int64(st.Ctime.Nsec),
	}
}

// rawBytes are the strings of a record that are no UTF-8, and so cannot stand in JSON as they are. The readable field
// beside each then has U+FFFD where the bytes make no sense.
type rawBytes struct {
	PathBytes    []byte `json:"path_bytes,omitempty"`
	CommandBytes []byte `json:"command_bytes,omitempty"`
}

// encode makes two strings fit for JSON.
func (r *rawBytes) encode(path, command *string) {
	r.PathBytes, *path = readable(*path)
	r.CommandBytes, *command = readable(*command)
}

// decode puts the true bytes back.
func (r *rawBytes) decode(path, command *string) {
	if r.PathBytes != nil {
		*path = string(r.PathBytes)
	}
	if r.CommandBytes != nil {
		*command = string(r.CommandBytes)
	}
}

func readable(s string) (raw []byte, text string) {
	if utf8.ValidString(s) {
		return nil, s
	}
	return []byte(s), strings.ToValidUTF8(s, string(utf8.RuneError))
}

// plainOrigin is an Origin without its methods, as encoding/json knows it.
type plainOrigin Origin

// originText is an Origin as it is written down.
type originText struct {
	plainOrigin
	rawBytes
}

// MarshalJSON keeps every byte of the path and the command, and stays readable where they are UTF-8.
func (o Origin) MarshalJSON() ([]byte, error) {
	t := originText{plainOrigin: plainOrigin(o)}
	t.encode(&t.Path, &t.Command)
	return json.Marshal(t)
}

// UnmarshalJSON is the reverse of MarshalJSON. What a malformed text leaves in o is undefined.
func (o *Origin) UnmarshalJSON(text []byte) error {
	var t originText
	if err := json.Unmarshal(text, &t); err != nil {
		return err
	}
	t.decode(&t.Path, &t.Command)
	*o = Origin(t.plainOrigin)
	return nil
}

// note appends an origin to the list. A later one for the same temp replaces the earlier: the path was renamed, or the
// command line found out. When it fails, the list still tells what it told before; all that is lost is the path of this
// temp, should the daemon crash.
func (s *Store) note(o Origin) error {
	if len(o.Command) > maxCommand {
		o.Command = o.Command[:maxCommand]
	}
	full, err := s.append(o)
	if err != nil {
		return fmt.Errorf("noting the origin of temp %s: %w", o.Temp, err)
	}
	if full {
		s.compact()
	}
	return nil
}

// append writes one line with one write(2). full: it is time to rewrite the list.
func (s *Store) append(o Origin) (full bool, err error) {
	text, err := json.Marshal(o)
	if err != nil {
		return false, err
	}
	// The newline comes first: a line that was torn by a full disk then ends where the next one begins.
	line := append([]byte{'\n'}, text...)

	s.noting.RLock()
	defer s.noting.RUnlock()
	// On an O_APPEND descriptor pwrite(2) appends, whatever the offset (BUGS there).
	n, err := s.o.sys.Pwrite(s.origins, line, 0)
	if err == nil && n < len(line) {
		err = unix.ENOSPC
	}
	if err != nil {
		return false, err
	}
	return s.overgrown(), nil
}

// overgrown reports whether the list is due to be rewritten.
//
// LOCKS_REQUIRED(s.noting)
func (s *Store) overgrown() bool {
	end, err := s.o.sys.Seek(s.origins, 0, unix.SEEK_END)
	return err == nil && end > s.kept+compactEvery
}

// syncOrigins makes the list durable: what is in it survives a power cut, once the directory is synced as well.
func (s *Store) syncOrigins() error {
	s.noting.RLock() // or s.origins may be exchanged meanwhile
	defer s.noting.RUnlock()
	return s.o.sys.Fsync(s.origins)
}

// compact rewrites the list with the temps that still exist, or it would grow for as long as the daemon lives. When it
// fails the old list stays.
func (s *Store) compact() {
	sys := s.o.sys
	s.noting.Lock()
	defer s.noting.Unlock()
	if !s.overgrown() {
		return // somebody was faster
	}
	// Also when it fails: the next try comes when it has grown by as much again.
	defer func() { s.kept, _ = sys.Seek(s.origins, 0, unix.SEEK_END) }()
	present, err := namesOf(sys, s.fd)
	if err != nil {
		return
	}
	newest := s.counter.Load()
	known, err := readOrigins(sys, s.fd, func(temp string) bool {
		number, _, _ := strings.Cut(temp, ".")
		n, err := strconv.ParseUint(number, 36, 64)
		return present.has(temp) || err == nil && n+unsettled > newest
	})
	if err != nil {
		return
	}
	var list bytes.Buffer
	for _, o := range known {
		text, err := json.Marshal(o)
		if err != nil {
			return
		}
		list.WriteByte('\n')
		list.Write(text)
	}
	if err := writeFile(sys, s.fd, originsName, list.Bytes()); err != nil {
		s.o.log.Debug("rewriting the list of origins", "error", err)
		return
	}
	fd, err := sys.Open(s.fd, originsName, unix.O_WRONLY|unix.O_APPEND|unix.O_NOFOLLOW, 0)
	if err != nil {
		// Appends go on into the old file, which has no name any more: the temps of this time lose their paths if the
		// daemon crashes, never their bytes.
		s.o.log.Warn("opening the rewritten list of origins", "error", err)
		return
	}
	sys.Close(s.origins)
	s.origins = fd
}

// present are the names in an instance of the stage.
type present map[string]bool

func namesOf(sys Sys, dir int) (present, error) {
	all, err := names(sys, dir)
	p := make(present, len(all))
	for _, name := range all {
		p[name] = true
	}
	return p, err
}

// has reports whether a temp may be there: by its name, or in a directory of helpers.
func (p present) has(temp string) bool {
	top, _, _ := strings.Cut(temp, "/")
	return p[top] || p[top+helperSuffix]
}

// readOrigins reads the list of origins in an instance of the stage, by temp; only those that are wanted, so that what
// it takes is bounded by the temps that exist. A missing list is an empty one. Lines that are torn, too long or garbage
// are passed over, and cost no other line: a power cut can leave zeroes for any part of it, at the end above all, and
// zeroes end a line as a newline does. On an error the origins that could be read are returned with it. ErrPlanted: the
// list is no regular file, and was not opened.
func readOrigins(sys Sys, dir int, wanted func(temp string) bool) (map[string]Origin, error) {
	list := map[string]Origin{}
	err := eachLine(sys, dir, func(line []byte) {
		var o Origin
		if json.Unmarshal(line, &o) == nil && o.Temp != "" && wanted(o.Temp) {
			list[o.Temp] = o
		}
	})
	if errors.Is(err, unix.ENOENT) {
		return list, nil
	}
	if err != nil {
		return list, fmt.Errorf("reading the list of origins: %w", err)
	}
	return list, nil
}

// eachLine goes through the last maxOrigins bytes of a list of origins. A line longer than maxLine comes in parts, which
// are no JSON. The line is valid during the call.
func eachLine(sys Sys, dir int, do func(line []byte)) error {
	fd, err := openRegular(sys, dir, originsName, nil)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	end, err := sys.Seek(fd, 0, unix.SEEK_END)
	if err != nil {
		return err
	}
	buf := make([]byte, 0, maxLine)
	for off := max(0, end-maxOrigins); ; {
		n, err := sys.Pread(fd, buf[len(buf):cap(buf)], off)
		if err != nil {
			return err
		}
		off += int64(n)
		text := buf[:len(buf)+n]
		for {
			text = bytes.TrimLeft(text, "\n\x00")
			i := bytes.IndexAny(text, "\n\x00")
			if i < 0 {
				break
			}
			do(text[:i])
			text = text[i+1:]
		}
		if len(text) == cap(buf) || n == 0 && len(text) > 0 {
			do(text)
			text = nil
		}
		if n == 0 {
			return nil
		}
		buf = append(buf[:0], text...)
	}
}

// readEnd reads a regular file of ours, of one longer than limit the end. What was read before an error is returned with
// it. ErrPlanted: it is something else, which was neither followed nor waited for.
func readEnd(sys Sys, dir int, name string, limit int64) ([]byte, error) {
	fd, err := openRegular(sys, dir, name, nil)
	if err != nil {
		return nil, err
	}
	defer sys.Close(fd)
	end, err := sys.Seek(fd, 0, unix.SEEK_END)
	if err != nil {
		return nil, err
	}
	off := max(0, end-limit)
	text := make([]byte, end-off)
	for got := 0; got < len(text); {
		n, err := sys.Pread(fd, text[got:], off+int64(got))
		if err != nil || n == 0 {
			return text[:got], err
		}
		got += n
	}
	return text, nil
}

// openRegular opens a regular file for reading, and nothing else: no symlink is followed, no fifo waited for, no device
// touched. st, if given, receives what it is. ErrPlanted: it is no regular file.
func openRegular(sys Sys, dir int, name string, st *unix.Statx_t) (int, error) {
	if st == nil {
		st = new(unix.Statx_t)
	}
	// Opening a device can have effects, so look first; the second look is at what was opened.
	if err := sys.Stat(dir, name, st); err != nil {
		return -1, err
	}
	if !IsRegular(st) {
		return -1, fmt.Errorf("%w: %s is not a regular file", ErrPlanted, name)
	}
	fd, err := sys.Open(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err == unix.ELOOP {
		return -1, fmt.Errorf("%w: %s is a symlink", ErrPlanted, name)
	}
	if err != nil {
		return -1, err
	}
	if err = sys.Stat(fd, "", st); err == nil && !IsRegular(st) {
		err = fmt.Errorf("%w: %s is not a regular file", ErrPlanted, name)
	}
	if err != nil {
		sys.Close(fd)
		return -1, err
	}
	return fd, nil
}

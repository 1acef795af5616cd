package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"untorn/txn/proc"
)

// holder is one way in which a process keeps a mount busy.
type holder struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	What    string `json:"what"`
}

// patience is how long one process is looked at: while it is inside execve, reading about it may block until the daemon
// has answered.
const patience = 500 * time.Millisecond

// holdersCmd is the scan as a process of its own, for the daemon.
type holdersCmd struct {
	Mountpoint string `arg:""`
}

func (c *holdersCmd) Run() error {
	list, err := findHolders(c.Mountpoint)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(list)
}

// findHolders lists who uses the mount on a path, in any mount namespace. Nothing on the mount is touched.
func findHolders(mountpoint string) ([]holder, error) {
	m, err := mountAt(mountpoint)
	if err != nil || m == nil {
		return nil, err
	}
	s := &scan{device: m.Device, views: map[string]view{}}
	pids, err := numericNames("/proc")
	if err != nil {
		return nil, err
	}
	list := []holder{} // not null in JSON
	for _, pid := range pids {
		list = append(list, s.patiently(pid)...)
	}
	return list, nil
}

// scan looks for uses of one filesystem, which is known by its device number: /proc shows it for mappings, and through the
// ids of its mounts for everything else. Paths would not do, because what a mount covers has the same; and a stat of the
// links in /proc would call the daemon.
type scan struct {
	device string
	views  map[string]view // by mount namespace
}

// view is how a mount namespace sees the filesystem: the ids of its mounts, as fdinfo shows them.
type view []string

func (s *scan) patiently(pid string) []holder {
	v := s.view(pid)
	if v == nil {
		return nil
	}
	done := make(chan []string, 1)
	go func() { done <- s.uses(pid, v) }()
	n, _ := strconv.Atoi(pid)
	var what []string
	select {
	case what = <-done:
	case <-time.After(patience):
		what = []string{"is starting a program and cannot be looked into"}
	}
	var list []holder
	for _, w := range what {
		list = append(list, holder{n, proc.Command(uint32(n)), w})
	}
	return list
}

// view finds out how a process sees the filesystem; nil: not at all.
func (s *scan) view(pid string) view {
	ns, err := os.Readlink("/proc/" + pid + "/ns/mnt")
	if err != nil {
		ns = "of " + pid // no right to know; its mountinfo may be readable all the same
	}
	if v, ok := s.views[ns]; ok {
		return v
	}
	list, err := mounts(pid)
	if err != nil {
		return nil // it has ended
	}
	var v view
	for _, m := range list {
		if m.Device == s.device {
			v = append(v, strconv.Itoa(m.ID))
		}
	}
	s.views[ns] = v
	return v
}

// uses lists the uses that a process makes of the filesystem.
func (s *scan) uses(pid string, v view) (what []string) {
	base := "/proc/" + pid
	for _, l := range []struct{ link, meaning string }{{"cwd", "working directory"}, {"root", "root directory"}, {"exe", "program"}} {
		if v.has(mountIDOf(base + "/" + l.link)) {
			what = append(what, l.meaning+" "+target(base+"/"+l.link))
		}
	}
	if pid == strconv.Itoa(os.Getpid()) {
		return what // the descriptors are those of this very scan
	}
	fds, _ := numericNames(base + "/fdinfo")
	for _, fd := range fds {
		text, err := os.ReadFile(base + "/fdinfo/" + fd)
		if err == nil && v.has(fdinfoMount(string(text))) {
			what = append(what, "open file "+target(base+"/fd/"+fd))
		}
	}
	if f, err := os.Open(base + "/maps"); err == nil {
		for _, path := range mappingsOn(f, s.device) {
			what = append(what, "mapping "+path)
		}
		f.Close()
	}
	return what
}

func (v view) has(mount string) bool { return mount != "" && slices.Contains(v, mount) }

// target is where a link of /proc leads, for people to read.
func target(link string) string {
	path, err := os.Readlink(link)
	if err != nil {
		return "(unknown)"
	}
	return path
}

// mountIDOf is the id of the mount that a link of /proc leads to, "" if it cannot be seen. Such links are followed without
// a lookup, and O_PATH opens nothing, so no daemon is called.
func mountIDOf(link string) string {
	fd, err := unix.Open(link, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	text, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return ""
	}
	return fdinfoMount(string(text))
}

// fdinfoMount is the mount id in a /proc/PID/fdinfo file.
func fdinfoMount(text string) string {
	for line := range strings.Lines(text) {
		if id, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strings.TrimSpace(id)
		}
	}
	return ""
}

// mappingsOn lists the files of a device, "major:minor" in decimal, in a /proc/PID/maps, each once.
func mappingsOn(r io.Reader, device string) (paths []string) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil
	}
	var major, minor uint64
	if _, err := fmt.Sscanf(device, "%d:%d", &major, &minor); err != nil {
		return nil
	}
	want := fmt.Sprintf("%02x:%02x", major, minor)
	for line := range strings.Lines(string(text)) {
		// address perms offset dev inode pathname; the name may have blanks (proc_pid_maps(5))
		f := strings.Fields(line)
		if len(f) < 6 || f[3] != want {
			continue
		}
		path := strings.TrimSpace(line[strings.Index(line, " "+f[4]+" ")+len(f[4])+2:])
		if !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	return paths
}

// numericNames lists the names of a directory of /proc that are numbers.
func numericNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	return slices.DeleteFunc(names, func(n string) bool { return n[0] < '0' || n[0] > '9' }), err
}

// busy is the error for a mount that is in use, with a table of those who use it.
func busy(mountpoint string, list []holder) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is busy", mountpoint)
	if len(list) == 0 {
		b.WriteString(", but nobody can be seen who holds it: run this as root to see all processes.\n")
	} else {
		b.WriteString("; it is held by\n")
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "  PID\tCOMMAND\tWHAT")
		for _, h := range list {
			fmt.Fprintf(w, "  %d\t%s\t%s\n", h.PID, quoted(shorten(h.Command, 40)), quoted(h.What))
		}
		w.Flush()
	}
	b.WriteString("End them, or detach the mount and let the last of them end it: untorn umount --lazy " + mountpoint)
	return &failure{exitBusy, errors.New(b.String())}
}

func shorten(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return s[:most-3] + "..."
}

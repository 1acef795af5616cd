package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"untorn/txn"
)

type salvageShow struct {
	salvageDir `embed:""`
	ID         string `arg:"" help:"The entry; an unambiguous beginning will do."`
}

const (
	// peek is how much of a file is looked at to tell whether it is text.
	peek = 64 << 10
	// diffable bounds what diff(1) is given.
	diffable = 16 << 20
)

func (c *salvageShow) Run() error {
	s, err := c.open()
	if err != nil {
		return err
	}
	defer s.Close()
	fd, r, err := s.Open(c.ID)
	if err != nil {
		return noEntry(err, c.Dir)
	}
	kept := os.NewFile(uintptr(fd), "salvaged")
	defer kept.Close()

	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "id\t%s\n", r.ID)
	fmt.Fprintf(w, "path\t%s\n", quoted(pathOf(r)))
	fmt.Fprintf(w, "kept\t%s\n", r.Time.Local().Format(time.RFC3339))
	fmt.Fprintf(w, "writer\t%s (pid %d)\n", quoted(r.Command), r.Pid)
	fmt.Fprintf(w, "reason\t%s\n", quoted(r.Reason))
	fmt.Fprintf(w, "size\t%s (%d bytes)\n", showSize(r.Size), r.Size)
	fmt.Fprintf(w, "owner\t%d:%d, mode %04o\n", r.Uid, r.Gid, uint32(r.Mode))
	current, err := s.current(r)
	switch {
	case current == nil && err == nil:
		fmt.Fprintln(w, "current\tthere is no file at that path now")
	case err != nil:
		fmt.Fprintf(w, "current\tcannot be read: %v\n", err)
	default:
		defer current.Close()
		info, err := current.Stat()
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "current\t%s (%d bytes), of %s\n", showSize(info.Size()), info.Size(), info.ModTime().Format(time.RFC3339))
	}
	if err := w.Flush(); err != nil || current == nil {
		return err
	}
	return showDifference(current, kept)
}

// current opens the version that an entry's path has now; nil without an error if it has none.
func (o *opened) current(r txn.Record) (*os.File, error) {
	if r.Path == "" {
		return nil, nil
	}
	// O_NONBLOCK, because a fifo may have taken its place.
	fd, err := txn.Linux{}.OpenBeneath(int(o.backing.Fd()), r.Path, unix.O_RDONLY|unix.O_NONBLOCK)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "current")
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errors.New("it is not a regular file")
	}
	return f, nil
}

// showDifference prints what changed between two texts, if diff(1) is there; of anything else the sizes have been told.
func showDifference(current, kept *os.File) error {
	diff, err := exec.LookPath("diff")
	if err != nil || !isText(current) || !isText(kept) {
		return nil
	}
	fmt.Println()
	cmd := exec.Command(diff, "-u", "--label", "current", "--label", "salvaged", "/dev/fd/3", "/dev/fd/4")
	cmd.ExtraFiles = []*os.File{current, kept}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err = cmd.Run()
	if err == nil {
		fmt.Println("The current version has the same content.")
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 { // they differ
		return nil
	}
	return err
}

func isText(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || info.Size() > diffable {
		return false
	}
	buf := make([]byte, peek)
	n, _ := f.ReadAt(buf, 0)
	return !bytes.Contains(buf[:n], []byte{0})
}

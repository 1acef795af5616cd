package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"untorn/txn"
)

type checkCmd struct {
	Dir  string `arg:"" help:"The backing directory, or the mountpoint."`
	JSON bool   `name:"json" help:"Print an array of objects, for scripts."`
}

// Help is what --help says beyond the flags.
func (checkCmd) Help() string {
	return `It looks through .untorn, changes nothing, and lists what is wrong there, with what to do about it; then it exits
with 8. What a living mount stages is not wrong. Filesystems that are mounted below the backing are checked as well; a
btrfs subvolume is not: name it.`
}

// wrong is a finding in the stable form for scripts.
type wrong struct {
	Where string `json:"where"`
	What  string `json:"what"`
	Do    string `json:"do"`
}

func (c *checkCmd) Run() error {
	backing, err := openBacking(c.Dir)
	if err != nil {
		return err
	}
	defer backing.Close()
	list, err := c.check(backing)
	if err != nil {
		return err
	}
	for _, nested := range nestedIn(backing) {
		more, err := c.check(nested)
		nested.Close()
		if err != nil {
			return err
		}
		list = append(list, more...)
	}
	if c.JSON {
		if err := printJSON(append([]wrong{}, list...)); err != nil { // an empty array, not null
			return err
		}
	} else {
		for _, f := range list {
			fmt.Printf("%s: %s. %s\n", quoted(f.Where), f.What, f.Do)
		}
	}
	switch {
	case len(list) > 0:
		return fail(exitWrong, "%s: %s wrong.", c.Dir, count(len(list), "thing is", "things are"))
	case !c.JSON:
		fmt.Println("Nothing is wrong.")
	}
	return nil
}

// check checks the .untorn of one directory.
func (c *checkCmd) check(dir *os.File) ([]wrong, error) {
	where := pathOfFile(dir)
	found, err := txn.Check(txn.Linux{}, int(dir.Fd()))
	if err != nil {
		return nil, fmt.Errorf("checking %s: %w", where, err)
	}
	var list []wrong
	for _, f := range found {
		list = append(list, wrong{filepath.Join(where, f.Where), f.What, remedy(f, where)})
	}
	return list, nil
}

// remedy says what to do about a finding in the .untorn of dir.
func remedy(f txn.Finding, dir string) string {
	where := filepath.Join(dir, f.Where)
	switch f.Remedy {
	case txn.ByRecovery:
		return "Run: untorn recover " + dir
	case txn.ByOwner:
		return "Run this as that user; or, if untorn is not to use it, move it away."
	case txn.ByMode:
		return "Look at what is in it, then run: chmod 700 " + where
	case txn.ByVersion:
		return "Use the untorn that wrote it; remove " + filepath.Join(dir, txn.Hidden) + " only if nothing in it is wanted."
	case txn.ByLooking:
		return "Somebody wrote to it after it was kept. Look: untorn salvage show " + dir + " " + f.ID
	case txn.BySearch:
		return fmt.Sprintf("Find it: find %s -xdev -inum %d", dir, f.Ino)
	default:
		return "Look at what it is, and move it away."
	}
}

// nestedIn opens the directories below the backing on which other filesystems are mounted. They are reached from the
// backing itself, past a mount of untorn that covers it. What cannot be opened is left out: it has no .untorn for us.
func nestedIn(backing *os.File) (list []*os.File) {
	top := pathOfFile(backing)
	all, _ := mounts("self")
	var seen []string
	for _, m := range all {
		rel, err := filepath.Rel(top, m.Point)
		if err != nil || rel == "." || !filepath.IsLocal(rel) || m.Type == mountType || m.Type == "autofs" || slices.Contains(seen, rel) {
			continue
		}
		seen = append(seen, rel)
		fd, err := txn.Linux{}.OpenBeneath(int(backing.Fd()), rel, unix.O_RDONLY|unix.O_DIRECTORY)
		if err == nil {
			list = append(list, os.NewFile(uintptr(fd), m.Point))
		}
	}
	return list
}

// pathOfFile is where an open directory is, without any mount that covers it.
func pathOfFile(f *os.File) string {
	p, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return f.Name()
	}
	return p
}

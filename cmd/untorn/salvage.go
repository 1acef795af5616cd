package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"untorn/txn"
)

type salvageCmd struct {
	List    salvageList    `cmd:"" help:"List what is kept, oldest first."`
	Show    salvageShow    `cmd:"" help:"Tell where an entry comes from, and what is different in it."`
	Restore salvageRestore `cmd:"" help:"Put an entry where it belongs, or elsewhere."`
	Purge   salvagePurge   `cmd:"" help:"Delete entries."`
}

// Help is what --help says beyond the commands.
func (salvageCmd) Help() string {
	return `What a writer left that was killed, or whose publishing failed, is kept in .untorn/salvage of the backing directory.
A filesystem that is mounted below the backing has a salvage of its own: name its top directory.`
}

// salvageDir is the directory argument of the salvage commands.
type salvageDir struct {
	Dir string `arg:"" help:"The backing directory, or the mountpoint."`
}

// opened is an open salvage with the backing that it belongs to.
type opened struct {
	*txn.Salvage
	backing *os.File
}

func (o *opened) Close() {
	o.Salvage.Close()
	o.backing.Close()
}

func (d salvageDir) open() (*opened, error) {
	backing, err := openBacking(d.Dir)
	if err != nil {
		return nil, err
	}
	if err := checkOwner(backing); err != nil {
		return nil, err
	}
	s, err := txn.OpenSalvage(txn.Linux{}, int(backing.Fd()))
	if err != nil {
		backing.Close()
		return nil, advise(fmt.Errorf("the salvage of %s: %w", d.Dir, err), d.Dir)
	}
	return &opened{s, backing}, nil
}

// checkOwner tells whose .untorn it is when it is not ours: only its owner may use it, root included.
func checkOwner(backing *os.File) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(backing.Fd()), txn.Hidden, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil || int(st.Uid) == os.Geteuid() {
		return nil
	}
	return fail(exitBacking, "%s/%s belongs to uid %d.\nRun this as that user: setpriv --reuid %d --regid %d --clear-groups untorn ...",
		backing.Name(), txn.Hidden, st.Uid, st.Uid, st.Gid)
}

type salvageList struct {
	salvageDir `embed:""`
	JSON       bool `name:"json" help:"Print an array of objects, for scripts."`
}

func (c *salvageList) Run() error {
	s, err := c.open()
	if err != nil {
		return err
	}
	defer s.Close()
	defer tellNested(s.backing, c.Dir)
	list, err := s.List()
	if err != nil {
		return err
	}
	if c.JSON {
		if list == nil {
			list = []txn.Record{} // not null
		}
		return printJSON(list)
	}
	if len(list) == 0 {
		fmt.Println("Nothing is kept.")
		return nil
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tKEPT\tSIZE\tPATH\tCOMMAND\tREASON")
	for _, r := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.Time.Local().Format(time.DateTime), showSize(r.Size),
			quoted(pathOf(r)), quoted(shorten(r.Command, 30)), quoted(r.Reason))
	}
	return w.Flush()
}

func pathOf(r txn.Record) string {
	if r.Path == "" {
		return "(unknown)"
	}
	return r.Path
}

func printJSON(v any) error {
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

type salvagePurge struct {
	salvageDir `embed:""`
	ID         []string `arg:"" optional:"" help:"Entries to delete; an unambiguous beginning will do."`
	All        bool     `help:"Delete all."`
	OlderThan  *age     `placeholder:"30d" help:"Delete those that were kept longer ago than this."`
}

// Validate is called by kong: deleting everything must be asked for.
func (c *salvagePurge) Validate() error {
	ways := 0
	for _, way := range []bool{len(c.ID) > 0, c.All, c.OlderThan != nil} {
		if way {
			ways++
		}
	}
	if ways != 1 {
		return fail(exitUsage, "say what to delete: IDs, --older-than, or --all")
	}
	return nil
}

func (c *salvagePurge) Run() error {
	s, err := c.open()
	if err != nil {
		return err
	}
	defer s.Close()
	var keep func(txn.Record) bool
	switch {
	case c.All:
		keep = func(txn.Record) bool { return false }
	case c.OlderThan != nil:
		limit := time.Now().Add(-time.Duration(*c.OlderThan))
		keep = func(r txn.Record) bool { return r.Time.After(limit) }
	default:
		chosen := map[string]bool{}
		for _, id := range c.ID {
			fd, r, err := s.Open(id)
			if err != nil {
				return noEntry(err, c.Dir)
			}
			unix.Close(fd)
			chosen[r.ID] = true
		}
		keep = func(r txn.Record) bool { return !chosen[r.ID] }
	}
	n, bytes, err := s.Purge(keep)
	if err != nil {
		return err
	}
	fmt.Printf("Deleted %s, %s.\n", count(n, "entry", "entries"), showSize(bytes))
	return nil
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// noEntry adds where ids are to be seen.
func noEntry(err error, dir string) error {
	if errors.Is(err, txn.ErrNoEntry) {
		return fmt.Errorf("%w\nThose that there are: untorn salvage list %s", err, dir)
	}
	return err
}

package txn

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Remedy is what can be done about a Finding.
type Remedy uint8

const (
	// ByRecovery: the next recovery or mount puts it right.
	ByRecovery Remedy = iota
	// ByMoving: untorn did not make it; it has to be looked at and moved away.
	ByMoving
	// ByOwner: it belongs to another user, who can say more.
	ByOwner
	// ByMode: it is open to others, or closed to its owner.
	ByMode
	// ByVersion: another version of untorn wrote it.
	ByVersion
	// ByLooking: a person has to judge an entry of the salvage.
	ByLooking
	// BySearch: a second name of an inode has to be found.
	BySearch
)

// Finding is something that is wrong with a .untorn.
type Finding struct {
	Where  string // below the backing
	What   string
	Remedy Remedy
	ID     string // of an entry of the salvage, if it is about one
	Ino    uint64 // of the inode that is to be searched for
}

// checks is how many times in a row something must be found: what a daemon, a recovery or a restore is just doing may look
// unfinished, and is done within milliseconds.
const checks = 3

// pause is between them; tests that wait for nobody do without.
var pause = 50 * time.Millisecond

// Check looks for what is wrong with the .untorn in dir, and changes nothing: it takes locks for an instant to see whether
// somebody holds them, and leaves not even an access time behind where it may. What living daemons stage is not wrong. A
// backing without .untorn is as it should be. A filesystem nested below the backing has an .untorn of its own, which is
// checked like another backing.
func Check(sys Sys, dir int) ([]Finding, error) {
	var found []Finding
	for n := range checks {
		c := checker{sys: lookOnly{sys}, live: map[string]bool{}, links: map[Ident]*links{}}
		if err := c.check(dir); err != nil {
			return nil, err
		}
		if n == 0 {
			found = c.found
		} else {
			found = slices.DeleteFunc(found, func(f Finding) bool { return !slices.Contains(c.found, f) })
		}
		if len(found) == 0 {
			break
		}
		if n < checks-1 {
			time.Sleep(pause)
		}
	}
	return found, nil
}

// lookOnly is a Sys that changes nothing.
type lookOnly struct{ Sys }

func (l lookOnly) Open(dir int, name string, flags int, mode uint32) (int, error) {
	if flags&(unix.O_ACCMODE|unix.O_CREAT|unix.O_TRUNC) != unix.O_RDONLY {
		return -1, unix.EROFS
	}
	fd, err := l.Sys.Open(dir, name, flags|unix.O_NOATIME, 0)
	if err == unix.EPERM { // it is somebody else's (open(2))
		return l.Sys.Open(dir, name, flags, 0)
	}
	return fd, err
}

func (l lookOnly) Reopen(fd int, flags int) (int, error) {
	if flags&unix.O_ACCMODE != unix.O_RDONLY {
		return -1, unix.EROFS
	}
	again, err := l.Sys.Reopen(fd, flags|unix.O_NOATIME)
	if err == unix.EPERM {
		return l.Sys.Reopen(fd, flags)
	}
	return again, err
}

func (lookOnly) Mkdir(int, string, uint32) error                { return unix.EROFS }
func (lookOnly) Pwrite(int, []byte, int64) (int, error)         { return 0, unix.EROFS }
func (lookOnly) Rename(int, string, int, string, uint) error    { return unix.EROFS }
func (lookOnly) Link(int, string, int, string) error            { return unix.EROFS }
func (lookOnly) Unlink(int, string) error                       { return unix.EROFS }
func (lookOnly) Rmdir(int, string) error                        { return unix.EROFS }
func (lookOnly) Chmod(int, uint32) error                        { return unix.EROFS }
func (lookOnly) Truncate(int, int64) error                      { return unix.EROFS }
func (lookOnly) Utimes(int, unix.Timespec, unix.Timespec) error { return unix.EROFS }

// checker is one look.
type checker struct {
	sys   Sys
	found []Finding
	live  map[string]bool  // instances of the stage
	links map[Ident]*links // of the files in the stage and the salvage
	// hides: it is a FUSE filesystem. libfuse keeps a file that is unlinked while it is open under another name, which
	// counts as a link and occupies its directory until the RELEASE, of which nobody waits for the end (fuse_lib_unlink in
	// lib/fuse.c).
	hides bool
}

// links are the names of an inode: how many there are, and how many of them are known.
type links struct {
	all, known uint32
	where      string
}

func (c *checker) add(remedy Remedy, where, format string, args ...any) {
	c.found = append(c.found, Finding{Where: where, What: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (c *checker) check(dir int) error {
	base, err := c.dir(dir, Hidden, Hidden)
	if err != nil || base < 0 {
		return err
	}
	defer c.sys.Close(base)
	var fs unix.Statfs_t
	c.hides = c.sys.Statfs(base, &fs) == nil && fs.Type == unix.FUSE_SUPER_MAGIC
	switch err := checkFormat(c.sys, base, false); {
	case errors.Is(err, ErrFormat):
		c.add(ByVersion, Hidden+"/"+formatName, "%v", err)
		return nil
	case errors.Is(err, ErrPlanted):
		c.add(ByMoving, Hidden+"/"+formatName, "%v", err)
		return nil
	case err != nil:
		return err
	}
	if err := c.top(base); err != nil {
		return err
	}
	for _, part := range []struct {
		name  string
		check func(fd int, where string) error
	}{{journalName, c.journal}, {stageName, c.stage}, {salvageName, c.salvage}} {
		where := Hidden + "/" + part.name
		fd, err := c.dir(base, part.name, where)
		if err != nil {
			return err
		}
		if fd < 0 {
			continue
		}
		err = part.check(fd, where)
		c.sys.Close(fd)
		if err != nil {
			return fmt.Errorf("checking %s: %w", where, err)
		}
	}
	for id, l := range c.links {
		if l.all > l.known && !c.hides {
			c.add(BySearch, l.where, "it has another name outside of %s, under which it can be written to", Hidden)
			c.found[len(c.found)-1].Ino = id.Ino
		}
	}
	return nil
}

// dir opens a directory of ours: -1 if it is missing, or not to be entered, which is then a finding.
func (c *checker) dir(parent int, name, where string) (int, error) {
	fd, err := c.sys.Open(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	switch err {
	case nil:
	case unix.ENOENT:
		return -1, nil
	case unix.ENOTDIR, unix.ELOOP:
		c.add(ByMoving, where, "it is not a directory")
		return -1, nil
	case unix.EACCES:
		c.add(ByOwner, where, "it cannot be entered")
		return -1, nil
	default:
		return -1, fmt.Errorf("opening %s: %w", where, err)
	}
	var st unix.Statx_t
	if err := c.sys.Stat(fd, "", &st); err != nil {
		c.sys.Close(fd)
		return -1, err
	}
	if st.Uid != daemonUid {
		c.add(ByOwner, where, "it belongs to uid %d, not %d", st.Uid, daemonUid)
	}
	if mode := st.Mode & 0o777; mode != 0o700 {
		c.add(ByMode, where, "its mode is %04o, not 0700", mode)
	}
	return fd, nil
}

// alone reports whether nobody writes in a directory outside of an instance; see Plan.takeAlone.
func (c *checker) alone(dir int) bool {
	fd, err := c.sys.Open(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return false
	}
	defer c.sys.Close(fd) // and the lock with it
	return c.sys.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil
}

// top checks the names in .untorn itself.
func (c *checker) top(base int) error {
	all, err := names(c.sys, base)
	if err != nil {
		return fmt.Errorf("listing %s: %w", Hidden, err)
	}
	for _, name := range all {
		where := Hidden + "/" + name
		var st unix.Statx_t
		if err := c.sys.Stat(base, name, &st); err == unix.ENOENT {
			continue
		} else if err != nil {
			return err
		}
		switch {
		case name == stageName, name == journalName, name == salvageName:
		case !IsRegular(&st):
			c.add(ByMoving, where, "it is not a regular file")
		case name == formatName, name == clockName:
		case strings.Contains(name, tempMark):
			if c.alone(base) {
				c.add(ByRecovery, where, "it was never finished")
			}
		default:
			c.add(ByMoving, where, "untorn did not put it there")
		}
	}
	return nil
}

// journal checks that it is empty: this version commits each file on its own.
func (c *checker) journal(fd int, where string) error {
	all, err := names(c.sys, fd)
	for _, name := range all {
		c.add(ByMoving, where+"/"+name, "untorn did not put it there")
	}
	return err
}

func (c *checker) stage(stage int, where string) error {
	all, err := names(c.sys, stage)
	if err != nil {
		return err
	}
	slices.Sort(all)
	for _, name := range all {
		where := where + "/" + name
		fd, err := c.dir(stage, name, where)
		if err != nil {
			return err
		}
		if fd < 0 {
			continue
		}
		err = c.instance(fd, name, where)
		c.sys.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// instance checks what a daemon stages, or what a dead one left.
func (c *checker) instance(fd int, name, where string) error {
	switch err := c.sys.Flock(fd, unix.LOCK_SH|unix.LOCK_NB); err {
	case nil:
		c.sys.Flock(fd, unix.LOCK_UN)
	case unix.EWOULDBLOCK:
		c.live[name] = true
	default:
		return fmt.Errorf("looking whether the daemon of %s lives: %w", where, err)
	}
	temps, err := c.temps(fd, where, true)
	if err != nil {
		return err
	}
	if c.live[name] || (c.hides && temps == 0) {
		return nil
	}
	c.add(ByRecovery, where, "its daemon is dead, and left %d files", temps)
	torn := 0
	err = eachLine(c.sys, fd, func(line []byte) {
		var o Origin
		if json.Unmarshal(line, &o) != nil {
			torn++
		}
	})
	switch {
	case errors.Is(err, unix.ENOENT):
	case err != nil:
		c.add(ByRecovery, where+"/"+originsName, "%v; the paths of its files are not known", err)
	case torn > 0:
		c.add(ByRecovery, where+"/"+originsName, "%d lines cannot be read; the paths of their files are not known", torn)
	}
	return nil
}

// temps checks the files in an instance, or in a directory of helpers in it, and counts those that are regular.
func (c *checker) temps(dir int, where string, helpers bool) (n int, err error) {
	all, err := names(c.sys, dir)
	if err != nil {
		return 0, err
	}
	for _, name := range all {
		where := where + "/" + name
		var st unix.Statx_t
		switch err := c.sys.Stat(dir, name, &st); {
		case err == unix.ENOENT:
		case err != nil:
			return n, err
		case IsRegular(&st):
			if helpers && name == originsName {
				continue
			}
			n++
			c.link(where, &st)
		case helpers && st.Mode&unix.S_IFMT == unix.S_IFDIR && strings.HasSuffix(name, helperSuffix):
			fd, err := c.sys.Open(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
			if err == unix.ENOENT {
				continue
			}
			if err != nil {
				return n, err
			}
			more, err := c.temps(fd, where, false)
			c.sys.Close(fd)
			if n += more; err != nil {
				return n, err
			}
		default:
			c.add(ByMoving, where, "it is not a regular file")
		}
	}
	return n, nil
}

// link takes note of a name.
func (c *checker) link(where string, st *unix.Statx_t) {
	l := c.links[IdentOf(st)]
	if l == nil {
		l = &links{where: where}
		c.links[IdentOf(st)] = l
	}
	l.all = st.Nlink
	l.known++
}

func (c *checker) salvage(dir int, where string) error {
	s := salvaged{shelf: shelf{sys: c.sys, dir: dir}}
	if err := s.load(); err != nil {
		return err
	}
	for _, name := range s.strange {
		c.add(ByMoving, where+"/"+name, "untorn did not put it there")
	}
	if c.alone(dir) {
		for _, name := range s.temps {
			c.add(ByRecovery, where+"/"+name, "it was never finished")
		}
		for _, id := range s.lost {
			c.add(ByRecovery, where+"/"+id, "it has no record")
		}
		for _, id := range s.bare {
			c.bare(&s, where, id)
		}
	}
	for _, k := range s.entries {
		if err := c.entry(&s, where, k); err != nil {
			return err
		}
	}
	return nil
}

// bare judges a record without bytes, as Plan.scanBare does.
func (c *checker) bare(s *salvaged, where, id string) {
	rec, err := s.read(id)
	instance, _, _ := strings.Cut(rec.Temp, "/")
	switch {
	case passing(err) || c.live[instance]:
	case s.swapped(rec):
		c.add(ByRecovery, where+"/"+rec.Swap, "a restore of it was interrupted")
	default:
		c.add(ByRecovery, where+"/"+id+recordSuffix, "it is a record without bytes")
	}
}

// entry checks one entry, and its record if it has one.
func (c *checker) entry(s *salvaged, where string, k kept) error {
	var st unix.Statx_t
	switch err := s.sys.Stat(s.dir, k.id, &st); {
	case err == unix.ENOENT:
		return nil // given up just now
	case err != nil:
		return err
	}
	c.link(where+"/"+k.id, &st)
	rec, err := s.read(k.id)
	switch {
	case passing(err):
		return err
	case errors.Is(err, errDamaged):
		c.add(ByRecovery, where+"/"+k.id+recordSuffix, "%v", err)
	case err == nil && rec.Size != int64(st.Size):
		c.add(ByLooking, where+"/"+k.id, "it has %d bytes, and had %d when it was kept", st.Size, rec.Size)
		c.found[len(c.found)-1].ID = k.id
	}
	return nil
}

package txn

import (
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits bound the salvage. What goes beyond is given up, oldest first, and logged. Zero fields mean the defaults, which
// suit a workstation; with a negative one nothing is kept.
type Limits struct {
	Bytes int64         // disk space; default 1 GiB
	Count int           // default 1,000
	Age   time.Duration // default 30 days
}

func (l Limits) filled() Limits {
	if l.Bytes == 0 {
		l.Bytes = 1 << 30
	}
	if l.Count == 0 {
		l.Count = 1000
	}
	if l.Age == 0 {
		l.Age = 30 * 24 * time.Hour
	}
	return l
}

// The salvage is given up as well while the filesystem has less free than a twentieth, or 256 MiB where that is less.
const (
	lowShare = 20
	lowBytes = 256 << 20
	// lowInodes is what a handful of programs need at once.
	lowInodes = 16
)

// excess tells the entries that may stay from those beyond the limits, both oldest first. A file that is alone larger
// than all may be goes alone: giving up the others for it would lose them for nothing.
func (l Limits) excess(list []kept, now time.Time) (stay, gone []kept) {
	l = l.filled()
	var total int64
	over := false
	for _, k := range slices.Backward(list) {
		alone := k.alloc > l.Bytes
		if !alone {
			total += k.alloc
			over = over || total > l.Bytes || len(stay) >= l.Count || now.Sub(k.at) > l.Age
		}
		if alone || over {
			gone = append(gone, k)
		} else {
			stay = append(stay, k)
		}
	}
	slices.Reverse(stay)
	slices.Reverse(gone)
	return stay, gone
}

// missing returns how many bytes the filesystem should have free and has not.
func (s shelf) missing() (int64, error) {
	var st unix.Statfs_t
	if err := s.sys.Statfs(s.dir, &st); err != nil {
		return 0, fmt.Errorf("asking for the free space: %w", err)
	}
	// Blocks are counted in f_frsize; only for FUSE filesystems does it differ from f_bsize.
	block := max(1, st.Frsize)
	want := min(int64(st.Blocks)/lowShare, lowBytes/block)
	return (want - int64(st.Bavail)) * block, nil
}

// warn tells people what was given up, in the manner of slog.Warn.
type warn func(msg string, args ...any)

// giveUp removes entries and says so. It returns how much space that gives back.
func (s shelf) giveUp(list []kept, why string, warn warn) (freed int64) {
	for _, k := range list {
		rec, _ := s.read(k.id)
		removed, err := s.remove(k.id)
		if err != nil {
			warn("giving up a salvaged file", "id", k.id, "why", why, "error", err)
		}
		if removed {
			warn("gave up a salvaged file", "id", k.id, "path", rec.Path, "bytes", k.size, "why", why)
			freed += k.alloc
		}
	}
	return freed
}

// starved reports whether the filesystem has hardly an inode left. (Those that make inodes as needed tell 0 in all.)
func (s shelf) starved() bool {
	var st unix.Statfs_t
	return s.sys.Statfs(s.dir, &st) == nil && st.Files > 0 && st.Ffree < lowInodes
}

// makeRoom gives up the oldest entries until enough space and inodes should be free; the last spare entries stay.
// Filesystems that free space later than unlink(2) returns (btrfs, xfs) are taken by their word, or all would be given up
// at once.
func (s shelf) makeRoom(list []kept, spare int, warn warn) (freed int64) {
	missing, err := s.missing()
	if err != nil {
		warn("bounding the salvage", "error", err)
		return 0
	}
	for len(list) > spare && (missing > freed || s.starved()) {
		freed += max(1, s.giveUp(list[:1], "the filesystem is nearly full", warn))
		list = list[1:]
	}
	return freed
}

// keep moves a temp of this instance to the salvage and returns the id of the entry; rec says where it belongs and why it
// is kept, the rest is filled in. If there is no space for the record, older entries are given up for it. On an error
// the temp is where it was, for the next recovery. keep may give up other entries, or with a Limit below its size this
// one; see sweep.
func (s *Store) keep(temp string, rec Record) (id string, err error) {
	rec.Temp = s.instance + "/" + temp
	if len(rec.Command) > maxCommand {
		rec.Command = rec.Command[:maxCommand]
	}
	rec, err = s.shelf().put(s.fd, temp, s.fd, rec)
	if full(err) && s.room() > 0 {
		rec, err = s.shelf().put(s.fd, temp, s.fd, rec)
	}
	if full(err) && s.reserve.spend(s.o.sys) {
		rec, err = s.shelf().put(s.fd, temp, s.fd, rec)
	}
	if err != nil {
		return "", fmt.Errorf("salvaging %q: %w", rec.Path, err)
	}
	s.sweep(s.o.opt.Limits)
	s.reserve.fill(s)
	return rec.ID, nil
}

func (s *Store) shelf() shelf { return shelf{s.o.sys, s.salvage, &s.newest} }

// sweep gives up what is beyond the limits, and while the filesystem is nearly full the oldest entries, except for the
// youngest: it may be what filled the disk, and whoever just lost a file to a full disk wants that one. What cannot be
// removed is logged.
func (s *Store) sweep(limits Limits) {
	s.keepMu.Lock()
	defer s.keepMu.Unlock()
	if s.salvage < 0 {
		return // closed meanwhile
	}
	l, err := s.shelf().list()
	if err != nil {
		s.o.log.Warn("bounding the salvage", "error", err)
		return
	}
	now := time.Now()
	if limits = limits.filled(); !s.mayAge(l.entries, now, limits.Age) {
		limits.Age = math.MaxInt64
	}
	stay, gone := limits.excess(l.entries, now)
	s.shelf().giveUp(gone, "the salvage is full", s.o.log.Warn)
	s.shelf().makeRoom(stay, 1, s.o.log.Warn)
}

// room is for when the filesystem is full: it gives up entries, oldest first and the youngest too, until the usual margin
// is free, and returns how many bytes that gave back. With 0 there is nothing more to be had from the salvage.
func (s *Store) room() int64 {
	s.keepMu.Lock()
	defer s.keepMu.Unlock()
	l, err := s.shelf().list()
	if err != nil {
		s.o.log.Warn("making room", "error", err)
		return 0
	}
	return s.shelf().makeRoom(l.entries, 0, s.o.log.Warn)
}

// Salvage is the salvage of a backing as the command line sees it, with or without a live daemon. A filesystem nested
// below the backing has an .untorn of its own at its top, which is opened like another backing.
type Salvage struct {
	sys  Sys
	root int // the backing
	fd   int // .untorn/salvage, or -1

	newest newest
}

// OpenSalvage opens the salvage of the backing behind dir, which stays the caller's and must stay open. A backing without
// .untorn has an empty one. ErrPlanted, ErrFormat.
func OpenSalvage(sys Sys, dir int) (*Salvage, error) {
	base, err := openExisting(sys, dir)
	if err != nil {
		return nil, err
	}
	s := &Salvage{sys: sys, root: dir, fd: -1}
	if base < 0 {
		return s, nil
	}
	defer sys.Close(base)
	if s.fd, err = existing(sys, base, salvageName); err != nil {
		return nil, err
	}
	return s, nil
}

// openExisting opens .untorn, which is not made: -1 and no error if it is missing.
func openExisting(sys Sys, dir int) (int, error) {
	var st unix.Statx_t
	if err := sys.Stat(dir, Hidden, &st); err == unix.ENOENT {
		return -1, nil
	}
	base, err := openBase(sys, dir, false)
	if errors.Is(err, unix.ENOENT) { // it was removed just now
		return -1, nil
	}
	return base, err
}

// Close gives the descriptors back.
func (s *Salvage) Close() error {
	if s.fd < 0 {
		return nil
	}
	return s.sys.Close(s.fd)
}

func (s *Salvage) shelf() shelf { return shelf{s.sys, s.fd, &s.newest} }

// List returns the records of all entries, oldest first. Of one whose record is missing or damaged it tells what is known
// without: its path is empty and its reason "record damaged".
func (s *Salvage) List() ([]Record, error) {
	if s.fd < 0 {
		return nil, nil
	}
	l, err := s.shelf().list()
	if err != nil {
		return nil, err
	}
	list := make([]Record, 0, len(l.entries))
	for _, k := range l.entries {
		rec, err := s.shelf().read(k.id)
		var st unix.Statx_t
		switch serr := s.sys.Stat(s.fd, k.id, &st); {
		case serr == unix.ENOENT: // removed meanwhile
			continue
		case serr != nil:
			return nil, fmt.Errorf("looking at salvage entry %s: %w", k.id, serr)
		case err != nil:
			rec.describe(&st)
		}
		rec.Size = int64(st.Size)
		list = append(list, rec)
	}
	return list, nil
}

// find returns the entry of an id, or the only one whose id begins with it. The given id is compared with those that
// exist and never used as a name. ErrNoEntry.
func (s *Salvage) find(id string) (Record, error) {
	list, err := s.List()
	if err != nil {
		return Record{}, err
	}
	var found []Record
	for _, rec := range list {
		if rec.ID == id {
			return rec, nil
		}
		if id != "" && strings.HasPrefix(rec.ID, id) {
			found = append(found, rec)
		}
	}
	switch len(found) {
	case 0:
		return Record{}, fmt.Errorf("%w: %q", ErrNoEntry, id)
	case 1:
		return found[0], nil
	}
	return Record{}, fmt.Errorf("%w: %d ids begin with %q, for example %s and %s",
		ErrNoEntry, len(found), id, found[0].ID, found[1].ID)
}

// Open opens the bytes of an entry for reading; an unambiguous beginning of the id will do. The descriptor is the
// caller's. Restoring to a place outside the backing is a copy out of it. ErrNoEntry.
func (s *Salvage) Open(id string) (fd int, rec Record, err error) {
	if rec, err = s.find(id); err != nil {
		return -1, rec, err
	}
	fd, err = openRegular(s.sys, s.fd, rec.ID, nil)
	if err == unix.ENOENT {
		err = ErrNoEntry
	}
	if err != nil {
		return -1, rec, fmt.Errorf("opening salvage entry %s: %w", rec.ID, err)
	}
	return fd, rec, nil
}

// Purge removes all entries but those that keep wants, and returns how many those were and their bytes. What cannot be
// removed stays, with its record or without, and is in the error; the rest is removed all the same.
func (s *Salvage) Purge(keep func(Record) bool) (n int, bytes int64, err error) {
	list, err := s.List()
	if err != nil {
		return 0, 0, err
	}
	var failed []error
	for _, rec := range list {
		if keep(rec) {
			continue
		}
		removed, err := s.shelf().remove(rec.ID)
		if err != nil {
			failed = append(failed, err)
		}
		if removed {
			n++
			bytes += rec.Size
		}
	}
	return n, bytes, errors.Join(failed...)
}

// Restore moves an entry to a path below the backing ("": where it belongs), with the mode and owner that it had in the
// stage. The path gets all of it at once, durably, or stays as it is. Without force nothing is replaced: ErrExists. With
// force a file that is there goes to the salvage in exchange. The directory must exist; no symlink is followed. On an
// error the entry is still in the salvage, except that a failed fsync of the directory comes after the fact. ErrNoEntry.
func (s *Salvage) Restore(id string, to string, force bool) error {
	rec, err := s.find(id)
	if err != nil {
		return err
	}
	if to == "" {
		to = rec.Path
	}
	if to == "" {
		return fmt.Errorf("restoring %s: it is not known where it belongs; say where to put it: %w", rec.ID, unix.EINVAL)
	}
	if err := checkTarget(to); err != nil {
		return fmt.Errorf("restoring %s: %w", rec.ID, err)
	}
	parent, err := openParent(s.sys, s.root, path.Dir(to))
	if err != nil {
		return fmt.Errorf("restoring %s: opening directory %q: %w", rec.ID, path.Dir(to), err)
	}
	defer s.sys.Close(parent)
	fd, err := openRegular(s.sys, s.fd, rec.ID, nil)
	if err != nil {
		return fmt.Errorf("opening salvage entry %s: %w", rec.ID, err)
	}
	err = s.sys.Fsync(fd)
	s.sys.Close(fd)
	if err != nil {
		return fmt.Errorf("restoring %s: fsync: %w", rec.ID, err)
	}

	err = renameNew(s.sys, s.fd, rec.ID, parent, path.Base(to))
	switch {
	case err == unix.EEXIST && !force:
		return fmt.Errorf("restoring %s to %q: %w", rec.ID, to, ErrExists)
	case err == unix.EEXIST:
		err = s.exchange(rec, parent, to)
	}
	if err == unix.EXDEV {
		return fmt.Errorf("restoring %s to %q: that is another filesystem, to which it must be copied: %w", rec.ID, to, err)
	}
	if err != nil {
		return fmt.Errorf("restoring %s to %q: %w", rec.ID, to, err)
	}
	// The record goes last, and only when the bytes are durable at their new place: until then a power cut may leave them
	// here. A record without bytes is no entry; recovery removes it.
	err = s.sys.Fsync(s.fd) // of what was replaced first
	if perr := s.sys.Fsync(parent); perr != nil {
		err = perr
	}
	if err != nil {
		return fmt.Errorf("%q is restored, but may not survive a power cut: fsync of a directory: %w", to, err)
	}
	s.sys.Unlink(s.fd, rec.ID+recordSuffix)
	return nil
}

// checkTarget refuses what is no path of a file below the backing, or leads into .untorn.
func checkTarget(to string) error {
	for _, part := range strings.Split(to, "/") {
		switch part {
		case "", ".", "..":
			return fmt.Errorf("%q is not a path below the backing: %w", to, unix.EINVAL)
		case Hidden:
			return fmt.Errorf("%q leads into %s: %w", to, Hidden, unix.EINVAL)
		}
	}
	return nil
}

// openParent opens a directory below root, following no symlink; the path may be longer than one system call takes.
func openParent(sys Sys, root int, dir string) (int, error) {
	const most = unix.PathMax - 1
	if len(dir) < most {
		return sys.OpenBeneath(root, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	}
	cut := strings.LastIndexByte(dir[:most], '/')
	if cut < 0 {
		return -1, unix.ENAMETOOLONG
	}
	part, err := sys.OpenBeneath(root, dir[:cut], unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	defer sys.Close(part)
	return openParent(sys, part, dir[cut+1:])
}

// exchange puts an entry in the place of a regular file, and the file into the salvage as an entry of its own. The bytes
// of both have a name at every moment. Between the two renames the replaced file is under the id of the restored one; its
// own record tells which inode it is, so that a recovery can finish that.
func (s *Salvage) exchange(rec Record, parent int, to string) error {
	name := path.Base(to)
	var st unix.Statx_t
	if err := s.sys.Stat(parent, name, &st); err != nil {
		return err
	}
	if !IsRegular(&st) {
		return errIrregular
	}
	old := Record{Path: to, Reason: "replaced by restore", Swap: rec.ID, Ino: st.Ino}
	old.describe(&st)
	done := writing(s.sys, s.fd)
	defer done()
	old, err := s.shelf().claim(s.fd, old)
	if err != nil {
		return err
	}
	err = s.sys.Rename(s.fd, rec.ID, parent, name, unix.RENAME_EXCHANGE)
	if err == nil {
		if err = s.shelve(rec, old, st.Ino); err != nil {
			s.sys.Rename(s.fd, rec.ID, parent, name, unix.RENAME_EXCHANGE)
		}
	} else if err == unix.EINVAL || err == unix.ENOSYS || err == unix.EOPNOTSUPP {
		// Without an exchange the old file is kept by a second name. What somebody else publishes there between the
		// two calls is lost: that much these filesystems cannot do.
		if err = s.sys.Link(parent, name, s.fd, old.ID); err == nil {
			if err = s.sys.Rename(s.fd, rec.ID, parent, name, 0); err != nil {
				s.sys.Unlink(s.fd, old.ID)
			}
		}
	}
	if err != nil {
		s.sys.Unlink(s.fd, old.ID+recordSuffix)
	}
	return err
}

// shelve gives what came in exchange for rec an id of its own. Only now is it certain what that is: somebody may have
// published another version meanwhile, and then the record must say so before the bytes come to it.
func (s *Salvage) shelve(rec, old Record, ino uint64) error {
	var st unix.Statx_t
	if err := s.sys.Stat(s.fd, rec.ID, &st); err != nil {
		return err
	}
	if !IsRegular(&st) {
		return errIrregular
	}
	if st.Ino != ino {
		old.Ino = st.Ino
		old.describe(&st)
		if err := s.shelf().rewrite(old); err != nil {
			return err
		}
	}
	return renameNew(s.sys, s.fd, rec.ID, s.fd, old.ID)
}

// errIrregular: restoring does not replace what is no file.
var errIrregular = fmt.Errorf("what is there is not a regular file, and is not replaced: %w", unix.EEXIST)

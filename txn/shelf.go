package txn

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	recordSuffix = ".json"
	tempMark     = ".tmp-" // in the names that writeFile writes under
	// maxRecord bounds what is read as a record.
	maxRecord = 1 << 20
	// idLayout is the part of an id that people read; it is UTC.
	idLayout = "20060102-150405"
	// ticks is how many ids a second has.
	ticks = 1 << 16
)

// Record tells about one kept file: the JSON beside it, and the objects that `salvage list --json` prints. For scripts:
// id, path, size, time, pid, command and reason are always there and keep their meaning. A path or command that is not
// UTF-8 is given exactly, in base64, as path_bytes or command_bytes.
type Record struct {
	ID      string    `json:"id"`
	Path    string    `json:"path"` // below the backing root; empty if unknown
	Size    int64     `json:"size"`
	Time    time.Time `json:"time"` // when it was kept
	Pid     uint32    `json:"pid"`
	Command string    `json:"command"`
	Reason  string    `json:"reason"`
	Mode    uint32    `json:"-"` // permission bits; in JSON a string as chmod(1) takes it: "0644"
	Uid     uint32    `json:"uid"`
	Gid     uint32    `json:"gid"`
	// Temp is the name that it was staged under, INSTANCE/TEMP. By it a recovery that was interrupted knows the entries
	// that it has begun.
	Temp string `json:"temp,omitempty"`
	// Swap and Ino are in the record of a file that a restore replaces: the entry that it exchanges it for, under whose id
	// it is for a moment, and its inode number. By them an interrupted restore can be finished.
	Swap string `json:"swap,omitempty"`
	Ino  uint64 `json:"ino,omitempty"`
}

// octal is Record.Mode in JSON.
type octal uint32

// MarshalText never fails.
func (m octal) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%04o", uint32(m)), nil }

// UnmarshalText reads what MarshalText wrote.
func (m *octal) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 8, 16)
	*m = octal(n & 0o7777)
	return err
}

// plainRecord is a Record without its methods, as encoding/json knows it.
type plainRecord Record

// recordText is a Record as it is written down.
type recordText struct {
	plainRecord
	rawBytes
	Octal octal `json:"mode"`
}

// MarshalJSON keeps every byte of the path and the command, and stays readable where they are UTF-8.
func (r Record) MarshalJSON() ([]byte, error) {
	t := recordText{plainRecord: plainRecord(r), Octal: octal(r.Mode & 0o7777)}
	t.encode(&t.Path, &t.Command)
	return json.Marshal(t)
}

// UnmarshalJSON is the reverse of MarshalJSON. What a malformed text leaves in r is undefined.
func (r *Record) UnmarshalJSON(text []byte) error {
	var t recordText
	if err := json.Unmarshal(text, &t); err != nil {
		return err
	}
	t.decode(&t.Path, &t.Command)
	t.Mode = uint32(t.Octal)
	*r = Record(t.plainRecord)
	return nil
}

// describe fills in what the file itself says.
func (r *Record) describe(st *unix.Statx_t) {
	r.Size, r.Mode, r.Uid, r.Gid = int64(st.Size), uint32(st.Mode)&0o7777, st.Uid, st.Gid
}

// An id is the time at which its entry was made, as 20261120-093015-3f2a: UTC, and the fraction of the second in 1/65536.
// So ids sort by time, and no two entries can have the same.

func idAt(t time.Time) string {
	t = t.UTC()
	return fmt.Sprintf("%s-%04x", t.Format(idLayout), t.Nanosecond()*ticks/1e9)
}

// idTime is the reverse of idAt; false for what is no id.
func idTime(id string) (time.Time, bool) {
	if len(id) != len(idLayout)+5 {
		return time.Time{}, false
	}
	day, fraction := id[:len(idLayout)], id[len(idLayout)+1:]
	t, err := time.Parse(idLayout, day)
	n, herr := strconv.ParseUint(fraction, 16, 16)
	if err != nil || herr != nil || fmt.Sprintf("%s-%04x", t.Format(idLayout), n) != id {
		return time.Time{}, false
	}
	return t.Add(time.Duration(n) * time.Second / ticks), true
}

// shelf is a salvage directory. Whoever changes it needs no lock: an entry is made by claiming its record, which one
// process can do, and removed bytes first, which all may try. Bytes without a record are therefore always an accident;
// a record without bytes may also be an entry in the making.
type shelf struct {
	sys    Sys
	dir    int
	newest *newest // where new entries are made
}

// newest is the time of the youngest id, in nanoseconds since the epoch. The next one is younger, whatever the clock says:
// the salvage is given up in the order of ids, and a clock that was set back must not put the last first.
type newest struct{ atomic.Int64 }

func (n *newest) see(id string) {
	if t, ok := idTime(id); ok && t.Year() < 2200 { // what somebody planted may have any name
		for old := n.Load(); t.UnixNano() > old && !n.CompareAndSwap(old, t.UnixNano()); old = n.Load() {
		}
	}
}

// next is the time for a new id, at the time now.
func (n *newest) next(now time.Time) time.Time {
	const tick = time.Second/ticks + 2 // an id is rounded down, and so is its time
	if t := time.Unix(0, n.Load()).Add(tick); t.After(now) {
		return t
	}
	return now
}

// kept is one entry as the directory shows it.
type kept struct {
	id    string
	inode Ident
	at    time.Time
	size  int64
	// alloc is what removing it gives back: nothing while the file has another name.
	alloc int64
}

// listing is what lies in a salvage directory.
type listing struct {
	entries []kept   // all bytes, oldest first
	lost    []string // ids among them that have no record
	bare    []string // ids of records without bytes
	temps   []string // what writing a record leaves when it is interrupted
	strange []string // what untorn never put there
}

// list reads the directory. Entries that vanish meanwhile are left out.
func (s shelf) list() (listing, error) {
	all, err := names(s.sys, s.dir)
	if err != nil {
		return listing{}, fmt.Errorf("listing the salvage: %w", err)
	}
	var l listing
	records, bytes := map[string]bool{}, map[string]bool{}
	for _, name := range all {
		id, isRecord := strings.CutSuffix(name, recordSuffix)
		at, isID := idTime(id)
		var st unix.Statx_t
		switch err := s.sys.Stat(s.dir, name, &st); {
		case err == unix.ENOENT:
		case err != nil:
			return listing{}, fmt.Errorf("looking at salvage entry %s: %w", name, err)
		case !IsRegular(&st) || !isID && !strings.Contains(name, tempMark):
			l.strange = append(l.strange, name)
		case !isID:
			l.temps = append(l.temps, name)
		case isRecord:
			records[id] = true
		default:
			bytes[id] = true
			k := kept{id: id, inode: IdentOf(&st), at: at, size: int64(st.Size)}
			if st.Nlink == 1 {
				k.alloc = int64(st.Blocks) * 512
			}
			l.entries = append(l.entries, k)
		}
	}
	slices.SortFunc(l.entries, func(a, b kept) int { return strings.Compare(a.id, b.id) })
	if s.newest != nil && len(l.entries) > 0 {
		s.newest.see(l.entries[len(l.entries)-1].id)
	}
	for _, k := range l.entries {
		if !records[k.id] {
			l.lost = append(l.lost, k.id)
		}
	}
	for id := range records {
		if !bytes[id] {
			l.bare = append(l.bare, id)
		}
	}
	slices.Sort(l.bare)
	return l, nil
}

// errDamaged: a record is there, and is not what was written.
var errDamaged = errors.New("the record is damaged")

// read returns the record of an id, and an error if there is none or it is damaged. Then the id, the time, and the reason
// "record damaged" are certain, and the rest is what its lines still say. errDamaged.
func (s shelf) read(id string) (Record, error) {
	at, _ := idTime(id)
	unknown := Record{ID: id, Time: at, Reason: "record damaged"}
	text, err := readEnd(s.sys, s.dir, id+recordSuffix, maxRecord)
	if err != nil {
		return unknown, fmt.Errorf("reading the record of %s: %w", id, err)
	}
	rec := unknown
	if err := json.Unmarshal(text, &rec); err != nil {
		rec = unknown
		json.Unmarshal(legible(text), &rec) // as far as it goes
		rec.ID, rec.Reason = id, unknown.Reason
		if rec.Time.IsZero() {
			rec.Time = at
		}
		return rec, fmt.Errorf("reading the record of %s: %w: %w", id, errDamaged, err)
	}
	rec.ID = id
	if rec.Time.IsZero() {
		rec.Time = at
	}
	return rec, nil
}

// legible makes an object of the lines of a torn record that are whole: it has one for each field.
func legible(text []byte) []byte {
	whole := []byte("{")
	for line := range bytes.Lines(text) {
		field, ended := bytes.CutSuffix(line, []byte{'\n'})
		field = bytes.TrimSuffix(field, []byte{','})
		if ended && bytes.HasPrefix(field, []byte("  \"")) && json.Valid(slices.Concat([]byte{'{'}, field, []byte{'}'})) {
			if len(whole) > 1 {
				whole = append(whole, ',')
			}
			whole = append(whole, field...)
		}
	}
	return append(whole, '}')
}

// claim gives a record an id and writes it, so that nobody else has the id. The record is prepared in the directory at:
// an instance of the stage, whose recovery then removes what an interruption leaves, or one that is marked (writing). The
// bytes are to be moved in next.
func (s shelf) claim(at int, rec Record) (Record, error) {
	return s.reserve(rec, func(rec Record) error { return s.write(at, rec) })
}

// reserve finds an id that is free and that take can have.
func (s shelf) reserve(rec Record, take func(Record) error) (Record, error) {
	if rec.Time.IsZero() {
		rec.Time = time.Now()
	}
	rec.Time = rec.Time.UTC()
	for range 1000 {
		rec.ID = idAt(s.newest.next(time.Now()))
		s.newest.see(rec.ID)
		var st unix.Statx_t
		err := s.sys.Stat(s.dir, rec.ID, &st)
		if err == nil {
			continue
		}
		if err == unix.ENOENT {
			err = take(rec)
		}
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		return rec, err
	}
	return rec, fmt.Errorf("finding a free id near %s: %w", rec.ID, unix.EEXIST)
}

// write writes a new record, whole or not at all.
func (s shelf) write(at int, rec Record) error {
	temp, err := s.draft(at, rec, true)
	if err != nil {
		return err
	}
	if err := renameNew(s.sys, at, temp, s.dir, rec.ID+recordSuffix); err != nil {
		s.sys.Unlink(at, temp)
		return fmt.Errorf("writing the record of %s: %w", rec.ID, err)
	}
	return nil
}

// draft writes a record under another name in the directory at, and returns that.
func (s shelf) draft(at int, rec Record, sync bool) (temp string, err error) {
	text, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return "", fmt.Errorf("writing the record of %s: %w", rec.ID, err)
	}
	return writeTemp(s.sys, at, rec.ID+recordSuffix, append(text, '\n'), sync)
}

// rewrite replaces a record.
func (s shelf) rewrite(rec Record) error {
	text, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the record of %s: %w", rec.ID, err)
	}
	return writeFile(s.sys, s.dir, rec.ID+recordSuffix, append(text, '\n'))
}

// put moves a file into the salvage: first the record, then the bytes, so that the bytes are never without. The file is
// (from, name), and at a directory as claim wants it. On an error the file is where it was and nothing is left of the
// entry, unless the filesystem refuses that too; then a record without bytes waits for the next recovery.
func (s shelf) put(from int, name string, at int, rec Record) (Record, error) {
	var st unix.Statx_t
	if err := s.sys.Stat(from, name, &st); err != nil {
		return rec, fmt.Errorf("looking at temp %s: %w", name, err)
	}
	if !IsRegular(&st) {
		return rec, fmt.Errorf("%w: temp %s is not a regular file", ErrPlanted, name)
	}
	rec.describe(&st)
	rec, err := s.claim(at, rec)
	if err != nil {
		return rec, err
	}
	if err := s.fetch(from, name, rec.ID); err != nil {
		s.sys.Unlink(s.dir, rec.ID+recordSuffix)
		return rec, fmt.Errorf("moving temp %s to the salvage: %w", name, err)
	}
	return rec, nil
}

// fetch moves bytes in whose record is there. The record is made durable before: filesystems keep no order between the
// two names, and bytes that come alone after a power cut have lost their path. Should the fsync fail, that may still
// happen, and is better than to leave the bytes behind.
func (s shelf) fetch(from int, name string, id string) error {
	s.sys.Fsync(s.dir)
	return renameNew(s.sys, from, name, s.dir, id)
}

// remove gives an entry up: the bytes, then the record. False without an error: somebody else has removed it.
func (s shelf) remove(id string) (bool, error) {
	err := s.sys.Unlink(s.dir, id)
	if err != nil && err != unix.ENOENT {
		return false, fmt.Errorf("removing salvage entry %s: %w", id, err)
	}
	if rerr := s.sys.Unlink(s.dir, id+recordSuffix); rerr != nil && rerr != unix.ENOENT {
		return err == nil, fmt.Errorf("removing the record of %s: %w", id, rerr)
	}
	return err == nil, nil
}

// renameNew is a rename that replaces nothing: unix.EEXIST. Filesystems that cannot do it in one step get a second name,
// then lose the first; an interruption between the two leaves both. Those that have no hard links either (FAT behind FUSE)
// have the name taken by an empty file, which is then replaced: it is seen for an instant, and after an interruption.
func renameNew(sys Sys, odir int, oname string, dir int, name string) error {
	err := sys.Rename(odir, oname, dir, name, unix.RENAME_NOREPLACE)
	if err != unix.EINVAL && err != unix.ENOSYS && err != unix.EOPNOTSUPP {
		return err
	}
	if err = sys.Link(odir, oname, dir, name); err == nil {
		if err = sys.Unlink(odir, oname); err != nil {
			sys.Unlink(dir, name)
		}
		return err
	}
	if !cannotLink(err) {
		return err
	}
	fd, err := sys.Open(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	sys.Close(fd)
	if err = sys.Rename(odir, oname, dir, name, 0); err != nil {
		sys.Unlink(dir, name)
	}
	return err
}

// existing opens a directory of ours below dir, without making it: -1 and no error if it is missing. ErrPlanted.
func existing(sys Sys, dir int, name string) (int, error) {
	fd, err := sys.Open(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	switch err {
	case nil:
	case unix.ENOENT:
		return -1, nil
	case unix.ENOTDIR, unix.ELOOP:
		return -1, fmt.Errorf("%w: %s is not a directory", ErrPlanted, name)
	default:
		return -1, fmt.Errorf("opening %s/%s: %w", Hidden, name, err)
	}
	if err := trusted(sys, fd); err != nil {
		sys.Close(fd)
		return -1, fmt.Errorf("%s: %w", name, err)
	}
	return fd, nil
}

// full reports whether an error says that there is no space left.
func full(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

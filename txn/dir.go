package txn

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is a directory of the backing, together with the files that are staged for names in it. There is one Dir for a
// directory, whatever path it is reached by, and it stays right when the directory, or one above it, is renamed.
type Dir struct {
	o  *Overlay
	fd int // O_PATH
	id Ident
	// key is the filesystem that it lies on.
	key  storeKey
	refs int // GUARDED_BY(o.mu)

	syncs sharedSync

	projectOnce sync.Once
	project     bool // set by projectOnce

	// mu serialises changes of names in this directory, on disk and in slots. The kernel holds its own lock of the
	// directory during the requests that change names; publishing is what this one is for.
	// LOCK ORDER: see doc.go.
	mu    sync.Mutex
	slots map[string][]*Staged // GUARDED_BY(mu); what is staged for a name, oldest first
	live  atomic.Int32         // len(slots), to pass by quickly
	stir  atomic.Int64         // when something was last staged here, in nanoseconds since the epoch
}

// dirAt opens the directory (at, name) or finds the Dir that it is known as.
func (o *Overlay) dirAt(at int, name string) (*Dir, error) {
	fd, err := o.keep.Open(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Statx_t
	if err := o.sys.Stat(fd, "", &st); err != nil {
		o.sys.Close(fd)
		return nil, err
	}
	id := IdentOf(&st)
	o.mu.Lock()
	defer o.mu.Unlock()
	if d := o.dirs[id]; d != nil {
		o.sys.Close(fd)
		d.refs++
		return d, nil
	}
	d := &Dir{o: o, fd: fd, id: id, key: storeKey{dev: id.Dev, mount: st.Mnt_id}, refs: 1, slots: map[string][]*Staged{}}
	o.dirs[id] = d
	o.known[d.key]++
	return d, nil
}

// Dir opens a directory below d. The caller owes a Release. ErrStale: the name leads to another directory than want.
func (d *Dir) Dir(name string, want Ident) (*Dir, error) {
	sub, err := d.o.dirAt(d.fd, name)
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return nil, ErrStale
	}
	if err != nil {
		return nil, fmt.Errorf("opening directory %q: %w", name, err)
	}
	if sub.id != want {
		sub.Release()
		return nil, ErrStale
	}
	return sub, nil
}

// Ident is the identity of the directory.
func (d *Dir) Ident() Ident { return d.id }

// Fd is an O_PATH descriptor of the directory, good as long as the Dir is held.
func (d *Dir) Fd() int { return d.fd }

func (d *Dir) retain() *Dir {
	d.o.mu.Lock()
	d.refs++
	d.o.mu.Unlock()
	return d
}

// Release gives one hold back; the descriptor is closed with the last.
func (d *Dir) Release() {
	d.o.mu.Lock()
	d.refs--
	last := d.refs == 0
	gone := false
	if last {
		delete(d.o.dirs, d.id)
		d.o.known[d.key]--
		if gone = d.o.known[d.key] == 0; gone {
			delete(d.o.known, d.key)
		}
	}
	d.o.mu.Unlock()
	if last {
		d.o.sys.Close(d.fd)
	}
	if gone {
		d.o.letGo(d.key)
	}
}

// lockDirs locks directories in a fixed order, by identity, each once.
func lockDirs(dirs ...*Dir) (unlock func()) {
	slices.SortFunc(dirs, func(a, b *Dir) int {
		return cmp.Or(cmp.Compare(a.id.Dev, b.id.Dev), cmp.Compare(a.id.Ino, b.id.Ino))
	})
	dirs = slices.Compact(dirs)
	for _, d := range dirs {
		d.mu.Lock()
	}
	return func() {
		for _, d := range dirs {
			d.mu.Unlock()
		}
	}
}

// Stirred reports whether something was staged in d in the last seconds, so that its versions may be replaced any moment.
func (d *Dir) Stirred() bool {
	const lately = 5 * time.Second
	return time.Now().UnixNano()-d.stir.Load() < int64(lately)
}

// put adds a staged file to a name.
//
// LOCKS_REQUIRED(d.mu)
func (d *Dir) put(name string, st *Staged) {
	d.stir.Store(time.Now().UnixNano())
	if len(d.slots[name]) == 0 {
		d.live.Add(1)
	}
	d.slots[name] = append(d.slots[name], st)
}

// take removes a staged file from a name.
//
// LOCKS_REQUIRED(d.mu)
func (d *Dir) take(name string, st *Staged) {
	list := d.slots[name]
	for i, s := range list {
		if s != st {
			continue
		}
		if len(list) == 1 {
			delete(d.slots, name)
			d.live.Add(-1)
		} else {
			d.slots[name] = append(list[:i:i], list[i+1:]...)
		}
		return
	}
}

// stagedAt returns what is staged for a name.
func (d *Dir) stagedAt(name string) []*Staged {
	if d.live.Load() == 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]*Staged(nil), d.slots[name]...)
}

// Entry is what a name is.
type Entry struct {
	Stat unix.Statx_t // of the version; of the staged file where Reserved
	// Staged: a file is staged for the name, so nothing about it may be cached.
	Staged bool
	// Reserved is the staged file itself, for a name without a version, to those who may see it.
	Reserved *Staged
}

// Lookup finds out what a name is to a caller: the version if there is one, else the reserved file if the caller belongs
// to its writer, else unix.ENOENT. It waits a moment for a staged file that may just have been closed for the last time.
func (d *Dir) Lookup(name string, c Caller) (Entry, error) {
	if name == Hidden {
		return Entry{}, unix.ENOENT
	}
	list := d.stagedAt(name)
	for _, st := range list {
		st.settle()
	}
	var e Entry
	e.Staged = len(list) > 0
	err := d.o.sys.Stat(d.fd, name, &e.Stat)
	if err == nil && e.Stat.Mode&unix.S_IFMT == unix.S_IFDIR && d.o.hides(IdentOf(&e.Stat)) {
		return Entry{}, unix.ENOENT // by another spelling: some filesystems fold case
	}
	if err != unix.ENOENT || !e.Staged {
		return e, err
	}
	for i := len(list) - 1; i >= 0; i-- {
		if st := list[i]; st.Belongs(c) {
			if serr := st.Stat(&e.Stat); serr == nil {
				e.Reserved = st
				return e, nil
			}
			// It was published or dropped between the two looks.
			return e, d.o.sys.Stat(d.fd, name, &e.Stat)
		}
	}
	return e, unix.ENOENT
}

// Pin looks up a version and keeps hold of it by an O_PATH descriptor, which the caller closes.
func (d *Dir) Pin(name string, st *unix.Statx_t) (fd int, err error) {
	if name == Hidden {
		return -1, unix.ENOENT
	}
	if fd, err = d.o.keep.Open(d.fd, name, unix.O_PATH|unix.O_NOFOLLOW, 0); err != nil {
		return -1, err
	}
	if err = d.o.sys.Stat(fd, "", st); err != nil {
		d.o.sys.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Reserved lists the names in d that a caller sees although they have no version, with their staged files.
func (d *Dir) Reserved(c Caller) map[string]*Staged {
	if d.live.Load() == 0 {
		return nil
	}
	d.mu.Lock()
	all := make(map[string]*Staged, len(d.slots))
	for name, list := range d.slots {
		all[name] = list[len(list)-1]
	}
	d.mu.Unlock()
	for name, st := range all {
		var s unix.Statx_t
		if !st.Belongs(c) || d.o.sys.Stat(d.fd, name, &s) == nil {
			delete(all, name)
		}
	}
	return all
}

// HasStaged reports whether something is staged for a name.
func (d *Dir) HasStaged(name string) bool { return len(d.stagedAt(name)) > 0 }

// Path is where a name of this directory is below the backing at this moment, for people, records and rules. No file is
// ever reached by it.
func (d *Dir) Path(name string) string {
	if d == d.o.root {
		return name
	}
	root, err := d.o.sys.Path(d.o.root.fd)
	if err != nil {
		return name
	}
	here, err := d.o.sys.Path(d.fd)
	if err != nil {
		return name
	}
	rel, ok := strings.CutPrefix(here, strings.TrimSuffix(root, "/")+"/")
	if !ok {
		return name
	}
	return rel + "/" + name
}

package txn

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The names below .untorn.
const (
	formatName  = "format"
	stageName   = "stage"
	journalName = "journal"
	salvageName = "salvage"
	clockName   = "clock"
	originsName = "origins"
)

// storeKey is a filesystem as rename(2) sees it: one mount of one device. A bind mount below the backing has the same
// device and still its own stage, because rename does not cross mounts; a btrfs subvolume has the same mount and another
// device.
type storeKey struct{ dev, mount uint64 }

// Store is one .untorn directory: the stage of this daemon, and the salvage.
type Store struct {
	o        *Overlay
	key      storeKey
	ready    chan struct{} // closed when it is open, or err says why not; what follows is constant then
	err      error
	baseID   Ident // GUARDED_BY(o.mu) until then
	instance string
	base     int // .untorn
	fd       int // stage/INSTANCE, held with flock(2) for as long as we live
	salvage  int
	origins  int

	counter       atomic.Uint64
	made          bool        // .untorn did not exist before
	quota         bool        // writes may fail although the filesystem has room
	writesThrough bool        // see Overlay.WritesThrough
	noTmpfile     atomic.Bool // the filesystem has no O_TMPFILE
	noClone       atomic.Bool // ... no reflinks
	noLease       atomic.Bool // ... no leases

	reserve reserve
	newest  newest // entry of the salvage
	unkept  unkept
	keepMu  sync.Mutex // serialises changes of the salvage by this daemon
	// noting guards origins. It keeps appends (readers) apart from the rewriting of the list (the writer).
	noting sync.RWMutex
	kept   int64 // GUARDED_BY(noting); the length of the list when it was last rewritten
}

// store returns the Store of the filesystem that d lies on, made at first use at the topmost directory of that filesystem
// in the backing. No lock is held meanwhile: a filesystem that hangs keeps nobody waiting who does not use it.
// ErrReadOnly, ErrPlanted, ErrFormat.
func (o *Overlay) store(d *Dir) (*Store, error) {
	o.mu.Lock()
	s := o.stores[d.key]
	if s != nil {
		o.mu.Unlock()
		<-s.ready
		return s, s.err
	}
	s = &Store{o: o, key: d.key, base: -1, fd: -1, salvage: -1, origins: -1, ready: make(chan struct{})}
	o.stores[d.key] = s
	o.mu.Unlock()
	if s.err = s.make(d); s.err != nil {
		s.close()
		o.mu.Lock()
		delete(o.stores, d.key)
		o.mu.Unlock()
	}
	close(s.ready)
	return s, s.err
}

// make finds or makes .untorn for the filesystem of d, and opens it.
func (s *Store) make(d *Dir) error {
	o, sys := s.o, s.o.sys
	top, err := o.top(d)
	if err != nil {
		return fmt.Errorf("finding the top of a nested filesystem: %w", err)
	}
	defer sys.Close(top)
	var st unix.Statx_t
	s.made = sys.Stat(top, Hidden, &st) == unix.ENOENT
	if s.base, err = openBase(sys, top, true); err != nil {
		return err
	}
	if err := sys.Stat(s.base, "", &st); err != nil {
		return err
	}
	o.mu.Lock()
	s.baseID = IdentOf(&st)
	o.mu.Unlock()
	s.quota, s.writesThrough = hasQuota(d.key.mount), o.WritesThrough(d)
	return s.open()
}

// letGo closes the Store of a nested filesystem when no directory of it is known any more and nothing is staged there:
// it can be unmounted then.
func (o *Overlay) letGo(key storeKey) {
	if o.root == nil || key == o.root.key {
		return
	}
	o.mu.Lock()
	s := o.stores[key]
	idle := s != nil && o.known[key] == 0
	if idle {
		for st := range o.staged {
			idle = idle && st.store != s
		}
	}
	if idle {
		delete(o.stores, key)
	}
	o.mu.Unlock()
	if !idle {
		return
	}
	<-s.ready
	if !o.busy() {
		s.close()
		return
	}
	go func() { // whoever forgets must not wait for the filesystem
		defer o.pending.Done()
		s.close()
	}()
}

// top climbs to the highest directory of the filesystem of d that belongs to the backing, and returns a descriptor of it.
func (o *Overlay) top(d *Dir) (int, error) {
	if o.root == nil || d.key == o.root.key {
		root := d
		if o.root != nil {
			root = o.root
		}
		return o.sys.Reopen(root.fd, unix.O_RDONLY|unix.O_DIRECTORY)
	}
	fd, err := o.sys.Reopen(d.fd, unix.O_RDONLY|unix.O_DIRECTORY)
	for err == nil {
		var up int
		if up, err = o.sys.Open(fd, "..", unix.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
			break
		}
		var st unix.Statx_t
		err = o.sys.Stat(up, "", &st)
		if err == nil && (storeKey{IdentOf(&st).Dev, st.Mnt_id} != d.key) {
			o.sys.Close(up)
			return fd, nil
		}
		o.sys.Close(fd)
		fd = up
	}
	o.sys.Close(fd)
	return -1, err
}

// openBase opens .untorn in dir and checks that it can be trusted; with create it is made if missing.
func openBase(sys Sys, dir int, create bool) (int, error) {
	err := error(nil)
	if create {
		if err = sys.Mkdir(dir, Hidden, 0o700); err == unix.EEXIST {
			err = nil
		}
	}
	switch err {
	case nil:
	case unix.EROFS, unix.EACCES, unix.EPERM:
		return -1, fmt.Errorf("%w: making %s: %w", ErrReadOnly, Hidden, err)
	default:
		return -1, fmt.Errorf("making %s: %w", Hidden, err)
	}
	if create && readOnly(sys, dir) {
		return -1, ErrReadOnly // and .untorn is there already
	}
	base, err := sys.Open(dir, Hidden, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err == unix.ENOTDIR || err == unix.ELOOP {
		return -1, fmt.Errorf("%w: it is not a directory", ErrPlanted)
	}
	if err != nil {
		return -1, fmt.Errorf("opening %s: %w", Hidden, err)
	}
	if err = trusted(sys, base); err == nil {
		err = checkFormat(sys, base, create)
	}
	if err != nil {
		sys.Close(base)
		return -1, err
	}
	return base, nil
}

func readOnly(sys Sys, dir int) bool {
	var st unix.Statfs_t
	return sys.Statfs(dir, &st) == nil && st.Flags&unix.ST_RDONLY != 0
}

// trusted checks that a directory of ours has our owner and is closed to everybody else: whoever could write in it could
// have us publish what he likes.
func trusted(sys Sys, fd int) error {
	var st unix.Statx_t
	if err := sys.Stat(fd, "", &st); err != nil {
		return err
	}
	if st.Uid != daemonUid {
		return fmt.Errorf("%w: it belongs to uid %d, not %d", ErrPlanted, st.Uid, daemonUid)
	}
	if st.Mode&0o077 != 0 {
		return fmt.Errorf("%w: its mode is %04o, not 0700", ErrPlanted, st.Mode&0o7777)
	}
	return nil
}

// writeFile makes a small file whole: temp, fsync, rename.
func writeFile(sys Sys, dir int, name string, content []byte) error {
	temp, err := writeTemp(sys, dir, name, content, true)
	if err != nil {
		return err
	}
	if err := sys.Rename(dir, temp, dir, name, 0); err != nil {
		sys.Unlink(dir, temp)
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}

// writeTemp writes what is to become the file name, and returns the name that it has until then.
func writeTemp(sys Sys, dir int, name string, content []byte, sync bool) (temp string, err error) {
	temp = name + tempMark + random()
	fd, err := sys.Open(dir, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return "", fmt.Errorf("making %s: %w", name, err)
	}
	n, err := sys.Pwrite(fd, content, 0)
	if err == nil && n < len(content) {
		err = unix.ENOSPC // what a short write to a file means; the next one would say so
	}
	if err == nil && sync {
		err = sys.Fsync(fd)
	}
	sys.Close(fd)
	if err != nil {
		sys.Unlink(dir, temp)
		return "", fmt.Errorf("writing %s: %w", name, err)
	}
	return temp, nil
}

// random is a name that nobody can guess.
func random() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// subdir opens a directory of ours below dir, made if missing.
func subdir(sys Sys, dir int, name string) (int, error) {
	if err := sys.Mkdir(dir, name, 0o700); err != nil && err != unix.EEXIST {
		return -1, fmt.Errorf("making %s/%s: %w", Hidden, name, err)
	}
	fd, err := sys.Open(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err == unix.ENOTDIR || err == unix.ELOOP {
		return -1, fmt.Errorf("%w: %s is not a directory", ErrPlanted, name)
	}
	if err != nil {
		return -1, fmt.Errorf("opening %s/%s: %w", Hidden, name, err)
	}
	if err := trusted(sys, fd); err != nil {
		sys.Close(fd)
		return -1, fmt.Errorf("%s: %w", name, err)
	}
	return fd, nil
}

// open recovers what dead daemons left, and takes an instance of its own.
func (s *Store) open() error {
	sys := s.o.sys
	plan, err := scan(sys, s.base)
	if err != nil {
		return fmt.Errorf("looking for leftovers: %w", err)
	}
	report, err := plan.apply(sys, s.base)
	if err != nil {
		return fmt.Errorf("recovering leftovers: %w", err)
	}
	s.o.saved.Add(int64(report.Salvaged))
	if report.Salvaged > 0 || report.Dropped > 0 {
		s.o.log.Warn("recovered what an earlier daemon left", "salvaged", report.Salvaged, "dropped", report.Dropped)
	}
	for _, p := range report.Problems {
		s.o.log.Warn("left over and not understood", "what", p)
	}
	if s.salvage, err = subdir(sys, s.base, salvageName); err != nil {
		return err
	}
	s.sweep(s.o.opt.Limits)
	journal, err := subdir(sys, s.base, journalName)
	if err != nil {
		return err
	}
	sys.Close(journal)
	stage, err := subdir(sys, s.base, stageName)
	if err != nil {
		return err
	}
	defer sys.Close(stage)
	if err := s.enter(stage); err != nil {
		return err
	}
	s.reserve.fill(s)
	return nil
}

// enter makes and locks stage/INSTANCE. A recovery by another process may remove the directory between the two steps;
// then the next try makes another.
func (s *Store) enter(stage int) error {
	sys := s.o.sys
	for range 100 {
		s.instance = random()
		fd, err := subdir(sys, stage, s.instance)
		if err != nil {
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			return err
		}
		var st unix.Statx_t
		if err = sys.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == nil {
			err = sys.Stat(fd, "", &st)
		}
		if err != nil || st.Nlink == 0 {
			sys.Close(fd)
			if err != nil && err != unix.EWOULDBLOCK {
				return fmt.Errorf("locking the stage: %w", err)
			}
			continue
		}
		s.fd = fd
		s.origins, err = sys.Open(fd, originsName, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_APPEND, 0o600)
		if err != nil {
			return fmt.Errorf("making the list of origins: %w", err)
		}
		return nil
	}
	return fmt.Errorf("making a stage: %w", unix.EAGAIN)
}

// close removes the instance if it is empty, which it is unless something could not be salvaged.
func (s *Store) close() error {
	sys := s.o.sys
	if s.fd >= 0 && s.origins >= 0 {
		s.keepUnkept()
	}
	s.reserve.spend(sys) // which salvaging takes again
	if s.fd >= 0 && s.origins >= 0 {
		if left, err := names(sys, s.fd); err == nil && len(left) == 1 && left[0] == originsName {
			sys.Unlink(s.fd, originsName)
			if stage, err := sys.Open(s.base, stageName, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0); err == nil {
				sys.Rmdir(stage, s.instance)
				sys.Close(stage)
			}
		}
	}
	s.reserve.spend(sys) // after the last that was kept, which takes it again
	s.noting.Lock()      // whoever notes an origin late must not write to a descriptor that is another by then
	defer s.noting.Unlock()
	s.keepMu.Lock()
	defer s.keepMu.Unlock()
	for _, fd := range []*int{&s.origins, &s.salvage, &s.fd, &s.base} {
		if *fd >= 0 {
			sys.Close(*fd)
		}
		*fd = -1
	}
	return nil
}

// unmake removes a .untorn that holds nothing.
func unmake(sys Sys, top int) error {
	base, err := sys.Open(top, Hidden, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer sys.Close(base)
	for _, name := range []string{stageName, journalName, salvageName} {
		if err := sys.Rmdir(base, name); err != nil && err != unix.ENOENT {
			return err
		}
	}
	for _, name := range []string{clockName, formatName} {
		if err := sys.Unlink(base, name); err != nil && err != unix.ENOENT {
			return err
		}
	}
	return sys.Rmdir(top, Hidden)
}

// next is the name of the next temp.
func (s *Store) next() string { return strconv.FormatUint(s.counter.Add(1), 36) }

// names lists a directory, without "." and "..".
func names(sys Sys, dir int) ([]string, error) {
	fd, err := sys.Reopen(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer sys.Close(fd)
	var list []string
	buf := make([]byte, 32<<10)
	for {
		n, err := sys.Getdents(fd, buf)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return list, nil
		}
		_, _, list = unix.ParseDirent(buf[:n], -1, list)
	}
}

package txn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"untorn/txn/proc"
	"untorn/txn/spare"
)

// Hidden is the name of untorn's own directory at the root of each filesystem of the backing. The name is reserved in
// every directory: it is not listed, not found and cannot be made.
const Hidden = ".untorn"

// Options say how an Overlay behaves. The zero value is the default behaviour.
type Options struct {
	Durability Durability
	// PublishKilled publishes what a killed writer leaves, instead of salvaging it.
	PublishKilled bool
	// PublishOnFsync makes fsync(2) a commit point: the bytes so far become the version.
	PublishOnFsync bool
	Rules          *Rules // nil: DefaultRules
	Limits         Limits // of the salvage
	Log            *slog.Logger
	Sys            Sys // nil: Linux
	// SeesKills is what proc.SeesKills found out; without it, kills look like exits.
	SeesKills bool
	// Passthrough: writes do not come by here, so what they did has to be looked up at close.
	Passthrough bool
}

// Overlay is one backing directory with everything that is staged on it. All methods may be called concurrently.
type Overlay struct {
	sys    Sys // for what is given back at once; keep is for what is kept
	keep   Sys
	opt    Options
	log    *slog.Logger
	newest proc.Newest
	root   *Dir
	ro     bool
	blind  sync.Once     // to say once that the end of a writer cannot be seen
	mount  atomic.Uint64 // device number of the mount, 0 while it is not known
	saved  atomic.Int64  // what was recovered into the salvage

	mu      sync.Mutex
	dirs    map[Ident]*Dir      // GUARDED_BY(mu)
	known   map[storeKey]int    // GUARDED_BY(mu); how many of dirs lie on a filesystem
	stores  map[storeKey]*Store // GUARDED_BY(mu)
	gone    []*Store            // GUARDED_BY(mu); stores that were removed by hand
	staged  map[*Staged]bool    // GUARDED_BY(mu); every staged file that has not come to its end
	watched []watched           // GUARDED_BY(mu); published files whose RELEASE has yet to come, oldest first
	// describing: describe will run. GUARDED_BY(mu)
	describing bool
	guarding   bool // guard will run. GUARDED_BY(mu)

	pending sync.WaitGroup // publishes that wait for a mapping to go away
	closing chan struct{}  // closed by Close
}

// Open takes over the directory behind fd (a descriptor, O_PATH will do, which stays the caller's) as a backing. It
// recovers what earlier daemons left, and takes an instance of the stage. On a read-only filesystem it returns an
// Overlay that passes reads on and stages nothing; ReadOnly tells.
func Open(ctx context.Context, fd int, opt Options) (*Overlay, error) {
	if opt.Sys == nil {
		opt.Sys = Linux{}
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Rules == nil {
		opt.Rules = DefaultRules()
	}
	spare.Fill()
	newest, err := proc.OpenNewest()
	if err != nil {
		return nil, fmt.Errorf("opening /proc/loadavg: %w", err)
	}
	o := &Overlay{
		sys: brief{opt.Sys}, keep: lasting{opt.Sys}, opt: opt, log: opt.Log, newest: newest,
		dirs:    map[Ident]*Dir{},
		known:   map[storeKey]int{},
		stores:  map[storeKey]*Store{},
		staged:  map[*Staged]bool{},
		closing: make(chan struct{}),
	}
	if o.root, err = o.dirAt(fd, "."); err != nil {
		newest.Close()
		return nil, fmt.Errorf("opening the backing: %w", err)
	}
	if _, err = o.store(o.root); errors.Is(err, ErrReadOnly) {
		o.ro = true
	} else if err != nil {
		o.root.Release()
		newest.Close()
		return nil, err
	}
	return o, nil
}

// ReadOnly reports whether the backing cannot be written.
func (o *Overlay) ReadOnly() bool { return o.ro }

// Recovered is how many files of earlier daemons went to the salvage.
func (o *Overlay) Recovered() int { return int(o.saved.Load()) }

// Root is the backing directory itself.
func (o *Overlay) Root() *Dir { return o.root }

// Sys is the system below, for the verbs that have nothing to do with staging.
func (o *Overlay) Sys() Sys { return o.keep }

// Rules are the rules in force.
func (o *Overlay) Rules() *Rules { return o.opt.Rules }

// Scratch opens an empty file without a name on the backing, to try things on.
func (o *Overlay) Scratch() (int, error) {
	s, err := o.store(o.root)
	if err != nil {
		return -1, err
	}
	name := s.next()
	fd, err := o.keep.Open(s.fd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return -1, fmt.Errorf("making a scratch file: %w", err)
	}
	o.sys.Unlink(s.fd, name)
	return fd, nil
}

// Close salvages what is still staged (nobody can close it any more), waits for publishes that are under way, and gives
// everything back. The Overlay must not be used after it.
func (o *Overlay) Close() error {
	o.mu.Lock()
	close(o.closing) // nothing is added to pending any more
	o.mu.Unlock()
	o.pending.Wait()
	o.releaseWatched()
	for _, st := range o.Staged() {
		st.abandon("the mount ended while the file was open")
	}
	o.mu.Lock()
	stores := slices.AppendSeq(o.gone, maps.Values(o.stores))
	o.stores, o.gone = map[storeKey]*Store{}, nil
	o.mu.Unlock()
	var first error
	for _, s := range stores {
		<-s.ready
		if err := s.close(); err != nil && first == nil {
			first = err
		}
	}
	o.root.Release()
	o.newest.Close()
	return first
}

// busy counts the caller in pending; false when the Overlay is being closed.
func (o *Overlay) busy() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case <-o.closing:
		return false
	default:
		o.pending.Add(1)
		return true
	}
}

// Undo is Close for an Overlay that was never used: what Open made on disk is removed as well.
func (o *Overlay) Undo() error {
	o.mu.Lock()
	s := o.stores[o.root.key]
	made := s != nil && s.made
	o.mu.Unlock()
	if !made {
		return o.Close()
	}
	top, err := o.sys.Reopen(o.root.fd, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return errors.Join(err, o.Close())
	}
	defer o.sys.Close(top)
	if err := o.Close(); err != nil {
		return err
	}
	return unmake(o.sys, top)
}

// Staged lists every staged file that has not come to its end, in no order.
func (o *Overlay) Staged() []*Staged {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := make([]*Staged, 0, len(o.staged))
	for st := range o.staged {
		list = append(list, st)
	}
	return list
}

func (o *Overlay) enlist(st *Staged) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.staged[st] = true
	if !o.describing {
		o.describing = true
		time.AfterFunc(describeAfter, o.describe)
	}
	if !o.guarding {
		o.guarding = true
		time.AfterFunc(guardEvery, o.guard)
	}
}

// describeAfter is how long a file must have been staged for its writer's command line to be noted. Most are published
// before and save the time; and a shell has become the command that it redirects.
const describeAfter = 200 * time.Millisecond

// describe notes the command lines of those who have been writing for a while: of a killed process only the short name
// is left.
func (o *Overlay) describe() {
	again := false
	for _, st := range o.Staged() {
		if st.command.Load() != nil {
			continue
		}
		if time.Since(st.began) < describeAfter/2 {
			again = true
			continue
		}
		c := proc.Command(st.pid())
		st.command.Store(&c)
		if s := st.State(); s == Writing {
			st.note()
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.describing = again; again {
		time.AfterFunc(describeAfter, o.describe)
	}
}

func (o *Overlay) delist(st *Staged) {
	o.mu.Lock()
	delete(o.staged, st)
	o.mu.Unlock()
	o.letGo(st.store.key)
}

// Caller is who makes a request: a thread, and the ids it has there. Tid is 0 for a thread in another pid namespace.
type Caller struct {
	Cred
	Tid uint32
}

// undecidedWait is how long others wait for a staged file whose last close cannot be told from an earlier one: the
// RELEASE that decides arrives within tens of microseconds if it was the last. Tests that are not about time change it.
var undecidedWait = 10 * time.Millisecond

// Mounted tells which device the overlay is seen as, to recognise descriptors of it in /proc.
func (o *Overlay) Mounted(dev uint64) { o.mount.Store(dev) }

// hides reports whether a directory is one of ours.
func (o *Overlay) hides(id Ident) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.stores {
		if s.baseID == id {
			return true
		}
	}
	return false
}

// Ino is the inode number that the mount shows for one of the backing. Filesystems mounted below the backing have numbers
// of their own, which are set apart, because programs take two files of one device with the same number for hard links.
func (o *Overlay) Ino(dev, ino uint64) uint64 {
	if dev == o.root.id.Dev {
		return ino
	}
	return ino ^ dev<<40
}

// NoPassthrough takes back Options.Passthrough, before anything is staged.
func (o *Overlay) NoPassthrough() { o.opt.Passthrough = false }

package txn

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"untorn/txn/proc"
)

// Staged is a file that is being written: a hidden temp that becomes the version of its names when the last writer has
// closed it.
type Staged struct {
	o     *Overlay
	store *Store
	kind  Kind
	began time.Time
	// command is what its writer was started as, found out when it has been writing for a while.
	command atomic.Pointer[string]

	// Set while Preparing, constant after ready is closed, unless the file is taken back.
	temp  string
	id    Ident   // of the temp, and of the version when it is published
	base  version // what it was started from; zero for New
	fork  uint32  // the newest pid when it was opened first: only later ones can have inherited it
	ready chan struct{}
	shown atomic.Uint64 // the inode number of the version that it stands for, 0 if there is none
	over  Ident         // publish only in place of this version, if it is not zero

	backMu  sync.Mutex // one TakeBack at a time; before all other locks
	mu      sync.Mutex
	ended   chan struct{} // GUARDED_BY(mu); closed when state.Ended()
	stood   place         // GUARDED_BY(mu); where it was published, while somebody has it open yet; holds the directory
	state   State         // GUARDED_BY(mu)
	fd      int           // GUARDED_BY(mu) for closing: open as long as holds > 0 or the state has not ended
	holds   int           // GUARDED_BY(mu); users of fd
	places  []place       // GUARDED_BY(mu); changed only with the locks of the directories as well
	write   []*Writer     // GUARDED_BY(mu); who has it open for writing
	joins   int           // GUARDED_BY(mu); how many writers there ever were
	openers []opener      // GUARDED_BY(mu); the processes that opened it, the first is the one in reports
	doom    proc.End      // GUARDED_BY(mu); of the last opener, if it was killed with the file open
	cred    Cred          // who opened it first
	clean   version       // GUARDED_BY(mu); how the temp looked before the first write
	read    timestamp     // GUARDED_BY(mu); its access time then
	adopted version       // GUARDED_BY(mu); the version whose attributes it took over last; zero: it still has those of base
	moved   bool          // GUARDED_BY(mu); the version was given attributes, see adjust
	forced  bool          // GUARDED_BY(mu); publish although it looks clean: truncated by a later open
	earlier []uint64      // GUARDED_BY(mu); inode numbers that it showed before
	set     attrs         // GUARDED_BY(mu); attributes that a writer set himself
	poison  error         // GUARDED_BY(mu); why it must not be published
	grown   bool          // GUARDED_BY(mu); there is space beyond its end, see grow
	result  error         // GUARDED_BY(mu); what the end came to
	doubt   time.Time     // GUARDED_BY(mu); until when a close that may have been the last is waited for
	opened  bool          // GUARDED_BY(mu); some writer has become an open file
	closed  bool          // GUARDED_BY(mu); some descriptor of it was closed
	latest  proc.End      // GUARDED_BY(mu); how the process ended that closed it last
	idle    bool          // GUARDED_BY(mu); at the last close nobody was found to have it open
	mapper  int           // GUARDED_BY(mu); pidfd of a process that keeps it mapped, or -1
}

// place is one name that a staged file will be published under. It holds the directory.
type place struct {
	dir  *Dir
	name string
}

// attrs are attributes of a file that do not follow those of the version that it replaces any more.
type attrs uint8

const (
	setMode attrs = 1 << iota
	setOwner
	setXattr
)

func (d *Dir) newStaged(kind Kind, name string, c Caller) *Staged {
	return &Staged{
		o: d.o, kind: kind, began: time.Now(), cred: c.Cred, mapper: -1, fd: -1,
		fork: d.o.newest.Pid(), ready: make(chan struct{}), ended: make(chan struct{}),
		places: []place{{d.retain(), name}},
	}
}

// State tells where the staged file is now.
func (st *Staged) State() State {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.state
}

// Ident is the identity of the temp, which is that of the version once it is published.
func (st *Staged) Ident() Ident { return st.id }

// Base is the version that it was started from, zero for a new name.
func (st *Staged) Base() Ident { return st.base.id }

// Place is the directory and name that it stands for, or will; ok is false when its names are gone. The Dir is good
// until its end.
func (st *Staged) Place() (d *Dir, name string, ok bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.places) == 0 {
		return nil, "", false
	}
	return st.places[0].dir, st.places[0].name, true
}

// holdPlace is Place, with a hold on the directory that the caller gives back.
func (st *Staged) holdPlace() (d *Dir, name string, ok bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.places) == 0 {
		return nil, "", false
	}
	return st.places[0].dir.retain(), st.places[0].name, true
}

// shownIno is the inode number that stat shows while it is staged: that of the version of its path, because programs
// compare fstat with stat (vim: E949, SQLite turns read-only).
func (st *Staged) shownIno() uint64 {
	if ino := st.shown.Load(); ino != 0 {
		return ino
	}
	return st.id.Ino
}

// inProc is how its descriptors look in /proc.
func (st *Staged) inProc() proc.File {
	st.mu.Lock()
	defer st.mu.Unlock()
	f := proc.File{Dev: st.o.mount.Load(), Writing: true}
	for _, ino := range append(st.earlier, st.shownIno()) {
		f.Inos = append(f.Inos, st.o.Ino(st.id.Dev, ino))
	}
	return f
}

// show makes stat show another inode number from now on. /proc may go on showing the earlier ones: the kernel takes a new
// number over only when it asks for attributes.
//
// LOCKS_REQUIRED(st.mu)
func (st *Staged) show(ino uint64) {
	st.earlier = append(st.earlier, st.shownIno())
	st.shown.Store(ino)
}

// Stat is fstat of the staged file, with the inode number of the version until it is one itself.
func (st *Staged) Stat(out *unix.Statx_t) error {
	fd, err := st.Hold()
	if err != nil {
		return err
	}
	defer st.Unhold()
	if err := st.o.sys.Stat(fd, "", out); err != nil {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.state < Published {
		out.Ino = st.shownIno()
		if st.kind == New && len(st.places) > 1 {
			out.Nlink = uint32(len(st.places))
		}
	}
	return nil
}

// Hold keeps the descriptor of the staged file open until Unhold, also beyond its end. ErrClosed.
func (st *Staged) Hold() (fd int, err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.fd < 0 {
		return -1, ErrClosed
	}
	st.holds++
	return st.fd, nil
}

// Unhold gives a hold back.
func (st *Staged) Unhold() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.holds--
	st.giveBack()
}

// giveBack closes the descriptor when nobody needs it any more.
//
// LOCKS_REQUIRED(st.mu)
func (st *Staged) giveBack() {
	if st.holds == 0 && st.state.Ended() && st.fd >= 0 {
		st.o.sys.Close(st.fd)
		st.fd = -1
	}
}

// Belongs reports whether a caller is one of the writers, descends from one, or holds a descriptor: those see a file
// that has no version yet, and join it when they open it again.
func (st *Staged) Belongs(c Caller) bool {
	st.mu.Lock()
	pids := st.pids()
	var tids []uint32
	for _, w := range st.write {
		tids = append(tids, w.tid)
	}
	open := st.state == Writing || st.state == Detached
	st.mu.Unlock()
	if !open {
		return false
	}
	if c.Tid == 0 { // a thread of another pid namespace: its user is all that is known
		return slices.Contains(pids, 0) && st.cred.Uid == c.Uid
	}
	if slices.Contains(tids, c.Tid) || slices.Contains(pids, c.Tid) {
		return true
	}
	for _, pid := range pids {
		if pid != 0 && proc.Descends(c.Tid, pid) {
			return true
		}
	}
	return proc.Holds(c.Tid, st.inProc()) == proc.Yes
}

// done is closed when the staged file has come to its end.
func (st *Staged) done() <-chan struct{} {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.ended
}

// settle waits a moment if a close that may have been the last is still undecided.
func (st *Staged) settle() {
	st.mu.Lock()
	wait, ended := time.Until(st.doubt), st.ended
	st.mu.Unlock()
	if wait <= 0 {
		return
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
	}
}

// Modified reports whether anything has been written or changed since it was staged. When that cannot be found out the
// answer is yes.
func (st *Staged) Modified() bool {
	fd, err := st.Hold()
	if err != nil {
		return true
	}
	defer st.Unhold()
	var s unix.Statx_t
	if st.o.sys.Stat(fd, "", &s) != nil {
		return true
	}
	now := versionOf(&s)
	st.mu.Lock()
	defer st.mu.Unlock()
	// The data timestamps of the temp were set to those of the base, whose age tells whether the clock of the
	// filesystem has moved on: before Linux 6.13 it only ticks every few milliseconds.
	return now != st.clean || st.forced
}

// MarkSet records that a writer changed attributes himself, so that they do not follow the version any more.
func (st *Staged) MarkSet(mode, owner, xattr bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for bit, on := range map[attrs]bool{setMode: mode, setOwner: owner, setXattr: xattr} {
		if on {
			st.set |= bit
		}
	}
}

// Poison makes sure that the staged file is not published: err is what a write of it came to.
func (st *Staged) Poison(err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.poison == nil {
		st.poison = fmt.Errorf("%w: %w", ErrPoisoned, err)
	}
}

// poisoned is why it must not be published, or nil.
func (st *Staged) poisoned() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.poison
}

// Info describes a staged file for people.
type Info struct {
	Path    string
	Kind    Kind
	State   State
	Pid     uint32
	Command string
	Bytes   int64
	Began   time.Time
}

// Info reads what is known about the staged file now.
func (st *Staged) Info() Info {
	var s unix.Statx_t
	st.Stat(&s)
	st.mu.Lock()
	pid, state := uint32(0), st.state
	if len(st.openers) > 0 {
		pid = st.openers[0].pid
	}
	st.mu.Unlock()
	return Info{
		Path: st.path(), Kind: st.kind, State: state, Pid: pid, Command: st.commandLine(pid),
		Bytes: int64(s.Size), Began: st.began,
	}
}

// commandLine is the command of the writer, or the short name that is left of a process that is exiting.
func (st *Staged) commandLine(pid uint32) string {
	if c := st.command.Load(); c != nil && *c != "" {
		return *c
	}
	return proc.Command(pid)
}

// path is where the file belongs, for people and records.
func (st *Staged) path() string {
	d, name, ok := st.Place()
	if !ok {
		return ""
	}
	return d.Path(name)
}

// Cred is for whom the staged file was opened first.
func (st *Staged) Cred() Cred { return st.cred }

package txn

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"untorn/txn/proc"
)

// finish brings a staged file in state Publishing to its end: published, salvaged, or dropped. The error is nil unless
// bytes that the writer wanted published are not: then they are in the salvage.
//
// In each failure the version that was there before still stands, whole, with one exception: when only the fsync of the
// directory fails, the new version stands, whole, and whether it survives a power cut is not known.
func (st *Staged) finish(end proc.End) error {
	st.trim()
	st.mu.Lock()
	detached := len(st.places) == 0
	poison := st.poison
	if st.doom.Signal() != 0 {
		end = st.doom
	}
	st.mu.Unlock()
	switch {
	case detached:
		return st.drop()
	case st.kind == Copied && !st.Modified():
		return st.drop()
	case end.Signal() != 0 && !st.o.opt.PublishKilled:
		return st.giveUp(fmt.Errorf("%w: %v", ErrKilled, end))
	case poison != nil:
		return st.giveUp(poison)
	}
	if done, err := st.adjust(); err != nil {
		return st.giveUp(err)
	} else if done {
		return st.drop()
	}
	return st.publish()
}

// publish is the commit of one file.
func (st *Staged) publish() error {
	if err := st.adopt(); err != nil {
		return st.giveUp(fmt.Errorf("publish failed: %w", err))
	}
	if err := st.harden(); err != nil {
		return st.giveUp(fmt.Errorf("publish failed: fsync of the file: %w", err))
	}
	dirs, err := st.expose(Published)
	defer releaseAll(dirs)
	if err == errGone {
		return st.drop() // unlinked on the way, like any file
	}
	if errors.Is(err, unix.ENOENT) && st.lost() {
		return st.publishLost()
	}
	if err != nil {
		return st.giveUp(fmt.Errorf("publish failed: putting it in place: %w", err))
	}
	if err = st.hardenDirs(dirs); err == nil {
		st.store.keepUnkept()
	}
	st.end(err)
	return err
}

// harden makes the bytes durable, unless nothing is promised. It is not repeated when it fails.
func (st *Staged) harden() error {
	if st.o.opt.Durability == None {
		return nil
	}
	return st.o.sys.Fsync(st.fd)
}

// expose renames the temp to its names, and moves on to a state in which it is a version. Nobody can see a moment
// between the two. It returns the directories concerned, held. On failure no name was touched, unless there are
// several, of which some may be in place.
func (st *Staged) expose(to State) ([]*Dir, error) {
	unlock := st.lockPlaces()
	defer unlock()
	sys, store := st.o.sys, st.store
	st.mu.Lock()
	places := slices.Clone(st.places)
	st.mu.Unlock()
	if len(places) == 0 {
		return nil, errGone
	}
	if err := st.checkOver(places[0]); err != nil {
		return nil, err
	}
	// Once more: fsync takes its time. The journal of the filesystem has what changes now no later than the rename.
	if err := st.adopt(); err != nil {
		return nil, err
	}
	for i, p := range places[1:] {
		extra := fmt.Sprintf("%s.%d", st.temp, i+1)
		if err := sys.Link(store.fd, st.temp, store.fd, extra); err != nil {
			return nil, err
		}
		if err := sys.Rename(store.fd, extra, p.dir.fd, p.name, 0); err != nil {
			sys.Unlink(store.fd, extra)
			return nil, fmt.Errorf("renaming to %q: %w", p.name, err)
		}
	}
	if err := sys.Rename(store.fd, st.temp, places[0].dir.fd, places[0].name, 0); err != nil {
		return nil, fmt.Errorf("renaming to %q: %w", places[0].name, err)
	}
	var dirs []*Dir
	for _, p := range places {
		p.dir.take(p.name, st)
		dirs = append(dirs, p.dir.retain())
	}
	st.mu.Lock()
	st.to(to)
	st.mu.Unlock()
	return dirs, nil
}

// checkOver makes sure that a file that may only replace one version replaces that.
//
// LOCKS_REQUIRED(p.dir.mu)
func (st *Staged) checkOver(p place) error {
	if st.over == (Ident{}) {
		return nil
	}
	var s unix.Statx_t
	if st.o.sys.Stat(p.dir.fd, p.name, &s) != nil || IdentOf(&s) != st.over {
		return errReplaced
	}
	return nil
}

// errGone: all names of the staged file were taken away while it was on its way.
var errGone = errors.New("its name is gone")

// lockPlaces locks the directories of all names of a staged file, which cannot change then.
func (st *Staged) lockPlaces() (unlock func()) {
	for {
		st.mu.Lock()
		places := slices.Clone(st.places)
		st.mu.Unlock()
		dirs := make([]*Dir, len(places))
		for i, p := range places {
			dirs[i] = p.dir
		}
		unlock := lockDirs(dirs...)
		st.mu.Lock()
		same := slices.Equal(places, st.places)
		st.mu.Unlock()
		if same {
			return unlock
		}
		unlock()
	}
}

// hardenDirs makes the names durable. Only Full promises that.
func (st *Staged) hardenDirs(dirs []*Dir) error {
	if st.o.opt.Durability != Full {
		return nil
	}
	for _, d := range dirs {
		if err := d.sync(); err != nil {
			return fmt.Errorf("fsync of the directory of %q: %w", st.path(), err)
		}
	}
	return nil
}

func releaseAll(dirs []*Dir) {
	for _, d := range dirs {
		d.Release()
	}
}

// giveUp moves the bytes to the salvage instead of publishing them, and returns why.
func (st *Staged) giveUp(why error) error {
	var s unix.Statx_t
	empty := st.o.sys.Stat(st.fd, "", &s) == nil && s.Size == 0
	if empty {
		st.leave(Dropped)
		st.o.sys.Unlink(st.store.fd, st.temp)
		st.o.log.Warn("not published; it held no bytes", "path", st.path(), "pid", st.pid(), "reason", why)
		st.end(why)
		return why
	}
	rec := Record{
		Path: st.path(), Time: time.Now(), Pid: st.pid(), Command: st.commandLine(st.pid()),
		Reason: strings.TrimPrefix(why.Error(), ErrKilled.Error()+": "),
	}
	id, err := st.store.keep(st.temp, rec)
	if err != nil {
		id, err = st.keepLost(rec, err)
	}
	held, herr := st.Hold() // beyond the end, after which others who look at it may be the last
	if herr == nil {
		defer st.Unhold()
	}
	st.leave(Salvaged)
	if err != nil {
		left := "it stays in the stage"
		if st.lost() {
			left = "it was removed from the stage, and is lost"
		} else {
			st.store.unkept.add(st.temp, rec)
		}
		st.o.log.Error("not published, and not salvaged either: "+left, "path", rec.Path, "pid", rec.Pid,
			"reason", why, "err", err)
	} else {
		st.o.log.Warn("not published; its bytes are in the salvage", "path", rec.Path, "pid", rec.Pid,
			"command", rec.Command, "bytes", s.Size, "reason", why, "id", id)
		st.hardenKilled(held, why, id)
		st.store.keepUnkept()
	}
	st.end(why)
	return why
}

// drop forgets a staged file that nobody will miss: unlinked, or never modified.
func (st *Staged) drop() error {
	st.leave(Dropped)
	st.o.sys.Unlink(st.store.fd, st.temp)
	st.end(nil)
	return nil
}

// leave takes the staged file off its names and moves on to an end.
func (st *Staged) leave(to State) {
	unlock := st.lockPlaces()
	defer unlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, p := range st.places {
		p.dir.take(p.name, st)
	}
	st.to(to)
}

// end settles accounts after the last transition.
func (st *Staged) end(result error) {
	st.mu.Lock()
	st.result = result
	st.giveBack()
	if st.mapper >= 0 {
		unix.Close(st.mapper)
		st.mapper = -1
	}
	places := st.places
	st.places = nil
	watch := st.state == Published && len(st.write) > 0 && len(places) > 0
	if watch {
		st.stood = place{places[0].dir.retain(), places[0].name}
	}
	close(st.ended)
	st.mu.Unlock()
	st.o.delist(st)
	if watch && st.o.opt.Passthrough {
		st.o.watch(st)
	}
	for _, p := range places {
		p.dir.Release()
	}
}

func (st *Staged) pid() uint32 {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.openers) == 0 {
		return 0
	}
	return st.openers[0].pid
}

// abandon salvages a staged file whose writers can never close it: the mount is gone.
func (st *Staged) abandon(why string) {
	st.mu.Lock()
	if st.state != Writing && st.state != Detached {
		st.mu.Unlock()
		return
	}
	// A writer that had closed it, and whose RELEASE the end of the mount has swallowed, is as good as one that got it.
	closed, end := st.idle, st.latest
	if !closed && st.poison == nil {
		st.poison = errors.New(why)
	}
	st.to(Publishing)
	st.write = nil
	st.mu.Unlock()
	st.finish(end)
}

// Sync is fsync(2) by a writer: the bytes so far survive a power cut, in the salvage if the file is never closed. With
// PublishOnFsync they become the version as well.
func (st *Staged) Sync(data bool) error {
	fd, err := st.Hold()
	if err != nil {
		return err
	}
	defer st.Unhold()
	sys := st.o.sys
	if data && st.State().Ended() {
		return sys.Fdatasync(fd)
	}
	if err := sys.Fsync(fd); err != nil {
		st.Poison(err)
		return err
	}
	if s := st.State(); s != Writing {
		return nil
	}
	if st.o.opt.PublishOnFsync {
		st.probe(Caller{Cred: st.cred, Tid: st.pid()})
		if err := st.poisoned(); err != nil {
			return err
		}
		if err := st.publishCopy(); err != nil || st.o.opt.Durability == Full {
			return err
		}
		// The name of the version is not durable; the staged file will be.
	}
	if err := st.store.syncOrigins(); err != nil {
		return err
	}
	return sys.Fsync(st.store.fd)
}

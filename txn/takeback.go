package txn

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A descriptor that was sent over a socket to a process older than the open shows in no table while it is on its way, and
// its receiver is not looked at, so the sender's close may be taken for the last although it was not. Then the file is
// taken back: a copy of what was published becomes the version, and the inode that can still be written to is staged
// again. (Who opened it in between has that inode, and sees what is added.) Without passthrough that happens when somebody
// writes to it, so what the name leads to is never touched. With it nobody tells us: the file is looked at again when its
// RELEASE should have come, which follows the last close at once, and until then a writer can reach the version. That
// RELEASE has not come alone says little on a busy machine, see unused.

// releaseDue is how long after a close that was the last its RELEASE may take: ordinarily some tens of microseconds.
const releaseDue = 50 * time.Millisecond

// watch looks at a published file again when its RELEASE is due.
func (o *Overlay) watch(st *Staged) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.watched = append(o.watched, watched{st, time.Now()})
	if len(o.watched) == 1 {
		time.AfterFunc(releaseDue, o.lookAgain)
	}
}

// watched is a published file whose RELEASE has yet to come.
type watched struct {
	st    *Staged
	since time.Time
}

func (o *Overlay) lookAgain() {
	o.mu.Lock()
	n := 0
	for n < len(o.watched) && time.Since(o.watched[n].since) >= releaseDue {
		n++
	}
	due := o.watched[:n:n]
	o.watched = o.watched[n:]
	if len(o.watched) > 0 {
		time.AfterFunc(releaseDue, o.lookAgain)
	}
	o.mu.Unlock()
	for _, w := range due {
		if !w.st.unused() {
			w.st.TakeBack()
		}
	}
}

// releaseWatched gives up on every RELEASE that has yet to come.
func (o *Overlay) releaseWatched() {
	o.mu.Lock()
	list := o.watched
	o.watched = nil
	o.mu.Unlock()
	for _, w := range list {
		w.st.mu.Lock()
		stood := w.st.stood.dir
		w.st.stood = place{}
		w.st.mu.Unlock()
		if stood != nil {
			stood.Release()
		}
	}
}

// TakeBack stages a file again that was published, or is just being, although somebody can still write to it. It does
// nothing when all writers are gone. On failure the version stays as it is; what is still written with passthrough changes
// it in place, and without must be refused. It is logged.
func (st *Staged) TakeBack() error {
	if s := st.State(); s == Publishing || s == Published {
		<-st.done() // its name may lead to it already, and where it stands is known after that
	}
	st.backMu.Lock()
	defer st.backMu.Unlock()
	st.mu.Lock()
	needed := st.state == Published && len(st.write) > 0 && st.stood.dir != nil
	at := st.stood
	if needed {
		at.dir.retain()
	}
	st.mu.Unlock()
	if !needed {
		return nil
	}
	defer at.dir.Release()
	if !st.o.busy() {
		return ErrClosed
	}
	defer st.o.pending.Done()
	err := st.takeBack(at.dir, at.name)
	if err == errReplaced {
		return nil // nobody sees what is written
	}
	if err != nil {
		st.o.log.Error("a file is still being written after it was published", "path", at.dir.Path(at.name), "err", err)
	}
	return err
}

// errReplaced: the version is not the one any more that was to be replaced, so nothing is.
var errReplaced = errors.New("another version stands there")

func (st *Staged) takeBack(d *Dir, name string) error {
	fd, err := st.Hold()
	if err != nil {
		return nil
	}
	defer st.Unhold()
	sys := st.o.sys
	temp := st.store.next()
	if err := sys.LinkFd(fd, st.store.fd, temp); err == unix.ENOENT && !st.store.gone() {
		return nil // it has no name any more, so nobody sees what is written
	} else if err != nil {
		return fmt.Errorf("linking it into the stage: %w", err)
	}
	twin, err := d.publishTwin(name, fd, st)
	if err != nil {
		sys.Unlink(st.store.fd, temp)
		return err
	}
	var s unix.Statx_t
	if err := sys.Stat(fd, "", &s); err != nil {
		sys.Unlink(st.store.fd, temp)
		return err
	}
	unlock := lockDirs(d)
	st.mu.Lock()
	st.temp, st.kind, st.base, st.adopted = temp, Copied, twin.clean, version{}
	st.clean, st.read = versionOf(&s), bare(s.Atime)
	st.show(twin.id.Ino)
	st.places = []place{{d.retain(), name}}
	st.ended = make(chan struct{})
	st.fork = 0 // whoever has it need not be younger: leave the end to RELEASE
	for _, w := range st.write {
		w.closed = false
	}
	st.to(Writing)
	left, end := len(st.write), st.latest
	stood := st.stood.dir
	st.stood = place{}
	st.mu.Unlock()
	d.put(name, st)
	unlock()
	if stood != nil {
		stood.Release()
	}
	st.o.enlist(st)
	st.note()
	st.o.log.Info("taken back: a descriptor was passed on before the close", "path", d.Path(name))
	if left == 0 {
		st.endUnseen(end)
	}
	return nil
}

// publishTwin publishes a copy of the file behind fd under a name, if that still leads to the version that st is.
func (d *Dir) publishTwin(name string, fd int, st *Staged) (*Staged, error) {
	c := Caller{Cred: st.cred}
	twin := d.newStaged(Truncated, name, c)
	d.mu.Lock()
	d.put(name, twin)
	d.mu.Unlock()
	w, err := twin.prepare(d, unix.O_WRONLY, c, func() error { return twin.makeLike(d, fd, true) })
	if err != nil {
		return nil, fmt.Errorf("copying it: %w", err)
	}
	twin.mu.Lock()
	twin.dismiss(w)
	twin.set = setMode | setOwner | setXattr
	if st.State() == Published {
		twin.over = st.id
	}
	twin.to(Publishing)
	twin.mu.Unlock()
	if err := twin.harden(); err != nil {
		return nil, twin.giveUp(err)
	}
	dirs, err := twin.expose(Published)
	defer releaseAll(dirs)
	if err != nil {
		twin.drop()
		return nil, err
	}
	err = twin.hardenDirs(dirs)
	twin.end(err)
	return twin, err
}

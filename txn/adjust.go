package txn

import (
	"bytes"
	"fmt"

	"golang.org/x/sys/unix"
)

// A program that opens a file for write only to change its attributes through the descriptor (touch(1), above all) has
// made no new version. A file with one name may be replaced all the same; one with several would lose the others for
// nothing, so there the version itself gets the attributes.

// compareLimit is up to what size a file is compared with its version to find that out. Larger ones are replaced.
const compareLimit = 64 << 20

// adjust gives the version the attributes that were changed in its staged copy, if nothing else was changed and it has
// other names. If so, done is true and the staged file counts as unmodified from then on; it may still be written to.
// Otherwise nothing has happened. An error means that some of the attributes may have been given to the version: each
// of them is changed at once or not at all.
func (st *Staged) adjust() (done bool, err error) {
	st.mu.Lock()
	only := st.kind == Copied && len(st.places) == 1 && !st.forced
	st.mu.Unlock()
	if !only || !st.Modified() {
		return false, nil
	}
	own, err := st.Hold()
	if err != nil {
		return false, nil
	}
	defer st.Unhold()
	sys := st.o.sys
	var now unix.Statx_t
	if sys.Stat(own, "", &now) != nil { // before it is read, which may move its access time
		return false, nil
	}
	fd, ok := st.openSame(own, &now)
	if !ok {
		return false, nil
	}
	defer sys.Close(fd)
	if done, err = st.giveAttributes(fd, own, &now); err != nil {
		return false, fmt.Errorf("changing the attributes of the version: %w", err)
	}
	if done && st.o.opt.Durability == Full {
		if err := sys.Fsync(fd); err != nil {
			return false, fmt.Errorf("fsync of the version: %w", err)
		}
	}
	return done, nil
}

// openSame opens the version, if it is the base, has other names, and holds the same bytes as the temp behind own.
func (st *Staged) openSame(own int, now *unix.Statx_t) (fd int, ok bool) {
	d, name, held := st.holdPlace()
	if !held {
		return -1, false
	}
	defer d.Release()
	sys := st.o.sys
	var s unix.Statx_t
	if sys.Stat(d.fd, name, &s) != nil || !st.adjustable(&s) || s.Size != now.Size || s.Size > compareLimit {
		return -1, false
	}
	fd, err := sys.Open(d.fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOATIME, 0)
	if err != nil {
		return -1, false
	}
	if sys.Stat(fd, "", &s) == nil && st.adjustable(&s) && sameBytes(sys, fd, own) {
		return fd, true
	}
	sys.Close(fd)
	return -1, false
}

// adjustable reports whether a file is the base and has other names.
func (st *Staged) adjustable(s *unix.Statx_t) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return IdentOf(s) == st.base.id && s.Nlink > 1
}

// sameBytes reports whether two files hold the same, as far as they can be read.
func sameBytes(sys Sys, a, b int) bool {
	x, y := make([]byte, 128<<10), make([]byte, 128<<10)
	for off := int64(0); ; {
		n, err := sys.Pread(a, x, off)
		if err != nil {
			return false
		}
		m, err := sys.Pread(b, y[:max(n, 1)], off)
		if err != nil || m != n || !bytes.Equal(x[:n], y[:n]) {
			return false
		}
		if n == 0 {
			return true
		}
		off += int64(n)
	}
}

// giveAttributes gives the version behind fd what differs between the temp behind own, which looks like now, and how it
// looked when it was staged. It does nothing if the path does not lead to the version any more.
func (st *Staged) giveAttributes(fd, own int, now *unix.Statx_t) (done bool, err error) {
	unlock := st.lockPlaces()
	defer unlock()
	sys := st.o.sys
	st.mu.Lock()
	places, clean, read, base, set := st.places, st.clean, st.read, st.base, st.set
	st.mu.Unlock()
	var s unix.Statx_t
	if len(places) != 1 {
		return false, nil
	}
	if err := sys.Stat(places[0].dir.fd, places[0].name, &s); err != nil || IdentOf(&s) != base.id {
		return false, nil
	}
	if owner := (Cred{s.Uid, s.Gid}); owner == base.owner { // else it was given to somebody else, see adopt
		if err := give(sys, own, fd, now, clean, read, set); err != nil {
			return false, err
		}
	}
	st.mu.Lock()
	st.clean, st.read, st.set, st.moved = versionOf(now), bare(now.Atime), 0, true
	if sys.Stat(fd, "", &s) == nil {
		st.adopted = versionOf(&s)
		st.base.owner = st.adopted.owner
	}
	st.mu.Unlock()
	return true, nil
}

// give sets the attributes of dst that differ between now and clean.
func give(sys Sys, src, dst int, now *unix.Statx_t, clean version, read timestamp, set attrs) error {
	if to := (Cred{now.Uid, now.Gid}); to != clean.owner {
		if err := sys.Chown(dst, int(to.Uid), int(to.Gid)); err != nil {
			return err
		}
	}
	if set&setXattr != 0 {
		if err := copyXattrs(sys, src, dst); err != nil {
			return err
		}
	}
	if mode := uint32(now.Mode) & 0o7777; mode != clean.mode { // after the owner and the ACL, see copyAttributes
		if err := sys.Chmod(dst, mode); err != nil {
			return err
		}
	}
	atime, mtime := unix.Timespec{Nsec: unix.UTIME_OMIT}, unix.Timespec{Nsec: unix.UTIME_OMIT}
	if bare(now.Atime) != read {
		atime = timespec(now.Atime)
	}
	if bare(now.Mtime) != clean.mtime {
		mtime = timespec(now.Mtime)
	}
	if atime == mtime && mtime.Nsec == unix.UTIME_OMIT {
		return nil
	}
	return sys.Utimes(dst, atime, mtime)
}

// Adjusted reports whether the version that it was started from was given attributes.
func (st *Staged) Adjusted() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.moved
}

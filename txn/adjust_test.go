package txn

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// change does to a staged file what a program does through its descriptor.
func change(t *testing.T, w *Writer, do func(sys Sys, fd int) error) {
	t.Helper()
	must(t, w.Staged().Writable(func(fd int) error { return do(w.st.o.sys, fd) }))
}

var longAgo = unix.Timespec{Sec: 1000, Nsec: 123456789}

// linked is a file with two names.
func (m *mount) linked() unix.Stat_t {
	m.t.Helper()
	os.Remove(m.at("f"))
	os.Remove(m.at("g"))
	m.file("f", "content")
	must(m.t, os.Link(m.at("f"), m.at("g")))
	return m.stat("f")
}

// TestAttributesAloneReplaceNothing: what touch(1), fchmod and the like change through a descriptor, the version gets,
// and its other names stay names of it.
func TestAttributesAloneReplaceNothing(t *testing.T) {
	changes := map[string]func(w *Writer, sys Sys, fd int) error{
		"times": func(w *Writer, sys Sys, fd int) error { return sys.Utimes(fd, longAgo, longAgo) },
		"mtime": func(w *Writer, sys Sys, fd int) error {
			return sys.Utimes(fd, unix.Timespec{Nsec: unix.UTIME_OMIT}, longAgo)
		},
		"atime": func(w *Writer, sys Sys, fd int) error {
			return sys.Utimes(fd, longAgo, unix.Timespec{Nsec: unix.UTIME_OMIT})
		},
		"mode":  func(w *Writer, sys Sys, fd int) error { w.st.MarkSet(true, false, false); return sys.Chmod(fd, 0o751) },
		"xattr": func(w *Writer, sys Sys, fd int) error { return w.setxattr(sys, fd, "user.note", []byte("x")) },
		"ACL":   func(w *Writer, sys Sys, fd int) error { return w.setxattr(sys, fd, "system.posix_acl_access", acl(77)) },
		"owner": func(w *Writer, sys Sys, fd int) error {
			w.st.MarkSet(false, true, false)
			return sys.Chown(fd, -1, os.Getgid())
		},
		"bytes": func(w *Writer, sys Sys, fd int) error { // the same once more, and a time as if nothing had been
			if _, err := sys.Pwrite(fd, []byte("content"), 0); err != nil {
				return err
			}
			return sys.Utimes(fd, unix.Timespec{Nsec: unix.UTIME_OMIT}, longAgo)
		},
	}
	if os.Getuid() == 0 {
		changes["owner"] = func(w *Writer, sys Sys, fd int) error { w.st.MarkSet(false, true, false); return sys.Chown(fd, 12, 34) }
	}
	everyWay(t, func(t *testing.T, m *mount) {
		for name, do := range changes {
			t.Run(name, func(t *testing.T) {
				before := m.linked()
				w := m.openWrite("f", unix.O_WRONLY, m.me)
				var want unix.Statx_t
				change(t, w, func(sys Sys, fd int) error {
					if err := do(w, sys, fd); err != nil {
						return err
					}
					return sys.Stat(fd, "", &want)
				})
				note := xattrOf(t, w, "user.note")
				must(t, finish(w, m.me))
				after := m.stat("g")
				equal(t, "inode and links", []uint64{after.Ino, uint64(after.Nlink)}, []uint64{before.Ino, 2})
				equal(t, "f", m.stat("f").Ino, before.Ino)
				equal(t, "mtime", after.Mtim, timespec(want.Mtime))
				equal(t, "atime", after.Atim, timespec(want.Atime))
				equal(t, "mode", after.Mode&0o7777, uint32(want.Mode)&0o7777)
				equal(t, "owner", []uint32{after.Uid, after.Gid}, []uint32{want.Uid, want.Gid})
				equal(t, "xattr", m.xattr("g", "user.note"), note)
				equal(t, "it says so", w.Staged().Adjusted(), true)
				m.has("f", "content")
			})
		}
		list, _ := m.salvaged()
		equal(t, "salvage", len(list), 0)
	})
}

func (w *Writer) setxattr(sys Sys, fd int, name string, value []byte) error {
	w.st.MarkSet(name == "system.posix_acl_access", false, true)
	return sys.Setxattr(fd, name, value, 0)
}

func xattrOf(t *testing.T, w *Writer, name string) (value string) {
	change(t, w, func(sys Sys, fd int) error {
		b, err := xattr(sys, fd, name)
		if value = string(b); err != nil {
			value = err.Error()
		}
		return nil
	})
	return value
}

// TestMoreThanAttributesReplaces.
func TestMoreThanAttributesReplaces(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		for name, do := range map[string]func(sys Sys, fd int) error{
			"other bytes": func(sys Sys, fd int) error { _, err := sys.Pwrite(fd, []byte("CONTENT"), 0); return err },
			"fewer":       func(sys Sys, fd int) error { return sys.Truncate(fd, 3) },
			"more":        func(sys Sys, fd int) error { return sys.Truncate(fd, 8) },
		} {
			t.Run(name, func(t *testing.T) {
				before := m.linked()
				w := m.openWrite("f", unix.O_WRONLY, m.me)
				change(t, w, func(sys Sys, fd int) error {
					if err := do(sys, fd); err != nil {
						return err
					}
					return sys.Utimes(fd, longAgo, timespec(w.st.clean.mtime)) // the time tells nothing
				})
				must(t, closeLast(t, w, m.me))
				m.has("g", "content")
				if m.stat("f").Ino == before.Ino {
					t.Error("it was not replaced")
				}
			})
		}
	})
}

// TestLargeFilesAreNotCompared: they are replaced also for the sake of an attribute.
func TestLargeFilesAreNotCompared(t *testing.T) {
	m := open(t, Options{Durability: None})
	before := m.linked()
	must(t, os.Truncate(m.at("f"), compareLimit+1))
	w := m.openWrite("f", unix.O_WRONLY, m.me)
	change(t, w, func(sys Sys, fd int) error { return sys.Utimes(fd, longAgo, longAgo) })
	must(t, closeLast(t, w, m.me))
	equal(t, "mtime", m.stat("f").Mtim, longAgo)
	if m.stat("f").Ino == before.Ino {
		t.Error("it was not replaced")
	}
}

// TestWrittenAfterAttributes: the close that changed the attributes was not the last after all.
func TestWrittenAfterAttributes(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		before := m.linked()
		w := m.openWrite("f", unix.O_WRONLY, m.me)
		change(t, w, func(sys Sys, fd int) error { return sys.Utimes(fd, longAgo, longAgo) })
		must(t, w.Flush(m.me))
		equal(t, "mtime", m.stat("g").Mtim, longAgo)
		equal(t, "state", w.Staged().State(), Writing)
		put(t, w, 0, "CONTENT")
		must(t, closeLast(t, w, m.me))
		m.has("f", "CONTENT")
		m.has("g", "content")
		equal(t, "inode", m.stat("g").Ino, before.Ino)
	})
}

// TestAttributesOfAnotherVersion are left alone: the path leads elsewhere by now.
func TestAttributesOfAnotherVersion(t *testing.T) {
	m := open(t, Options{})
	m.linked()
	w := m.openWrite("f", unix.O_WRONLY, m.me)
	change(t, w, func(sys Sys, fd int) error { return sys.Utimes(fd, longAgo, longAgo) })
	m.file("other", "content")
	must(t, os.Link(m.at("other"), m.at("another")))
	must(t, os.Rename(m.at("other"), m.at("f")))
	must(t, finish(w, m.me))
	for _, name := range []string{"g", "another"} {
		if m.stat(name).Mtim == longAgo {
			t.Errorf("%s got the time", name)
		}
	}
}

// TestAttributesFail: the close says so, and nothing is replaced.
func TestAttributesFail(t *testing.T) {
	sys := &oneFault{kind: "utimes", err: unix.EIO, kinds: map[string]bool{}, lost: map[Ident]bool{}}
	m := open(t, Options{Sys: sys})
	before := m.linked()
	w := m.openWrite("f", unix.O_WRONLY, m.me)
	change(t, w, func(sys Sys, fd int) error { return sys.Utimes(fd, longAgo, longAgo) })
	sys.arm(true)
	is(t, finish(w, m.me), unix.EIO)
	sys.arm(false)
	equal(t, "inode", m.stat("f").Ino, before.Ino)
	list, _ := m.salvaged()
	equal(t, "salvage", list, []string{"content"})
}

// meddler does something while a file is synced.
type meddler struct {
	Linux
	during func()
}

func (s *meddler) Fsync(fd int) error {
	err := s.Linux.Fsync(fd)
	if during := s.during; during != nil {
		s.during = nil
		during()
	}
	return err
}

// TestAttributesWhileItIsSynced: that takes its time, and what the path gets meanwhile counts like what it got before.
func TestAttributesWhileItIsSynced(t *testing.T) {
	sys := &meddler{}
	m := open(t, Options{Sys: sys})
	for _, flags := range []int{unix.O_WRONLY, unix.O_WRONLY | unix.O_TRUNC} {
		m.file("f", "old")
		must(t, os.Chmod(m.at("f"), 0o644))
		w := m.openWrite("f", flags, m.me)
		put(t, w, 0, "new")
		sys.during = func() {
			must(t, os.Chmod(m.at("f"), 0o600))
			m.setxattr("f", "user.note", []byte("late"))
		}
		must(t, closeLast(t, w, m.me))
		m.has("f", "new")
		equal(t, "mode", m.stat("f").Mode&0o7777, 0o600)
		equal(t, "xattr", m.xattr("f", "user.note"), "late")
	}
}

// TestGivenToSomebodyElse: whoever opened a file while it was his has no say in what it looks like when it is not any more.
func TestGivenToSomebodyElse(t *testing.T) {
	root(t)
	everyWay(t, func(t *testing.T, m *mount) {
		user := m.me
		user.Cred = Cred{1234, 1234}
		prepare := func() {
			m.linked()
			must(t, os.Chown(m.at("f"), 1234, 1234))
			must(t, os.Chmod(m.at("f"), 0o644))
		}
		worst := func(w *Writer) {
			change(t, w, func(sys Sys, fd int) error {
				w.st.MarkSet(true, true, true)
				if err := sys.Setxattr(fd, "user.note", []byte("mine"), 0); err != nil {
					return err
				}
				return sys.Chmod(fd, 0o6777)
			})
		}
		check := func(what string) {
			t.Helper()
			st := m.stat("f")
			equal(t, what, []uint32{st.Uid, st.Gid, st.Mode & 0o7777}, []uint32{0, 0, 0o640})
			equal(t, "xattr "+what, m.xattr("f", "user.note"), unix.ENODATA.Error())
		}
		take := func() {
			must(t, os.Chown(m.at("f"), 0, 0))
			must(t, os.Chmod(m.at("f"), 0o640))
		}
		prepare()
		w := m.openWrite("f", unix.O_WRONLY, user)
		worst(w)
		take()
		must(t, finish(w, user))
		check("with attributes alone")

		prepare()
		w = m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, user)
		put(t, w, 0, "new")
		worst(w)
		take()
		must(t, finish(w, user))
		m.has("f", "new") // as through any descriptor that was open for write
		check("with bytes")

		// Another file was put there, behind the mount's back.
		prepare()
		w = m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, user)
		put(t, w, 0, "user's")
		m.file("other", "root's")
		must(t, os.Chmod(m.at("other"), 0o640))
		must(t, os.Rename(m.at("other"), m.at("f")))
		is(t, finish(w, user), ErrOwner)
		m.has("f", "root's")
		check("of another file")
		list, _ := m.salvaged()
		equal(t, "salvage", list, []string{"user's"})
	})
}

package txn

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// acl is the extended attribute for an ACL that lets one more user read: version 2, then tag, permissions and id of each
// entry (linux/posix_acl_xattr.h).
func acl(uid uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 6, ^uint32(0)}, {2, 4, uid}, {4, 4, ^uint32(0)}, {16, 4, ^uint32(0)}, {32, 0, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

func (m *mount) setxattr(name, attr string, value []byte) {
	m.t.Helper()
	if err := unix.Setxattr(m.at(name), attr, value, 0); err == unix.EOPNOTSUPP {
		m.t.Skipf("the filesystem has no %s", attr)
	} else if err != nil {
		m.t.Fatal(err)
	}
}

func (m *mount) xattr(name, attr string) string {
	m.t.Helper()
	buf := make([]byte, 1024)
	n, err := unix.Getxattr(m.at(name), attr, buf)
	if err != nil {
		return err.Error()
	}
	return string(buf[:n])
}

// TestAttributesStay: whatever way a file is replaced, the new version has the attributes of the old one.
func TestAttributesStay(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		for _, flags := range []int{unix.O_WRONLY, unix.O_WRONLY | unix.O_TRUNC} {
			m.file("f", "old")
			if os.Getuid() == 0 {
				must(t, os.Chown(m.at("f"), 1234, 4321))
			}
			m.setxattr("f", "user.note", []byte("kept"))
			m.setxattr("f", "system.posix_acl_access", acl(77))
			must(t, os.Chmod(m.at("f"), 0o640))
			before := m.stat("f")
			w := m.openWrite("f", flags, m.me)
			put(t, w, 0, "new")
			must(t, closeLast(t, w, m.me))
			after := m.stat("f")
			m.has("f", "new")
			equal(t, "mode", after.Mode, before.Mode)
			equal(t, "owner", []uint32{after.Uid, after.Gid}, []uint32{before.Uid, before.Gid})
			equal(t, "xattr", m.xattr("f", "user.note"), "kept")
			equal(t, "ACL", m.xattr("f", "system.posix_acl_access"), string(acl(77)))
			if after.Ino == before.Ino {
				t.Error("it was changed in place")
			}
		}
	})
}

// TestAttributesOfThePath: chmod and the like of the version while its replacement is written belong to the path.
func TestAttributesOfThePath(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old")
	m.setxattr("f", "user.gone", []byte("x"))
	w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
	put(t, w, 0, "new")
	must(t, os.Chmod(m.at("f"), 0o604))
	m.setxattr("f", "user.note", []byte("later"))
	must(t, unix.Removexattr(m.at("f"), "user.gone"))
	must(t, closeLast(t, w, m.me))
	m.has("f", "new")
	equal(t, "mode", m.stat("f").Mode&0o7777, 0o604)
	equal(t, "xattr", m.xattr("f", "user.note"), "later")
	equal(t, "removed xattr", m.xattr("f", "user.gone"), unix.ENODATA.Error())

	// What the writer set himself counts.
	w = m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
	put(t, w, 0, "newer")
	must(t, w.Staged().Writable(func(fd int) error { return m.Sys().Chmod(fd, 0o600) }))
	w.Staged().MarkSet(true, false, false)
	must(t, os.Chmod(m.at("f"), 0o644))
	m.setxattr("f", "user.note", []byte("latest"))
	must(t, closeLast(t, w, m.me))
	m.has("f", "newer")
	equal(t, "mode", m.stat("f").Mode&0o7777, 0o600)
	equal(t, "xattr", m.xattr("f", "user.note"), "latest")
}

// TestAttributesOfNewFiles are what the kernel would have given them.
func TestAttributesOfNewFiles(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		writer, _ := child(t)
		w, _, err := m.Root().Create("umask", unix.O_WRONLY, 0o666, 0o027, writer)
		must(t, err)
		put(t, w, 0, "x")
		must(t, finish(w, writer))
		equal(t, "mode", m.stat("umask").Mode&0o7777, 0o640)

		// A default ACL is inherited, and the umask does not count.
		must(t, os.Mkdir(m.at("d"), 0o700))
		m.setxattr("d", "system.posix_acl_default", acl(77))
		d := m.dir("d")
		w, _, err = d.Create("f", unix.O_WRONLY, 0o666, 0o077, writer)
		must(t, err)
		put(t, w, 0, "x")
		must(t, finish(w, writer))
		equal(t, "mode", m.stat("d/f").Mode&0o7777, 0o640)
		equal(t, "ACL", m.xattr("d/f", "system.posix_acl_access"), string(acl(77)))
	})
}

func TestOwnerOfNewFiles(t *testing.T) {
	root(t)
	everyWay(t, func(t *testing.T, m *mount) {
		writer, _ := child(t)
		writer.Cred = Cred{1234, 1235}
		must(t, os.Chmod(m.path, 0o777))
		w, _, err := m.Root().Create("f", unix.O_WRONLY, 0o644, 0, writer)
		must(t, err)
		must(t, finish(w, writer))
		st := m.stat("f")
		equal(t, "owner", []uint32{st.Uid, st.Gid}, []uint32{1234, 1235})

		must(t, os.Mkdir(m.at("d"), 0o777))
		must(t, os.Chown(m.at("d"), 0, 4321))
		must(t, unix.Chmod(m.at("d"), 0o2777)) // the group comes from the directory
		w, _, err = m.dir("d").Create("f", unix.O_WRONLY, 0o644, 0, writer)
		must(t, err)
		must(t, finish(w, writer))
		st = m.stat("d/f")
		equal(t, "owner", []uint32{st.Uid, st.Gid}, []uint32{1234, 4321})
	})
}

// TestSetuidFallsAway as on any write by somebody without CAP_FSETID.
func TestSetuidFallsAway(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		c := m.me
		c.Uid, c.Gid = 1234, 1234
		for mode, want := range map[uint32]uint32{0o4755: 0o755, 0o6775: 0o775, 0o2644: 0o644} {
			m.file("f", "old")
			must(t, unix.Chmod(m.at("f"), mode))
			w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, c)
			put(t, w, 0, "new")
			must(t, closeLast(t, w, c))
			equal(t, "mode", m.stat("f").Mode&0o7777, want)
		}
	})
}

func TestHardLinksKeepTheOldVersion(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old")
	must(t, os.Link(m.at("f"), m.at("g")))
	w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
	put(t, w, 0, "new")
	must(t, closeLast(t, w, m.me))
	m.has("f", "new")
	m.has("g", "old")

	// Which of two names was opened may be known only later.
	must(t, os.Link(m.at("g"), m.at("h")))
	w = m.openWrite("g", unix.O_WRONLY, m.me)
	m.Root().Rebind(w.Staged(), "h")
	put(t, w, 0, "NEW")
	must(t, closeLast(t, w, m.me))
	m.has("g", "old")
	m.has("h", "NEW")
}

// TestReaderIsUndisturbed reads the old version to its end.
func TestReaderIsUndisturbed(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old version")
	f, err := os.Open(m.at("f"))
	must(t, err)
	defer f.Close()
	w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
	put(t, w, 0, "new")
	must(t, closeLast(t, w, m.me))
	buf := make([]byte, 100)
	n, _ := f.Read(buf)
	equal(t, "the reader reads", string(buf[:n]), "old version")
}

func TestDatabasesGoInPlace(t *testing.T) {
	m := open(t, Options{})
	m.file("f", sqliteMagic+"and pages")
	_, err := m.Root().OpenWrite("f", Ident{}, unix.O_RDWR, m.me)
	is(t, err, ErrInPlace)
	equal(t, "staged", len(m.Staged()), 0)
	for name, want := range map[string]bool{
		"f-journal": true, "f-wal": true, "f-shm": true, "f-other": false, "g-journal": false, "-wal": false,
	} {
		got, err := m.Root().Companion(name, m.me)
		must(t, err)
		equal(t, name, got, want)
	}
	// Made from nothing it is no database any more, until it is one again.
	w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
	put(t, w, 0, "text")
	must(t, closeLast(t, w, m.me))
	m.has("f", "text")
}

// TestCompanionPublishes: the journal beside a staged file tells that it is a database. It is published as it is, and its
// writers go on in the version.
func TestCompanionPublishes(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		writer, _ := child(t)
		w := m.create("bank", writer)
		put(t, w, 0, "first page")
		stranger, _ := child(t)
		got, err := m.Root().Companion("bank-journal", stranger)
		must(t, err)
		equal(t, "companion of a stranger", got, false)
		m.has("bank", "-")
		fd, err := w.Staged().Hold() // as an open file of fs does
		must(t, err)
		defer w.Staged().Unhold()
		got, err = m.Root().Companion("bank-journal", writer)
		must(t, err)
		equal(t, "companion", got, true)
		m.has("bank", "first page")
		equal(t, "state", w.Staged().State(), InPlace)
		must(t, w.Staged().Writable(func(int) error { return nil })) // still possible
		var st unix.Statx_t
		must(t, m.Sys().Stat(fd, "", &st))
		equal(t, "inode", st.Ino, m.stat("bank").Ino)
		put(t, w, 10, " and more")
		m.has("bank", "first page and more")
		must(t, w.Flush(writer))
		w.Release()
	})
}

func TestPublishOnFsync(t *testing.T) {
	opt := Options{PublishOnFsync: true}
	m := open(t, opt)
	m.file("f", "old")
	must(t, os.Chmod(m.at("f"), 0o640))
	w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
	put(t, w, 0, "a log,")
	m.has("f", "old")
	must(t, w.Staged().Sync(false))
	m.has("f", "a log,")
	equal(t, "mode", m.stat("f").Mode&0o7777, 0o640)
	first := m.stat("f").Ino
	put(t, w, 6, " that goes on")
	m.has("f", "a log,") // what is published is never written again
	must(t, w.Staged().Sync(true))
	m.has("f", "a log, that goes on")
	if m.stat("f").Ino == first {
		t.Error("the published version was written to")
	}
	put(t, w, 0, "A LOG")
	must(t, closeLast(t, w, m.me))
	m.has("f", "A LOG, that goes on")
	list, _ := m.salvaged()
	equal(t, "salvage", len(list), 0)
}

// TestFsyncKeepsItStaged: without that option fsync(2) publishes nothing, but what it synced is found after a crash.
func TestFsyncKeepsItStaged(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old")
	w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
	put(t, w, 0, "new")
	must(t, w.Staged().Sync(false))
	m.has("f", "old")
	must(t, closeLast(t, w, m.me))
	m.has("f", "new")
}

func TestPoisonedIsNotPublished(t *testing.T) {
	for _, fault := range []error{unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EFBIG} {
		m := open(t, Options{})
		m.file("f", "old")
		w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
		put(t, w, 0, "half")
		if !Poisonous(fault) {
			t.Errorf("%v is not poisonous", fault)
		}
		w.Staged().Poison(fault)
		err := closeLast(t, w, m.me)
		is(t, err, ErrPoisoned)
		is(t, err, fault)
		m.has("f", "old")
		list, records := m.salvaged()
		equal(t, "salvage", list, []string{"half"})
		equal(t, "path", records[0].Path, "f")
		if !strings.Contains(records[0].Reason, fault.Error()) {
			t.Errorf("the reason is %q", records[0].Reason)
		}
	}
	for _, harmless := range []error{unix.EINVAL, unix.EBADF, unix.EINTR, unix.EAGAIN, unix.ENXIO} {
		if Poisonous(harmless) {
			t.Errorf("%v is poisonous", harmless)
		}
	}
}

// TestPoisonIsToldAtEveryClose, also at one that is not the last: programs look at the result of their own.
func TestPoisonIsToldAtEveryClose(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old")
	one, _ := child(t)
	two, _ := child(t)
	w1 := m.openWrite("f", unix.O_WRONLY, one)
	w2 := m.openWrite("f", unix.O_WRONLY, two)
	put(t, w1, 0, "new")
	w1.Staged().Poison(unix.ENOSPC)
	is(t, w1.Flush(one), unix.ENOSPC)
	w1.Release()
	is(t, closeLast(t, w2, two), unix.ENOSPC)
	is(t, w2.Flush(two), unix.ENOSPC) // a further duplicate
	m.has("f", "old")
}

func TestEndOfTheMount(t *testing.T) {
	path, dir := backing(t)
	o, err := Open(t.Context(), dir, Options{})
	must(t, err)
	m := &mount{Overlay: o, t: t, path: path, me: me()}
	m.file("f", "old")
	m.file("g", "old")
	written := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
	put(t, written, 0, "half")
	m.openWrite("g", unix.O_WRONLY, m.me) // never written to
	gone := m.create("h", m.me)
	put(t, gone, 0, "unlinked")
	must(t, o.Root().Unlink("h", m.me))
	root, err := unix.Dup(dir)
	must(t, err)
	defer unix.Close(root)
	must(t, o.Close())
	m.has("f", "old")
	m.has("g", "old")
	m.has("h", "-")
	s, err := OpenSalvage(Linux{}, root)
	must(t, err)
	defer s.Close()
	list, err := s.List()
	must(t, err)
	if len(list) != 1 || list[0].Path != "f" || list[0].Size != 4 || !strings.Contains(list[0].Reason, "the mount ended") {
		t.Errorf("salvage: %+v", list)
	}
	stage, err := os.ReadDir(filepath.Join(path, Hidden, stageName))
	must(t, err)
	equal(t, "instances", len(stage), 0)
}

// TestTakenBack: a descriptor on its way through a socket shows nowhere, so the close of its sender was taken for the
// last. The version stays what it was at that moment, and the receiver's bytes come at its own close.
func TestTakenBack(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		m.file("f", "old")
		w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
		fd, err := w.Staged().Hold() // as every open file of fs does
		must(t, err)
		defer w.Staged().Unhold()
		receiver, err := m.Sys().Reopen(fd, unix.O_RDWR) // as an open file does with passthrough
		must(t, err)
		defer unix.Close(receiver)
		put(t, w, 0, "sender")
		must(t, w.Flush(m.me))
		m.has("f", "sender")
		if !m.opt.Passthrough {
			w.Staged().TakeBack() // as fs does when a write comes
		}
		for until := time.Now().Add(10 * time.Second); w.Staged().State() != Writing; time.Sleep(time.Millisecond) {
			if time.Now().After(until) {
				t.Fatal("never taken back")
			}
		}
		put(t, w, 6, " and receiver")
		m.has("f", "sender")
		must(t, w.Flush(m.me))
		w.Release()
		m.has("f", "sender and receiver")
		list, _ := m.salvaged()
		equal(t, "salvage", len(list), 0)
	})
}

// TestLateRelease: on a busy machine it may take a while to come. Nobody has the file open, and it stays as it is.
func TestLateRelease(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		m.file("f", "old")
		w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
		_, err := w.Staged().Hold()
		must(t, err)
		defer w.Staged().Unhold()
		put(t, w, 0, "new")
		must(t, w.Flush(m.me))
		m.Overlay.mu.Lock()
		for i := range m.watched {
			m.watched[i].since = time.Time{}
		}
		m.Overlay.mu.Unlock()
		m.lookAgain()
		equal(t, "state", w.Staged().State(), Published)
		w.Release()
		m.has("f", "new")
	})
}

// TestPublishOnFsyncKeepsAttributes that the path got since it was opened, as a close does.
func TestPublishOnFsyncKeepsAttributes(t *testing.T) {
	m := open(t, Options{PublishOnFsync: true})
	m.file("f", "old")
	w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
	put(t, w, 0, "new")
	must(t, os.Chmod(m.at("f"), 0o604))
	must(t, w.Staged().Sync(false))
	m.has("f", "new")
	equal(t, "mode after fsync", m.stat("f").Mode&0o7777, 0o604)
	put(t, w, 3, "er")
	must(t, closeLast(t, w, m.me))
	m.has("f", "newer")
	equal(t, "mode after close", m.stat("f").Mode&0o7777, 0o604)
}

package txn

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// dir is a directory of the backing that is held until the test ends.
func (m *mount) dir(name string) *Dir {
	m.t.Helper()
	var st unix.Statx_t
	must(m.t, m.Root().Stat(name, &st))
	d, err := m.Root().Dir(name, IdentOf(&st))
	must(m.t, err)
	m.t.Cleanup(d.Release)
	return d
}

func (m *mount) lookup(name string, c Caller) (Entry, error) { return m.Root().Lookup(name, c) }

func (m *mount) rename(from, to string, flags uint, c Caller) error {
	_, _, err := m.Root().Rename(from, m.Root(), to, flags, c)
	return err
}

// TestReservedName is there for its writer, and to others neither there nor free.
func TestReservedName(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		writer, _ := child(t)
		stranger, _ := child(t)
		w := m.create("f", writer)
		put(t, w, 0, "bytes")

		_, err := m.lookup("f", stranger)
		is(t, err, unix.ENOENT)
		_, err = m.lookup("f", Caller{Cred: writer.Cred}) // of another pid namespace
		is(t, err, unix.ENOENT)
		e, err := m.lookup("f", writer)
		must(t, err)
		if e.Reserved != w.Staged() || e.Stat.Size != 5 || !e.Staged {
			t.Errorf("the writer sees %+v", e)
		}
		equal(t, "listed for the writer", len(m.Root().Reserved(writer)), 1)
		equal(t, "listed for others", len(m.Root().Reserved(stranger)), 0)

		_, _, err = m.Root().Create("f", unix.O_WRONLY|unix.O_EXCL, 0o644, 0, stranger)
		is(t, err, unix.EEXIST)
		is(t, m.Root().Mkdir("f", 0o755, 0, stranger), unix.EEXIST)
		is(t, m.Root().Mknod("f", unix.S_IFIFO|0o644, 0, 0, stranger), unix.EEXIST)
		is(t, m.Root().Symlink("x", "f", stranger), unix.EEXIST)
		_, err = m.Root().CreateDirect("f", unix.O_WRONLY, 0o644, 0, stranger)
		is(t, err, unix.EEXIST)
		is(t, m.Root().Unlink("f", stranger), unix.ENOENT)
		is(t, m.rename("f", "g", 0, stranger), unix.ENOENT)
		m.file("v", "version")
		is(t, m.rename("v", "f", unix.RENAME_NOREPLACE, stranger), unix.EEXIST)

		must(t, finish(w, writer))
		m.has("f", "bytes")
		e, err = m.lookup("f", stranger)
		must(t, err)
		if e.Reserved != nil || e.Staged {
			t.Errorf("after the publish: %+v", e)
		}
	})
}

// TestReservedAcrossPidNamespaces: of a caller without a thread id only the user is known.
func TestReservedAcrossPidNamespaces(t *testing.T) {
	m := open(t, Options{Passthrough: true})
	foreign := Caller{Cred: m.me.Cred}
	w := m.create("f", foreign)
	e, err := m.lookup("f", foreign)
	must(t, err)
	equal(t, "seen", e.Reserved == w.Staged(), true)
	_, err = m.lookup("f", Caller{Cred: Cred{m.me.Uid + 1, 0}})
	is(t, err, unix.ENOENT)
	stranger, _ := child(t)
	_, err = m.lookup("f", stranger)
	is(t, err, unix.ENOENT)
	put(t, w, 0, "x")
	must(t, w.Flush(foreign))
	m.has("f", "-") // nothing can be told of the caller
	w.Release()
	m.has("f", "x")
}

func TestHiddenName(t *testing.T) {
	m := open(t, Options{})
	r := m.Root()
	must(t, os.Mkdir(m.at("d"), 0o755))
	m.file("f", "old")
	for _, d := range []*Dir{r, m.dir("d")} {
		_, err := d.Lookup(Hidden, m.me)
		is(t, err, unix.ENOENT)
		_, err = d.Pin(Hidden, nil)
		is(t, err, unix.ENOENT)
		is(t, d.Mkdir(Hidden, 0o755, 0, m.me), unix.EPERM)
		is(t, d.Mknod(Hidden, unix.S_IFREG|0o644, 0, 0, m.me), unix.EPERM)
		is(t, d.Symlink("x", Hidden, m.me), unix.EPERM)
		is(t, d.Unlink(Hidden, m.me), unix.ENOENT)
		is(t, d.Rmdir(Hidden), unix.ENOENT)
		_, _, err = d.Rename(Hidden, r, "x", 0, m.me)
		is(t, err, unix.ENOENT)
		_, _, err = r.Rename("f", d, Hidden, 0, m.me)
		is(t, err, unix.EPERM)
		_, _, err = r.Rename("f", d, Hidden, unix.RENAME_EXCHANGE, m.me)
		is(t, err, unix.EPERM)
	}
	w := m.openWrite("f", unix.O_WRONLY, m.me)
	is(t, r.LinkStaged(w.Staged(), Hidden), unix.EPERM)
	w.Abandon()
}

func TestRmdir(t *testing.T) {
	m := open(t, Options{})
	must(t, os.Mkdir(m.at("d"), 0o755))
	must(t, os.Mkdir(m.at("e"), 0o755))
	d := m.dir("d")
	writer, _ := child(t)
	w, _, err := d.Create("f", unix.O_WRONLY, 0o644, 0, writer)
	must(t, err)
	is(t, m.Root().Rmdir("d"), unix.ENOTEMPTY)
	is(t, m.rename("e", "d", 0, m.me), unix.ENOTEMPTY)
	must(t, d.Unlink("f", writer))
	must(t, m.Root().Rmdir("d"))
	w.Release()
	is(t, m.Root().Rmdir("missing"), unix.ENOENT)
}

func TestCreateInRemovedDirectory(t *testing.T) {
	m := open(t, Options{})
	must(t, os.Mkdir(m.at("d"), 0o755))
	d := m.dir("d")
	must(t, os.Remove(m.at("d")))
	w, _, err := d.Create("f", unix.O_WRONLY, 0o644, 0, m.me)
	if err == nil {
		finish(w, m.me)
	}
	is(t, err, unix.ENOENT)
}

func TestUnlinkDetaches(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		m.file("f", "old")
		w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
		put(t, w, 0, "new")
		must(t, m.Root().Unlink("f", m.me))
		equal(t, "state", w.Staged().State(), Detached)
		put(t, w, 3, "er") // writers go on
		_, _, ok := w.Staged().Place()
		equal(t, "has a place", ok, false)
		is(t, m.Root().LinkStaged(w.Staged(), "g"), unix.ENOENT)
		must(t, closeLast(t, w, m.me))
		m.has("f", "-")
		list, _ := m.salvaged()
		equal(t, "salvage", len(list), 0)

		// The same for a name that has no version, which is free again at once.
		writer, _ := child(t)
		w = m.create("n", writer)
		put(t, w, 0, "new")
		must(t, m.Root().Unlink("n", writer))
		is(t, m.Root().Unlink("n", writer), unix.ENOENT)
		again := m.create("n", writer)
		must(t, finish(w, writer))
		m.has("n", "-")
		put(t, again, 0, "second")
		must(t, finish(again, writer))
		m.has("n", "second")
	})
}

func TestRenameOfStaged(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		// A version with a replacement under way: both move.
		m.file("f", "old f")
		m.file("g", "old g")
		w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
		put(t, w, 0, "new f")
		must(t, m.rename("f", "g", 0, m.me))
		m.has("f", "-")
		m.has("g", "old f")
		must(t, closeLast(t, w, m.me))
		m.has("f", "-")
		m.has("g", "new f")

		// A reserved name over a version, as every careful program does it: `mv f.tmp f` before f.tmp is closed.
		writer, _ := child(t)
		w = m.create("f.tmp", writer)
		put(t, w, 0, "from tmp")
		must(t, m.rename("f.tmp", "g", 0, writer))
		m.has("g", "new f")
		_, err := m.lookup("f.tmp", writer)
		is(t, err, unix.ENOENT)
		must(t, finish(w, writer))
		m.has("g", "from tmp")
		m.has("f.tmp", "-")
	})
}

// TestRenameOverStaged: a file that loses its name to another one publishes nothing.
func TestRenameOverStaged(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old f")
	m.file("g", "old g")
	over := m.openWrite("g", unix.O_WRONLY|unix.O_TRUNC, m.me)
	put(t, over, 0, "never seen")
	must(t, m.rename("f", "g", 0, m.me))
	equal(t, "state", over.Staged().State(), Detached)
	must(t, closeLast(t, over, m.me))
	m.has("g", "old f")

	// Reserved over reserved.
	writer, _ := child(t)
	a, b := m.create("a", writer), m.create("b", writer)
	put(t, a, 0, "a")
	put(t, b, 0, "b")
	must(t, m.rename("a", "b", 0, writer))
	equal(t, "state", b.Staged().State(), Detached)
	must(t, finish(b, writer))
	must(t, finish(a, writer))
	m.has("a", "-")
	m.has("b", "a")

	// Onto itself, onto a directory, with a missing source.
	w := m.create("c", writer)
	must(t, m.rename("c", "c", 0, writer))
	must(t, os.Mkdir(m.at("d"), 0o755))
	is(t, m.rename("c", "d", 0, writer), unix.EISDIR)
	is(t, m.rename("missing", "c", 0, writer), unix.ENOENT)
	is(t, m.rename("c", "f", unix.RENAME_EXCHANGE, writer), unix.ENOENT)
	is(t, m.rename("c", "g", unix.RENAME_NOREPLACE, writer), unix.EEXIST)
	put(t, w, 0, "c")
	must(t, m.rename("c", "f", unix.RENAME_NOREPLACE, writer))
	must(t, finish(w, writer))
	m.has("f", "c")
	// Two names of one file: nothing happens (rename(2)).
	must(t, os.Link(m.at("f"), m.at("f2")))
	must(t, m.rename("f", "f2", 0, writer))
	m.has("f", "c")
	m.has("f2", "c")
}

func TestExchange(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old f")
	m.file("g", "old g")
	wf := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
	put(t, wf, 0, "new f")
	must(t, m.rename("f", "g", unix.RENAME_EXCHANGE, m.me))
	m.has("f", "old g")
	m.has("g", "old f")
	must(t, closeLast(t, wf, m.me))
	m.has("f", "old g")
	m.has("g", "new f")

	// With a reserved name: the version takes its place, and it the version's.
	writer, _ := child(t)
	w := m.create("new", writer)
	put(t, w, 0, "new")
	must(t, m.rename("new", "f", unix.RENAME_EXCHANGE, writer))
	m.has("new", "old g")
	m.has("f", "-")
	must(t, finish(w, writer))
	m.has("f", "new")

	// And two reserved ones, which a version may not be missing for.
	w1, w2 := m.create("1", writer), m.create("2", writer)
	put(t, w1, 0, "one")
	put(t, w2, 0, "two")
	err := m.rename("1", "2", unix.RENAME_EXCHANGE, writer)
	must(t, finish(w1, writer))
	must(t, finish(w2, writer))
	switch err {
	case nil:
		m.has("1", "two")
		m.has("2", "one")
	case unix.ENOENT:
		m.has("1", "one")
		m.has("2", "two")
	default:
		t.Error(err)
	}
}

func TestTwoNames(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		must(t, os.Mkdir(m.at("d"), 0o755))
		d := m.dir("d")
		m.file("taken", "x")
		writer, _ := child(t)
		w := m.create("a", writer)
		put(t, w, 0, "bytes")
		must(t, d.LinkStaged(w.Staged(), "b"))
		is(t, m.Root().LinkStaged(w.Staged(), "a"), unix.EEXIST)
		is(t, m.Root().LinkStaged(w.Staged(), "taken"), unix.EEXIST)
		var st unix.Statx_t
		must(t, w.Staged().Stat(&st))
		equal(t, "links while staged", st.Nlink, 2)
		must(t, finish(w, writer))
		m.has("a", "bytes")
		m.has("d/b", "bytes")
		a, b := m.stat("a"), m.stat("d/b")
		equal(t, "one file", a.Ino, b.Ino)
		equal(t, "links", a.Nlink, uint64(2))
		is(t, m.Root().LinkStaged(w.Staged(), "c"), ErrStale)

		// One of the names may go.
		w = m.create("e", writer)
		put(t, w, 0, "more")
		must(t, m.Root().LinkStaged(w.Staged(), "f"))
		must(t, m.Root().Unlink("e", writer))
		must(t, finish(w, writer))
		m.has("e", "-")
		m.has("f", "more")
	})
}

// TestDirectoryIsRenamed while a file in it, and one below it, are written.
func TestDirectoryIsRenamed(t *testing.T) {
	m := open(t, Options{})
	must(t, os.MkdirAll(m.at("d/e"), 0o755))
	m.file("d/f", "old")
	m.file("d/e/g", "old")
	d := m.dir("d")
	var st unix.Statx_t
	must(t, d.Stat("e", &st))
	e, err := d.Dir("e", IdentOf(&st))
	must(t, err)
	defer e.Release()
	equal(t, "path", e.Path("g"), "d/e/g")
	equal(t, "path", m.Root().Path("x"), "x")
	wf, err := d.OpenWrite("f", Ident{}, unix.O_WRONLY|unix.O_TRUNC, m.me)
	must(t, err)
	wg, err := e.OpenWrite("g", Ident{}, unix.O_WRONLY|unix.O_TRUNC, m.me)
	must(t, err)
	must(t, m.rename("d", "moved", 0, m.me))
	equal(t, "path", e.Path("g"), "moved/e/g")
	equal(t, "path", wg.Staged().Info().Path, "moved/e/g")
	put(t, wf, 0, "new f")
	put(t, wg, 0, "new g")
	must(t, closeLast(t, wf, m.me))
	must(t, closeLast(t, wg, m.me))
	m.has("moved/f", "new f")
	m.has("moved/e/g", "new g")

	if m.dir("moved") != d {
		t.Error("it is another Dir under its new name")
	}
	must(t, os.Mkdir(m.at("d"), 0o755))
	if m.dir("d") == d {
		t.Error("the new directory is taken for the old one")
	}
	_, err = m.Root().Dir("d", d.Ident())
	is(t, err, ErrStale)
	m.file("file", "")
	must(t, os.Symlink("d", m.at("link")))
	for _, name := range []string{"missing", "file", "link"} {
		_, err = m.Root().Dir(name, d.Ident())
		is(t, err, ErrStale)
	}
}

// TestLongAndOddNames pass as they are.
func TestLongAndOddNames(t *testing.T) {
	m := open(t, Options{})
	writer, _ := child(t)
	for _, name := range []string{strings.Repeat("n", 255), "new\nline", "caf\xe9\xff", "-", "a b\t", ".hidden", "..."} {
		w := m.create(name, writer)
		put(t, w, 0, name)
		must(t, finish(w, writer))
		m.has(name, name)
	}
	w, _, err := m.Root().Create(strings.Repeat("n", 256), unix.O_WRONLY, 0o644, 0, writer)
	if err == nil {
		w.Release()
	}
	is(t, err, unix.ENAMETOOLONG)
}

func TestPin(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old")
	var st unix.Statx_t
	fd, err := m.Root().Pin("f", &st)
	must(t, err)
	defer unix.Close(fd)
	equal(t, "inode", st.Ino, m.stat("f").Ino)
	must(t, os.Rename(m.at("f"), m.at("g")))
	m.file("f", "new")
	must(t, m.Root().Link(fd, "h", m.me)) // the one that was looked up, not what the name is now
	m.has("h", "old")
	is(t, m.Root().Link(fd, "f", m.me), unix.EEXIST)
}

package txn

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestNewFileIsPublishedAtItsClose(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		writer, _ := child(t)
		w := m.create("f", writer)
		equal(t, "kind", w.Staged().kind, New)
		put(t, w, 0, "half, ")
		m.has("f", "-")
		put(t, w, 6, "whole")
		m.has("f", "-")
		must(t, finish(w, writer))
		m.has("f", "half, whole")
		equal(t, "state", w.Staged().State(), Published)
		equal(t, "staged", len(m.Staged()), 0)
		equal(t, "mode", m.stat("f").Mode&0o7777, 0o644)
	})
}

// TestTruncatedIsPrivate: two who truncate the same path have a version each, and the last to close wins, whole.
func TestTruncatedIsPrivate(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		m.file("f", "old version")
		one, _ := child(t)
		two, _ := child(t)
		w1 := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, one)
		w2 := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, two)
		if w1.Staged() == w2.Staged() {
			t.Fatal("they share a file")
		}
		put(t, w1, 0, "one")
		put(t, w2, 0, "twotwo")
		m.has("f", "old version")
		must(t, closeLast(t, w2, two))
		m.has("f", "twotwo")
		must(t, closeLast(t, w1, one))
		m.has("f", "one")
	})
}

// TestCopyIsShared: appenders of different processes meet in one file, which is published when the last has closed it.
func TestCopyIsShared(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		m.file("f", "old ")
		one, _ := child(t)
		two, _ := child(t)
		w1 := m.openWrite("f", unix.O_WRONLY|unix.O_APPEND, one)
		w2 := m.openWrite("f", unix.O_RDWR, two)
		if w1.Staged() != w2.Staged() {
			t.Fatal("they do not share a file")
		}
		equal(t, "kind", w1.Staged().kind, Copied)
		put(t, w1, 4, "one ")
		put(t, w2, 8, "two")
		closeEarly(t, w1, one)
		m.has("f", "old ")
		must(t, closeLast(t, w2, two))
		m.has("f", "old one two")
	})
}

// TestOwnStagedFileIsJoined: the writing process, and a child of it, that opens the path again means its own file.
func TestOwnStagedFileIsJoined(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old version")
	w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
	put(t, w, 0, "first")
	son, _ := child(t) // its parent is this process
	again := m.openWrite("f", unix.O_WRONLY, son)
	if again.Staged() != w.Staged() {
		t.Fatal("not its own")
	}
	put(t, again, 5, " and second")
	closeEarly(t, again, son)
	m.has("f", "old version")
	must(t, closeLast(t, w, m.me))
	m.has("f", "first and second")
	_, err := w.Staged().Join(unix.O_WRONLY, m.me)
	is(t, err, ErrClosed)

	// A second O_TRUNC by the same process empties what it has.
	w = m.openWrite("f", unix.O_WRONLY, m.me)
	again = m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
	closeEarly(t, again, m.me)
	must(t, closeLast(t, w, m.me))
	m.has("f", "")
}

func TestReservedNameIsJoined(t *testing.T) {
	m := open(t, Options{})
	one, _ := child(t)
	two, _ := child(t)
	w := m.create("f", one)
	put(t, w, 0, "one")
	_, _, err := m.Root().Create("f", unix.O_WRONLY|unix.O_EXCL, 0o644, 0, two)
	is(t, err, unix.EEXIST)

	w2, joined, err := m.Root().Create("f", unix.O_WRONLY, 0o644, 0, two) // a lockfile, an append
	must(t, err)
	if !joined || w2.Staged() != w.Staged() {
		t.Error("O_CREAT without O_TRUNC does not join")
	}
	w3, joined, err := m.Root().Create("f", unix.O_WRONLY|unix.O_TRUNC, 0o644, 0, two)
	must(t, err)
	if !joined || w3.Staged() != w.Staged() { // by now it is one of the writers
		t.Error("the second process is not a writer of it")
	}
	put(t, w, 0, "one") // or it would be empty, and shared like a lock file
	three, _ := child(t)
	w4, joined, err := m.Root().Create("f", unix.O_WRONLY|unix.O_TRUNC, 0o600, 0, three)
	must(t, err)
	if !joined || w4.Staged() == w.Staged() {
		t.Error("O_TRUNC by a stranger is not private")
	}
	put(t, w4, 0, "three")
	must(t, finish(w4, three))
	m.has("f", "three")
	for _, o := range []*Writer{w2, w3} {
		closeEarly(t, o, two)
	}
	must(t, finish(w, one))
	m.has("f", "one") // closed last
	_, _, err = m.Root().Create("f", unix.O_WRONLY, 0o644, 0, two)
	is(t, err, ErrStale) // to be opened as what it is now
}

func TestUnmodifiedCopyIsDropped(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		m.file("f", "old")
		then := time.Now().Add(-time.Hour)
		must(t, os.Chtimes(m.at("f"), then, then))
		before := m.stat("f")
		for _, flags := range []int{unix.O_WRONLY, unix.O_RDWR, unix.O_WRONLY | unix.O_APPEND} {
			w := m.openWrite("f", flags, m.me)
			must(t, w.Flush(m.me))
			equal(t, "state at the close", w.Staged().State(), Writing)
			w.Release()
			m.awaitEnd(w.Staged())
			equal(t, "state", w.Staged().State(), Dropped)
		}
		after := m.stat("f")
		equal(t, "inode", after.Ino, before.Ino)
		equal(t, "mtime", after.Mtim, before.Mtim)
		equal(t, "ctime", after.Ctim, before.Ctim)

		w := m.openWrite("f", unix.O_WRONLY, m.me) // the same bytes are a modification
		put(t, w, 0, "old")
		must(t, closeLast(t, w, m.me))
		if m.stat("f").Ino == before.Ino {
			t.Error("not replaced")
		}
	})
}

// awaitEnd waits for a publish that waits for a mapping.
func (m *mount) awaitEnd(st *Staged) {
	m.t.Helper()
	select {
	case <-st.ended:
	case <-time.After(10 * time.Second):
		m.t.Fatal("it does not come to its end")
	}
}

// TestUntouched: a descriptor may have been passed over a socket to be filled by another process, so the close of one that
// was not written to decides nothing then; RELEASE does. Who has no socket has not passed it on.
func TestUntouched(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		writer, _ := child(t)
		m.file("f", "old")
		must(t, closeLast(t, m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, writer), writer))
		m.has("f", "")
		must(t, closeLast(t, m.create("new", writer), writer))
		m.has("new", "")

		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(pair[0])
		defer unix.Close(pair[1])
		m.file("f", "old")
		w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
		closeUndecided(t, w, m.me)
		m.has("f", "old")
		w.Release()
		m.has("f", "")
		w = m.create("newer", m.me)
		closeUndecided(t, w, m.me)
		m.has("newer", "-")
		w.Release()
		m.has("newer", "")
	})
}

// closeUndecided is a close(2) that leaves the decision to RELEASE.
func closeUndecided(t *testing.T, w *Writer, c Caller) {
	t.Helper()
	must(t, w.Flush(c))
	equal(t, "state after the close", w.Staged().State(), Writing)
}

func TestCommitAndAbandon(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		m.file("f", "old version")
		w := m.openWrite("f", unix.O_WRONLY, m.me)
		must(t, w.Staged().Truncate(3))
		must(t, w.Commit())
		m.has("f", "old")

		w = m.openWrite("f", unix.O_WRONLY, m.me)
		w.Abandon()
		m.has("f", "old")
		equal(t, "staged", len(m.Staged()), 0)

		// With another writer, truncate(2) is one more change of what that one publishes.
		w = m.openWrite("f", unix.O_WRONLY, m.me)
		put(t, w, 3, "er")
		second := m.openWrite("f", unix.O_WRONLY, m.me)
		must(t, second.Staged().Truncate(4))
		must(t, second.Commit())
		m.has("f", "old")
		must(t, closeLast(t, w, m.me))
		m.has("f", "olde")
	})
}

func TestHolesStay(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		m.file("f", "")
		const size = 1 << 30
		must(t, os.Truncate(m.at("f"), size))
		f, err := os.OpenFile(m.at("f"), os.O_WRONLY, 0)
		must(t, err)
		for _, off := range []int64{0, 100 << 20, size - 4} {
			_, err = f.WriteAt([]byte("data"), off)
			must(t, err)
		}
		must(t, f.Close())
		w := m.openWrite("f", unix.O_WRONLY, m.me)
		put(t, w, 200<<20, "more")
		must(t, closeLast(t, w, m.me))
		st := m.stat("f")
		equal(t, "size", st.Size, size)
		if st.Blocks*512 > 1<<20 {
			t.Errorf("it takes %d KiB", st.Blocks/2)
		}
		f, err = os.Open(m.at("f"))
		must(t, err)
		defer f.Close()
		var got string
		for _, off := range []int64{0, 100 << 20, 200 << 20, size - 4} {
			buf := make([]byte, 4)
			_, err = f.ReadAt(buf, off)
			must(t, err)
			got += string(buf) + " "
		}
		equal(t, "bytes", got, "data data more data ")
	})
}

func TestShownInode(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old")
	w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
	var st unix.Statx_t
	must(t, w.Staged().Stat(&st))
	equal(t, "inode number while staged", st.Ino, m.stat("f").Ino)
	equal(t, "base", w.Staged().Base().Ino, m.stat("f").Ino)
	put(t, w, 0, "x")
	must(t, closeLast(t, w, m.me))
	equal(t, "inode number of the version", m.stat("f").Ino, w.Staged().Ident().Ino)
	_, err := w.Staged().Hold()
	is(t, err, ErrClosed)
}

// TestOpenOfTheVersionMeant starts from what a lookup found, or not at all.
func TestOpenOfTheVersionMeant(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old")
	var st unix.Statx_t
	must(t, m.Root().Stat("f", &st))
	w, err := m.Root().OpenWrite("f", IdentOf(&st), unix.O_WRONLY|unix.O_TRUNC, m.me)
	must(t, err)
	put(t, w, 0, "new")
	must(t, closeLast(t, w, m.me))
	_, err = m.Root().OpenWrite("f", IdentOf(&st), unix.O_WRONLY|unix.O_TRUNC, m.me)
	is(t, err, ErrStale)
	m.has("f", "new")
}

// TestEmptyFileIsShared: lock files are opened with O_TRUNC as well, and those who lock must meet on one inode.
func TestEmptyFileIsShared(t *testing.T) {
	m := open(t, Options{})
	m.file("lock", "")
	one, _ := child(t)
	two, _ := child(t)
	w1 := m.openWrite("lock", unix.O_WRONLY|unix.O_TRUNC, one)
	w2 := m.openWrite("lock", unix.O_RDWR|unix.O_TRUNC, two)
	if w1.Staged() != w2.Staged() {
		t.Error("two who open an empty file do not meet")
	}
	put(t, w2, 0, "pid")
	three, _ := child(t)
	w3 := m.openWrite("lock", unix.O_WRONLY|unix.O_TRUNC, three)
	if w3.Staged() == w1.Staged() {
		t.Error("it truncates what others have written")
	}
	closeEarly(t, w1, one)
	must(t, closeLast(t, w2, two))
	m.has("lock", "pid")
	put(t, w3, 0, "three")
	must(t, closeLast(t, w3, three))
	m.has("lock", "three")
}

func TestWhatCannotBeStaged(t *testing.T) {
	m := open(t, Options{})
	must(t, os.Mkdir(m.at("d"), 0o755))
	must(t, os.Symlink("f", m.at("link")))
	must(t, unix.Mkfifo(m.at("fifo"), 0o600))
	for _, name := range []string{"missing", "d", "link", "fifo"} {
		for _, flags := range []int{unix.O_WRONLY, unix.O_RDWR, unix.O_WRONLY | unix.O_TRUNC} {
			_, err := m.Root().OpenWrite(name, Ident{}, flags, m.me)
			is(t, err, ErrStale)
		}
	}
	equal(t, "staged", len(m.Staged()), 0)
	if m.Root().HasStaged("missing") {
		t.Error("the name stays taken")
	}
}

func TestImmutableAndAppendOnly(t *testing.T) {
	root(t)
	m := open(t, Options{})
	m.file("f", "old")
	for flag, cases := range map[string]map[int]error{
		"i": {unix.O_WRONLY: unix.EPERM, unix.O_WRONLY | unix.O_TRUNC: unix.EPERM, unix.O_WRONLY | unix.O_APPEND: unix.EPERM},
		"a": {
			unix.O_WRONLY: unix.EPERM, unix.O_WRONLY | unix.O_APPEND | unix.O_TRUNC: unix.EPERM,
			unix.O_WRONLY | unix.O_APPEND: ErrInPlace, unix.O_RDWR | unix.O_APPEND: ErrInPlace,
		},
	} {
		if out, err := exec.Command("chattr", "+"+flag, m.at("f")).CombinedOutput(); err != nil {
			t.Skipf("chattr: %v: %s", err, out)
		}
		defer exec.Command("chattr", "-"+flag, m.at("f")).Run()
		for flags, want := range cases {
			_, err := m.Root().OpenWrite("f", Ident{}, flags, m.me)
			is(t, err, want)
		}
		must(t, exec.Command("chattr", "-"+flag, m.at("f")).Run())
	}
	m.has("f", "old")
}

// TestManyAtOnce: every writer gets what it wrote, and no temp is confused with another's.
func TestManyAtOnce(t *testing.T) {
	m := open(t, Options{Durability: None})
	var done []chan error
	for i := range 16 {
		c := make(chan error, 1)
		done = append(done, c)
		go func() {
			for j := range 50 {
				name := "f" + strconv.Itoa(i)
				if j == 0 {
					name = "shared"
				}
				w, _, err := m.Root().Create(name, unix.O_WRONLY|unix.O_TRUNC, 0o644, 0, Caller{})
				if err != nil {
					w, err = m.Root().OpenWrite(name, Ident{}, unix.O_WRONLY|unix.O_TRUNC, Caller{})
				}
				if err == nil {
					w.Opened()
					err = w.Staged().Writable(func(fd int) error {
						_, err := unix.Pwrite(fd, []byte(name), 0)
						return err
					})
					w.Release()
				}
				if err != nil && err != ErrStale {
					c <- fmt.Errorf("%s: %w", name, err)
					return
				}
			}
			c <- nil
		}()
	}
	for _, c := range done {
		must(t, <-c)
	}
	m.has("shared", "shared")
	for i := range done {
		m.has("f"+strconv.Itoa(i), "f"+strconv.Itoa(i))
	}
	all, err := os.ReadDir(m.path)
	must(t, err)
	names := []string{}
	for _, e := range all {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	equal(t, "names", len(names), len(done)+2)
}

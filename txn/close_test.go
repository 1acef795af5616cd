package txn

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// descriptor opens the version itself. When it can write it passes for a descriptor of the staged file, which shows the
// inode number of its version, once the mount is said to be the device of the backing.
func (m *mount) descriptor(name string, flags int) *os.File {
	m.t.Helper()
	m.Mounted(m.stat(name).Dev)
	f, err := os.OpenFile(m.at(name), flags, 0)
	must(m.t, err)
	m.t.Cleanup(func() { f.Close() })
	return f
}

// stillStaged is a close(2) that must not take itself for the last.
func (m *mount) stillStaged(what string, w *Writer, c Caller) {
	m.t.Helper()
	must(m.t, w.Flush(c))
	equal(m.t, what, w.Staged().State(), Writing)
	m.has("f", "old")
}

// TestDuplicates: `cmd > out` closes a duplicate in the shell before cmd has written a byte.
func TestDuplicates(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		m.file("f", "old")
		w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
		put(t, w, 0, "new")
		reading := m.descriptor("f", os.O_RDONLY) // does not count
		defer reading.Close()
		duplicate := m.descriptor("f", os.O_WRONLY)
		m.stillStaged("with a duplicate", w, m.me)
		duplicate.Close()
		must(t, closeLast(t, w, m.me))
		m.has("f", "new")
	})
}

// TestForkedHolder: a process that was started since the open may have inherited the descriptor.
func TestForkedHolder(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		m.file("f", "old")
		w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
		put(t, w, 0, "new")
		duplicate := m.descriptor("f", os.O_WRONLY)
		_, cmd := child(t, duplicate)
		child(t) // one that has none
		duplicate.Close()
		m.stillStaged("while a child has it", w, m.me)
		must(t, cmd.Process.Kill())
		die(t, cmd)
		must(t, closeLast(t, w, m.me))
		m.has("f", "new")
	})
}

// TestOlderOpener: who opened the file is looked at, however long it has existed.
func TestOlderOpener(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old")
	duplicate := m.descriptor("f", os.O_WRONLY)
	opener, cmd := child(t, duplicate)
	duplicate.Close()
	w := m.openWrite("f", unix.O_WRONLY, opener)
	put(t, w, 0, "new")
	m.stillStaged("while its opener has it", w, m.me)
	must(t, cmd.Process.Kill())
	die(t, cmd)
	must(t, closeLast(t, w, m.me))
	m.has("f", "new")
}

// TestManyForks: what was forked and is gone holds nothing.
func TestManyForks(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old")
	duplicate := m.descriptor("f", os.O_WRONLY)
	w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
	put(t, w, 0, "new")
	_, cmd := child(t, duplicate)
	duplicate.Close()
	must(t, exec.Command("sh", "-c", "i=0; while [ $i -lt 300 ]; do (:); i=$((i+1)); done").Run())
	m.stillStaged("while the first child has it", w, m.me)
	must(t, cmd.Process.Kill())
	die(t, cmd)
	must(t, closeLast(t, w, m.me))
	m.has("f", "new")
}

// TestForeignCaller: of a thread in another pid namespace nothing can be told. A lookup by others waits for RELEASE.
func TestForeignCaller(t *testing.T) {
	usual := undecidedWait
	defer func() { undecidedWait = usual }()
	undecidedWait = time.Minute // what is published is synced first, which takes as long as it takes
	m := open(t, Options{})
	m.file("f", "old")
	foreign := Caller{Cred: m.me.Cred}
	w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, foreign)
	put(t, w, 0, "new!")
	m.stillStaged("of a foreign caller", w, foreign)
	go func() {
		time.Sleep(time.Millisecond)
		w.Release()
	}()
	e, err := m.lookup("f", m.me)
	must(t, err)
	equal(t, "size seen by a lookup that follows", e.Stat.Size, 4)
	m.awaitEnd(w.Staged())

	// It does not wait for ever.
	undecidedWait = usual
	w = m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, foreign)
	put(t, w, 0, "newer")
	must(t, w.Flush(foreign))
	e, err = m.lookup("f", m.me)
	must(t, err)
	equal(t, "size", e.Stat.Size, 4)
	w.Release()
}

// TestOpeningThread: an open that was answered, whose descriptor is in no table yet, keeps the file staged.
func TestOpeningThread(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old")
	one, _ := child(t)
	two, _ := child(t)
	w1 := m.openWrite("f", unix.O_WRONLY, one)
	put(t, w1, 0, "new")
	w2 := m.openWrite("f", unix.O_WRONLY, two) // no FLUSH of it yet
	m.stillStaged("while another one opens it", w1, one)
	w1.Release()
	m.has("f", "old")
	must(t, closeLast(t, w2, two))
	m.has("f", "new")
}

// mapping is a shared writable mapping of a version.
func (m *mount) mapping(name string) (unmap func()) {
	m.t.Helper()
	f := m.descriptor(name, os.O_RDWR)
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, 1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(m.t, err)
	return func() { unix.Munmap(b) }
}

// TestMapping: a mapping outlives the last descriptor, and only an O_RDWR open can have one.
func TestMapping(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old")
	unmap := m.mapping("f")
	w := m.openWrite("f", unix.O_RDWR, m.me)
	put(t, w, 0, "new")
	m.stillStaged("while it is mapped", w, m.me)
	unmap()
	w.Release() // what the kernel sends then; this process lives, so it unmapped in good order
	m.has("f", "new")

	unmap = m.mapping("f")
	defer unmap()
	w = m.openWrite("f", unix.O_WRONLY, m.me)
	put(t, w, 0, "mew")
	must(t, closeLast(t, w, m.me))
	m.has("f", "mew")
}

// TestMappingWithPassthrough pins the backing file alone: RELEASE comes, and a lease tells when the mapping is gone.
func TestMappingWithPassthrough(t *testing.T) {
	m := open(t, Options{Passthrough: true})
	m.file("f", "old")
	w := m.openWrite("f", unix.O_RDWR, m.me)
	put(t, w, 0, "new")
	fd, err := w.Staged().Hold()
	must(t, err)
	temp, err := m.Sys().Reopen(fd, unix.O_RDWR) // as a mapping through the kernel
	must(t, err)
	w.Staged().Unhold()
	w.Release()
	time.Sleep(20 * time.Millisecond)
	equal(t, "state while it is in use", w.Staged().State(), Writing)
	m.has("f", "old")
	_, err = unix.Pwrite(temp, []byte("NEW"), 0)
	must(t, err)
	unix.Close(temp)
	m.awaitEnd(w.Staged())
	m.has("f", "NEW")
}

// TestEndOfMountWithMapping does not wait for a mapping that stays.
func TestEndOfMountWithMapping(t *testing.T) {
	m := open(t, Options{Passthrough: true})
	m.file("f", "old")
	w := m.openWrite("f", unix.O_RDWR, m.me)
	put(t, w, 0, "new")
	fd, err := w.Staged().Hold()
	must(t, err)
	defer w.Staged().Unhold()
	temp, err := m.Sys().Reopen(fd, unix.O_RDWR)
	must(t, err)
	t.Cleanup(func() { unix.Close(temp) })
	w.Release()
	// The Overlay is closed by the cleanup of open; a test that hangs there would show it.
}

// ended is a child that has come to its end as script says, and has not been waited for.
func ended(t *testing.T, script string) Caller {
	t.Helper()
	c, cmd := start(t, exec.Command("sh", "-c", script))
	die(t, cmd)
	return c
}

// waiting is a child that goes on to its end, as script says, when it is told to.
func waiting(t *testing.T, script string) (c Caller, end func()) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	c, cmd := start(t, exec.Command("sh", "-c", "read x <&3; "+script), r)
	r.Close()
	return c, func() {
		w.Close()
		die(t, cmd)
	}
}

// TestEnds: who closes last decides, and how it ended.
func TestEnds(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		for script, published := range map[string]bool{
			"kill -9 $$": false, "kill -15 $$": false, "kill -2 $$": false, "ulimit -c 0; kill -11 $$": false,
			"exit 137": false, "exit 143": false, // sh of a killed child
			"exit 0": true, "exit 1": true, "exit 127": true, "exit 128": true, "exit 255": true,
		} {
			m.file("f", "old")
			writer, end := waiting(t, script)
			w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, writer)
			put(t, w, 0, script)
			end()
			err := closeLast(t, w, writer)
			if published {
				must(t, err)
				m.has("f", script)
				continue
			}
			is(t, err, ErrKilled)
			m.has("f", "old")
			list, records := m.salvaged()
			last := len(list) - 1
			equal(t, "salvage", list[last], script)
			equal(t, "pid", records[last].Pid, writer.Tid)
			if !strings.Contains(records[last].Reason, "killed by signal") {
				t.Errorf("%s: the reason is %q", script, records[last].Reason)
			}
		}
	})
}

// TestPublishKilled is --on-kill=publish.
func TestPublishKilled(t *testing.T) {
	m := open(t, Options{PublishKilled: true})
	m.file("f", "old")
	killed := ended(t, "kill -9 $$")
	w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, killed)
	put(t, w, 0, "half")
	must(t, closeLast(t, w, killed))
	m.has("f", "half")
}

// TestKilledNewFile leaves no file, and its name free.
func TestKilledNewFile(t *testing.T) {
	everyWay(t, func(t *testing.T, m *mount) {
		killed := ended(t, "kill -9 $$")
		w := m.create("f", killed)
		put(t, w, 0, "half")
		is(t, finish(w, killed), ErrKilled)
		m.has("f", "-")
		if m.Root().HasStaged("f") {
			t.Error("the name stays taken")
		}
		w = m.create("f", killed) // empty: nothing to salvage
		is(t, finish(w, killed), ErrKilled)
		m.has("f", "-")
		list, _ := m.salvaged()
		equal(t, "salvage", list, []string{"half"})
	})
}

// TestKilledChildDecidesNothing while its parent keeps the file open: `2> log` of a script.
func TestKilledChildDecidesNothing(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old")
	w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, m.me)
	put(t, w, 0, "new")
	parent := m.descriptor("f", os.O_WRONLY)
	m.stillStaged("after the child", w, ended(t, "kill -9 $$"))
	parent.Close()
	must(t, closeLast(t, w, m.me))
	m.has("f", "new")
}

// TestKilledAndReleased: the close of a killed process could not be told to be the last; its end is remembered.
func TestKilledAndReleased(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old")
	w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, Caller{Cred: m.me.Cred})
	put(t, w, 0, "half")
	m.stillStaged("opened from elsewhere", w, ended(t, "kill -9 $$"))
	w.Release()
	is(t, w.Staged().failure(), ErrKilled)
	m.has("f", "old")
	list, _ := m.salvaged()
	equal(t, "salvage", list, []string{"half"})
}

// TestKilledWriterOfNothing: a copy that was never written to is dropped whoever dies.
func TestKilledWriterOfNothing(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old")
	killed := ended(t, "kill -9 $$")
	w := m.openWrite("f", unix.O_RDWR, killed)
	must(t, finish(w, killed))
	m.has("f", "old")
	list, _ := m.salvaged()
	equal(t, "salvage", len(list), 0)
}

// TestFileSizeLimit: the kernel refuses the write before anybody sees it, and programs ignore that.
func TestFileSizeLimit(t *testing.T) {
	m := open(t, Options{})
	m.file("f", "old")
	writer, cmd := start(t, exec.Command("cat"))
	must(t, unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 4, Max: 100}, nil))
	w := m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, writer)
	put(t, w, 0, "half")
	is(t, closeLast(t, w, writer), unix.EFBIG)
	m.has("f", "old")
	w = m.openWrite("f", unix.O_WRONLY|unix.O_TRUNC, writer)
	put(t, w, 0, "fit")
	must(t, closeLast(t, w, writer))
	m.has("f", "fit")
}

// TestOwnThreadsAreNoHolders: threads that the daemon starts are younger than the open, and have its descriptors of the
// temps. Those are not on the mount.
func TestOwnThreadsAreNoHolders(t *testing.T) {
	m := open(t, Options{})
	w := m.create("f", m.me)
	put(t, w, 0, "new")
	stop := make(chan bool)
	defer close(stop)
	for range 8 {
		started := make(chan bool)
		go func() {
			runtime.LockOSThread() // for good: the thread ends with the goroutine
			started <- true
			<-stop
		}()
		<-started
	}
	must(t, closeLast(t, w, m.me))
	m.has("f", "new")
}

package tests

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The ioctl that stops a filesystem as it is, known to ext4 and xfs (fs/xfs/xfs_fs.h), and the flag that has nothing
// flushed before, not even the journal.
const (
	ioctlShutdown      = 0x8004587d
	shutdownNoLogFlush = 2
)

// TestPowerCutByShutdown is the cheap kind of power cut: the filesystem is shut down below everything that runs on it,
// mounted again, recovered and judged. All that it had written is there then, so it shows less than TestPowerCut.
func TestPowerCutByShutdown(t *testing.T) {
	needRoot(t)
	needUntorn(t)
	score := scores{}
	t.Run("rounds", func(t *testing.T) {
		for _, fstype := range []string{"ext4", "xfs"} {
			t.Run(fstype, func(t *testing.T) {
				for _, how := range []string{"full", withoutUntorn} {
					t.Run(how, func(t *testing.T) {
						t.Parallel()
						s := score.of(fstype, how)
						if how == withoutUntorn {
							shutDownRounds(t, s, fstype, how, nil)
							return
						}
						eachPath(t, func(t *testing.T, flags []string) { shutDownRounds(t, s, fstype, how, flags) })
					})
				}
			})
		}
	})
	t.Log(score.table())
	for at, s := range score {
		s.check(t, at)
	}
}

func shutDownRounds(t *testing.T, s *score, fstype, how string, flags []string) {
	for seed := range uint64(max(1, rounds(20))) {
		v := shutDown(t, fstype, how, flags, seed)
		s.add(v)
		if wrong := v.mustHold(how); len(wrong) > 0 {
			t.Errorf("round with seed %d:\n%s", seed, strings.Join(wrong, "\n"))
		}
	}
}

// eventBook is a ledger without a disk: a position is a number of events.
type eventBook struct {
	mu     sync.Mutex
	events []string
	acked  chan struct{} // one for each acknowledgement
}

func (b *eventBook) note(event string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, event)
	if strings.HasPrefix(event, eventAck) {
		select {
		case b.acked <- struct{}{}:
		default: // so many are not waited for
		}
	}
}

// shutDown runs the workload on a fresh filesystem, and shuts that down after a number of acknowledgements.
func shutDown(t *testing.T, fstype, how string, flags []string, seed uint64) (v verdict) {
	image := newImage(t, fstype)
	defer image.Close()
	top := filepath.Join(tempDir(t), "fs")
	mustMkdir(t, top)
	book := &eventBook{acked: make(chan struct{}, 1000)}
	socket := filepath.Join(tempDir(t), "ledger")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go serveLedger(listener, book.note)

	var at int
	t.Run(fmt.Sprint("round", seed), func(t *testing.T) {
		mountDiskUntilEnd(t, image, fstype, top)
		layFiles(t, socket, top)
		m := &mount{Dir: filepath.Join(top, "data")}
		if how != withoutUntorn {
			m = newMountOn(t, m.Dir, slices.Clone(flags)...)
		}
		for len(book.acked) > 0 {
			<-book.acked
		}
		w := startWorkload(t, socket, top, m, seed)
		for range 1 + rand.New(rand.NewPCG(seed, 4)).IntN(100) {
			select {
			case <-book.acked:
			case <-time.After(commandTimeout):
				w.kill()
				t.Fatalf("the workload does not go on:\n%s", w.outputs)
			}
		}
		// Nobody begins or is told anything while the filesystem ends, and whatever is said later does not count.
		book.mu.Lock()
		err := shutDownFS(top)
		at = len(book.events)
		book.mu.Unlock()
		if m.daemon != nil {
			m.shutDown = true
			m.Kill(t)
		}
		w.kill()
		if err != nil {
			t.Fatal(err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	book.mu.Lock()
	defer book.mu.Unlock()
	h := history{}
	for i, event := range book.events {
		if err := h.add(i+1, event); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("judge", func(t *testing.T) {
		mountDiskUntilEnd(t, image, fstype, top)
		v = judgeBacking(t, h, at, filepath.Join(top, "data"), how == "full")
	})
	return v
}

// mountDiskUntilEnd mounts the filesystem in a file until the test ends.
func mountDiskUntilEnd(t *testing.T, image *os.File, fstype, dir string) {
	t.Helper()
	if err := mountDisk(image, fstype, dir, 0); err != nil {
		t.Fatalf("mounting the %s: %v", fstype, err)
	}
	t.Cleanup(func() {
		if err := unmountDisk(dir); err != nil {
			t.Errorf("unmounting the %s: %v", fstype, err)
		}
	})
}

func shutDownFS(top string) error {
	f, err := os.Open(top)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetPointerInt(int(f.Fd()), ioctlShutdown, shutdownNoLogFlush)
}

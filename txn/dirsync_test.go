package txn

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"
)

// TestSharedSync: whoever asks while an fsync is under way gets one that began later, and shares it.
func TestSharedSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sharedSync
		var begun atomic.Int32
		let := make(chan error)
		ask := func(n int) (results chan error) {
			results = make(chan error, n)
			for range n {
				go func() {
					before := begun.Load()
					err := s.share(func() error {
						begun.Add(1)
						return <-let
					})
					if begun.Load() == before {
						t.Error("no fsync began after it was asked for")
					}
					results <- err
				}()
			}
			synctest.Wait()
			return results
		}
		first := ask(1)
		later := ask(20)
		if n := begun.Load(); n != 1 {
			t.Fatalf("%d fsyncs are under way at once", n)
		}
		let <- nil
		synctest.Wait()
		if err := <-first; err != nil {
			t.Errorf("the first: %v", err)
		}
		last := ask(3)
		let <- unix.EIO
		synctest.Wait()
		for range 20 {
			if err := <-later; !errors.Is(err, unix.EIO) {
				t.Errorf("one of those who shared the failing fsync got %v", err)
			}
		}
		let <- nil
		for range 3 {
			if err := <-last; err != nil {
				t.Errorf("one who came after the failed fsync had begun got %v", err)
			}
		}
		if n := begun.Load(); n != 3 {
			t.Errorf("%d fsyncs for 24 askers, want 3", n)
		}
	})
}

// TestSharedSyncCovers: no change is reported durable that was made after the fsync began.
func TestSharedSyncCovers(t *testing.T) {
	var s sharedSync
	var changed, durable atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 500 {
				mine := changed.Add(1)
				s.share(func() error {
					upTo := changed.Load()
					for {
						old := durable.Load()
						if old >= upTo || durable.CompareAndSwap(old, upTo) {
							return nil
						}
					}
				})
				if durable.Load() < mine {
					t.Error("a change was not covered")
				}
			}
		})
	}
	wg.Wait()
}

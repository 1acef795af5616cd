package spare

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func openNull() (int, error) { return unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0) }

// exhaust lowers the limit and opens what it allows, as programs do; it returns how to give all of it back.
func exhaust(t *testing.T) (restore func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 400, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	var kept []int
	for {
		fd, err := Lasting(openNull)
		if err != nil {
			if err != unix.EMFILE {
				t.Errorf("out of descriptors an open fails with %v", err)
			}
			break
		}
		kept = append(kept, fd)
	}
	return func() {
		for _, fd := range kept {
			Close(fd, unix.Close)
		}
		unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
}

// TestReserve: when nothing can be opened any more, any number of brief opens at once get by, nobody who opens to keep
// gets anything of the reserve, and it is whole again afterwards.
func TestReserve(t *testing.T) {
	Fill()
	p := reserve.Load()
	restore := exhaust(t)
	defer restore()
	stop := make(chan struct{})
	var thieves, users sync.WaitGroup
	for range 4 {
		thieves.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				// One that slips in where a descriptor is freed gives it back: as many are open at the end as before.
				if fd, err := Lasting(openNull); err == nil {
					defer Close(fd, unix.Close)
				}
			}
		})
	}
	for range 4 * most {
		users.Go(func() {
			for range 20 {
				fd, err := Brief(openNull)
				if err != nil {
					t.Errorf("a brief open: %v", err)
					return
				}
				Close(fd, unix.Close)
			}
		})
	}
	users.Wait()
	close(stop)
	thieves.Wait()
	if p.short() {
		t.Errorf("%d of the reserve are left of %d", len(p.spares), cap(p.spares))
	}
	restore()
	if fd, err := Lasting(openNull); err != nil {
		t.Errorf("after all is given back: %v", err)
	} else {
		Close(fd, unix.Close)
	}
}

// TestOtherErrors: only a lack of descriptors touches the reserve, and one that no descriptor helps against is returned.
func TestOtherErrors(t *testing.T) {
	Fill()
	for _, want := range []error{unix.ENOENT, unix.EMFILE, unix.ENFILE} {
		calls := 0
		_, err := Brief(func() (int, error) { calls++; return -1, want })
		if err != want {
			t.Errorf("got %v, want %v", err, want)
		}
		if want == unix.ENOENT && calls != 1 {
			t.Errorf("%v is tried %d times", want, calls)
		}
		if reserve.Load().short() {
			t.Errorf("the reserve is short after %v", want)
		}
	}
}

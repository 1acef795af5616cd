package proc

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestFileSizeLimit(t *testing.T) {
	pid, _ := child(t, "exit 0")
	if _, ok := FileSizeLimit(pid); ok {
		t.Skip("there is a limit already")
	}
	must(t, unix.Prlimit(int(pid), unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 12345, Max: unix.RLIM_INFINITY}, nil))
	if limit, ok := FileSizeLimit(pid); !ok || limit != 12345 {
		t.Errorf("limit %d, %v", limit, ok)
	}
	for _, none := range []uint32{0, gone()} {
		if _, ok := FileSizeLimit(none); ok {
			t.Errorf("%d has a limit", none)
		}
	}
}

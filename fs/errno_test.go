package fs

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"untorn/txn"
)

// TestStatus: what a program sees of an error, however deep it is wrapped.
func TestStatus(t *testing.T) {
	for err, want := range map[error]unix.Errno{
		nil:         0,
		unix.ENOSPC: unix.ENOSPC,
		fmt.Errorf("staging: %w", fmt.Errorf("making the temp: %w", unix.EDQUOT)): unix.EDQUOT,
		fmt.Errorf("%w: %w", txn.ErrPoisoned, unix.EFBIG):                         unix.EFBIG,
		fmt.Errorf("looking: %w", txn.ErrStale):                                   unix.ESTALE,
		txn.ErrReadOnly:                                                           unix.EROFS,
		txn.ErrOwner:                                                              unix.EPERM,
		errEscape:                                                                 unix.EBUSY,
		errors.New("a mystery"):                                                   unix.EIO,
	} {
		if got := status(err); unix.Errno(got) != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}

// TestFileTable: handles are found as long as they are open, are used again, and nothing else is one.
func TestFileTable(t *testing.T) {
	var table files
	a, b := &file{}, &stream{}
	ha, hb := table.put(a), table.put(b)
	if table.get(ha) != a || table.any(hb) != b || table.get(hb) != nil {
		t.Error("a handle leads elsewhere")
	}
	if table.remove(ha) != a || table.get(ha) != nil {
		t.Error("a removed handle is still there")
	}
	if c := table.put(&file{}); c != ha {
		t.Errorf("handle %d, want %d again", c, ha)
	}
	for _, h := range []uint64{0, 3, 1 << 60} {
		if table.any(h) != nil || table.remove(h) != nil {
			t.Errorf("%d is a handle", h)
		}
	}
}

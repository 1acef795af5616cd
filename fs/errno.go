package fs

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"untorn/txn"
)

// errnos says which errno a program sees for each sentinel of txn. It is the only such table. What is not listed is an
// errno already, or wraps one, or is EIO.
var errnos = []struct {
	err   error
	errno unix.Errno
}{
	{txn.ErrStale, unix.ESTALE},
	{txn.ErrClosed, unix.EIO},
	{txn.ErrOwner, unix.EPERM},
	{txn.ErrReadOnly, unix.EROFS},
	{txn.ErrPlanted, unix.EPERM},
	{txn.ErrFormat, unix.EIO},
	{txn.ErrRival, unix.EBUSY},
	{errEscape, unix.EBUSY},
}

// errEscape: an open without a lookup, through /proc/self/fd or a bind mount of a single file, asks for a mapping that
// would reach the published version itself.
var errEscape = errors.New("a writable mapping would reach the published version")

// status turns an error into what the kernel is told.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var errno unix.Errno
	if e, ok := err.(unix.Errno); ok {
		return fuse.Status(e)
	}
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return fuse.Status(e.errno)
		}
	}
	if errors.As(err, &errno) {
		return fuse.Status(errno)
	}
	return fuse.EIO
}

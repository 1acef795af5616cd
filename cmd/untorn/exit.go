package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"untorn/fs"
	"untorn/txn"
)

// The exit codes. They are documented in the README and in --help, and do not change.
const (
	exitDone       = 0
	exitFailed     = 1 // the operation failed
	exitUsage      = 2 // unknown flag, malformed value
	exitBacking    = 3 // the backing directory cannot be used
	exitMountpoint = 4 // the mountpoint cannot be used, or is no untorn mount
	exitNoMount    = 5 // mounting is impossible here
	exitFormat     = 6 // .untorn has a newer or unknown format, or is not untorn's
	exitBusy       = 7 // the mount is in use
	exitWrong      = 8 // check found something wrong
	exitCrashed    = 9 // the server of the mount died again and again
)

// failure is an error that knows its exit code.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func fail(code int, format string, args ...any) error {
	return &failure{code, fmt.Errorf(format, args...)}
}

func asFailure(err error, f **failure) bool { return errors.As(err, f) }

// codeOf is the exit code for an error: the one that it carries, or else the one of what it wraps.
func codeOf(err error) int {
	var f *failure
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &f):
		return f.code
	case errors.Is(err, txn.ErrFormat), errors.Is(err, txn.ErrPlanted):
		return exitFormat
	case errors.Is(err, txn.ErrNotDir):
		return exitBacking
	case errors.Is(err, fs.ErrNoDevice), errors.Is(err, fs.ErrNotPermitted):
		return exitNoMount
	case errors.Is(err, unix.EBUSY):
		return exitBusy
	default:
		return exitFailed
	}
}

// advise adds to an error of txn or fs what its reader can do about it. where is the directory that has the .untorn.
func advise(err error, where string) error {
	hint := ""
	switch {
	case err == nil:
		return nil
	case errors.Is(err, txn.ErrFormat):
		hint = fmt.Sprintf("Use the untorn that wrote %s/.untorn; remove that directory only if nothing in it is wanted.", where)
	case errors.Is(err, txn.ErrPlanted):
		hint = fmt.Sprintf("The name is reserved for untorn. Look at what %s/.untorn is, and move it away.", where)
	case errors.Is(err, fs.ErrNoDevice):
		hint = "Load the module (modprobe fuse), or give the container the device (--device /dev/fuse)."
	case errors.Is(err, fs.ErrNotPermitted):
		hint = "Mount as root, or install fuse3; a container needs --cap-add SYS_ADMIN. untorn doctor tells more."
	default:
		return err
	}
	return fmt.Errorf("%w\n%s", err, hint)
}

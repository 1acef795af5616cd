package txn

import "errors"

var (
	// ErrStale: what is addressed is no longer where it was: the name leads to another inode, or a staged file was
	// published meanwhile. The kernel repeats the lookup when it is told ESTALE.
	ErrStale = errors.New("stale: the name leads elsewhere now")

	// ErrPoisoned: a write to the staged file failed, or would have; it is not published, whatever the writer says.
	ErrPoisoned = errors.New("a write to the staged file failed")

	// ErrKilled: the writer was killed, so its staged file is kept in salvage and not published.
	ErrKilled = errors.New("the writer was killed")

	// ErrClosed: the staged file has already come to its end (published, salvaged or dropped).
	ErrClosed = errors.New("the staged file is no longer open")

	// ErrFormat: .untorn was written by a newer version of untorn, or its format file is not one.
	ErrFormat = errors.New("unknown on-disk format")

	// ErrPlanted: .untorn is not what untorn would have made: a symlink, not a directory, another owner, or open to
	// others. It is never followed or used.
	ErrPlanted = errors.New(".untorn was not made by untorn")

	// ErrNotDir: the backing is not a directory.
	ErrNotDir = errors.New("not a directory")

	// ErrReadOnly: the backing cannot be written, so nothing can be staged on it.
	ErrReadOnly = errors.New("the backing is read-only")

	// ErrOwner: the daemon has no right to give a replacement the owner of the file that it replaces.
	ErrOwner = errors.New("no right to keep the owner of the file that is replaced")

	// ErrNoEntry: no salvage entry has the given id.
	ErrNoEntry = errors.New("no such salvage entry")

	// ErrExists: restoring would replace an existing file, and was not told to.
	ErrExists = errors.New("the file exists")
)

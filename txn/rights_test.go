package txn

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAsCaller: the backing refuses what it would refuse the caller, whoever the daemon is, and afterwards the thread is
// what it was.
func TestAsCaller(t *testing.T) {
	root(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	dir := t.TempDir()
	open := func(name string, uid, gid int, mode uint32) int {
		path := filepath.Join(dir, name)
		write(t, path, "x")
		must(t, os.Chown(path, uid, gid))
		must(t, unix.Chmod(path, mode))
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		must(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	mine, theirs, team := open("mine", 1234, 1234, 0o644), open("theirs", 1235, 1235, 0o604), open("team", 1235, 77, 0o660)
	before := read(t, "/proc/thread-self/status")
	sys := Linux{}
	for _, c := range []struct {
		what string
		caps uint64
		do   func() error
		want error
	}{
		{"chmod", 0, func() error { return sys.Chmod(mine, 0o4755) }, nil},
		{"chmod of theirs", 0, func() error { return sys.Chmod(theirs, 0o4755) }, unix.EPERM},
		{"with CAP_FOWNER", 1 << unix.CAP_FOWNER, func() error { return sys.Chmod(theirs, 0o604) }, nil},
		{"chown", 0, func() error { return sys.Chown(mine, 0, -1) }, unix.EPERM},
		{"chgrp to a group of his", 0, func() error { return sys.Chown(mine, -1, 77) }, nil},
		{"chgrp to another", 0, func() error { return sys.Chown(mine, -1, 78) }, unix.EPERM},
		{"with CAP_CHOWN", 1 << unix.CAP_CHOWN, func() error { return sys.Chown(mine, -1, 1234) }, nil},
		{"read theirs", 0, func() error { return reopen(theirs, unix.O_RDONLY) }, nil},
		{"write theirs", 0, func() error { return reopen(theirs, unix.O_RDWR) }, unix.EACCES},
		{"write the team's", 0, func() error { return reopen(team, unix.O_RDWR) }, nil},
		{"touch theirs", 0, func() error { return sys.Utimes(theirs, longAgo, longAgo) }, unix.EPERM},
		{"xattr of theirs", 0, func() error { return sys.Setxattr(theirs, "user.x", nil, 0) }, unix.EACCES},
	} {
		err := sys.AsCaller(Rights{Cred: Cred{1234, 1234}, Groups: []uint32{77}, Capabilities: c.caps}, c.do)
		if err != c.want {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
	}
	for _, key := range []string{"Uid:", "Gid:", "Groups:", "CapEff:", "CapPrm:"} {
		equal(t, key, line(read(t, "/proc/thread-self/status"), key), line(before, key))
	}
}

func reopen(fd, flags int) error {
	fd, err := Linux{}.Reopen(fd, flags)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// line is the line of a text that begins like that.
func line(text, key string) string {
	for l := range strings.Lines(text) {
		if strings.HasPrefix(l, key) {
			return l
		}
	}
	return ""
}

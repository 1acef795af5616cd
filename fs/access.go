package fs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"untorn/txn"
	"untorn/txn/proc"
)

// asCaller runs do, a change of attributes of the file behind fd, with the rights of the caller alone. The kernel has
// checked them already (default_permissions), but against the attributes that it remembers: for as long as Options.Cache,
// and for good behind a descriptor, since fchmod(2) asks for nothing again (setattr_prepare). If the file was given to
// somebody else meanwhile, on the backing or through another mount, its former owner could make it a setuid program of
// the new one. Here the backing decides, by what the file is at that moment.
//
// owner: only the owner may make this change. That is all that is looked at where the daemon cannot become the caller.
func (f *FS) asCaller(in *fuse.InHeader, fd int, owner bool, do func() error) error {
	if in.Uid == 0 || in.Uid == f.uid {
		return do() // it has the rights of the daemon, or could take them
	}
	if r, ok := f.rights(f.caller(in), fd); ok {
		return f.o.Sys().AsCaller(r, do)
	}
	var st unix.Statx_t
	if err := f.o.Sys().Stat(fd, "", &st); err != nil {
		return err
	}
	if owner && st.Uid != in.Uid {
		return unix.EPERM
	}
	return do()
}

// rights finds out what a caller may do by himself to the file behind fd. ok is false if the daemon is not privileged
// itself, or does not see him, because he is in another pid namespace.
func (f *FS) rights(c txn.Caller, fd int) (r txn.Rights, ok bool) {
	if !mayBecome() || c.Tid == 0 {
		return r, false
	}
	groups, capabilities, err := proc.Rights(c.Tid)
	if err != nil {
		return r, false
	}
	if capabilities != 0 {
		var st unix.Statx_t
		if f.o.Sys().Stat(fd, "", &st) != nil || !proc.Knows(c.Tid, st.Uid, st.Gid) {
			capabilities = 0
		}
	}
	return txn.Rights{Cred: c.Cred, Groups: groups, Capabilities: capabilities}, true
}

var mayBecome = sync.OnceValue(txn.MayBecome)

// right is what a caller may do to a file.
type right uint8

const (
	granted right = iota
	denied
	unclear
)

// mayOpen checks the right to open a staged file in the place of the kernel, which checks none in CREATE, because it takes
// the name for free. (Otherwise the kernel does, see default_permissions.)
func (f *FS) mayOpen(m *node, flags uint32, c txn.Caller) (may right) {
	sys, access := f.o.Sys(), int(flags)&unix.O_ACCMODE
	if flags&unix.O_TRUNC != 0 && access == unix.O_RDONLY {
		access = unix.O_RDWR
	}
	err := f.withFd(m, func(fd int) error {
		try := func() error {
			opened, err := sys.Reopen(fd, access)
			if err == nil {
				sys.Close(opened)
			}
			return err
		}
		if r, ok := f.rights(c, fd); ok {
			return sys.AsCaller(r, try)
		}
		if c.Uid == f.uid {
			return try()
		}
		return txn.ErrStale
	})
	switch err {
	case nil:
		return granted
	case unix.EACCES:
		return denied
	}
	return unclear
}

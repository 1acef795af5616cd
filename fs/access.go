package fs

import (
	"slices"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"untorn/txn"
	"untorn/txn/proc"
)

// right is what a caller may do to a file, as far as the mode bits tell.
type right uint8

const (
	granted right = iota
	denied
	unclear // an ACL decides
)

// asCaller runs do, a change of attributes of the file behind fd, with the rights of the caller alone. The kernel has
// checked them already (default_permissions), but against the attributes that it remembers: for as long as Options.Cache,
// and for good behind a descriptor, since fchmod(2) asks for nothing again (setattr_prepare). If the file was given to
// somebody else meanwhile, on the backing or through another mount, its former owner could make it a setuid program of
// the new one. Here the backing decides, by what the file is at that moment.
//
// owner: only the owner may make this change. That is all that is looked at where a daemon cannot become the caller, or
// does not see him because he is in another pid namespace.
func (f *FS) asCaller(in *fuse.InHeader, fd int, owner bool, do func() error) error {
	if in.Uid == 0 || in.Uid == f.uid {
		return do() // no other can own it that the daemon could change it for
	}
	var st unix.Statx_t
	if err := f.o.Sys().Stat(fd, "", &st); err != nil {
		return err
	}
	r := txn.Rights{Cred: txn.Cred{Uid: in.Uid, Gid: in.Gid}}
	err := error(unix.ESRCH)
	if mayBecome() && in.Pid != 0 {
		r.Groups, r.Capabilities, err = proc.Rights(in.Pid)
	}
	if err != nil {
		if owner && st.Uid != in.Uid {
			return unix.EPERM
		}
		return do()
	}
	if r.Capabilities != 0 && !proc.Knows(in.Pid, st.Uid, st.Gid) {
		r.Capabilities = 0
	}
	return f.o.Sys().AsCaller(r, do)
}

var mayBecome = sync.OnceValue(txn.MayBecome)

// mayOpen checks the right to open a staged file in the place of the kernel, which checks none in CREATE, because it takes
// the name for free. (Otherwise the kernel does, see default_permissions.)
func (f *FS) mayOpen(m *node, flags uint32, c txn.Caller) right {
	var st unix.Statx_t
	if c.Uid == 0 {
		return granted
	}
	if m.staged.Stat(&st) != nil {
		return unclear
	}
	want := map[uint32]uint16{unix.O_RDONLY: 4, unix.O_WRONLY: 2, unix.O_RDWR: 6}[flags&unix.O_ACCMODE]
	if flags&unix.O_TRUNC != 0 {
		want |= 2
	}
	if st.Uid == c.Uid {
		return allows(st.Mode>>6, want)
	}
	acl := f.withFd(m, func(fd int) error {
		_, err := f.o.Sys().Getxattr(fd, "system.posix_acl_access", nil)
		return err
	})
	if acl != unix.ENODATA && acl != unix.EOPNOTSUPP {
		return unclear
	}
	groups, _, err := proc.Rights(c.Tid)
	if st.Gid == c.Gid || slices.Contains(groups, st.Gid) {
		return allows(st.Mode>>3, want)
	}
	if err != nil {
		return unclear
	}
	return allows(st.Mode, want)
}

func allows(bits, want uint16) right {
	if bits&want == want {
		return granted
	}
	return denied
}

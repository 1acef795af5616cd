package fs

import (
	"slices"

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
	groups, err := proc.Groups(c.Tid)
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

package txn

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// adopt takes over attributes that the version got since it was staged, by chmod or chown of the path: they belong to
// the path, and it keeps them. What a writer set himself stays, unless the file was given to somebody else meanwhile: a
// former owner has no say in what it looks like. ErrOwner: somebody else's file was put there.
func (st *Staged) adopt() error {
	st.mu.Lock()
	if len(st.places) == 0 || st.over != (Ident{}) {
		st.mu.Unlock()
		return nil
	}
	at, keep, last := st.places[0], st.set, cmp.Or(st.adopted, st.base)
	st.mu.Unlock()
	sys := st.o.sys
	var now unix.Statx_t
	err := sys.Stat(at.dir.fd, at.name, &now)
	if err == unix.ENOENT || (err == nil && (IdentOf(&now) == last.id && bare(now.Ctime) == last.ctime || !IsRegular(&now))) {
		return nil // gone, or as it was, or nothing that a file can be renamed to
	}
	if err == nil {
		err = st.adoptFrom(at, keep)
	}
	if err != nil {
		return fmt.Errorf("keeping the attributes of the version: %w", err)
	}
	return nil
}

func (st *Staged) adoptFrom(at place, keep attrs) error {
	sys := st.o.sys
	fd, err := sys.Open(at.dir.fd, at.name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	var now, own unix.Statx_t
	if err := sys.Stat(fd, "", &now); err != nil {
		return err
	}
	if err := sys.Stat(st.fd, "", &own); err != nil {
		return err
	}
	st.mu.Lock()
	base := st.base
	st.adopted = versionOf(&now)
	st.mu.Unlock()
	if IdentOf(&now) != base.id {
		if now.Uid != own.Uid && st.cred.Uid != 0 {
			// The writer had a right to the file that was there, but none to replace this one.
			return ErrOwner
		}
		if st.kind == New || now.Uid != own.Uid || now.Gid != own.Gid {
			return nil
		}
	} else if now.Uid != base.owner.Uid {
		keep = 0
	}
	if err := copyAttributes(sys, fd, st.fd, keep); err != nil {
		return err
	}
	if st.cred.Uid != 0 && keep&setMode == 0 {
		return DropPrivilege(sys, st.fd, st.cred) // it was written to
	}
	return nil
}

// copyAttributes gives dst the owner, mode, xattrs and ACLs of src, except those in keep. src may be O_PATH. ErrOwner:
// there is no right to set the owner; dst must then not replace src.
func copyAttributes(sys Sys, src, dst int, keep attrs) error {
	var from, to unix.Statx_t
	if err := sys.Stat(src, "", &from); err != nil {
		return err
	}
	if err := sys.Stat(dst, "", &to); err != nil {
		return err
	}
	if keep&setOwner == 0 && (from.Uid != to.Uid || from.Gid != to.Gid) {
		err := sys.Chown(dst, int(from.Uid), int(from.Gid))
		if err == unix.EPERM {
			return ErrOwner
		}
		if err != nil {
			return fmt.Errorf("setting the owner: %w", err)
		}
	}
	if keep&setXattr == 0 {
		if err := copyXattrs(sys, src, dst); err != nil {
			return err
		}
	}
	// After the owner, because chown clears setuid and setgid, and after the ACL, whose mask is part of the mode.
	if keep&setMode == 0 {
		if err := sys.Chmod(dst, uint32(from.Mode)&0o7777); err != nil {
			return fmt.Errorf("setting the mode: %w", err)
		}
	}
	return nil
}

// copyXattrs makes the extended attributes of dst those of src. security.capability is left out: any write removes it.
// What the daemon may not read or set (trusted.* without privileges) and what the filesystem keeps for itself is passed
// by.
func copyXattrs(sys Sys, src, dst int) error {
	want, err := xattrs(sys, src)
	if err != nil {
		return fmt.Errorf("listing extended attributes: %w", err)
	}
	have, err := xattrs(sys, dst)
	if err != nil {
		return fmt.Errorf("listing extended attributes: %w", err)
	}
	for _, name := range want {
		have = slices.DeleteFunc(have, func(n string) bool { return n == name })
		if name == "security.capability" {
			continue
		}
		value, err := xattr(sys, src, name)
		switch err {
		case nil:
		case unix.ENODATA, unix.EPERM, unix.EACCES, unix.EOPNOTSUPP:
			continue
		default:
			return fmt.Errorf("reading extended attribute %s: %w", name, err)
		}
		err = sys.Setxattr(dst, name, value, 0)
		if err != nil && err != unix.EPERM && err != unix.EOPNOTSUPP && err != unix.EACCES {
			return fmt.Errorf("setting extended attribute %s: %w", name, err)
		}
	}
	for _, name := range have {
		if !strings.HasPrefix(name, "security.") {
			sys.Removexattr(dst, name)
		}
	}
	return nil
}

// xattrs lists the names of the extended attributes of a file; a filesystem without any has none.
func xattrs(sys Sys, fd int) ([]string, error) {
	var small [256]byte
	buf := small[:]
	for {
		n, err := sys.Listxattr(fd, buf)
		if err == unix.EOPNOTSUPP {
			return nil, nil
		}
		if err == unix.ERANGE {
			buf = make([]byte, 64<<10) // XATTR_LIST_MAX
			continue
		}
		if err != nil || n == 0 {
			return nil, err
		}
		return strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00"), nil
	}
}

func xattr(sys Sys, fd int, name string) ([]byte, error) {
	var small [256]byte
	n, err := sys.Getxattr(fd, name, small[:])
	if err == nil {
		return small[:n:n], nil
	}
	if err != unix.ERANGE {
		return nil, err
	}
	buf := make([]byte, 64<<10) // XATTR_SIZE_MAX
	n, err = sys.Getxattr(fd, name, buf)
	return buf[:max(n, 0)], err
}

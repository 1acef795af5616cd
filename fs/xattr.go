package fs

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// ControlXattr, asked of the root of a mount by the user who runs it or by root, tells who serves it: JSON, see Control.
// It is how the command line reaches the backing when untorn is mounted over it.
const ControlXattr = "user.untorn.control"

// GetXAttr implements fuse.RawFileSystem.
func (f *FS) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	n := f.nodes.get(in.NodeId)
	defer f.nodes.put(n)
	if n == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	if n == f.nodes.root && attr == ControlXattr {
		return f.control(in, dest)
	}
	var size int
	err := f.withFd(n, func(fd int) (err error) {
		size, err = f.o.Sys().Getxattr(fd, attr, dest)
		return err
	})
	return uint32(max(size, 0)), f.answer(in, err)
}

// control answers for ControlXattr.
func (f *FS) control(in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if in.Uid != f.uid && in.Uid != 0 {
		return 0, fuse.ENODATA
	}
	about := *f.about.Load()
	about.DataPath = f.dataPath()
	text, err := json.Marshal(about)
	if err != nil {
		return 0, fuse.EIO
	}
	if len(dest) == 0 {
		return uint32(len(text)), fuse.OK
	}
	if len(dest) < len(text) {
		return uint32(len(text)), fuse.ERANGE
	}
	return uint32(copy(dest, text)), fuse.OK
}

// ListXAttr implements fuse.RawFileSystem. What only CAP_SYS_ADMIN may see the daemon sees; others do not get it listed.
func (f *FS) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n := f.nodes.get(in.NodeId)
	defer f.nodes.put(n)
	if n == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	buf := make([]byte, 64<<10) // XATTR_LIST_MAX
	var size int
	err := f.withFd(n, func(fd int) (err error) {
		size, err = f.o.Sys().Listxattr(fd, buf)
		return err
	})
	if err != nil {
		return 0, f.answer(in, err)
	}
	list := buf[:size]
	if in.Uid != 0 && bytes.Contains(list, []byte("trusted.")) {
		var kept []byte
		for name := range strings.SplitAfterSeq(string(list), "\x00") {
			if !strings.HasPrefix(name, "trusted.") {
				kept = append(kept, name...)
			}
		}
		list = kept
	}
	if len(dest) == 0 {
		return uint32(len(list)), fuse.OK
	}
	if len(dest) < len(list) {
		return uint32(len(list)), fuse.ERANGE
	}
	return uint32(copy(dest, list)), fuse.OK
}

// SetXAttr implements fuse.RawFileSystem.
func (f *FS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	n := f.nodes.get(in.NodeId)
	defer f.nodes.put(n)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	acl := attr == "system.posix_acl_access"
	if n.staged != nil {
		n.staged.MarkSet(acl, false, true)
	}
	return f.answer(&in.InHeader, f.withFd(n, func(fd int) error {
		sys := f.o.Sys()
		err := f.asCaller(&in.InHeader, fd, ofOwner(attr), func() error { return sys.Setxattr(fd, attr, data, int(in.Flags)) })
		if err != nil {
			return err
		}
		if acl && in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0 {
			var st unix.Statx_t
			if err := sys.Stat(fd, "", &st); err != nil {
				return err
			}
			return sys.Chmod(fd, uint32(st.Mode)&0o7777&^unix.S_ISGID)
		}
		return nil
	}))
}

// RemoveXAttr implements fuse.RawFileSystem.
func (f *FS) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, attr string) fuse.Status {
	n := f.nodes.get(in.NodeId)
	defer f.nodes.put(n)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	if n.staged != nil {
		n.staged.MarkSet(false, false, true)
	}
	return f.answer(in, f.withFd(n, func(fd int) error {
		return f.asCaller(in, fd, ofOwner(attr), func() error { return f.o.Sys().Removexattr(fd, attr) })
	}))
}

// ofOwner reports whether an extended attribute is for the owner to change: an ACL. All others are for those who may
// write, or need a capability.
func ofOwner(attr string) bool { return strings.HasPrefix(attr, "system.") }

// Package fs serves a txn.Overlay to the kernel through FUSE. It translates: requests into calls of txn, its errors into
// errnos (errno.go has the one table). Whatever has to be decided about staging is decided in txn. Files are named by
// nodes, and nodes by (directory, name) or a descriptor; there is no path string in here.
//
// # Two nodes for one name
//
// The kernel keeps page cache, size and passthrough backing per inode. A writer must therefore not share an inode with the
// readers of its path: the staged file is a node of its own (redirect.go), and becomes the node of the version when it is
// published, under the same id, so that what the kernel has cached of it stays good. The version that it replaced goes on
// serving those who have it open.
//
// An open for write of version N is answered with ESTALE. The VFS then repeats the path walk with LOOKUP_REVAL, once, from
// the same thread (do_filp_open in fs/namei.c), and a FUSE request names the thread; so the next lookup of that name by
// that thread is answered with the staged node, and the open arrives there. truncate(2) repeats in the same way
// (do_sys_truncate). If it comes again without a lookup, through /proc/self/fd or a bind mount of one file, it is served
// on N with FOPEN_DIRECT_IO; EBUSY if others have N open with passthrough and a mapping is possible, because that would
// reach the version.
//
// The kernel repeats only once. So that a name which is being replaced all the time does not give ESTALE to programs, what
// a thread looks up after it was told ESTALE is pinned by a descriptor (pin.go), and attributes that are asked for right
// after a lookup come from it if the version is gone by then (node.found).
//
// # Caching
//
// Entries and attributes are cached for Options.Cache, except where something is staged for the name: then for exactly 0,
// both for the version and for the staged file. (1 ns is rounded up to a jiffy, and somebody else would reach the staged
// file through the dentry.) Then publishing needs no invalidation. NOTIFY_INVAL_ENTRY before an ESTALE saves the kernel one
// of two lookups; it is sent while no lock is held, and never from CREATE, whose caller holds the lock of the directory.
//
// # Rights
//
// The kernel checks rights (default_permissions) against the attributes and ACLs that it remembers: for Options.Cache where
// a path is walked or a file opened, and as long as a descriptor is open where that is changed by fchmod(2) and the like.
// The daemon of root could do anything, so it makes changes of attributes and hard links as the caller (asCaller), and
// what CREATE joins is opened as him first (mayOpen).
//
// # Locks
//
// redirects.mu, pins.mu, files.mu and nodes.mu are taken alone, for a few instructions. node.mu is held while a file of the
// node is opened or closed and comes before nodes.mu; it is let go before anything is published, because txn takes locks
// of directories then, which lookups hold while they ask for nodes.
//
// # Kernel behaviour that this relies on
//
// Verified on Linux 6.18 with go-fuse v2.12.1 unless another source is given.
//
//   - CAP_ATOMIC_O_TRUNC delivers O_TRUNC in OPEN. Without it the kernel sends SETATTR afterwards, too late to know that
//     nothing of the base is needed.
//   - CAP_DONT_MASK: the umask comes with the request, and is applied only where the directory has no default ACL.
//   - CAP_HANDLE_KILLPRIV_V2: clearing setuid and setgid is ours. All writes, truncations and passthrough registrations run
//     as the caller and without CAP_FSETID, so that the backing filesystem does it.
//   - CAP_POSIX_ACL with default_permissions: the kernel checks rights, ACLs included, against the attributes that we give.
//   - Locks stay in the kernel, on the node: a blocked one can be killed. A lock on a descriptor that reads the version and
//     one that writes the staged file are on two nodes and do not meet.
//   - While a file of a node is open with passthrough, all must be, with one backing id (fs/fuse/iomode.c): node.backing.
//   - fallocate passes only KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE (fuse_file_fallocate), files end at 2^63-1 whatever the
//     backing allows, and with passthrough clearing O_APPEND by fcntl(2) has no effect. Nothing can be done about these here.
//   - ioctls are refused (F15): as root and for anybody they would reach the backing, down to its shutdown.
package fs

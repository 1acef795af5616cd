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
// file through the dentry.) Then publishing needs no invalidation.
//
// Here measurement went against the design (F3): NOTIFY_INVAL_ENTRY before an ESTALE saves the kernel one of two lookups,
// up to a tenth of an open, write and close, and is not used. In it a thread of ours waits, uninterruptibly, for the inode
// lock of the directory (fuse_reverse_inval_entry in fs/fuse/dir.c), whose holder may wait for an answer of ours. If we are
// killed just then, that answer never comes, the thread never ends, and because of it the connection is never closed: in 5
// of about 190 kills under load the mount hung for good.
//
// # Nothing here waits for the own mount
//
// For the same reason nothing in the serving process does anything that the kernel would ask us about: no stat, statfs or
// poll of the mountpoint (go-fuse's WaitMount does one), no umount(2), which may wait for pages that we have to write. Who
// makes mounts, puts them in their place, probes and ends them is the supervisor; a Server gets a connection. The one
// notification left, InodeNotify for attributes of a directory, takes no lock of an inode.
//
// # When the serving process dies
//
// The kernel ends the connection when its last descriptor is closed: whoever waits for an answer gets ECONNABORTED, and
// then everybody ENOTCONN. (A thread that is in an fsync of a slow disk holds it until that returns.) The next process
// recovers what was staged, and its mount takes the place of the dead one (see cmd/untorn/replace.go). Descriptors that were open stay on the dead mount. With passthrough their reads and writes go on
// to the backing file, which for a staged file is in the salvage then; fsync and close return ENOTCONN. A database is a
// version, and locks live on the dead mount, so it is refused to writers until those have closed it (txn.ErrRival).
//
// What would keep open descriptors alive as well: the supervisor would hold a duplicate of the connection, so that it is
// not ended; the next process would read from it, and FUSE_NOTIFY_RESEND (Linux 6.9) would bring it the requests that were
// taken and not answered. (FUSE_DEV_IOC_CLONE, and FUSE_DEV_IOC_BACKING_OPEN, work on the same descriptor.) The kernel goes
// on to use the node ids, file handles and backing ids that the dead process gave it, so all of that state (nodes, files,
// redirects, and each staged file with its writers) would have to be outside of the process at every answer, and requests
// would have to be repeatable: a RENAME or FLUSH that was carried out and not answered comes again. That is a journal of
// its own on the path of every lookup and open; and half of the reasons to die, a fault in our own state, would be handed
// on to the next process with that state. Not done: what was staged is kept, and the mount answers again.
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
// redirects.mu, pins.mu, files.mu and nodes.mu are taken for a few instructions, the first before the last, the others
// alone. node.mu is held while a file of the node is opened or closed and comes before nodes.mu; it is let go before
// anything is published, because txn takes locks of directories then, which lookups hold while they ask for nodes.
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

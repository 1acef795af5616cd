// Package txn makes writes to a directory tree atomic. It stages each file that is opened for write in a hidden temp,
// publishes it when its last writer closes it, and keeps what is not published. It decides; package fs, above it,
// translates the requests of the kernel into calls of this package and its errors into errnos. It knows nothing of FUSE.
//
// # What is guaranteed
//
// A name never leads to a version that its writer had not finished, on the backing or through the mount: a version comes
// to its name by one rename of a temp that is complete. A version is never written again. (Exceptions are files that the
// rules open in place, and the moment described at TakeBack.)
//
// Who closes last decides. If that process died by a signal, or exited with 128+n as shells do for a child killed by
// signal n, or if a write failed, the staged file goes to the salvage and the old version stays. Everything else
// publishes. With Full, a close that returned 0 survives a power cut.
//
// Nothing is lost: a staged file ends as a version, as a salvage entry, or is dropped because it held nothing (never
// modified, empty, or unlinked by a program). After a crash of the daemon the temps are in the stage, and scan and apply
// bring them into the salvage.
//
// # A staged file
//
//	Preparing ──► Writing ──────────────► Publishing ──► Published ──► (TakeBack: Writing)
//	    │            │                     ▲      ├────► InPlace
//	    │            ▼ last name removed   │      ├────► Salvaged
//	    │         Detached ────────────────┘      └────► Dropped
//	    └─ failed ─────────────────────────────────────► Dropped
//
// It is New (its name had no version, and is reserved), Truncated (opened with O_TRUNC: private to the opener and its
// family), or Copied (with the bytes of the version: shared by all who open the name without O_TRUNC). Opens by a process
// that belongs to a staged file (the opener, its descendants, and who holds a descriptor) join that file, whatever its
// kind.
//
// # Lock order
//
// Dir.mu (several: by Dir.id, see lockDirs) → Staged.mu → Overlay.mu. Store.keepMu and noting come after Dir.mu and are
// never held while one of the others is taken. No lock is held while a process is looked at in /proc (but for the rename
// of reserved names), while bytes are copied, or during fsync. Overlay.mu is not held during any I/O: a filesystem below
// the backing that hangs must not keep those waiting who use another. Nothing here calls the kernel's FUSE side.
//
// # When is a close the last
//
// FLUSH comes for every close of a descriptor, RELEASE once, after the very last, but asynchronously: close(2) has
// returned before, and its result is ignored. So a staged file is published at a FLUSH that is provably the last, and
// otherwise at RELEASE; those who look its name up meanwhile wait some milliseconds for it. Provably the last means
//
//   - every writer (open file) had a FLUSH: without one it is open, or its descriptor is not yet in its caller's table;
//   - the closing process has no other descriptor of it, by fdinfo, and no shared writable mapping, by maps;
//   - nor has any process that opened it, nor any that was forked since: the newest pid in /proc/loadavg, remembered at
//     open, bounds those;
//   - something was modified; an untouched file may have been passed to an older process, and is left to RELEASE.
//
// Package proc says what may be read of a process while it waits for us.
//
// # Where measurement went against the design
//
//   - Full disks (F9b): one block beyond the end is not enough of a probe. On an ext4 with 1 KiB blocks a write of one page
//     failed with ENOSPC while two blocks stayed free, and the truncated file would have been published. The probe asks
//     for 128 KiB (see margin), as the writer's user: root may use reserved blocks, and so may a daemon of root.
//   - The last close (F8): the conditions as designed miss an open that has been answered but whose descriptor is not in
//     its caller's table yet. A close by another thread then published the file under it. Hence the first condition above.
//   - A descriptor that was sent to an older process after its sender had written is not covered by the condition that
//     something was modified. TakeBack is for that.
//   - setuid: with passthrough the kernel writes with the credentials of whoever registered the backing file, and keeps
//     setuid if that has CAP_FSETID. Registering with the opener's ids and without CAP_FSETID gives the native behaviour.
//
// # Filesystems
//
// A filesystem mounted below the backing, a bind mount, or a btrfs subvolume gets a .untorn of its own at its top
// (storeKey), because rename does not leave it. What lacks O_TMPFILE (overlayfs before Linux 6.2, NFS) gets new files by a
// twin of their directory in the stage; what lacks reflinks gets copies that keep holes; what lacks leases (F_SETLEASE)
// publishes at RELEASE although a mapping may be left.
package txn

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
// If the writer died by a signal, or exited with 128+n as shells do for a child killed by signal n, or if a write failed,
// the staged file goes to the salvage and the old version stays. Everything else publishes. With Full, a close that
// returned 0 survives a power cut.
//
// Nothing is lost: a staged file ends as a version, as a salvage entry, or is dropped because it held nothing (never
// modified, empty, or unlinked by a program). After a crash of the daemon the temps are in the stage, and scan and apply
// bring them into the salvage.
//
// # After a crash
//
// The daemon may die, or the power fail, at any system call, also in a recovery. Then, after the next recovery:
//
//   - No name leads to a torn version. (With None this holds only where the power stayed on, and so for all below.)
//   - With Full each name has the version of the last close that returned 0, or one whose close had not returned. With
//     Ordered it has one of the versions that it ever had, or none if there ever was none. What programs do to names
//     (rename, link, unlink, mkdir) is as durable as on the backing: an fsync of the directory makes it so, and so does
//     each publish in it with Full. If the power stayed on, the names are as they were at that call.
//   - Bytes that a writer fsynced are at their path, or in the salvage with their path, until they are replaced, unlinked
//     or purged: also those of a writer that was killed afterwards, and of a file that a forced restore replaces. If the
//     power stayed on, that holds for all that was written. Of what was not synced, a power cut may leave in the salvage
//     less, zeroes, or a mixture.
//   - Bytes whose fsync failed are never published by a close. The salvage has them as far as they can be read; a restore
//     of them cannot know whether a later fsync, which reports success, has written them.
//   - PublishOnFsync: the version is as durable as a close would have made it, the staged bytes survive in any case.
//   - Of a new file with several names, some may have been published. Then the staged file is in the salvage as well, as
//     one more name of the same inode.
//   - The stage is empty, each salvage entry has its record and each record its entry, and another recovery changes
//     nothing.
//
// This is taken from the filesystem: rename is atomic; operations on one inode, or on one name, reach the disk in their
// order, whatever others do; and the fsync of a directory makes the names in it durable, with that of the directory
// itself if it is new. Nothing is taken for durable because of an fsync of something else. crash_cut_test.go has a disk
// that gives no more than that, and the histories in this package are cut on it at every call.
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
// # Attributes
//
// A version takes over the owner, mode, xattrs and ACL of the one that it replaces: when it is staged, once more before the
// fsync, and, if there is something new, under the lock of the directory right before the rename (adopt). What a writer set
// himself stays, unless the file was given to another owner meanwhile. If nothing but attributes was changed, and the
// version has other names, the version itself gets them (adjust).
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
//   - no process that opened it is in exit(2) with its close yet to come: it has given up its table by then, but its FLUSH
//     is the later one, and says how it ended;
//   - something was modified; an untouched file may have been passed to an older process, and is left to RELEASE.
//
// None of these depends on how long anything takes: a busy machine makes a close slower, and no less exact. Package proc
// says what may be read of a process while it waits for us.
//
// # Who decides
//
// A process that opened the file itself (an opener) knows what it was to become; one that merely has a descriptor from
// its parent (an heir) does not. So
//
//   - the last opener to let go of the file decides if it was killed with the file open: the file is doomed, even if an
//     heir closes it later and ends well, and the close(2) of that heir fails with EIO, because nothing is published;
//   - otherwise the process that closes it last decides, opener or heir;
//   - an heir that is killed before others close decides nothing: `2> log` of a script;
//   - nor does an opener that is killed while another opener has the file: those who append to one file share its fate;
//   - nor a process that is killed after it has closed its last descriptor.
//
// Nobody but the family of a doomed file can join it: what others write goes into a file of their own. A file of which no
// descriptor was ever closed is dropped if it is untouched, since open(2) can fail after we have answered it (a signal),
// and otherwise its opener's end decides; if that is not known, it is salvaged.
//
// # Faults
//
// Each operation of Sys may fail at any time. What was there before then stands, whole; the caller is told, with the errno
// of the operation, unless the new version stands; and the bytes are in the salvage, or in the stage if that fails too.
// (TestFaults has every operation of every scene fail.) Two faults are no errors:
//
//   - No descriptor is left. Programs can use up those of the daemon, since each open file costs one. Opens then fail with
//     EMFILE. What ends a staged file uses the descriptors of package spare: it is published at its close as ever.
//   - The stage is removed by hand. A new one is made, and a file that was staged in the old one is published or salvaged
//     as a copy (lost.go). Only what goes on in place (a database) cannot be one: it goes to the salvage.
//
// # Recovery
//
// scan and apply may be cut at any call, and repeated: each file is under exactly one name that tells what becomes of it,
// and nothing that tells a path (the list of origins, a record) goes before what needs it is elsewhere. A record is durable
// before its bytes are moved to it. Whether something is left over or being made is told by locks, never by the clock: an
// instance of the stage is locked while its daemon lives, and .untorn and the salvage while somebody writes in them
// outside of one. A power cut may leave zeroes for what was not synced; lists and records lose no more by it than the
// lines that it hit. .untorn/clock remembers since when the clock has gone on without a jump, for the age of the salvage.
//
// # Where measurement went against the design
//
//   - Full disks (F9b): one block beyond the end is not enough of a probe. On an ext4 with 1 KiB blocks a write of one page
//     failed with ENOSPC while two blocks stayed free, and the truncated file would have been published. The probe asks
//     for 128 KiB (see margin), as the writer's user: root may use reserved blocks, and so may a daemon of root.
//   - The last close (F8): the conditions as designed miss an open that has been answered but whose descriptor is not in
//     its caller's table yet. A close by another thread then published the file under it. Hence the first condition above.
//   - Who decides (F9): not simply who closes last. Of a self-checksummed file with five writers that fork and are killed at
//     random, 1,573 of 8,823 looks found a half version that way: an heir had closed it and ended well.
//   - FLUSH does not come for every open that was answered: a signal can end open(2) in between, and RELEASE is all there
//     is. A new file was published empty then.
//   - A RELEASE may take longer than any bound on a busy machine, so that its absence is no evidence that a descriptor was
//     passed on. Files were taken back for nothing, and the next close of the same process published nothing.
//   - Inside execve (F8) /proc/TID/maps need not be read: the old memory is gone by the time that descriptors are closed,
//     and /proc/TID/status shows it.
//   - A descriptor that was sent to an older process after its sender had written is not covered by the condition that
//     something was modified. TakeBack is for that.
//   - setuid: with passthrough the kernel writes with the credentials of whoever registered the backing file, and keeps
//     setuid if that has CAP_FSETID. Registering with the opener's ids and without CAP_FSETID gives the native behaviour.
//
// # Filesystems
//
// A filesystem mounted below the backing, a bind mount, or a btrfs subvolume gets a .untorn of its own at its top
// (storeKey), because rename does not leave it. It is opened at first use and closed when the kernel has forgotten all
// directories there, so that the filesystem can be unmounted. What lacks O_TMPFILE (overlayfs before Linux 6.2, NFS), or
// cannot link such a file (FUSE servers), gets new files by a twin of their directory in the stage; what lacks reflinks
// gets copies that keep holes; what lacks leases (F_SETLEASE) publishes at RELEASE although a mapping may be left; what
// lacks hard links and RENAME_NOREPLACE has new names taken by an empty file (renameNew). FUSE filesystems are written to
// through the daemon: see WritesThrough.
package txn

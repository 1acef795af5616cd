package txn

import "golang.org/x/sys/unix"

// Ident is one inode for as long as it lives. Inode numbers alone do not do: ext4 gives the number of a replaced file to
// the next one at once. The birth time, where the filesystem has one (ext4, xfs, btrfs, tmpfs), tells them apart.
type Ident struct {
	Dev   uint64
	Ino   uint64
	Birth int64 // nanoseconds since the epoch, 0 if unknown
}

// IdentOf takes the identity out of a statx result.
func IdentOf(st *unix.Statx_t) Ident {
	id := Ident{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.Birth = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return id
}

// IsRegular reports whether a statx result is that of a regular file.
func IsRegular(st *unix.Statx_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFREG }

// version is what tells two states of one inode apart: any change of data or metadata moves the change time, which nobody
// can set.
type version struct {
	id           Ident
	ctime, mtime timestamp
	size, blocks uint64
	owner        Cred
	mode         uint32
}

func versionOf(st *unix.Statx_t) version {
	return version{
		IdentOf(st), bare(st.Ctime), bare(st.Mtime), st.Size, st.Blocks, Cred{st.Uid, st.Gid}, uint32(st.Mode) & 0o7777,
	}
}

// timestamp is one without padding, so that it compares with ==.
type timestamp = unix.StatxTimestamp

func bare(t unix.StatxTimestamp) timestamp { return timestamp{Sec: t.Sec, Nsec: t.Nsec} }

func timespec(t unix.StatxTimestamp) unix.Timespec {
	return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)}
}

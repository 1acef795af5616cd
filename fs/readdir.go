package fs

import (
	"sort"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"untorn/txn"
)

// stream is an open directory.
type stream struct {
	n  *node
	d  *txn.Dir
	mu sync.Mutex
	fd int // GUARDED_BY(mu)
	// pos is the offset of the backing directory that its next entry has; buf the entries read ahead from there.
	pos uint64 // GUARDED_BY(mu)
	buf []byte // GUARDED_BY(mu)
	mem []byte // GUARDED_BY(mu)
	// extra are names that the reader sees although they have no version. They come after all others, at offsets that no
	// filesystem uses: ext4 has hashes of 63 bits, others small numbers.
	extra []extra // GUARDED_BY(mu)
}

type extra struct {
	name string
	st   *txn.Staged
}

const (
	extraBase = uint64(1)<<63 - 1<<20 // the first offset of extra entries
	extraEnd  = uint64(1)<<63 - 1
)

// OpenDir implements fuse.RawFileSystem.
func (f *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return f.inDir(in.NodeId, func(n *node, d *txn.Dir) fuse.Status {
		fd, err := f.o.Sys().Reopen(d.Fd(), unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return status(err)
		}
		out.Fh = f.files.put(&stream{n: n, d: d, fd: fd})
		return fuse.OK
	})
}

// ReleaseDir implements fuse.RawFileSystem.
func (f *FS) ReleaseDir(in *fuse.ReleaseIn) {
	if s, _ := f.files.remove(in.Fh).(*stream); s != nil {
		f.o.Sys().Close(s.fd)
	}
}

// FsyncDir implements fuse.RawFileSystem.
func (f *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	s, _ := f.files.any(in.Fh).(*stream)
	if s == nil {
		return fuse.EBADF
	}
	return status(f.o.Sys().Fsync(s.fd))
}

// ReadDir implements fuse.RawFileSystem.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in, func(_ *stream, e fuse.DirEntry, _ *txn.Staged) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus implements fuse.RawFileSystem: a readdir that looks up what it lists.
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in, func(s *stream, e fuse.DirEntry, st *txn.Staged) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if e.Name == "." || e.Name == ".." {
			return true // a node of 0: nothing is looked up
		}
		if st != nil {
			m := f.nodes.ofStaged(st, s.n, e.Name)
			f.answerStaged(m, entry)
			f.nodes.put(m)
			return true
		}
		var t txn.Entry
		if s.d.Stat(e.Name, &t.Stat) == nil {
			t.Staged = s.d.HasStaged(e.Name)
			n := f.nodes.version(&t.Stat, s.n, e.Name)
			f.answerVersion(n, s.d, &t, entry)
			f.nodes.put(n)
		}
		return true
	})
}

// readDir gives the entries from an offset on to add, until it has no room.
func (f *FS) readDir(in *fuse.ReadIn, add func(*stream, fuse.DirEntry, *txn.Staged) bool) fuse.Status {
	s, _ := f.files.any(in.Fh).(*stream)
	if s == nil {
		return fuse.EBADF
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if in.Offset == 0 {
		s.list(f.caller(&in.InHeader))
	}
	if in.Offset < extraBase || in.Offset == extraEnd && len(s.extra) == 0 {
		full, err := s.backing(f, in.Offset, add)
		if err != nil || full {
			return status(err)
		}
	}
	start := uint64(0)
	if in.Offset >= extraBase && in.Offset < extraEnd {
		start = in.Offset - extraBase
	}
	for i := start; i < uint64(len(s.extra)); i++ {
		x := s.extra[i]
		e := fuse.DirEntry{Name: x.name, Ino: f.o.Ino(x.st.Ident().Dev, x.st.Ident().Ino), Mode: unix.S_IFREG, Off: extraBase + i + 1}
		if !add(s, e, x.st) {
			break
		}
	}
	return fuse.OK
}

// list notes what is reserved and visible to the reader at the beginning.
//
// LOCKS_REQUIRED(s.mu)
func (s *stream) list(c txn.Caller) {
	s.extra = s.extra[:0]
	for name, st := range s.d.Reserved(c) {
		s.extra = append(s.extra, extra{name, st})
	}
	sort.Slice(s.extra, func(i, j int) bool { return s.extra[i].name < s.extra[j].name })
}

// backing adds the entries of the backing directory from an offset on. full: add had no room left.
//
// LOCKS_REQUIRED(s.mu)
func (s *stream) backing(f *FS, off uint64, add func(*stream, fuse.DirEntry, *txn.Staged) bool) (full bool, err error) {
	sys := f.o.Sys()
	if off != s.pos || off == 0 {
		if _, err := sys.Seek(s.fd, int64(off), unix.SEEK_SET); err != nil {
			return false, err
		}
		s.pos, s.buf = off, nil
	}
	if s.mem == nil {
		s.mem = make([]byte, 32<<10)
	}
	for {
		if len(s.buf) == 0 {
			n, err := sys.Getdents(s.fd, s.mem)
			if err != nil || n == 0 {
				return false, err
			}
			s.buf = s.mem[:n]
		}
		var e fuse.DirEntry
		size := e.Parse(s.buf)
		if e.Name != txn.Hidden {
			if e.Name == ".." && s.n == f.nodes.root {
				e.Ino = s.d.Ident().Ino
			}
			if !add(s, e, nil) {
				return true, nil
			}
		}
		s.pos, s.buf = e.Off, s.buf[size:]
	}
}

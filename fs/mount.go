package fs

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"untorn/txn"
)

var (
	// ErrNoDevice: there is no /dev/fuse, or it cannot be opened.
	ErrNoDevice = errors.New("/dev/fuse is not usable")
	// ErrNotPermitted: the user may not mount, directly or by way of fusermount3.
	ErrNotPermitted = errors.New("no right to mount")
)

// MaxTransfer is the most that one read or write carries, and the option max_read of the mount.
const MaxTransfer = 1 << 20

// Options say how a mount behaves towards the kernel.
type Options struct {
	Cache         time.Duration // how long the kernel may remember names and attributes of what is not being written
	NoPassthrough bool
	ReadOnly      bool
	Source        string // the path of the backing, for people
	Supervisor    int    // the pid of the process that mounts again when this one dies; 0: there is none
	Version       string
	Log           *slog.Logger
}

// FS translates the requests of the kernel. It implements fuse.RawFileSystem rather than using go-fuse's package fs:
// which node answers a lookup depends on the thread that asks, an open may be answered by another node's, timeouts of 0
// must stay 0, and a table of small nodes is all the state there is to keep.
type FS struct {
	fuse.RawFileSystem // ENOSYS for what is not implemented

	o         *txn.Overlay
	opt       Options
	log       *slog.Logger
	server    *fuse.Server
	nodes     *nodes
	files     files
	redirects redirects
	pins      pins

	uid, gid    uint32 // of the daemon
	passthrough bool
	why         string // why there is no passthrough
	about       atomic.Pointer[Control]
}

// Control is what ControlXattr tells.
type Control struct {
	Pid        int    `json:"pid"`
	Supervisor int    `json:"supervisor"` // its pid, 0 if there is none
	BackingFd  int    `json:"backing_fd"` // of Pid
	Backing    string `json:"backing"`    // where it was when it was mounted
	BackingDev uint64 `json:"backing_dev"`
	BackingIno uint64 `json:"backing_ino"`
	Version    string `json:"version"`
	DataPath   string `json:"data_path"`
	Durability string `json:"durability"`
}

// Server serves one backing directory to the kernel. It is given the descriptor of a FUSE connection, and knows nothing of
// mountpoints: whoever serves a mount must not touch it (see doc.go, "Nothing here waits for the own mount").
type Server struct {
	fs     *FS
	served chan struct{}
}

// Open prepares to serve the directory behind the descriptor backing, which stays the caller's and must be kept open: what
// earlier daemons left is recovered, a stage is taken. The errors are those of txn.Open.
func Open(ctx context.Context, backing int, topt txn.Options, opt Options) (*Server, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	topt.Log = opt.Log
	topt.Passthrough = !opt.NoPassthrough && mayPassThrough()
	o, err := txn.Open(ctx, backing, topt)
	if err != nil {
		return nil, err
	}
	f := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		o:             o, opt: opt, log: opt.Log, nodes: newNodes(o.Root()),
		uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()),
		passthrough: topt.Passthrough,
	}
	f.redirects = redirects{byThread: map[thread]*redirect{}, nodes: f.nodes}
	f.pins = pins{sys: o.Sys(), stale: map[thread]staleness{}, held: map[uint64]*pin{}}
	switch {
	case opt.NoPassthrough:
		f.why = "it was turned off"
	case !topt.Passthrough:
		f.why = "it needs Linux 6.9 and CAP_SYS_ADMIN in the initial user namespace"
	}
	f.about.Store(&Control{
		Pid: os.Getpid(), Supervisor: opt.Supervisor, BackingFd: backing, Backing: opt.Source, Version: opt.Version,
		BackingDev: o.Root().Ident().Dev, BackingIno: o.Root().Ident().Ino, Durability: topt.Durability.String(),
	})
	return &Server{fs: f, served: make(chan struct{})}, nil
}

// Serve takes over the descriptor of a FUSE connection, whose mount has the given device number, and returns when the
// kernel and we have agreed on how to talk. From then on requests are answered, until the mount has ended.
func (s *Server) Serve(connection int, device uint64) error {
	f := s.fs
	f.o.Mounted(device)
	var fst unix.Statfs_t
	if err := f.o.Sys().Statfs(f.o.Root().Fd(), &fst); err != nil {
		unix.Close(connection)
		return fmt.Errorf("looking at the filesystem of the backing: %w", err)
	}
	// This name is go-fuse's way to be given a descriptor.
	server, err := fuse.NewServer(f, "/dev/fd/"+strconv.Itoa(connection), f.kernelOptions(&fst))
	if err != nil {
		return fmt.Errorf("talking to the kernel: %w", err)
	}
	go func() {
		server.Serve()
		f.pins.close()
		if err := f.o.Close(); err != nil {
			f.log.Error("giving the stage back", "err", err)
		}
		close(s.served)
	}()
	return nil
}

// Undo is for a Server that was given no connection: what Open made on disk is removed.
func (s *Server) Undo() error { return s.fs.o.Undo() }

// Alone notes that the supervisor has gone.
func (s *Server) Alone() {
	c := *s.fs.about.Load()
	c.Supervisor = 0
	s.fs.about.Store(&c)
}

// mayPassThrough reports whether this process may register backing files: CAP_SYS_ADMIN in the initial user namespace
// (fuse_backing_open in fs/fuse/backing.c). Whether the kernel can is seen in Init.
func mayPassThrough() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil || data[0].Effective&(1<<unix.CAP_SYS_ADMIN) == 0 {
		return false
	}
	ns, err := os.Readlink("/proc/self/ns/user")
	const initial = "user:[4026531837]" // PROC_USER_INIT_INO, include/linux/proc_ns.h
	return err == nil && ns == initial
}

// kernelOptions are those that are agreed upon with the kernel once the mount is made.
func (f *FS) kernelOptions(fst *unix.Statfs_t) *fuse.MountOptions {
	o := &fuse.MountOptions{
		Name: "untorn",
		// Asynchronous requests in flight: read-ahead, and RELEASE.
		MaxBackground: 64,
		MaxWrite:      MaxTransfer,
		EnableAcl:     true,
		DisableSplice: true,
		Logger:        log.New(goFuseLog{f.log}, "", 0),
		MaxStackDepth: 1,
		PanicHandler: func(v any) fuse.Status {
			f.log.Error("a request met a fault in untorn; it failed with EIO", "fault", fmt.Sprint(v), "stack", string(debug.Stack()))
			return fuse.EIO
		},
		ExtraCapabilities: fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_DONT_MASK |
			fuse.CAP_SETXATTR_EXT | fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_ASYNC_DIO,
		// Without these, the first failing open of any file would be the last that we are asked for.
		DisabledCapabilities: fuse.CAP_NO_OPEN_SUPPORT | fuse.CAP_NO_OPENDIR_SUPPORT,
	}
	if !f.passthrough {
		o.DisabledCapabilities |= fuse.CAP_PASSTHROUGH
	}
	if fst.Type == unix.OVERLAYFS_SUPER_MAGIC {
		o.MaxStackDepth = 2 // its files are stacked already (F6)
	}
	return o
}

// Init implements fuse.RawFileSystem. The connection is set up now, so passthrough can be tried.
func (f *FS) Init(s *fuse.Server) {
	f.server = s
	if !f.passthrough {
		return
	}
	if err := f.tryPassthrough(); err != nil {
		f.why = err.Error()
		f.passthrough = false
		f.o.NoPassthrough()
	}
}

func (f *FS) tryPassthrough() error {
	if f.server.KernelSettings().Flags64()&fuse.CAP_PASSTHROUGH == 0 {
		return errors.New("it needs Linux 6.9")
	}
	if f.o.ReadOnly() {
		return nil
	}
	if f.o.WritesThrough(f.o.Root()) {
		return errors.New("the backing is itself a FUSE filesystem, whose failed writes would not be seen")
	}
	fd, err := f.o.Scratch()
	if err != nil {
		return err
	}
	defer f.o.Sys().Close(fd)
	id, errno := f.server.RegisterBackingFd(&fuse.BackingMap{Fd: int32(fd)})
	if errno != 0 {
		return fmt.Errorf("the kernel refuses it for this filesystem: %w", errno)
	}
	f.server.UnregisterBackingFd(id)
	return nil
}

// OnUnmount implements fuse.RawFileSystem.
func (f *FS) OnUnmount() {}

func (f *FS) String() string { return "untorn" }

func (f *FS) dataPath() string {
	if f.passthrough {
		return "passthrough"
	}
	return "plain"
}

// DataPath tells how file contents travel: "passthrough", or "plain" and why. It is known once the Server serves.
func (s *Server) DataPath() (path, why string) { return s.fs.dataPath(), s.fs.why }

// ReadOnly reports whether the mount is to pass only reads.
func (s *Server) ReadOnly() bool { return s.fs.opt.ReadOnly || s.fs.o.ReadOnly() }

// Overlay is what is being served.
func (s *Server) Overlay() *txn.Overlay { return s.fs.o }

// Wait returns when the mount has ended, by whatever hand, and everything is given back.
func (s *Server) Wait() { <-s.served }

// goFuseLog passes what go-fuse has to say on to our log.
type goFuseLog struct{ log *slog.Logger }

func (l goFuseLog) Write(p []byte) (int, error) {
	l.log.Debug("go-fuse", "text", string(p))
	return len(p), nil
}

// caller is who makes a request.
func (f *FS) caller(in *fuse.InHeader) txn.Caller {
	return txn.Caller{Cred: txn.Cred{Uid: in.Uid, Gid: in.Gid}, Tid: in.Pid}
}

// thread is the same as a key of redirects.
func (f *FS) thread(in *fuse.InHeader) thread {
	return thread{tid: in.Pid, uid: in.Uid, gid: in.Gid}.key()
}

func (t thread) key() thread {
	if t.tid != 0 {
		return thread{tid: t.tid}
	}
	return t
}

// failed logs an error that is not everyday life.
func (f *FS) failed(what string, d *txn.Dir, name string, err error) {
	if _, plain := err.(unix.Errno); plain || errors.Is(err, txn.ErrStale) {
		return
	}
	f.log.Warn(what+" failed", "path", d.Path(name), "err", err)
}

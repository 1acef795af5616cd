package fs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"runtime/debug"
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

// Options say how a mount behaves towards the kernel.
type Options struct {
	Cache         time.Duration // how long the kernel may remember names and attributes of what is not being written
	NoPassthrough bool
	AllowOther    bool // users other than the one who mounts may use it, with their own rights
	ReadOnly      bool
	Source        string // what /proc/mounts shows
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
	controlText []byte
}

// Control is what ControlXattr tells.
type Control struct {
	Pid        int    `json:"pid"`
	BackingFd  int    `json:"backing_fd"`
	Backing    string `json:"backing"`
	Version    string `json:"version"`
	DataPath   string `json:"data_path"`
	Durability string `json:"durability"`
}

// Mounted is a mount that is being served.
type Mounted struct {
	fs         *FS
	mountpoint string
	served     chan struct{}
}

// Mount mounts the directory behind the descriptor backing, which stays the caller's and must be kept open, on
// mountpoint, and serves it. It returns when the mount answers. ErrNoDevice, ErrNotPermitted, and the errors of txn.Open;
// nothing is mounted then.
func Mount(ctx context.Context, backing int, mountpoint string, topt txn.Options, opt Options) (*Mounted, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if err := checkDevice(); err != nil {
		return nil, err
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
	f.pins = pins{sys: o.Sys(), stale: map[thread]time.Time{}, held: map[*node]*pin{}}
	switch {
	case opt.NoPassthrough:
		f.why = "it was turned off"
	case !topt.Passthrough:
		f.why = "it needs Linux 6.9 and CAP_SYS_ADMIN in the initial user namespace"
	}
	var fst unix.Statfs_t
	if err := o.Sys().Statfs(o.Root().Fd(), &fst); err != nil {
		o.Close()
		return nil, fmt.Errorf("looking at the filesystem of the backing: %w", err)
	}
	server, err := fuse.NewServer(f, mountpoint, f.mountOptions(&fst))
	if err != nil {
		o.Undo()
		return nil, fmt.Errorf("%w: %w", ErrNotPermitted, err)
	}
	f.controlText, _ = json.Marshal(Control{
		Pid: os.Getpid(), BackingFd: backing, Backing: opt.Source, Version: opt.Version,
		DataPath: f.dataPath(), Durability: topt.Durability.String(),
	})
	m := &Mounted{fs: f, mountpoint: mountpoint, served: make(chan struct{})}
	go func() {
		server.Serve()
		f.pins.close()
		if err := o.Close(); err != nil {
			f.log.Error("giving the stage back", "err", err)
		}
		close(m.served)
	}()
	if err := server.WaitMount(); err != nil {
		server.Unmount()
		return nil, fmt.Errorf("waiting for the mount: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(mountpoint, &st); err == nil { // answered by the goroutines of the server
		o.Mounted(st.Dev)
	}
	return m, nil
}

// checkDevice finds out early that there is no way to mount. Users go through fusermount3, which opens the device with
// rights of its own.
func checkDevice() error {
	if os.Geteuid() != 0 {
		if _, err := os.Stat("/dev/fuse"); err != nil {
			return fmt.Errorf("%w: %w", ErrNoDevice, err)
		}
		return nil
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoDevice, err)
	}
	return unix.Close(fd)
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

// mountOptions are those of the kernel's side of the mount.
func (f *FS) mountOptions(fst *unix.Statfs_t) *fuse.MountOptions {
	o := &fuse.MountOptions{
		AllowOther: f.opt.AllowOther,
		FsName:     f.opt.Source,
		Name:       "untorn",
		Options:    []string{"default_permissions"},
		// Asynchronous requests in flight: read-ahead, and RELEASE.
		MaxBackground: 64,
		MaxWrite:      1 << 20,
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
	ro := f.opt.ReadOnly || f.o.ReadOnly()
	if f.uid != 0 {
		if ro {
			o.Options = append(o.Options, "ro")
		}
		return o
	}
	// As root the mount shows devices and setuid files as the backing does.
	o.DirectMountStrict = true
	o.DirectMountFlags = unix.MS_MGC_VAL
	for _, flag := range []struct {
		st int64
		ms uintptr
	}{{unix.ST_NOSUID, unix.MS_NOSUID}, {unix.ST_NODEV, unix.MS_NODEV}, {unix.ST_NOEXEC, unix.MS_NOEXEC}, {unix.ST_RDONLY, unix.MS_RDONLY}} {
		if fst.Flags&flag.st != 0 {
			o.DirectMountFlags |= flag.ms
		}
	}
	if ro {
		o.DirectMountFlags |= unix.MS_RDONLY
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

// DataPath tells how file contents travel: "passthrough", or "plain" and why.
func (m *Mounted) DataPath() (path, why string) { return m.fs.dataPath(), m.fs.why }

// ReadOnly reports whether the mount passes only reads.
func (m *Mounted) ReadOnly() bool { return m.fs.opt.ReadOnly || m.fs.o.ReadOnly() }

// Overlay is what is being served.
func (m *Mounted) Overlay() *txn.Overlay { return m.fs.o }

// Wait returns when the mount has ended, by whatever hand, and everything is given back.
func (m *Mounted) Wait() { <-m.served }

// Unmount ends the mount. unix.EBUSY while it is in use.
func (m *Mounted) Unmount() error {
	if m.fs.uid == 0 {
		return unix.Unmount(m.mountpoint, unix.UMOUNT_NOFOLLOW)
	}
	return m.fs.server.Unmount()
}

// Detach takes the mount out of the tree. Those who use it go on; Wait returns when the last of them is gone.
func (m *Mounted) Detach() error {
	return unix.Unmount(m.mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}

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

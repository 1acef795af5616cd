package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// slowDisk is a process that serves one file whose every fsync takes a given time: a disk with an honest flush. It is a
// process of its own because a FUSE server must not touch its own mount.
type slowDisk struct {
	dir string
	cmd *exec.Cmd
}

// startSlowDisk serves image as dir/disk.
func startSlowDisk(dir, image string, delay time.Duration) (*slowDisk, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	// The image itself has to exist before the file over it is opened.
	if f, err := os.OpenFile(image, os.O_CREATE|os.O_RDWR, 0o600); err == nil {
		f.Close()
	}
	s := &slowDisk{dir: dir, cmd: exec.Command("/proc/self/exe", "slow-disk", dir, image, delay.String())}
	s.cmd.Stderr = os.Stderr
	ready, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		s.stop()
		return nil, fmt.Errorf("the disk with a slow flush did not start: %w", err)
	}
	return s, nil
}

func (s *slowDisk) file() string { return filepath.Join(s.dir, "disk") }

func (s *slowDisk) stop() {
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.cmd.Wait()
	unix.Unmount(s.dir, unix.MNT_DETACH)
	os.Remove(s.dir)
}

type slowDiskCmd struct {
	Dir   string        `arg:""`
	Image string        `arg:""`
	Delay time.Duration `arg:""`
}

// Run serves until SIGTERM.
func (c *slowDiskCmd) Run() error {
	image, err := os.OpenFile(c.Image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	root := &fs.Inode{}
	server, err := fs.Mount(c.Dir, root, &fs.Options{
		OnAdd: func(ctx context.Context) {
			f := root.NewPersistentInode(ctx, &slowFile{image: image, delay: c.Delay}, fs.StableAttr{Mode: fuse.S_IFREG})
			root.AddChild("disk", f, false)
		},
		MountOptions: fuse.MountOptions{FsName: "slow-disk", DirectMountStrict: true},
	})
	if err != nil {
		return err
	}
	stop := catchTerm()
	os.Stdout.Write([]byte{'\n'})
	go func() { <-stop; server.Unmount() }()
	server.Wait()
	return nil
}

// slowFile is the image.
type slowFile struct {
	fs.Inode
	image *os.File
	delay time.Duration
}

var (
	_ fs.NodeOpener    = (*slowFile)(nil)
	_ fs.NodeGetattrer = (*slowFile)(nil)
	_ fs.NodeReader    = (*slowFile)(nil)
	_ fs.NodeWriter    = (*slowFile)(nil)
	_ fs.NodeFsyncer   = (*slowFile)(nil)
)

func (f *slowFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *slowFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = fuse.S_IFREG|0o600, diskSize
	return 0
}

func (f *slowFile) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := unix.Pread(int(f.image.Fd()), p, off)
	if err != nil {
		return nil, fs.ToErrno(err)
	}
	clear(p[n:]) // beyond what was written yet
	return fuse.ReadResultData(p), 0
}

func (f *slowFile) Write(_ context.Context, _ fs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	n, err := unix.Pwrite(int(f.image.Fd()), p, off)
	return uint32(n), fs.ToErrno(err)
}

// Fsync takes its time. What is flushed stays in the page cache of the host: only time matters here.
func (f *slowFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	time.Sleep(f.delay)
	return 0
}

package tests

import (
	"bufio"
	"bytes"
	"context"
	le "encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

func init() { helpers["disk"] = diskHelper }

// The descriptors that the disk server gets: the image as it is at the beginning, which stays as it is, and the log.
const (
	diskImageFd = 3
	diskLogFd   = 4
)

// diskHelper serves a disk whose power can be cut later: a FUSE filesystem with the one file `disk`, for a loop device.
// It logs every write with its bytes and every flush. What the workload was promised comes over a socket and goes into
// the same log, so that its order against the flushes is exact.
//
//	disk SOCKET MOUNTPOINT
//
// It is a process of its own: a FUSE server must not fork, nor do anything else that may wait for the filesystem on it.
func diskHelper(args []string) {
	image := os.NewFile(diskImageFd, "image")
	size, err := image.Seek(0, io.SeekEnd)
	check(err)
	// A private mapping is copy-on-write: the first state is not touched.
	bytes, err := syscall.Mmap(diskImageFd, 0, int(size), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE)
	check(err)
	d := &disk{bytes: bytes, log: os.NewFile(diskLogFd, "log")}
	socket, err := net.Listen("unix", args[0])
	check(err)
	go serveLedger(socket, func(event string) { d.add(recordEvent, 0, []byte(event)) })
	server, err := fs.Mount(args[1], &diskRoot{disk: d}, &fs.Options{MountOptions: fuse.MountOptions{
		DirectMountStrict: true, MaxWrite: 1 << 20, FsName: "disk", Name: "untorn-test-disk", DisableXAttrs: true,
	}})
	check(err)
	server.Wait()
}

// serveLedger passes on what workloads say, line by line, and answers each line when that is done.
func serveLedger(socket net.Listener, note func(event string)) {
	for {
		conn, err := socket.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			lines := bufio.NewScanner(conn)
			for lines.Scan() {
				note(lines.Text())
				if _, err := conn.Write([]byte{'\n'}); err != nil {
					return
				}
			}
		}()
	}
}

// A log is a sequence of records: kind, offset on the disk, length, and so many bytes.
type recordKind uint8

const (
	recordWrite recordKind = iota
	recordFlush
	recordEvent // what a workload says
)

type diskRecord struct {
	kind recordKind
	off  int64
	data []byte
}

const recordHeader = 1 + 8 + 4

// parseLog takes a log apart.
func parseLog(log []byte) ([]diskRecord, error) {
	var all []diskRecord
	for len(log) > 0 {
		if len(log) < recordHeader {
			return nil, errors.New("the log of the disk ends in a header")
		}
		r := diskRecord{kind: recordKind(log[0]), off: int64(le.LittleEndian.Uint64(log[1:]))}
		n := int(le.LittleEndian.Uint32(log[9:]))
		if len(log) < recordHeader+n {
			return nil, errors.New("the log of the disk ends in a record")
		}
		r.data = log[recordHeader : recordHeader+n]
		all, log = append(all, r), log[recordHeader+n:]
	}
	return all, nil
}

type disk struct {
	mu    sync.Mutex
	bytes []byte
	log   *os.File
}

// add writes a record. The log is its own copy of the bytes: those of a request are used again for the next.
func (d *disk) add(kind recordKind, off int64, data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b bytes.Buffer
	b.WriteByte(byte(kind))
	b.Write(le.LittleEndian.AppendUint64(nil, uint64(off)))
	b.Write(le.LittleEndian.AppendUint32(nil, uint32(len(data))))
	b.Write(data)
	if kind == recordWrite {
		copy(d.bytes[off:], data)
	}
	_, err := d.log.Write(b.Bytes())
	return err
}

type diskRoot struct {
	fs.Inode
	disk *disk
}

var _ = (fs.NodeOnAdder)((*diskRoot)(nil))

func (r *diskRoot) OnAdd(ctx context.Context) {
	file := r.NewPersistentInode(ctx, &diskFile{disk: r.disk}, fs.StableAttr{Mode: fuse.S_IFREG})
	r.AddChild("disk", file, false)
}

type diskFile struct {
	fs.Inode
	disk *disk
}

var (
	_ = (fs.NodeGetattrer)((*diskFile)(nil))
	_ = (fs.NodeOpener)((*diskFile)(nil))
	_ = (fs.NodeReader)((*diskFile)(nil))
	_ = (fs.NodeWriter)((*diskFile)(nil))
	_ = (fs.NodeFsyncer)((*diskFile)(nil))
)

func (f *diskFile) Getattr(ctx context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size, out.Blksize = fuse.S_IFREG|0o600, uint64(len(f.disk.bytes)), 4096
	out.SetTimeout(time.Hour)
	return 0
}

// Open: no page cache between the loop device and the log.
func (f *diskFile) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *diskFile) Read(ctx context.Context, _ fs.FileHandle, to []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	return fuse.ReadResultData(to[:copy(to, f.disk.bytes[off:])]), 0
}

func (f *diskFile) Write(ctx context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	if off+int64(len(data)) > int64(len(f.disk.bytes)) {
		return 0, syscall.EFBIG
	}
	if err := f.disk.add(recordWrite, off, data); err != nil {
		fmt.Fprintln(os.Stderr, "writing the log of the disk:", err)
		return 0, syscall.EIO
	}
	return uint32(len(data)), 0
}

// Fsync is a barrier; a write with FUA comes as a write and a barrier. It is in the log before it is answered: whoever
// waits for it says what he says later.
func (f *diskFile) Fsync(ctx context.Context, _ fs.FileHandle, flags uint32) syscall.Errno {
	if err := f.disk.add(recordFlush, 0, nil); err != nil {
		return syscall.EIO
	}
	return 0
}

package tests

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// blockFS is a filesystem that the rig knows how to make: quickly, small, and without work that goes on after mkfs.
type blockFS struct {
	size    int64
	mkfs    []string
	options string
	super   []int64 // where its superblocks are
}

var blockFSs = map[string]blockFS{
	"ext4": {96 << 20, []string{"mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=8", "-E",
		"lazy_itable_init=0,lazy_journal_init=0,nodiscard"}, "noinit_itable", []int64{1 << 10}},
	"xfs": {300 << 20, []string{"mkfs.xfs", "-q", "-K", "-f"}, "nouuid", nil}, // no smaller one; its log is 64 MiB
	"btrfs": {256 << 20, []string{"mkfs.btrfs", "-q", "-K", "-f", "-d", "single", "-m", "single"}, "nodiscard",
		[]int64{64 << 10, 64 << 20}},
}

// diskTimeout bounds the wait for what others may hold up for a moment: loop devices, busy mounts.
const diskTimeout = 30 * time.Second

// newImage makes an image in memory with an empty filesystem in it.
func newImage(t testing.TB, fstype string) *os.File {
	t.Helper()
	kind := blockFSs[fstype]
	image := memory(t, "image")
	if err := image.Truncate(kind.size); err != nil {
		t.Fatal(err)
	}
	cmd := command(t, kind.mkfs[0], append(kind.mkfs[1:], "/proc/self/fd/3")...)
	cmd.ExtraFiles = []*os.File{image}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", kind.mkfs[0], err, out)
	}
	return image
}

// memory is a file in memory, without a name.
func memory(t testing.TB, name string) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), name)
}

// mountDisk mounts the filesystem in a file, by way of a loop device that goes with the mount.
func mountDisk(file *os.File, fstype, dir string, flags uint32) error {
	loop, err := attachLoop(file, flags)
	if err != nil {
		return err
	}
	defer loop.Close()
	for end := time.Now().Add(diskTimeout); ; time.Sleep(time.Millisecond) {
		err = unix.Mount(loop.Name(), dir, fstype, unix.MS_NOATIME, blockFSs[fstype].options)
		if err != unix.EBUSY || time.Now().After(end) {
			return err
		}
	}
}

// attachLoop makes a loop device of a file. It goes when the last who has it open, or mounted, is gone.
func attachLoop(file *os.File, flags uint32) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for end := time.Now().Add(diskTimeout); ; time.Sleep(time.Millisecond) {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("looking for a free loop device: %w", err)
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err == nil {
			err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{
				Fd: uint32(file.Fd()), Size: 512, Info: unix.LoopInfo64{Flags: flags | unix.LO_FLAGS_AUTOCLEAR},
			})
			if err == nil {
				return loop, nil
			}
			loop.Close()
		}
		// Others take loop devices at the same time.
		if !(errors.Is(err, unix.EBUSY) || errors.Is(err, os.ErrNotExist)) || time.Now().After(end) {
			return nil, fmt.Errorf("setting up a loop device: %w", err)
		}
	}
}

// unmountDisk unmounts a filesystem. A child that another test is just starting may hold descriptors on it until its
// exec.
func unmountDisk(dir string) error {
	var err error
	if poll(diskTimeout, func() bool { err = unix.Unmount(dir, 0); return err != unix.EBUSY }) {
		return err
	}
	unix.Unmount(dir, unix.MNT_DETACH)
	return err
}

// startDisk runs a disk server on an image and mounts its filesystem on dir. It returns the socket of its ledger. When
// t ends, all of it is gone, also when it hangs: then whoever waits for it gets an error.
func startDisk(t testing.TB, image, log *os.File, fstype, dir string) (socket string) {
	t.Helper()
	base := tempDir(t)
	at := filepath.Join(base, "served")
	mustMkdir(t, at)
	socket = filepath.Join(base, "ledger")
	cmd := exec.Command(selfCopy, socket, at)
	cmd.Env = append(os.Environ(), "UNTORN_TEST_HELPER=disk")
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.ExtraFiles = []*os.File{image, log}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		connection := &mount{device: fuseDevice(at)}
		if len(ended) > 0 {
			t.Errorf("the disk server ended too early; somebody aborted its connection, or: %s", errs.String())
		}
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmounting the disk server: %v", err)
			connection.abort()
			unix.Unmount(at, unix.MNT_DETACH)
		}
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the disk server: %v\n%s", err, errs.String())
			}
		case <-time.After(diskTimeout):
			t.Error("the disk server did not end")
			connection.abort()
			cmd.Process.Kill()
		}
	})
	if !poll(30*time.Second, func() bool { return fuseDevice(at) != "" || len(ended) > 0 }) || len(ended) > 0 {
		t.Fatalf("the disk server did not mount: %s", errs.String())
	}
	hung := time.AfterFunc(mountLimit/2, (&mount{device: fuseDevice(at)}).abort)
	t.Cleanup(func() { hung.Stop() })
	file, err := os.OpenFile(filepath.Join(at, "disk"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := mountDisk(file, fstype, dir, unix.LO_FLAGS_DIRECT_IO); err != nil {
		t.Fatalf("mounting the served %s: %v", fstype, err)
	}
	t.Cleanup(func() {
		if err := unmountDisk(dir); err != nil {
			t.Errorf("unmounting the served %s: %v", fstype, err)
		}
	})
	return socket
}

// recording is what reached a disk during a workload, and what the workload promised meanwhile.
type recording struct {
	fstype     string
	image, log *os.File
	first      []extent // the disk at the beginning
	records    []diskRecord
	from, to   int // the power is cut between these positions
	history    history
}

type extent struct {
	off  int64
	data []byte
}

// load reads the log of a finished workload.
func (r *recording) load() error {
	log, err := wholeFile(r.log)
	if err != nil {
		return err
	}
	if r.records, err = parseLog(log); err != nil {
		return err
	}
	if r.first, err = extents(r.image); err != nil {
		return err
	}
	r.history = history{}
	for at, rec := range r.records {
		if rec.kind != recordEvent {
			continue
		}
		switch event := string(rec.data); event {
		case eventStart:
			r.from = at + 1
		case eventEnd:
			r.to = at
		default:
			if err := r.history.add(at, event); err != nil {
				return err
			}
		}
	}
	if r.from == 0 || r.to <= r.from {
		return fmt.Errorf("a log of %d records without beginning and end", len(r.records))
	}
	return nil
}

func wholeFile(f *os.File) ([]byte, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(f, 0, size))
}

// extents reads those blocks of an image that hold something.
func extents(image *os.File) ([]extent, error) {
	const block = 4096
	zero := make([]byte, block)
	var found []extent
	var at int64
	for {
		data, err := image.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		if at, err = image.Seek(data, unix.SEEK_HOLE); err != nil {
			return nil, err
		}
		b := make([]byte, at-data)
		if _, err := image.ReadAt(b, data); err != nil {
			return nil, err
		}
		for i := 0; i < len(b); i += block {
			piece := b[i:min(i+block, len(b))]
			if bytes.Equal(piece, zero[:len(piece)]) {
				continue
			}
			off := data + int64(i)
			if n := len(found) - 1; n >= 0 && found[n].off+int64(len(found[n].data)) == off {
				found[n].data = append(found[n].data, piece...)
			} else {
				found = append(found, extent{off, bytes.Clone(piece)})
			}
		}
	}
}

// cut is one power cut.
type cut struct {
	at       int    // position in the log
	seed     uint64 // decides what of the rest had reached the disk
	careless bool   // the disk drops flushes
}

func (c cut) String() string { return fmt.Sprintf("%d:%d:%t", c.at, c.seed, c.careless) }

const (
	sector = 512
	// carelessWindow is how many records a disk holds back that takes no notice of flushes.
	carelessWindow = 200
)

// whole reports whether a write may not be torn. ext4 and btrfs themselves cannot stand a superblock of several sectors
// that is half old, half new: they rely on disks that write 4 KiB at once.
func (r *recording) whole(rec diskRecord) bool {
	return slices.ContainsFunc(blockFSs[r.fstype].super, func(at int64) bool {
		return rec.off <= at && at < rec.off+int64(len(rec.data))
	})
}

// disk makes the disk as it is after a power cut: what was written before the last flush is there, and of the rest any
// part may be, by sector.
func (r *recording) disk(t testing.TB, c cut) *os.File {
	t.Helper()
	image := memory(t, "cut")
	put := func(b []byte, off int64) {
		if _, err := image.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := image.Truncate(blockFSs[r.fstype].size); err != nil {
		t.Fatal(err)
	}
	for _, e := range r.first {
		put(e.data, e.off)
	}
	safe := 0
	for i, rec := range r.records[:c.at] {
		if rec.kind == recordFlush {
			safe = i
		}
	}
	if c.careless {
		safe = max(r.from, c.at-carelessWindow)
	}
	rng := rand.New(rand.NewPCG(c.seed, 1))
	keep := []float64{0, 0.25, 0.5, 0.75, 1}[rng.IntN(5)]
	for i, rec := range r.records[:c.at] {
		if rec.kind != recordWrite {
			continue
		}
		switch {
		case i < safe:
			put(rec.data, rec.off)
		case rng.IntN(3) == 0 && !r.whole(rec):
			for from := 0; from < len(rec.data); from += sector {
				if rng.IntN(2) == 0 {
					put(rec.data[from:min(from+sector, len(rec.data))], rec.off+int64(from))
				}
			}
		case rng.Float64() < keep:
			put(rec.data, rec.off)
		}
	}
	return image
}

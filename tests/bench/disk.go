package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// disk is a filesystem on a loop device.
type disk struct {
	kind   string // ext4, xfs or btrfs
	image  string
	device string
	top    string // where it is mounted
	slow   *slowDisk
}

// diskSize is the size of the image, which is sparse.
const diskSize = 24 << 30

// makeDisk makes a filesystem. With a delay, every flush of its device takes that long, as on a disk without a cache that
// survives a power cut.
func makeDisk(work, kind string, delay time.Duration) (d *disk, err error) {
	d = &disk{kind: kind, image: filepath.Join(work, kind+".img"), top: filepath.Join(work, kind)}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if delay > 0 {
		if d.slow, err = startSlowDisk(filepath.Join(work, kind+".slow"), d.image, delay); err != nil {
			return d, err
		}
	}
	f, err := os.Create(d.image)
	if err != nil {
		return d, err
	}
	if err := f.Truncate(diskSize); err != nil {
		return d, err
	}
	f.Close()
	backing := d.image
	if d.slow != nil {
		backing = d.slow.file()
	}
	out, err := output("losetup", "--find", "--show", "--direct-io=on", backing)
	if err != nil {
		return d, err
	}
	d.device = strings.TrimSpace(out)
	mkfs := map[string][]string{
		// 500,000 files are walked, and a lazily made table of inodes would be made during the measurements.
		"ext4":  {"mkfs.ext4", "-q", "-F", "-N", "2000000", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"},
		"xfs":   {"mkfs.xfs", "-q", "-f", "-K", "-m", "reflink=1"},
		"btrfs": {"mkfs.btrfs", "-q", "-f", "-K"},
	}[kind]
	if mkfs == nil {
		return d, fmt.Errorf("--fs: %q is none of ext4, xfs, btrfs", kind)
	}
	if _, err := output(mkfs[0], append(mkfs[1:], d.device)...); err != nil {
		return d, err
	}
	if err := os.Mkdir(d.top, 0o755); err != nil {
		return d, err
	}
	if err := unix.Mount(d.device, d.top, kind, 0, ""); err != nil {
		return d, fmt.Errorf("mounting %s: %w", d.device, err)
	}
	return d, nil
}

// close takes everything down again, as far as it was built.
func (d *disk) close() {
	unix.Unmount(d.top, 0)
	if d.device != "" {
		exec.Command("losetup", "-d", d.device).Run()
	}
	if d.slow != nil {
		d.slow.stop()
	}
	os.Remove(d.image)
	os.Remove(d.top)
}

// output runs a command and returns what it printed; an error has what it complained about.
func output(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

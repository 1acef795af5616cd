package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"untorn/txn"
)

// place is a backing and a mountpoint that fit together. Finding one changes nothing on disk.
type place struct {
	backing    string
	mountpoint string
	fd         int // of the backing, opened before the mount covers it
}

// findPlace checks what the user asked for.
func findPlace(backing, mountpoint string) (*place, error) {
	if err := clearDead(backing); err != nil {
		return nil, err
	}
	p := &place{}
	var err error
	if p.backing, err = resolve(backing); err != nil {
		return nil, fail(exitBacking, "the backing directory: %w\nGive an existing directory; it is not made for you.", err)
	}
	if slices.Contains(strings.Split(p.backing, "/"), txn.Hidden) {
		return nil, fail(exitBacking, "%s lies in a %s directory, which belongs to untorn itself.\nMount the directory above it.", p.backing, txn.Hidden)
	}
	if p.fd, err = openDirectory(p.backing); err != nil {
		return nil, err
	}
	if mountpoint == "" {
		mountpoint = p.backing
	} else if err := clearDead(mountpoint); err != nil {
		return nil, err
	}
	if p.mountpoint, err = resolve(mountpoint); err != nil {
		return nil, fail(exitMountpoint, "the mountpoint: %w\nMake it first: mkdir -p %s", err, mountpoint)
	}
	if err := p.checkStacking(); err != nil {
		return nil, err
	}
	return p, p.checkMountpoint()
}

func openDirectory(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOTDIR):
		return -1, fail(exitBacking, "the backing %s is not a directory.\nGive the directory that the file is in.", path)
	case err != nil:
		return -1, fail(exitBacking, "the backing %s cannot be read: %w\nGive a directory that you may read, or mount as its owner.", path, err)
	}
	if err := unix.Faccessat(fd, ".", unix.R_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return -1, fail(exitBacking, "the backing %s cannot be searched: %w\nGive a directory that you may read and enter.", path, err)
	}
	return fd, nil
}

// checkStacking refuses untorn on untorn: the outer one would have no place for its stage, which the inner one hides.
func (p *place) checkStacking() error {
	at, err := mountAt(p.mountpoint)
	if err != nil {
		return err
	}
	if at != nil && at.Type == mountType {
		return fail(exitMountpoint, "%s is already an untorn mount, of %s.\nNothing is left to do, or end it first: untorn umount %s", p.mountpoint, at.Source, p.mountpoint)
	}
	below, err := mountOf(p.fd)
	if err != nil {
		return err
	}
	if below != nil && below.Type == mountType {
		return fail(exitBacking, "the backing %s lies in an untorn mount, of %s.\nWrites there are atomic already; mount its backing if you want it in a second place.", p.backing, below.Source)
	}
	return nil
}

func (p *place) checkMountpoint() error {
	var back, at unix.Stat_t
	if err := unix.Fstat(p.fd, &back); err != nil {
		return err
	}
	if err := unix.Stat(p.mountpoint, &at); err != nil {
		return fail(exitMountpoint, "the mountpoint %s: %w", p.mountpoint, err)
	}
	if at.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fail(exitMountpoint, "the mountpoint %s is not a directory.\nGive an empty directory, or none to mount over the backing itself.", p.mountpoint)
	}
	if at.Dev == back.Dev && at.Ino == back.Ino {
		return nil
	}
	if rel, err := filepath.Rel(p.backing, p.mountpoint); err == nil && filepath.IsLocal(rel) {
		return fail(exitMountpoint, "the mountpoint %s lies in the backing, so the mount would contain itself.\nGive one outside, or none to mount over the backing itself.", p.mountpoint)
	}
	d, err := os.Open(p.mountpoint)
	if err != nil {
		return fail(exitMountpoint, "the mountpoint: %w\nGive an empty directory of your own.", err)
	}
	defer d.Close()
	if names, _ := d.Readdirnames(1); len(names) > 0 {
		return fail(exitMountpoint, "the mountpoint %s is not empty; it has %s.\nGive an empty directory, or none to mount over the backing itself.", p.mountpoint, quoted(names[0]))
	}
	return nil
}

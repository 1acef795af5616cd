package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"untorn/txn"
)

type salvageRestore struct {
	salvageDir `embed:""`
	ID         string `arg:"" help:"The entry; an unambiguous beginning will do."`
	To         string `placeholder:"PATH" help:"Put it there instead. Below the backing it is moved; to a path outside (or - for stdout) it is copied, and the entry stays."`
	Force      bool   `short:"f" help:"Replace a file that is there. Below the backing the replaced file goes to salvage."`
}

func (c *salvageRestore) Run() error {
	to := c.To
	if to != "" && to != "-" {
		abs, err := resolveNew(to)
		if err != nil {
			return err
		}
		to = abs
	}
	s, err := c.open()
	if err != nil {
		return err
	}
	defer s.Close()
	root, err := resolve(c.Dir)
	if err != nil {
		return err
	}
	if to == "" {
		return c.within(s, root, "")
	}
	for _, top := range []string{root, pathOfFile(s.backing)} {
		if rel, err := filepath.Rel(top, to); to != "-" && err == nil && filepath.IsLocal(rel) {
			return c.within(s, root, rel)
		}
	}
	return c.copyOut(s, to)
}

// resolveNew makes the path of a file that need not exist absolute, and its directory free of symlinks.
func resolveNew(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(abs)), nil
}

// within moves the entry to a path below the backing, "" being where it belongs.
func (c *salvageRestore) within(s *opened, root, to string) error {
	fd, r, err := s.Open(c.ID)
	if err != nil {
		return noEntry(err, c.Dir)
	}
	defer unix.Close(fd)
	if to == "" {
		to = r.Path
	}
	err = s.Restore(r.ID, to, c.Force)
	switch {
	case errors.Is(err, txn.ErrExists):
		return fmt.Errorf("%w\nLook at both with untorn salvage show; --force exchanges them, --to puts it elsewhere.", err)
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w\nPut it elsewhere with --to PATH.", err)
	case err != nil:
		return err
	}
	awaitVisible(fd, filepath.Join(root, to))
	fmt.Printf("Restored %s.\n", quoted(to))
	return nil
}

// awaitVisible waits, where the directory was named by its mount, until the kernel's cache of the mount has noticed: the
// file was put into the backing, and whoever looks at it next should see it.
func awaitVisible(fd int, path string) {
	var want, got unix.Stat_t
	if unix.Fstat(fd, &want) != nil {
		return
	}
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if unix.Lstat(path, &got) == nil && got.Ino == want.Ino {
			return
		}
	}
}

// copyOut writes the entry to a path outside of the backing, whole or not at all.
func (c *salvageRestore) copyOut(s *opened, to string) error {
	fd, r, err := s.Open(c.ID)
	if err != nil {
		return noEntry(err, c.Dir)
	}
	src := os.NewFile(uintptr(fd), "salvaged")
	defer src.Close()
	if to == "-" {
		_, err := io.Copy(os.Stdout, src)
		return err
	}
	if err := copyWhole(src, to, os.FileMode(r.Mode&0o777), c.Force); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%s: %w\n--force replaces it.", to, txn.ErrExists)
		}
		return err
	}
	fmt.Printf("Copied %s to %s. The entry is kept; delete it with: untorn salvage purge %s %s\n", quoted(pathOf(r)), to, c.Dir, r.ID)
	return nil
}

func copyWhole(src io.Reader, to string, mode os.FileMode, replace bool) (err error) {
	dir := filepath.Dir(to)
	temp, err := os.CreateTemp(dir, ".untorn-restore-")
	if err != nil {
		return err
	}
	defer func() {
		temp.Close()
		if err != nil {
			os.Remove(temp.Name())
		}
	}()
	if _, err := io.Copy(temp, src); err != nil {
		return err
	}
	if err := temp.Chmod(mode); err != nil {
		return err
	}
	if err := temp.Sync(); err != nil {
		return err
	}
	if replace {
		err = os.Rename(temp.Name(), to)
	} else {
		err = renameNew(temp.Name(), to)
	}
	if err != nil {
		return err
	}
	return syncDirectory(dir)
}

// syncDirectory makes a rename survive a power cut. Some filesystems have nothing to do for it and say EINVAL.
func syncDirectory(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("the file is there, but may not survive a power cut: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("the file is there, but may not survive a power cut: %w", err)
	}
	return nil
}

// renameNew is a rename that replaces nothing.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if err != unix.EINVAL && err != unix.ENOSYS {
		return err
	}
	if err := os.Link(from, to); err != nil {
		return err
	}
	return os.Remove(from)
}

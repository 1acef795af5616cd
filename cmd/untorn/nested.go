package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"untorn/txn"
)

// tellNested says which filesystems that are mounted below a backing have kept something in a salvage of their own.
// dir is how the user named the backing. (btrfs subvolumes are no mounts, and not seen here.)
func tellNested(backing *os.File, dir string) {
	top, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", backing.Fd()))
	if err != nil {
		return
	}
	list, err := mounts("self")
	if err != nil {
		return
	}
	told := map[string]bool{}
	for _, m := range list {
		rel, err := filepath.Rel(top, m.Point)
		if err != nil || !filepath.IsLocal(rel) || rel == "." || m.Type == mountType || told[rel] {
			continue
		}
		told[rel] = true
		if n := keptBelow(backing, rel); n > 0 {
			notice("%s has a salvage of its own, with %s: untorn salvage list %s",
				rel, count(n, "entry", "entries"), filepath.Join(dir, rel))
		}
	}
}

// keptBelow counts what is salvaged in a directory below a backing; 0 when that cannot be found out.
func keptBelow(backing *os.File, rel string) int {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	fd, err := unix.Openat2(int(backing.Fd()), rel, &how)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	s, err := txn.OpenSalvage(txn.Linux{}, fd)
	if err != nil {
		return 0
	}
	defer s.Close()
	list, _ := s.List()
	return len(list)
}

package proc

import (
	"bytes"
	"fmt"
	"strconv"
)

// Rights are the supplementary groups of a thread and its effective capabilities (in its own user namespace).
func Rights(tid uint32) (groups []uint32, capabilities uint64, err error) {
	var buf [4096]byte
	text, err := read(dir(tid)+"/status", buf[:])
	if err != nil {
		return nil, 0, err
	}
	for _, g := range bytes.Fields(field(text, "Groups")) {
		groups = append(groups, uint32(number(g)))
	}
	capabilities, err = strconv.ParseUint(string(field(text, "CapEff")), 16, 64)
	return groups, capabilities, err
}

// Knows reports whether an owner and a group have numbers in the user namespace of a thread: its capabilities count only
// for the files of those (capable_wrt_inode_uidgid).
func Knows(tid, uid, gid uint32) bool {
	return mapped(tid, "/uid_map", uid) && mapped(tid, "/gid_map", gid)
}

// mapped looks an id up in a map of user_namespaces(7). The second column has the numbers that it has for us, unless the
// namespace is ours; then the map is the same as our own, and everything has a number.
func mapped(tid uint32, which string, id uint32) bool {
	var buf, own [1024]byte
	text, err := read(dir(tid)+which, buf[:])
	if err != nil {
		return false
	}
	if ours, err := read(root+"self"+which, own[:]); err == nil && bytes.Equal(text, ours) {
		return true
	}
	for line := range bytes.Lines(text) {
		var inside, first, count uint32
		if _, err := fmt.Sscan(string(line), &inside, &first, &count); err == nil && id-first < count {
			return true
		}
	}
	return false
}

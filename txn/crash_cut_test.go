package txn

import (
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// cutting is what becomes of the things in the page cache when something crashes.
type cutting uint8

const (
	// killed: the daemon alone dies, and with it its descriptors and locks.
	killed cutting = iota
	// strict: nothing survives that was not synced. A file that was never synced is empty.
	strict
	// ordered: all names and sizes survive, and no data that was not synced; a new file then is full of zeroes. That is
	// ext4 without auto_da_alloc.
	ordered
	// wild: some names, some sizes, some attributes, and some sectors.
	wild
	cuttings
)

func (c cutting) String() string { return [...]string{"killed", "strict", "ordered", "wild"}[c] }

// settle makes the names in a directory durable.
func (d *disk) settle(dir *inode) {
	done := d.closure(func(op *nameOp) bool {
		return slices.ContainsFunc(op.slots, func(s slot) bool { return s.dir == dir })
	})
	for k := range d.ops {
		if done[k] {
			d.ops[k].apply(func(dir *inode) map[string]*inode { return dir.stored })
		}
	}
	var left []nameOp
	for k, op := range d.ops {
		if !done[k] {
			left = append(left, op)
		}
	}
	d.ops = left
}

// closure picks operations and all that must reach the disk before them. No order is kept between things that have nothing
// to do with each other. But operations on one name or on one inode do keep it: a second name is on the disk before the
// first is removed, or link counts would be wrong after each crash. A directory is there before what is put into it (which
// is more than POSIX says, and what all of ext4, xfs and btrfs do: log_all_new_ancestors), and empty before it goes.
func (d *disk) closure(pick func(op *nameOp) bool) []bool {
	type name struct {
		dir  *inode
		name string
	}
	slots, nodes := map[name]bool{}, map[*inode]bool{}
	made, gone := map[*inode]bool{}, map[*inode]bool{}
	moved := false
	picked := make([]bool, len(d.ops))
	for k := len(d.ops) - 1; k >= 0; k-- {
		op := &d.ops[k]
		need := pick(op) || moved && op.moved || op.made != nil && made[op.made]
		for _, s := range op.slots {
			need = need || slots[name{s.dir, s.name}] || gone[s.dir]
		}
		for _, i := range op.nodes {
			need = need || nodes[i]
		}
		if !need {
			continue
		}
		picked[k] = true
		moved = moved || op.moved
		gone[op.gone] = true
		for _, s := range op.slots {
			slots[name{s.dir, s.name}] = true
			made[s.dir] = true
		}
		for _, i := range op.nodes {
			nodes[i] = true
		}
	}
	return picked
}

// crash returns the disk as it is after a crash and a restart. It may be called with mu held or not, but not while
// another goroutine uses the disk.
func (d *disk) crash(how cutting, rnd *rand.Rand) *disk {
	n := &disk{features: d.features, fds: map[int]*handle{}, top: 1000, inos: map[uint64]*inode{}, clock: d.clock,
		cred: Cred{daemonUid, daemonGid}}
	n.broken = nil
	c := crash{d, n, how, rnd, d.survivors(how, rnd), map[*inode]*inode{}}
	n.root = c.inode(d.root)
	n.root.parent = n.root
	return n
}

// survivors are the names in all directories that a crash leaves.
func (d *disk) survivors(how cutting, rnd *rand.Rand) func(dir *inode) map[string]*inode {
	if how == killed || how == ordered {
		return func(dir *inode) map[string]*inode { return dir.entries }
	}
	names := map[*inode]map[string]*inode{}
	of := func(dir *inode) map[string]*inode {
		if names[dir] == nil {
			names[dir] = maps.Clone(dir.stored)
		}
		return names[dir]
	}
	if how == strict || len(d.ops) == 0 {
		return of
	}
	// Either any of them, often or seldom, or all up to a moment, as a journal has them.
	odds, until := rnd.Float64(), len(d.ops)
	if rnd.IntN(2) == 0 {
		odds, until = 1, rnd.IntN(len(d.ops)+1)
	}
	k := len(d.ops)
	for k, yes := range d.closure(func(*nameOp) bool { k--; return k < until && rnd.Float64() < odds }) {
		if yes {
			d.ops[k].apply(of)
		}
	}
	return of
}

// crash is one power cut under way.
type crash struct {
	old, new *disk
	how      cutting
	rnd      *rand.Rand
	names    func(dir *inode) map[string]*inode
	done     map[*inode]*inode
}

// inode copies what survives of an inode, with all below it.
func (c *crash) inode(old *inode) *inode {
	if i := c.done[old]; i != nil {
		return i
	}
	i := &inode{ino: old.ino, born: old.born, target: old.target, attributes: old.attributes, locks: map[*handle]int{}}
	c.done[old], c.new.inos[i.ino] = i, i
	switch {
	case i.is(unix.S_IFDIR):
		i.entries, i.nlink = map[string]*inode{}, 2
		for name, e := range c.names(old) {
			child := c.inode(e)
			i.entries[name] = child
			if child.parent = i; child.is(unix.S_IFDIR) {
				i.nlink++
			} else {
				child.nlink++
			}
		}
		i.stored = maps.Clone(i.entries)
	case i.is(unix.S_IFREG):
		if c.how == strict || c.how == wild && c.rnd.IntN(2) == 0 {
			i.attributes = old.file.stored.attributes
		}
		i.file.bytes = c.bytes(&old.file)
		i.file.fill(0, len(i.file.bytes))
	}
	i.xattrs = maps.Clone(i.xattrs)
	i.store()
	return i
}

// bytes are what survives of the bytes of a file.
func (c *crash) bytes(f *contents) []byte {
	size := len(f.bytes)
	switch {
	case c.how == killed:
		return slices.Clone(f.bytes)
	case c.how == strict, c.how == wild && c.rnd.IntN(2) == 0:
		size = len(f.stored.bytes)
	}
	old := append(slices.Clone(f.stored.bytes[:min(size, len(f.stored.bytes))]), make([]byte, max(0, size-len(f.stored.bytes)))...)
	odds := c.rnd.Float64()
	each(min(size, len(f.bytes)), func(s, off, end int) {
		if !f.dirty[s] && !f.lost[s] || c.how == wild && f.dirty[s] && c.rnd.Float64() < odds {
			copy(old[off:end], f.bytes[off:end])
		}
	})
	return old
}

// sync makes everything durable, as sync(2).
func (d *disk) sync() {
	for k := range d.ops {
		d.ops[k].apply(func(dir *inode) map[string]*inode { return dir.stored })
	}
	d.ops = nil
	for _, i := range d.inos {
		i.store()
	}
}

// tree lists all regular files with their contents, below a directory.
func (d *disk) tree(dir *inode, prefix string, found map[string]string) {
	for name, i := range dir.entries {
		switch {
		case dir == d.root && name == Hidden:
		case i.is(unix.S_IFDIR):
			d.tree(i, prefix+name+"/", found)
		default:
			found[prefix+name] = string(i.file.bytes)
		}
	}
}

// files is the tree outside of .untorn.
func (d *disk) files() map[string]string {
	found := map[string]string{}
	d.tree(d.root, "", found)
	return found
}

// print describes everything on the disk, to see whether anything has changed.
func (d *disk) print() string {
	var lines []string
	var walk func(dir *inode, prefix string)
	walk = func(dir *inode, prefix string) {
		for name, i := range dir.entries {
			lines = append(lines, fmt.Sprintf("%s%s: %#o, %d links, inode %d, %d bytes, %#x", prefix, name, i.mode, i.nlink, i.ino,
				len(i.file.bytes), crc32.ChecksumIEEE(i.file.bytes)))
			walk(i, prefix+name+"/")
		}
	}
	walk(d.root, "")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

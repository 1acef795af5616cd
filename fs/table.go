package fs

import (
	"encoding/binary"
	"math/bits"
	"unsafe"

	"golang.org/x/sys/unix"

	"untorn/txn"
)

// table keeps what must be remembered of each inode that the kernel knows: as long as it may send the number of a node, the
// inode has to be found. After a walk over a tree those are hundreds of thousands, most of them never opened, so a record
// is small, and lies outside of the heap, of which Go's collector would keep as much again in reserve.
//
// LOCKS_REQUIRED(nodes.mu) for everything here.
type table struct {
	pages []*page  // records, pageRecords each; nil: given back
	room  int      // no page before this one has room
	heads []uint32 // hash table of (device, inode): the first slot of each chain, plus 1
	count int      // records in use
	gen   uint32   // of the record that was made last
	devs  []uint64 // devices that were met; records have an index into it
	names arena
}

// record is an inode that the kernel knows. It has no pointers.
type record struct {
	ino      uint64
	birth    int64
	lookups  uint64 // what the kernel will forget
	parent   uint32 // slot of the directory where it was found last, plus 1
	name     uint32 // where its name there is in the arena
	children uint32 // records whose parent this is
	gen      uint32
	next     uint32 // slot of the next in its chain, or in the list of free ones, plus 1
	dev      uint16
	fmt      uint8 // S_IFMT bits >> 12; 0: free
}

// pageRecords makes a page of records a multiple of the pages of all machines: 48 bytes each.
const pageRecords = 4096

type page struct {
	mem     []byte
	records []record
	free    uint32 // first free slot, plus 1
	used    int
}

// newPage maps memory for records that begin with slot first.
func newPage(first uint32) *page {
	mem := mapped(pageRecords * int(unsafe.Sizeof(record{})))
	p := &page{mem: mem, records: unsafe.Slice((*record)(unsafe.Pointer(&mem[0])), pageRecords)}
	for i := pageRecords - 1; i >= 0; i-- {
		p.records[i].next = p.free
		p.free = first + uint32(i) + 1
	}
	return p
}

// mapped returns zeroed memory outside of the heap. Like the heap, it ends the process when there is none.
func mapped(size int) []byte {
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic("out of memory for the table of nodes: " + err.Error())
	}
	return mem
}

// at returns a record by its slot. It moves only when it is removed.
func (t *table) at(slot uint32) *record {
	return &t.pages[slot/pageRecords].records[slot%pageRecords]
}

// id is the number that the kernel knows a record by: never used again, because the generation is in it. That of the
// first one is FUSE_ROOT_ID, 1.
func (t *table) id(slot uint32) uint64 { return uint64(t.at(slot).gen)<<32 | uint64(slot+1) }

// slot finds the record of a node number.
func (t *table) slot(id uint64) (slot uint32, ok bool) {
	slot = uint32(id) - 1
	if p := int(slot / pageRecords); uint32(id) == 0 || p >= len(t.pages) || t.pages[p] == nil {
		return 0, false
	}
	r := t.at(slot)
	return slot, r.fmt != 0 && r.gen == uint32(id>>32)
}

// find returns the record of an inode; of several with one identity, that which was made last.
func (t *table) find(id txn.Ident) (slot uint32, ok bool) {
	if len(t.heads) == 0 {
		return 0, false
	}
	dev := t.dev(id.Dev)
	for s := t.heads[t.hash(dev, id.Ino)]; s != 0; {
		r := t.at(s - 1)
		if r.ino == id.Ino && r.dev == dev && r.birth == id.Birth {
			return s - 1, true
		}
		s = r.next
	}
	return 0, false
}

// ident is the identity of the inode of a record.
func (t *table) ident(slot uint32) txn.Ident {
	r := t.at(slot)
	return txn.Ident{Dev: t.devs[r.dev], Ino: r.ino, Birth: r.birth}
}

// dev numbers devices: few are met.
func (t *table) dev(dev uint64) uint16 {
	for i, d := range t.devs {
		if d == dev {
			return uint16(i)
		}
	}
	t.devs = append(t.devs, dev)
	return uint16(len(t.devs) - 1)
}

// hash is Fibonacci hashing: inode numbers come in sequences, and the subvolumes of a btrfs have the same ones. The device
// shows in the highest bits of the product alone.
func (t *table) hash(dev uint16, ino uint64) int {
	return int((ino ^ uint64(dev)<<48) * 0x9E3779B97F4A7C15 >> bits.LeadingZeros64(uint64(len(t.heads)-1)))
}

// add makes a record. Another one of the same identity is not found any more: on filesystems without birth times it may
// be of a file that is gone.
func (t *table) add(id txn.Ident, fmt uint32) (slot uint32) {
	for t.room < len(t.pages) && t.pages[t.room] != nil && t.pages[t.room].free == 0 {
		t.room++
	}
	first := uint32(t.room) * pageRecords
	if t.room == len(t.pages) {
		t.pages = append(t.pages, newPage(first))
	} else if t.pages[t.room] == nil {
		t.pages[t.room] = newPage(first)
	}
	p := t.pages[t.room]
	slot = p.free - 1
	r := t.at(slot)
	p.free = r.next
	p.used++
	t.count++
	if t.count > len(t.heads) {
		t.grow()
	}
	*r = record{ino: id.Ino, birth: id.Birth, dev: t.dev(id.Dev), fmt: uint8(fmt >> 12), gen: t.gen}
	t.gen++
	if old, ok := t.find(id); ok {
		t.unlink(old)
	}
	h := t.hash(r.dev, r.ino)
	r.next, t.heads[h] = t.heads[h], slot+1
	return slot
}

// unlink takes a record out of the hash table, if it is still in it.
func (t *table) unlink(slot uint32) {
	r := t.at(slot)
	link := &t.heads[t.hash(r.dev, r.ino)]
	for *link != slot+1 {
		if *link == 0 {
			return
		}
		link = &t.at(*link - 1).next
	}
	*link = r.next
}

// grow doubles the hash table.
func (t *table) grow() {
	old := t.heads
	t.heads = make([]uint32, max(1024, 2*len(old)))
	for _, s := range old {
		for s != 0 {
			r := t.at(s - 1)
			h := t.hash(r.dev, r.ino)
			s, r.next, t.heads[h] = r.next, t.heads[h], s
		}
	}
}

// remove frees a record. A page without records is given back.
func (t *table) remove(slot uint32) {
	t.unlink(slot)
	r := t.at(slot)
	t.names.free(r.name)
	t.count--
	i := int(slot / pageRecords)
	p := t.pages[i]
	p.used--
	*r = record{next: p.free}
	p.free = slot + 1
	t.room = min(t.room, i)
	if p.used == 0 {
		unix.Munmap(p.mem)
		t.pages[i] = nil
	}
}

// rename gives a record another name.
func (t *table) rename(slot uint32, name string) {
	r := t.at(slot)
	t.names.free(r.name)
	r.name = t.names.add(name)
	if t.names.wasteful() {
		t.compact()
	}
}

// compact writes all names anew, without the gaps between them.
func (t *table) compact() {
	var fresh arena
	for _, p := range t.pages {
		if p == nil {
			continue
		}
		for i := range p.records {
			if r := &p.records[i]; r.fmt != 0 {
				r.name = fresh.add(t.names.get(r.name))
			}
		}
	}
	t.names.release()
	t.names = fresh
}

// arena keeps names, one after the other, each after its length. That needs more than a byte: the names of vfat, exfat and
// ntfs have 255 characters, not bytes, and those of another FUSE filesystem 1,024 bytes.
type arena struct {
	chunks [][]byte
	used   int // of the last chunk
	live   int // bytes that are in use
}

const (
	chunkSize  = 64 << 10
	lengthSize = 2
)

// add keeps a name. 0 is the empty one.
func (a *arena) add(name string) uint32 {
	size := lengthSize + len(name)
	if name == "" {
		return 0
	}
	if len(a.chunks) == 0 || a.used+size > chunkSize {
		a.chunks = append(a.chunks, mapped(chunkSize))
		a.used = 0
		if len(a.chunks) == 1 {
			a.used = 1 // nothing is at 0
		}
	}
	last := a.chunks[len(a.chunks)-1]
	at := a.used
	binary.NativeEndian.PutUint16(last[at:], uint16(len(name)))
	copy(last[at+lengthSize:], name)
	a.used += size
	a.live += size
	return uint32((len(a.chunks)-1)*chunkSize + at)
}

func (a *arena) get(ref uint32) string {
	if ref == 0 {
		return ""
	}
	return string(a.chunks[ref/chunkSize][ref%chunkSize+lengthSize:][:a.length(ref)])
}

func (a *arena) length(ref uint32) int {
	return int(binary.NativeEndian.Uint16(a.chunks[ref/chunkSize][ref%chunkSize:]))
}

// free gives a name up.
func (a *arena) free(ref uint32) {
	if ref != 0 {
		a.live -= lengthSize + a.length(ref)
	}
}

// wasteful reports whether more is gaps than names.
func (a *arena) wasteful() bool { return (len(a.chunks)-4)*chunkSize > 2*a.live }

func (a *arena) release() {
	for _, c := range a.chunks {
		unix.Munmap(c)
	}
	*a = arena{}
}

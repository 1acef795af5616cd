package txn

import (
	"context"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// history is something that programs do, short enough to be cut at every system call.
type history struct {
	name string
	act  func(p *programs)
	opt  Options
	features
}

var histories = []history{
	{name: "create", act: func(p *programs) { p.ok(p.replace("new")) }},
	{name: "create without O_TMPFILE", features: features{noTmpfile: true}, act: func(p *programs) { p.ok(p.replace("d/new")) }},
	{name: "replace", act: func(p *programs) { p.ok(p.replace("a")) }},
	{name: "replace twice", act: func(p *programs) { p.ok(p.replace("a")); p.ok(p.replace("a")) }},
	{name: "append", act: func(p *programs) { p.append("a") }},
	{name: "append, with reflinks", features: features{reflinks: true}, act: func(p *programs) { p.append("d/a") }},
	{name: "append nothing", act: func(p *programs) { p.ok(p.open("a", unix.O_WRONLY).close()) }},
	{name: "truncate", act: func(p *programs) {
		p.append("a")
		p.ok(p.truncate("a", ""))
	}},
	{name: "rename", act: func(p *programs) {
		p.ok(p.replace("a"))
		p.ok(p.rename("a", "d/new", 0))
		p.ok(p.replace("a"))
	}},
	{name: "rename over, while both are written", act: func(p *programs) {
		a, b := p.open("a", unix.O_WRONLY|unix.O_TRUNC), p.open("b", unix.O_WRONLY|unix.O_TRUNC)
		a.write(p.block())
		b.write(p.block())
		p.ok(p.rename("a", "b", 0))
		p.ok(a.close())
		p.ok(b.close())
	}},
	{name: "temp and rename, as careful programs do", act: func(p *programs) {
		k := p.open("a.tmp", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
		k.write(p.block())
		p.ok(k.fsync())
		p.ok(k.close())
		p.ok(p.rename("a.tmp", "a", 0))
	}},
	{name: "exchange", act: func(p *programs) {
		k := p.open("a", unix.O_WRONLY|unix.O_TRUNC)
		k.write(p.block())
		p.ok(p.rename("a", "d/a", unix.RENAME_EXCHANGE))
		p.ok(k.close())
	}},
	{name: "unlink", act: func(p *programs) {
		k := p.open("a", unix.O_WRONLY|unix.O_TRUNC)
		k.write(p.block())
		p.ok(k.fsync())
		p.ok(p.unlink("a"))
		p.ok(k.close())
		p.ok(p.replace("a"))
	}},
	{name: "link", act: func(p *programs) {
		p.ok(p.link("a", "d/new"))
		p.ok(p.replace("a"))
		p.append("d/new")
	}},
	{name: "two names of a new file", act: func(p *programs) {
		k := p.open("new", unix.O_WRONLY)
		k.write(p.block())
		p.ok(k.fsync())
		d, name := p.at("d/new")
		p.ok(d.LinkStaged(k.w.Staged(), name))
		p.oracle.mayMove(k, "d/new")
		p.ok(k.close())
	}},
	{name: "directories", act: func(p *programs) {
		p.ok(p.mkdir("e"))
		p.ok(p.replace("e/new"))
		p.ok(p.rename("e/new", "a", 0))
		p.ok(p.rmdir("e"))
		p.ok(p.mkdir("e"))
		p.ok(p.replace("e/a"))
	}},
	{name: "killed", act: func(p *programs) {
		k := p.open("a", unix.O_WRONLY|unix.O_TRUNC)
		k.write(p.block())
		p.ok(k.fsync())
		k.write(p.block())
		k.kill()
		k = p.open("new", unix.O_WRONLY)
		k.write(p.block())
		k.kill()
	}},
	{name: "killed, without renameat2", features: features{noFlags: true}, act: func(p *programs) {
		k := p.open("a", unix.O_WRONLY)
		k.write(p.block())
		p.ok(k.fsync())
		k.kill()
	}},
	{name: "failed fsync", act: func(p *programs) {
		k := p.open("a", unix.O_WRONLY|unix.O_TRUNC)
		k.write(p.block())
		p.failing(func() {
			if err := k.close(); p.opt.Durability != None {
				is(p.t, err, unix.EIO)
			}
		})
		p.ok(p.replace("a"))
	}},
	{name: "failed write", act: func(p *programs) {
		k := p.open("a", unix.O_WRONLY|unix.O_TRUNC)
		k.write(p.block())
		p.ok(k.fsync())
		k.w.Staged().Poison(unix.ENOSPC)
		is(p.t, k.close(), unix.ENOSPC)
	}},
	{name: "fsync", act: func(p *programs) {
		k := p.open("d/a", unix.O_WRONLY|unix.O_TRUNC)
		k.write(p.block())
		p.ok(k.fsync())
		k.write(p.block())
		p.ok(p.rename("d/a", "new", 0))
		p.ok(k.close())
	}},
	{name: "fsync publishes", opt: Options{PublishOnFsync: true}, act: func(p *programs) {
		k := p.open("a", unix.O_WRONLY)
		k.write(p.block())
		p.ok(k.fsync())
		k.write(p.block())
		p.ok(k.fsync())
		k.write(p.block())
		p.ok(k.close())
	}},
	{name: "restore", act: func(p *programs) { p.restore("new", false) }},
	{name: "restore without renameat2", features: features{noFlags: true}, act: func(p *programs) { p.restore("new", false) }},
	{name: "forced restore", act: func(p *programs) { p.restore("d/a", true) }},
	{name: "forced restore without renameat2", features: features{noFlags: true}, act: func(p *programs) { p.restore("d/a", true) }},
}

func (p *programs) ok(err error) {
	p.t.Helper()
	must(p.t, err)
}

// append adds a block to a file.
func (p *programs) append(name string) {
	k := p.open(name, unix.O_WRONLY|unix.O_APPEND)
	k.write(p.block())
	p.ok(k.close())
}

// failing runs f on a disk on which every fsync of a file fails.
func (p *programs) failing(f func()) {
	set := func(err error) {
		defer p.disk.lock()()
		p.disk.broken = func(*inode) error { return err }
	}
	set(unix.EIO)
	f()
	set(nil)
}

// restore brings an entry of the salvage back.
func (p *programs) restore(to string, force bool) {
	k := p.open("b", unix.O_WRONLY|unix.O_TRUNC)
	k.write(p.block())
	p.ok(k.fsync())
	k.kill()
	old, exists := p.has(to)
	p.oracle.mayMove(k, to)
	if exists {
		unlock := p.disk.lock()
		p.oracle.synced = append(slices.Clip(p.oracle.synced), promise{old, nil, old})
		unlock()
	}
	s, err := OpenSalvage(p.disk, p.top)
	must(p.t, err)
	defer s.Close()
	list, err := s.List()
	must(p.t, err)
	p.ok(s.Restore(list[len(list)-1].ID, to, force))
	p.oracle.acknowledge(to, k.bytes)
}

// TestShortHistories cuts each history at every change that it makes, in every way, and each recovery from that once more.
func TestShortHistories(t *testing.T) {
	for _, h := range histories {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			for _, durability := range []Durability{Full, Ordered, None} {
				h.opt.Durability = durability
				o := trial{features: h.features, opt: h.opt, judged: durability, take: everyCut}.run(t, h.act)
				never(t, o.judge(func(c *cut) bool { return o.rnd.IntN(soak(16, 1)) == 0 }))
				if t.Failed() {
					t.Fatal("with durability ", durability)
				}
			}
		})
	}
}

// TestFirstMount cuts the first mount, and its end: whatever is there, a recovery has nothing to say against it, and the
// next mount works.
func TestFirstMount(t *testing.T) {
	d := newDisk(features{})
	o := newOracle(t, d, Full, 0)
	o.take, d.cut = everyCut, o.cutting
	mount := func(d *disk) {
		dir := d.mount()
		m, err := Open(context.Background(), dir, Options{Sys: d})
		must(t, err)
		must(t, m.Close())
		must(t, d.Close(dir))
	}
	mount(d)
	never(t, o.judge(func(*cut) bool { return o.rnd.IntN(soak(4, 1)) == 0 }))
	for _, c := range o.cuts {
		mount(c.disk)
		equal(t, "problems after a mount", recoverDisk(c.disk), nil)
	}
}

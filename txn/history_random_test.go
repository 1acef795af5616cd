package txn

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// wander lets programs do things drawn by lot, several of them with files open at the same time.
func wander(steps int) func(p *programs) {
	return func(p *programs) {
		for range steps {
			p.step()
		}
	}
}

// path is a name that exists, or may exist.
func (p *programs) path(existing bool) string {
	unlock := p.disk.lock()
	list := slices.Sorted(maps.Keys(p.disk.files()))
	unlock()
	if existing && len(list) > 0 {
		return pickOf(p.rnd, list...)
	}
	name := pickOf(p.rnd, "a", "b", "c", "d/a", "d/b", "d/c", "e/a", "e/b")
	if strings.HasPrefix(name, "e/") {
		p.mkdir("e") // which may be there
	}
	return name
}

// writing reports whether somebody has a path open, other than for a version of his own.
func (p *programs) writing(name string) bool {
	return slices.ContainsFunc(p.pens, func(k *pen) bool {
		return slices.Contains(k.paths(), name) && k.w.Staged().kind != Truncated
	})
}

func (p *programs) step() {
	r := p.rnd
	if len(p.pens) > 0 && r.IntN(5) < 3 {
		p.use(p.pens[r.IntN(len(p.pens))])
		return
	}
	switch r.IntN(12) {
	case 0, 1, 2, 3:
		if name := p.path(false); !p.writing(name) {
			p.open(name, unix.O_WRONLY|unix.O_TRUNC)
		}
	case 4:
		if name := p.path(true); !p.writing(name) {
			p.open(name, unix.O_WRONLY)
		}
	case 5:
		if name := p.path(true); !p.writing(name) {
			p.truncated(name)
		}
	case 6, 7:
		from, to := p.path(true), p.path(false)
		flags := pickOf[uint](r, 0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE)
		p.may(p.rename(from, to, flags), unix.EEXIST, unix.ENOENT, unix.EINVAL)
	case 8:
		p.may(p.unlink(p.path(true)), unix.ENOENT)
	case 9:
		from, to := p.path(true), p.path(false)
		p.may(p.link(from, to), unix.EEXIST, unix.ENOENT)
	case 10:
		p.may(p.rmdir("e"), unix.ENOTEMPTY, unix.ENOENT)
	case 11:
		p.bring()
	}
}

// use goes on with an open file.
func (p *programs) use(k *pen) {
	switch p.rnd.IntN(10) {
	case 0, 1, 2, 3:
		k.write(p.block())
	case 4:
		p.ok(k.fsync())
	case 5:
		k.kill()
	case 6:
		if p.rnd.IntN(3) == 0 {
			p.spoiled = append(p.spoiled, k.bytes)
			p.failing(func() { k.close() })
			return
		}
		fallthrough
	default:
		p.may(k.close(), unix.EIO, ErrOwner)
	}
}

// may lets a call fail, in ways that are its own.
func (p *programs) may(err error, ways ...error) {
	p.t.Helper()
	if err != nil && !slices.Contains(ways, err) {
		for _, way := range ways {
			if strings.Contains(err.Error(), way.Error()) {
				return
			}
		}
		p.t.Fatal(err)
	}
}

// truncated cuts a file down to its first block, or to nothing.
func (p *programs) truncated(name string) {
	content, exists := p.has(name)
	if !exists {
		return
	}
	if first := strings.Index(content[min(1, len(content)):], "#"); first >= 0 && p.rnd.IntN(2) == 0 {
		p.ok(p.truncate(name, content[:first+1]))
		return
	}
	p.ok(p.truncate(name, ""))
}

// bring restores an entry of the salvage to its path, by force or not.
func (p *programs) bring() {
	s, err := OpenSalvage(p.disk, p.top)
	p.ok(err)
	defer s.Close()
	list, err := s.List()
	p.ok(err)
	if len(list) == 0 {
		return
	}
	rec := pickOf(p.rnd, list...)
	fd, _, err := s.Open(rec.ID)
	p.ok(err)
	buf := make([]byte, rec.Size)
	p.disk.Pread(fd, buf, 0)
	p.disk.Close(fd)
	if !whole(string(buf)) || slices.Contains(p.spoiled, string(buf)) {
		return // it was written by pieces, and would be no version; or its fsync failed, and another proves nothing
	}
	old, exists := p.has(rec.Path)
	force := p.rnd.IntN(2) == 0
	if force && exists && p.oracle.durable(rec.Path, old) {
		unlock := p.disk.lock()
		p.oracle.synced = append(slices.Clip(p.oracle.synced), promise{old, nil, old})
		unlock()
	}
	err = s.Restore(rec.ID, rec.Path, force)
	if err == nil {
		p.oracle.acknowledge(rec.Path, string(buf))
		p.oracle.restored(string(buf))
		return
	}
	p.may(err, ErrExists, unix.ENOENT)
}

// seldom cuts at some of the changes.
func seldom(p func() bool, kinds ...cutting) func(int) []cutting {
	return func(int) []cutting {
		if p() {
			return kinds
		}
		return nil
	}
}

// TestRandomHistories are many files and many programs, cut now and then.
func TestRandomHistories(t *testing.T) {
	const together = 10
	for group := range together {
		t.Run(fmt.Sprint(group), func(t *testing.T) {
			t.Parallel()
			for seed := group; seed < soak(150, 20000) && !t.Failed(); seed += together {
				tr := trial{seed: seed}
				n := seed // a little of everything, by lot
				pick := func(of int) (k int) { k = n * 7919 / 13 % of; n = n*31 + 7; return k }
				tr.opt.Durability = Durability(seed % 3)
				tr.judged = tr.opt.Durability
				tr.noFlags, tr.noTmpfile, tr.reflinks = pick(5) == 0, pick(5) == 0, pick(2) == 0
				tr.opt.Passthrough, tr.opt.PublishOnFsync = pick(2) == 0, pick(4) == 0
				i := 0
				tr.take = seldom(func() bool { i++; return pick(25) == 0 }, killed, strict, ordered, wild, wild)
				o := tr.run(t, wander(60))
				never(t, o.judge(func(*cut) bool { return o.rnd.IntN(25) == 0 }))
				if t.Failed() {
					t.Errorf("seed %d: %+v", seed, tr.opt)
				}
			}
		})
	}
}

// TestOracleFindsBreakage: what is not done right is found. Without that the tests above prove nothing.
func TestOracleFindsBreakage(t *testing.T) {
	for _, control := range []struct {
		name string
		trial
		finds []string
	}{
		{"publishing without fsync of the file", trial{opt: Options{Durability: None}, judged: Ordered}, []string{torn}},
		{"publishing without fsync of the directory", trial{opt: Options{Durability: Ordered}, judged: Full}, []string{lost}},
		{"a disk whose flush does nothing", trial{features: features{deaf: true}}, []string{torn, lost, missing}},
	} {
		t.Run(control.name, func(t *testing.T) {
			control.take = everyCut
			o := control.run(t, func(p *programs) {
				p.ok(p.replace("a"))
				p.append("d/a")
				k := p.open("b", unix.O_WRONLY|unix.O_TRUNC)
				k.write(p.block())
				p.ok(k.fsync())
				k.kill()
			})
			broken := o.judge(func(*cut) bool { return false })
			for _, kind := range control.finds {
				if len(broken[kind]) == 0 {
					t.Errorf("nothing is %s", kind)
				}
			}
			for _, text := range slices.Concat(slices.Collect(maps.Values(broken))...) {
				if strings.Contains(text, "(killed)") {
					t.Errorf("without a power cut: %s", text)
				}
			}
		})
	}
}

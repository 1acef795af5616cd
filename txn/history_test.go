package txn

import (
	"context"
	"math/rand/v2"
	"path"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"untorn/txn/proc"
)

// programs are those who use an overlay on a disk in memory. They go on one after the other, and may have many files open
// at the same time.
type programs struct {
	*Overlay
	t       *testing.T
	rnd     *rand.Rand
	disk    *disk
	oracle  *oracle
	top     int
	dirs    map[string]*Dir
	pens    []*pen
	blocks  int
	callers uint32
	killed  proc.End
	spoiled []string // contents of which an fsync failed
}

// pen is one file that a program has open for writing.
type pen struct {
	p     *programs
	w     *Writer
	c     Caller
	path  string
	bytes string // of the staged file
	wrote bool   // something; a copy that is as it was may be dropped
}

// caller is another program each time; its last close is found out at RELEASE.
func (p *programs) caller() Caller {
	p.callers++
	return Caller{Cred: Cred{1000 + p.callers, 1000}}
}

// at finds the directory of a path.
func (p *programs) at(name string) (*Dir, string) {
	dir := path.Dir(name)
	if dir == "." {
		return p.Root(), name
	}
	if p.dirs[dir] == nil {
		var st unix.Statx_t
		must(p.t, p.Root().Stat(dir, &st))
		d, err := p.Root().Dir(dir, IdentOf(&st))
		must(p.t, err)
		p.dirs[dir] = d
	}
	return p.dirs[dir], path.Base(name)
}

func (p *programs) block() string {
	p.blocks++
	return block(p.blocks, pickOf(p.rnd, 0, 10, 300, 1000, 3000))
}

// has is the version of a path.
func (p *programs) has(name string) (content string, exists bool) {
	defer p.disk.lock()()
	content, exists = p.disk.files()[name]
	return content, exists
}

// open opens a file for writing; of what it has, bytes are kept.
func (p *programs) open(name string, flags int) *pen {
	d, base := p.at(name)
	c := p.caller()
	content, exists := p.has(name)
	k := &pen{p: p, c: c, path: name}
	var err error
	if !exists {
		k.w, _, err = d.Create(base, flags, 0o644, 0, c)
	} else {
		k.w, err = d.OpenWrite(base, Ident{}, flags, c)
	}
	must(p.t, err)
	k.w.Opened()
	if flags&unix.O_TRUNC == 0 {
		k.bytes = content
	}
	p.pens = append(p.pens, k)
	return k
}

// write appends a piece, in one write(2).
func (k *pen) write(text string) {
	must(k.p.t, k.w.Staged().Writable(func(fd int) error {
		_, err := k.p.disk.Pwrite(fd, []byte(text), int64(len(k.bytes)))
		return err
	}))
	k.bytes += text
	k.wrote = k.wrote || text != ""
	k.keep(&k.p.oracle.written)
}

// paths are the names that it stands for now.
func (k *pen) paths() (list []string) {
	st := k.w.Staged()
	st.mu.Lock()
	places := slices.Clone(st.places)
	st.mu.Unlock()
	for _, at := range places {
		list = append(list, at.dir.Path(at.name))
	}
	return list
}

// keep notes that the bytes so far must be kept, from now on.
func (k *pen) keep(list *[]promise) {
	paths := k.paths()
	defer k.p.disk.lock()()
	*list = slices.DeleteFunc(slices.Clone(*list), func(p promise) bool {
		if p.of == k {
			paths = append(paths, p.paths...)
		}
		return p.of == k
	})
	if k.bytes != "" && k.wrote && len(paths) > 0 {
		*list = append(*list, promise{k, paths, k.bytes})
	}
}

func (k *pen) fsync() error {
	err := k.w.Staged().Sync(false)
	if err != nil {
		return err
	}
	if k.p.opt.PublishOnFsync {
		k.acknowledge(k.paths())
	}
	if !k.p.opt.PublishOnFsync || k.p.opt.Durability != Full { // or it is a version, which another may replace
		k.keep(&k.p.oracle.synced)
	}
	return nil
}

func (k *pen) acknowledge(paths []string) {
	for _, path := range paths {
		k.p.oracle.acknowledge(path, k.bytes)
	}
}

func (k *pen) gone() {
	k.p.pens = slices.DeleteFunc(k.p.pens, func(o *pen) bool { return o == k })
}

// close is close(2); the error is what it returns.
func (k *pen) close() error {
	k.gone()
	paths := k.paths()
	err := finish(k.w, k.c)
	switch state := k.w.Staged().State(); {
	case err != nil:
		equal(k.p.t, "state after an error", state == Published, false)
	case state == Published:
		k.acknowledge(paths)
		k.p.oracle.forget(k)
	default:
		equal(k.p.t, "state", state, Dropped)
		k.p.oracle.forget(k)
	}
	return err
}

// kill ends the program by a signal.
func (k *pen) kill() {
	k.gone()
	st := k.w.Staged()
	st.mu.Lock()
	st.dismiss(k.w)
	st.to(Publishing)
	st.mu.Unlock()
	if err := st.finish(k.p.killed); err != nil || st.State() != Dropped {
		is(k.p.t, err, ErrKilled)
	}
}

// detach forgets the promises of the files that are staged for a path, because the path is about to go.
func (p *programs) detach(name string) {
	for _, k := range p.pens {
		if slices.Equal(k.paths(), []string{name}) {
			p.oracle.forget(k)
		}
	}
}

func (p *programs) unlink(name string) error {
	d, base := p.at(name)
	p.detach(name)
	return d.Unlink(base, Caller{})
}

func (p *programs) rename(from, to string, flags uint) error {
	d, base := p.at(from)
	nd, nbase := p.at(to)
	if flags == 0 {
		p.detach(to)
	}
	for _, k := range p.pens { // its origin may be noted again or not
		if at := k.paths(); slices.Contains(at, from) || slices.Contains(at, to) {
			p.oracle.mayMove(k, from, to)
		}
	}
	_, _, err := d.Rename(base, nd, nbase, flags, Caller{})
	return err
}

func (p *programs) link(from, to string) error {
	d, base := p.at(from)
	nd, nbase := p.at(to)
	var st unix.Statx_t
	fd, err := d.Pin(base, &st)
	if err != nil {
		return err
	}
	defer p.disk.Close(fd)
	return nd.Link(fd, nbase, Caller{})
}

func (p *programs) mkdir(name string) error {
	return p.Root().Mkdir(name, 0o755, 0, Caller{Cred: Cred{daemonUid, daemonGid}})
}

func (p *programs) rmdir(name string) error {
	err := p.Root().Rmdir(name)
	if err == nil && p.dirs[name] != nil {
		p.dirs[name].Release()
		delete(p.dirs, name)
	}
	return err
}

// truncate is truncate(2) to the length of the first bytes.
func (p *programs) truncate(name, bytes string) error {
	d, base := p.at(name)
	c := p.caller()
	w, err := d.OpenWrite(base, Ident{}, unix.O_WRONLY, c)
	if err != nil {
		return err
	}
	if err = w.Staged().Truncate(int64(len(bytes))); err == nil {
		err = w.Commit()
	}
	if err == nil {
		p.oracle.acknowledge(name, bytes)
	}
	return err
}

// replace writes a whole new version.
func (p *programs) replace(name string) error {
	k := p.open(name, unix.O_WRONLY|unix.O_TRUNC)
	k.write(p.block())
	k.write(p.block())
	return k.close()
}

// trial is a history that is cut.
type trial struct {
	features
	opt    Options
	judged Durability // what is promised, in truth or not
	seed   int
	take   func(n int) []cutting
}

// run runs a history, and returns the oracle with all crashes.
func (tr trial) run(t *testing.T, history func(p *programs)) *oracle {
	d := newDisk(tr.features)
	d.deaf = false // for now
	p := &programs{t: t, rnd: rand.New(rand.NewPCG(uint64(tr.seed), 2)), disk: d, top: d.mount(),
		dirs: map[string]*Dir{}, killed: killedEnd(t)}
	tr.opt.Sys = d
	var err error
	p.Overlay, err = Open(context.Background(), p.top, tr.opt)
	must(t, err)
	p.oracle = newOracle(t, d, tr.judged, tr.seed)
	p.oracle.take = func(int) []cutting { return nil }
	p.Mounted(elsewhere)
	must(t, p.mkdir("d"))
	for _, name := range []string{"a", "b", "d/a"} {
		must(t, p.replace(name))
	}
	d.sync()
	d.deaf = tr.deaf
	p.oracle.take = tr.take
	d.cut = p.oracle.cutting
	history(p)
	unlock := d.lock()
	p.oracle.cutting() // and after it all
	unlock()
	for _, k := range slices.Clone(p.pens) {
		k.close()
	}
	for _, dir := range p.dirs {
		dir.Release()
	}
	must(t, p.Close())
	d.cut = nil
	must(t, d.Close(p.top))
	for fd, h := range d.fds {
		name, _ := d.Path(fd)
		t.Errorf("a descriptor is left: %s, mode %#o, flags %#x, %d links", name, h.i.mode, h.flags, h.i.nlink)
	}
	return p.oracle
}

// everyCut are cuts of every kind, the wild ones several times.
func everyCut(int) []cutting { return []cutting{killed, strict, ordered, wild, wild} }

package txn

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
)

// block is a part of a version that carries its own length and checksum. A version is one or several.
func block(id, size int) string {
	body := strings.Repeat(fmt.Sprintf("%d.", id), size/2+1)[:size]
	return fmt.Sprintf("#%d %d %x\n%s", id, size, sha256.Sum256([]byte(body)), body)
}

// known are texts that were found whole before.
var known sync.Map

// whole reports whether a text is a version and not torn.
func whole(text string) bool {
	if _, ok := known.Load(text); ok {
		return true
	}
	for text := text; text != ""; {
		var id, size int
		var sum string
		n, _ := fmt.Sscanf(text, "#%d %d %s\n", &id, &size, &sum)
		head, rest, ok := strings.Cut(text, "\n")
		if n != 3 || !ok || size > len(rest) || head+"\n"+rest[:size] != block(id, size) {
			return false
		}
		text = rest[size:]
	}
	known.Store(text, true)
	return true
}

// absent is the state of a path without a file.
const absent = "-"

// oracle knows what may be found after a crash. It looks at the disk as programs see it before each system call that
// changes anything, and is told what the overlay has promised.
type oracle struct {
	t    *testing.T
	disk *disk // whose lock guards all this
	rnd  *rand.Rand
	// take decides whether the power is cut at the n-th change, and how.
	take func(n int) []cutting
	n    int
	cuts []*cut
	expectation
}

// expectation is what the oracle knows at one moment.
type expectation struct {
	durability Durability // that is judged by
	now        map[string]string
	ever       states // what each path ever had
	since      states // what it had since a version of it was acknowledged, that version included
	// promised are versions that were acknowledged in Full.
	promised map[string]bool
	synced   []promise // survive a power cut, because they were fsynced
	written  []promise // survive the death of the daemon
}

// states are the contents that each path may have.
type states map[string]map[string]bool

func (s states) add(path, content string) {
	if s[path] == nil {
		s[path] = map[string]bool{}
	}
	s[path][content] = true
}

func (s states) clone() states {
	c := states{}
	for path, list := range s {
		c[path] = maps.Clone(list)
	}
	return c
}

// promise is bytes that must be in the salvage, or at their path once that is published.
type promise struct {
	of    any // whose they are
	paths []string
	bytes string // what the file must begin with
}

// cut is one crash.
type cut struct {
	expectation
	disk *disk // as it is found afterwards
	how  cutting
	at   int
}

func newOracle(t *testing.T, d *disk, durability Durability, seed int) *oracle {
	o := &oracle{t: t, disk: d, rnd: rand.New(rand.NewPCG(uint64(seed), 1))}
	o.expectation = expectation{durability: durability, now: map[string]string{}, ever: states{}, since: states{},
		promised: map[string]bool{}}
	o.look()
	return o
}

// look brings the states up to date.
func (o *oracle) look() {
	files := o.disk.files()
	for path := range merged(o.now, files) {
		was, is := stateOf(o.now, path), stateOf(files, path)
		if was == is && o.ever[path] != nil {
			continue
		}
		for _, s := range []string{was, is} {
			o.ever.add(path, s)
			o.since.add(path, s)
		}
	}
	o.now = files
}

func merged(a, b map[string]string) map[string]string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

func stateOf(files map[string]string, path string) string {
	if content, ok := files[path]; ok {
		return content
	}
	return absent
}

// acknowledge: a close(2) has returned 0, and the path has this version.
func (o *oracle) acknowledge(path, content string) {
	defer o.disk.lock()()
	o.look()
	if got := stateOf(o.now, path); got != content {
		o.t.Fatalf("%s was closed with %.40q, and has %.40q", path, content, got)
	}
	o.since[path] = map[string]bool{content: true}
	o.promised[content] = true
}

// durable reports whether a path has nothing but one version on the disk.
func (o *oracle) durable(path, content string) bool {
	defer o.disk.lock()()
	return o.durability == Full && len(o.since[path]) == 1 && o.since[path][content]
}

// forget takes promises back.
func (o *oracle) forget(of any) {
	defer o.disk.lock()()
	not := func(p promise) bool { return p.of == of }
	o.synced = slices.DeleteFunc(slices.Clone(o.synced), not)
	o.written = slices.DeleteFunc(slices.Clone(o.written), not)
}

// restored: bytes left the salvage for a path, where they are promised as a version.
func (o *oracle) restored(bytes string) {
	defer o.disk.lock()()
	is := func(p promise) bool { return strings.HasPrefix(bytes, p.bytes) }
	o.synced = slices.DeleteFunc(slices.Clone(o.synced), is)
	o.written = slices.DeleteFunc(slices.Clone(o.written), is)
}

// mayMove lets the bytes of somebody be found under other paths as well.
func (o *oracle) mayMove(of any, paths ...string) {
	defer o.disk.lock()()
	for _, list := range []*[]promise{&o.synced, &o.written} {
		*list = slices.Clone(*list)
		for i, p := range *list {
			if p.of == of {
				(*list)[i].paths = append(slices.Clip(p.paths), paths...)
			}
		}
	}
}

// cutting is called before each change.
func (o *oracle) cutting() {
	o.look()
	o.n++
	for _, how := range o.take(o.n) {
		e := o.expectation
		e.ever, e.since, e.promised = e.ever.clone(), e.since.clone(), maps.Clone(e.promised)
		o.cuts = append(o.cuts, &cut{e, o.disk.crash(how, o.rnd), how, o.n})
	}
}

// complaint is one promise that was broken.
type complaint struct{ kind, text string }

// The kinds of complaints.
const (
	torn     = "torn"     // a path has what is no version
	lost     = "lost"     // a path has a version that it must not have, or none
	missing  = "missing"  // bytes that should be in the salvage are not
	untidy   = "untidy"   // recovery left something that it should not
	restless = "restless" // a second recovery found something to do
)

// recoverDisk is what starts after a crash; everything has to be given back.
func recoverDisk(d *disk) (complaints []complaint) {
	dir := d.mount()
	defer d.Close(dir)
	report, err := Recover(d, dir)
	if err != nil {
		complaints = append(complaints, complaint{untidy, "recovery: " + err.Error()})
	}
	for _, p := range report.Problems {
		complaints = append(complaints, complaint{untidy, p})
	}
	if len(d.fds) != 1 {
		complaints = append(complaints, complaint{untidy, fmt.Sprint(len(d.fds)-1, " descriptors are left open")})
	}
	return complaints
}

// judge recovers a disk and looks for broken promises.
func (c *cut) judge() []complaint {
	all := recoverDisk(c.disk)
	all = append(all, c.paths()...)
	all = append(all, c.salvage()...)
	before := c.disk.print()
	all = append(all, recoverDisk(c.disk)...)
	if after := c.disk.print(); after != before {
		all = append(all, complaint{restless, fmt.Sprintf("a second recovery changes\n%s\nto\n%s", before, after)})
	}
	return all
}

// paths judges the files outside of .untorn.
func (c *cut) paths() (all []complaint) {
	files := c.disk.files()
	if c.durability == None && c.how != killed {
		return nil
	}
	for path, content := range files {
		if !whole(content) {
			all = append(all, complaint{torn, fmt.Sprintf("%s has %d bytes: %.60q", path, len(content), content)})
		}
	}
	for path := range merged(c.now, files) {
		may := c.ever[path]
		switch {
		case c.how == killed:
			may = map[string]bool{stateOf(c.now, path): true}
		case c.durability == Full:
			may = c.since[path]
		}
		if got := stateOf(files, path); !may[got] && whole(got) || got == absent && !may[got] {
			all = append(all, complaint{lost, fmt.Sprintf("%s has %.60q", path, got)})
		}
	}
	if c.durability != Full {
		return all
	}
	found := map[string]bool{}
	for _, content := range files {
		found[content] = true
	}
	for path, content := range c.now {
		if content != "" && c.promised[content] && !found[content] {
			all = append(all, complaint{lost, fmt.Sprintf("what %s had is nowhere: %.60q", path, content)})
		}
	}
	return all
}

// salvage judges what is in .untorn, which must have nothing in it but whole entries.
func (c *cut) salvage() (all []complaint) {
	d := c.disk
	complain := func(kind, format string, args ...any) {
		all = append(all, complaint{kind, fmt.Sprintf(format, args...)})
	}
	hidden := d.root.entries[Hidden]
	if hidden == nil {
		return nil
	}
	if stage := hidden.entries[stageName]; stage != nil && len(stage.entries) > 0 {
		complain(untidy, "left in the stage: %v", slices.Collect(maps.Keys(stage.entries)))
	}
	dir := d.mount()
	defer d.Close(dir)
	s, err := OpenSalvage(d, dir)
	if err != nil {
		complain(untidy, "salvage: %v", err)
		return all
	}
	defer s.Close()
	list, err := s.List()
	if err != nil {
		complain(untidy, "salvage: %v", err)
	}
	files := map[string]string{}
	if shelf := hidden.entries[salvageName]; shelf != nil {
		d.tree(shelf, "", files)
	}
	if len(files) != 2*len(list) {
		complain(untidy, "%d files for %d entries: %v", len(files), len(list), slices.Sorted(maps.Keys(files)))
	}
	for _, rec := range list {
		if rec.Reason == "record damaged" || rec.Size != int64(len(files[rec.ID])) {
			complain(untidy, "salvage: %+v", rec)
		}
	}
	promises := c.synced
	if c.how == killed {
		promises = append(slices.Clip(promises), c.written...)
	}
	published := d.files()
	for _, p := range promises {
		kept := slices.ContainsFunc(list, func(rec Record) bool {
			return strings.HasPrefix(files[rec.ID], p.bytes) && (p.paths == nil || slices.Contains(p.paths, rec.Path))
		})
		for path, content := range published {
			kept = kept || strings.HasPrefix(content, p.bytes) && (p.paths == nil || slices.Contains(p.paths, path))
		}
		if !kept {
			complain(missing, "%d bytes of %v; the salvage has %+v", len(p.bytes), p.paths, list)
		}
	}
	return all
}

// again judges crashes during the recovery from a crash, at every change that it makes.
func (c *cut) again(rnd *rand.Rand) (all []complaint) {
	var cuts []*cut
	d := c.disk.crash(killed, rnd)
	d.cut = func() {
		for _, how := range []cutting{killed, cutting(1 + rnd.IntN(int(cuttings)-1))} {
			k := *c
			k.disk, k.at = d.crash(how, rnd), len(cuts)
			cuts = append(cuts, &k)
		}
	}
	recoverDisk(d)
	for _, k := range cuts {
		for _, x := range k.judge() {
			all = append(all, complaint{x.kind, fmt.Sprintf("after a crash at change %d of the recovery: %s", k.at/2, x.text)})
		}
	}
	return all
}

// judge judges all crashes, and returns what was broken, by kind.
func (o *oracle) judge(deep func(c *cut) bool) map[string][]string {
	broken := map[string][]string{}
	for _, c := range o.cuts {
		var all []complaint
		if deep(c) {
			all = c.again(o.rnd)
		}
		for _, x := range append(all, c.judge()...) {
			broken[x.kind] = append(broken[x.kind], fmt.Sprintf("%s: cut (%v) at change %d: %s", x.kind, c.how, c.at, x.text))
		}
	}
	return broken
}

// never is for a system whose promises hold.
func never(t *testing.T, broken map[string][]string) {
	t.Helper()
	for _, kind := range slices.Sorted(maps.Keys(broken)) {
		t.Errorf("%d broken, for example\n%s", len(broken[kind]), strings.Join(broken[kind][:min(3, len(broken[kind]))], "\n"))
	}
}

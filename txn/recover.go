package txn

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reasonDied is the reason in the record of what a recovery salvages.
const reasonDied = "the daemon died while it was being written"

// helperSuffix marks directories in an instance of the stage in which staging makes temps, for what they inherit.
const helperSuffix = ".d"

// Step is what an Action does.
type Step uint8

const (
	// Keep moves a temp to the salvage.
	Keep Step = iota
	// Drop removes a temp that holds nothing.
	Drop
	// Discard removes a leftover of an interrupted write of our own, or what is neither file nor directory in an instance
	// of the stage: a symlink or a fifo there was planted, the directory is ours alone, and unlink(2) follows nothing.
	Discard
	// RemoveDir removes a directory of helpers, once it is empty.
	RemoveDir
	// RemoveInstance removes an instance with its list of origins, once all else in it is done.
	RemoveInstance
	// Adopt gives bytes in the salvage that have no record a minimal one.
	Adopt
	// Forget removes a record that has no bytes.
	Forget
	// Mend writes a damaged record anew, with what can be known.
	Mend
	// Finish gives a file that a restore has replaced its own id, which an interruption kept it from.
	Finish
)

// Action is one step of a recovery.
type Action struct {
	Step     Step
	Instance string // of the stage; empty for what lies elsewhere
	Name     string // below the instance, else below .untorn
	Record   Record // Keep, Mend, Finish: what will be known of the entry; Adopt, Forget: its id
	Why      string

	clean *Clean // Drop: how the temp looks; nil where it is a second name of what is kept
}

func (a Action) String() string {
	where := Hidden + "/" + a.Name
	if a.Instance != "" {
		where = strings.TrimSuffix(Hidden+"/"+stageName+"/"+a.Instance+"/"+a.Name, "/")
	}
	verb := [...]string{"salvage", "drop", "discard", "remove directory", "remove instance", "make a record for",
		"forget", "mend the record of", "finish the restore of"}[a.Step]
	switch {
	case a.Step == Keep && a.Record.Path == "":
		return fmt.Sprintf("%s %s, %d bytes of an unknown path: %s", verb, where, a.Record.Size, a.Why)
	case a.Step == Keep:
		return fmt.Sprintf("%s %s, %d bytes of %q: %s", verb, where, a.Record.Size, a.Record.Path, a.Why)
	}
	return fmt.Sprintf("%s %s: %s", verb, where, a.Why)
}

// Plan is what a recovery is going to do. It holds the locks of the instances that it is about.
type Plan struct {
	Actions []Action
	// Problems are what was found and is left alone, for people to look at.
	Problems []string

	sys   Sys
	held  map[string]int // locked instances of the stage
	alone []int          // locked directories, in which nobody writes outside of an instance
}

// Report is what a recovery has done.
type Report struct {
	Salvaged, Dropped int
	Bytes             int64    // salvaged
	Entries           []Record // salvaged
	// Problems are what was left as it is: things that untorn did not put there, temps whose record finds no space.
	Problems []string
}

// Recover cleans up what dead daemons left in the backing behind dir, and leaves live ones alone. It may be interrupted
// and repeated at any time. A backing without .untorn needs nothing. On an error the report tells what was done all the
// same. ErrPlanted, ErrFormat, ErrReadOnly.
func Recover(sys Sys, dir int) (Report, error) {
	base, err := openExisting(sys, dir)
	if err != nil || base < 0 {
		return Report{}, err
	}
	defer sys.Close(base)
	if err := checkFormat(sys, base, true); err != nil {
		return Report{}, err
	}
	plan, err := scan(sys, base)
	if err != nil {
		return Report{}, err
	}
	return plan.apply(sys, base)
}

// scan finds out what dead daemons left in the .untorn behind base, and changes nothing. The caller owes the Plan an
// apply or a Release, until which the instances stay locked; it holds one descriptor for each. ErrPlanted.
func scan(sys Sys, base int) (*Plan, error) {
	p := &Plan{sys: sys, held: map[string]int{}}
	if err := p.scan(base); err != nil {
		p.Release()
		return nil, err
	}
	return p, nil
}

// scan reads the salvage before the stage: an entry that a daemon was making then is in one of them.
func (p *Plan) scan(base int) error {
	if err := p.scanStrays(base); err != nil {
		return err
	}
	salvage, err := existing(p.sys, base, salvageName)
	if err != nil {
		return err
	}
	s := salvaged{shelf: shelf{sys: p.sys, dir: salvage}}
	if salvage >= 0 {
		defer p.sys.Close(salvage)
		s.alone = p.takeAlone(salvage)
		if err := s.load(); err != nil {
			return err
		}
	}
	stage, err := existing(p.sys, base, stageName)
	if err != nil {
		return err
	}
	live := map[string]bool{}
	if stage >= 0 {
		defer p.sys.Close(stage)
		if live, err = p.scanStage(stage, &s); err != nil {
			return err
		}
	}
	return p.scanSalvage(&s, live)
}

// scanStrays finds what an interrupted writeFile left in .untorn itself.
func (p *Plan) scanStrays(base int) error {
	all, err := names(p.sys, base)
	if err != nil {
		return fmt.Errorf("listing %s: %w", Hidden, err)
	}
	alone := p.takeAlone(base)
	for _, name := range all {
		if alone && strings.Contains(name, tempMark) {
			p.stray(base, "", name)
		}
	}
	return nil
}

// stray plans the removal of a temp of writeFile, at which nobody is.
func (p *Plan) stray(dir int, prefix, name string) {
	var st unix.Statx_t
	if p.sys.Stat(dir, name, &st) == nil && IsRegular(&st) {
		p.add(Action{Step: Discard, Name: prefix + name, Why: "it was never finished"})
	}
}

// takeAlone locks a directory against all who write in it outside of an instance of the stage (see writing), until the
// plan is released. False: somebody is at it right now, or the filesystem has no locks; then what is unfinished there is
// left for the next recovery. The clock would be no help: it may have been set in between.
func (p *Plan) takeAlone(dir int) bool {
	fd, err := p.sys.Open(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return false
	}
	if p.sys.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil {
		p.sys.Close(fd)
		return false
	}
	p.alone = append(p.alone, fd)
	return true
}

// writing marks a directory, .untorn or the salvage, as being written in outside of an instance of the stage, whose lock
// would tell; a recovery then leaves alone what is unfinished there. It waits for a recovery that is under way.
func writing(sys Sys, dir int) (done func()) {
	if sys.Flock(dir, unix.LOCK_SH) != nil {
		return func() {} // no locks here, and no recovery thinks itself alone
	}
	return func() { sys.Flock(dir, unix.LOCK_UN) }
}

func (p *Plan) add(a Action) { p.Actions = append(p.Actions, a) }

func (p *Plan) problem(format string, args ...any) {
	p.Problems = append(p.Problems, fmt.Sprintf(format, args...))
}

// salvaged is what a scan knows of the salvage.
type salvaged struct {
	shelf
	listing
	alone  bool              // nobody else writes in it
	begun  map[string]Record // records without bytes, by the temp that was to become their bytes
	inodes map[Ident]bool    // of the entries
}

func (s *salvaged) load() (err error) {
	if s.listing, err = s.list(); err != nil {
		return err
	}
	s.begun, s.inodes = map[string]Record{}, map[Ident]bool{}
	for _, id := range s.bare {
		rec, err := s.read(id)
		if passing(err) {
			return err
		}
		if err == nil && rec.Temp != "" {
			s.begun[rec.Temp] = rec
		}
	}
	for _, k := range s.entries {
		s.inodes[k.inode] = true
	}
	return nil
}

// passing tells an error that another try may not meet from damage, with which a recovery has to live: a list of origins
// that cannot be read costs the paths of the temps, never their bytes.
func passing(err error) bool {
	var e unix.Errno
	if !errors.As(err, &e) {
		return false
	}
	switch e {
	case unix.ENOENT, unix.EIO, unix.EUCLEAN, unix.EBADMSG:
		return false
	}
	return true
}

// scanStage takes the instances that nobody holds, and returns the others.
func (p *Plan) scanStage(stage int, s *salvaged) (live map[string]bool, err error) {
	all, err := names(p.sys, stage)
	if err != nil {
		return nil, fmt.Errorf("listing the stage: %w", err)
	}
	live = map[string]bool{}
	for _, name := range all {
		fd, err := existing(p.sys, stage, name)
		if errors.Is(err, ErrPlanted) {
			p.problem("%s/%s/%s is left alone: %v", Hidden, stageName, name, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		if fd < 0 {
			continue // its daemon removed it meanwhile
		}
		switch err := seize(p.sys, fd); err {
		case nil:
			p.held[name] = fd
			if err := p.scanInstance(name, fd, s); err != nil {
				return nil, err
			}
		case unix.EWOULDBLOCK:
			live[name] = true
			p.sys.Close(fd)
		default:
			p.sys.Close(fd)
			return nil, fmt.Errorf("locking instance %s of the stage: %w", name, err)
		}
	}
	return live, nil
}

// seize locks the instance of a dead daemon. unix.EWOULDBLOCK: the daemon lives, or somebody else recovers it. Who just
// looks whether it lives (see Check) holds a shared lock for an instant, and is waited for.
func seize(sys Sys, fd int) error {
	err := sys.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	for range 100 {
		if err != unix.EWOULDBLOCK || sys.Flock(fd, unix.LOCK_SH|unix.LOCK_NB) != nil {
			return err
		}
		time.Sleep(time.Millisecond)
		err = sys.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	}
	return err
}

// scanInstance plans what becomes of a dead daemon's temps.
func (p *Plan) scanInstance(instance string, fd int, s *salvaged) error {
	there, err := namesOf(p.sys, fd)
	if err != nil {
		return fmt.Errorf("listing instance %s of the stage: %w", instance, err)
	}
	origins, err := readOrigins(p.sys, fd, there.has)
	if passing(err) {
		return err
	}
	if err != nil {
		p.problem("instance %s: %v; paths may be unknown", instance, err)
	}
	dead := deadInstance{Plan: p, name: instance, origins: origins, salvaged: s, kept: map[Ident]bool{}}
	if err := dead.scan(fd, ""); err != nil {
		return fmt.Errorf("looking through instance %s of the stage: %w", instance, err)
	}
	p.add(Action{Step: RemoveInstance, Instance: instance, Why: "its daemon is dead"})
	return nil
}

// deadInstance is one instance during a scan.
type deadInstance struct {
	*Plan
	name     string
	origins  map[string]Origin
	salvaged *salvaged
	kept     map[Ident]bool // what has been planned to be salvaged
}

// scan goes through the instance (prefix "") or a directory of helpers in it.
func (d *deadInstance) scan(dir int, prefix string) error {
	all, err := names(d.sys, dir)
	if err != nil {
		return err
	}
	slices.Sort(all) // 7 before 7.1, a second name that publishing gave it
	for _, name := range all {
		var st unix.Statx_t
		switch err := d.sys.Stat(dir, name, &st); {
		case err == unix.ENOENT:
		case err != nil:
			return err
		case IsRegular(&st):
			if prefix != "" || name != originsName {
				d.temp(prefix+name, &st)
			}
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			d.add(Action{Step: Discard, Instance: d.name, Name: prefix + name, Why: "it is not a file of ours"})
		case prefix == "" && strings.HasSuffix(name, helperSuffix):
			if err := d.helper(dir, name); err != nil {
				return err
			}
		default:
			d.problem("%s/%s/%s/%s is a directory, and left alone", Hidden, stageName, d.name, prefix+name)
		}
	}
	return nil
}

// helper goes through a directory of helpers. Its mode is whatever staging needed; it lies in a directory of ours.
func (d *deadInstance) helper(dir int, name string) error {
	fd, err := d.sys.Open(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer d.sys.Close(fd)
	if err := d.scan(fd, name+"/"); err != nil {
		return err
	}
	d.add(Action{Step: RemoveDir, Instance: d.name, Name: name, Why: "it is empty"})
	return nil
}

// temp decides about one regular file.
func (d *deadInstance) temp(name string, st *unix.Statx_t) {
	a := Action{Instance: d.name, Name: name}
	o, known := d.origin(name)
	begun, isBegun := d.salvaged.begun[d.name+"/"+name]
	switch {
	case strings.Contains(name, tempMark):
		a.Step, a.Why = Discard, "it was never finished"
	case st.Nlink > 1 && (d.kept[IdentOf(st)] || d.salvaged.inodes[IdentOf(st)]):
		a.Step, a.Why = Drop, "it is a second name of a file that is salvaged"
	case isBegun:
		a.Step, a.Record, a.Why = Keep, begun, begun.Reason
	case nothing(o, known, st):
		a.Step, a.Why, a.clean = Drop, "nothing was written to it", cleanOf(st)
	default:
		a.Step, a.Why = Keep, reasonDied
		a.Record = Record{Path: o.Path, Pid: o.Pid, Command: o.Command, Reason: reasonDied, Temp: d.name + "/" + name}
	}
	if a.Step == Keep {
		a.Record.describe(st)
		d.kept[IdentOf(st)] = true
	}
	d.add(a)
}

// origin finds the origin of a temp; for one in a directory of helpers it may be that of the directory.
func (d *deadInstance) origin(name string) (Origin, bool) {
	o, known := d.origins[name]
	if helper, _, ok := strings.Cut(name, "/"); ok && !known {
		o, known = d.origins[strings.TrimSuffix(helper, helperSuffix)]
	}
	return o, known
}

// nothing reports whether a temp holds nothing that is not elsewhere.
func nothing(o Origin, known bool, st *unix.Statx_t) bool {
	return st.Size == 0 || known && o.Clean != nil && *o.Clean == *cleanOf(st)
}

// scanSalvage plans the tidying of the salvage itself. What needs it to be ours alone waits for a recovery that is.
func (p *Plan) scanSalvage(s *salvaged, live map[string]bool) error {
	for _, name := range s.strange {
		p.problem("%s/%s/%s is left alone: untorn did not put it there", Hidden, salvageName, name)
	}
	if !s.alone {
		return nil
	}
	for _, name := range s.temps {
		p.stray(s.dir, salvageName+"/", name)
	}
	for _, id := range s.lost {
		p.add(Action{Step: Adopt, Name: salvageName + "/" + id, Record: Record{ID: id}, Why: "it has none"})
	}
	planned := map[string]bool{}
	for _, a := range p.Actions {
		if a.Step == Keep && a.Record.ID != "" {
			planned[a.Record.ID] = true
		}
	}
	for _, id := range s.bare {
		if !planned[id] {
			p.scanBare(s, id, live)
		}
	}
	return p.scanRecords(s)
}

// scanBare decides about a record without bytes. It is forgotten if nobody will bring them any more, because the daemon
// that was to is dead; unless they are there, under the id of an entry that a restore put in their place.
func (p *Plan) scanBare(s *salvaged, id string, live map[string]bool) {
	rec, err := s.read(id)
	instance, _, _ := strings.Cut(rec.Temp, "/")
	switch {
	case passing(err) || live[instance]:
	case s.swapped(rec):
		p.add(Action{Step: Finish, Name: salvageName + "/" + rec.Swap, Record: rec, Why: "it was interrupted"})
	default:
		p.add(Action{Step: Forget, Name: salvageName + "/" + id + recordSuffix, Record: Record{ID: id},
			Why: "it is a record without bytes"})
	}
}

// swapped reports whether a restore was interrupted after it had exchanged two files, and before the one that it replaced
// got the id of rec.
func (s *salvaged) swapped(rec Record) bool {
	return slices.ContainsFunc(s.entries, func(k kept) bool { return k.id == rec.Swap && k.inode.Ino == rec.Ino })
}

// scanRecords finds the records that are damaged.
func (p *Plan) scanRecords(s *salvaged) error {
	for _, k := range s.entries {
		rec, err := s.read(k.id)
		if passing(err) {
			return err
		}
		if errors.Is(err, errDamaged) {
			p.add(Action{Step: Mend, Name: salvageName + "/" + k.id, Record: rec, Why: "it is damaged"})
		}
	}
	return nil
}

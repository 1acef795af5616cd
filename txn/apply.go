package txn

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Release unlocks the instances. The Plan can no longer be applied.
func (p *Plan) Release() {
	for _, fd := range p.held {
		p.sys.Close(fd)
	}
	for _, fd := range p.alone {
		p.sys.Close(fd)
	}
	p.held, p.alone = nil, nil
}

// apply carries the plan out, and releases it. It may be interrupted after any step: another scan and apply then do what
// is left. A step that fails holds up only those that build on it; the error has all failures, the report what was done
// nevertheless. A temp for whose record there is no space stays in the stage and is a problem, not an error.
// ErrReadOnly.
func (p *Plan) apply(sys Sys, base int) (Report, error) {
	defer p.Release()
	run := recovery{sys: sys, base: base, plan: p, salvage: -1, stuck: map[string]bool{}}
	run.report.Problems = append(run.report.Problems, p.Problems...)
	defer func() {
		if run.salvage >= 0 {
			sys.Close(run.salvage)
		}
	}()
	for rest := p.Actions; len(rest) > 0; {
		n := slices.IndexFunc(rest, func(a Action) bool { return a.Step != Keep })
		if n < 0 {
			n = len(rest)
		}
		run.keepAll(rest[:n])
		if rest = rest[n:]; len(rest) > 0 {
			run.try(rest[0])
			rest = rest[1:]
		}
	}
	slices.SortFunc(run.report.Entries, func(a, b Record) int { return strings.Compare(a.ID, b.ID) })
	run.harden()
	return run.report, errors.Join(run.failed...)
}

// try does one action and notes its failure.
func (r *recovery) try(a Action) {
	err := r.do(a)
	if err == nil {
		return
	}
	if errors.Is(err, unix.EROFS) {
		err = fmt.Errorf("%w: %w", ErrReadOnly, err)
	}
	r.stuck[a.Instance] = true
	r.failed = append(r.failed, fmt.Errorf("to %s: %w", a, err))
}

// harden makes what was salvaged durable, of which nobody may have synced the bytes: whoever reads the report takes them
// for saved.
func (r *recovery) harden() {
	if r.report.Salvaged == 0 {
		return
	}
	if err := r.sys.Syncfs(r.salvage); err != nil {
		r.problem("what was salvaged may not survive a power cut: %v", err)
	}
}

// recovery is an apply under way.
type recovery struct {
	sys     Sys
	base    int
	plan    *Plan
	newest  newest
	salvage int // opened at first use
	report  Report
	failed  []error
	stuck   map[string]bool // instances in which something had to stay
}

// problem puts something into the report.
func (r *recovery) problem(format string, args ...any) {
	r.report.Problems = append(r.report.Problems, fmt.Sprintf(format, args...))
}

func (r *recovery) do(a Action) error {
	switch a.Step {
	case Keep, Drop:
		return r.temp(a)
	case RemoveInstance:
		return r.removeInstance(a.Instance)
	case Adopt:
		return r.adopt(a.Record.ID)
	case Forget:
		return r.forget(a.Record.ID)
	case Mend:
		return r.mend(a.Record)
	case Finish:
		return r.finish(a.Record)
	}
	// Discard and RemoveDir.
	dir, name, done, err := r.locate(a)
	if err == nil {
		if a.Step == RemoveDir {
			err = r.sys.Rmdir(dir, name)
		} else {
			err = r.sys.Unlink(dir, name)
		}
		done()
	}
	switch {
	case err == unix.ENOENT:
		return nil
	case err == unix.ENOTEMPTY && a.Step == RemoveDir:
		r.stay(a, "something else is in it")
		return nil
	}
	return err
}

// stay notes that something of an instance is left as it is.
func (r *recovery) stay(a Action, why string) {
	r.stuck[a.Instance] = true
	r.problem("%s/%s/%s/%s stays: %s", Hidden, stageName, a.Instance, a.Name, why)
}

// locate opens the directory that an action is about. done closes it, if it was opened for this.
func (r *recovery) locate(a Action) (dir int, name string, done func(), err error) {
	dir = r.base
	if a.Instance != "" {
		var held bool
		if dir, held = r.plan.held[a.Instance]; !held {
			return -1, "", nil, errors.New("the plan was released")
		}
	}
	sub, name, below := strings.Cut(a.Name, "/")
	if !below {
		return dir, a.Name, func() {}, nil
	}
	dir, err = r.sys.Open(dir, sub, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	return dir, name, func() { r.sys.Close(dir) }, err
}

// temp salvages or drops a temp. What was decided in the scan is looked at again: a program that outlived the daemon may
// still write to its temp, through a mapping or by passthrough.
func (r *recovery) temp(a Action) error {
	dir, name, done, err := r.locate(a)
	if err != nil {
		return err
	}
	defer done()
	held := r.plan.held[a.Instance]
	var st unix.Statx_t
	if err := r.sys.Stat(dir, name, &st); err == unix.ENOENT {
		return nil
	} else if err != nil {
		return err
	}
	if a.Step == Drop {
		return r.drop(a, dir, name, &st)
	}
	if err := r.open(); err != nil {
		return err
	}
	rec, err := r.keep(dir, name, held, a.Record)
	if full(err) {
		r.stay(a, "there is no space for its record")
		return nil
	}
	if err == nil {
		r.kept(rec)
	}
	return err
}

func (r *recovery) kept(rec Record) {
	r.report.Salvaged++
	r.report.Bytes += rec.Size
	r.report.Entries = append(r.report.Entries, rec)
}

func (r *recovery) drop(a Action, dir int, name string, now *unix.Statx_t) error {
	if a.clean != nil && *cleanOf(now) != *a.clean {
		r.stay(a, "it was written to just now")
		return nil
	}
	if err := r.sys.Unlink(dir, name); err != nil {
		return err
	}
	r.report.Dropped++
	return nil
}

// keep moves a temp to the salvage; under an id that a record has already, if it was interrupted there before.
func (r *recovery) keep(dir int, name string, held int, rec Record) (Record, error) {
	s := shelf{r.sys, r.salvage, &r.newest}
	if rec.ID != "" {
		if err := s.fetch(dir, name, rec.ID); err != unix.EEXIST {
			return rec, err
		}
	}
	done, err := s.put(dir, name, held, rec)
	if !full(err) {
		return done, err
	}
	l, lerr := s.list()
	if lerr != nil || s.makeRoom(l.entries, 0, r.warn) == 0 {
		return done, err
	}
	return s.put(dir, name, held, rec)
}

// warn puts what was given up to make room into the report.
func (r *recovery) warn(msg string, args ...any) {
	for i := 0; i+1 < len(args); i += 2 {
		msg += fmt.Sprintf(" %v=%v", args[i], args[i+1])
	}
	r.problem("%s", msg)
}

// open opens the salvage, made if there was none.
func (r *recovery) open() (err error) {
	if r.salvage < 0 {
		if r.salvage, err = subdir(r.sys, r.base, salvageName); err == nil {
			_, err = shelf{r.sys, r.salvage, &r.newest}.list() // for the youngest id
		}
	}
	return err
}

// removeInstance removes the list of origins, which is needed for as long as a temp is left, and the directory.
func (r *recovery) removeInstance(name string) error {
	if r.stuck[name] {
		return nil
	}
	held, ok := r.plan.held[name]
	if !ok {
		return errors.New("the plan was released")
	}
	if err := r.sys.Unlink(held, originsName); err != nil && err != unix.ENOENT {
		return fmt.Errorf("removing the list of origins: %w", err)
	}
	stage, err := existing(r.sys, r.base, stageName)
	if err != nil || stage < 0 {
		return err
	}
	defer r.sys.Close(stage)
	switch err := r.sys.Rmdir(stage, name); err {
	case nil, unix.ENOENT:
		return nil
	case unix.ENOTEMPTY:
		return nil // what is in it is among the problems
	default:
		return err
	}
}

// adopt writes a minimal record for bytes that have none, unless either has changed.
func (r *recovery) adopt(id string) error {
	if err := r.open(); err != nil {
		return err
	}
	s := shelf{sys: r.sys, dir: r.salvage}
	var st unix.Statx_t
	if err := r.sys.Stat(s.dir, id, &st); err == unix.ENOENT {
		return nil
	} else if err != nil {
		return err
	}
	at, _ := idTime(id)
	rec := Record{ID: id, Time: at, Reason: "its record was lost"}
	rec.describe(&st)
	switch err := s.write(s.dir, rec); {
	case errors.Is(err, unix.EEXIST):
		return nil
	case full(err):
		r.problem("salvage entry %s has no record, and there is no space for one", id)
		return nil
	default:
		return err
	}
}

// forget removes a record, unless its bytes have come.
func (r *recovery) forget(id string) error {
	if err := r.open(); err != nil {
		return err
	}
	var st unix.Statx_t
	if err := r.sys.Stat(r.salvage, id, &st); err != unix.ENOENT {
		return err
	}
	if err := r.sys.Unlink(r.salvage, id+recordSuffix); err != unix.ENOENT {
		return err
	}
	return nil
}

// mend replaces a damaged record, with what is left of it and what its bytes say.
func (r *recovery) mend(rec Record) error {
	if err := r.open(); err != nil {
		return err
	}
	var st unix.Statx_t
	if err := r.sys.Stat(r.salvage, rec.ID, &st); err == unix.ENOENT {
		return nil
	} else if err != nil {
		return err
	}
	rec.describe(&st)
	s := shelf{sys: r.sys, dir: r.salvage}
	if err := s.rewrite(rec); !full(err) {
		return err
	}
	r.problem("salvage entry %s has a damaged record, and there is no space for another", rec.ID)
	return nil
}

// finish does what a restore would have done next: see Salvage.exchange.
func (r *recovery) finish(rec Record) error {
	if err := r.open(); err != nil {
		return err
	}
	if err := renameNew(r.sys, r.salvage, rec.Swap, r.salvage, rec.ID); err != nil && err != unix.ENOENT {
		return err
	}
	if err := r.sys.Unlink(r.salvage, rec.Swap+recordSuffix); err != unix.ENOENT {
		return err
	}
	return nil
}

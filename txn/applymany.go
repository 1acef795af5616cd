package txn

import "golang.org/x/sys/unix"

// A record must be durable before its bytes are moved, or a power cut leaves bytes of which nobody knows where they belong.
// An fsync for each takes a minute for ten thousand files. So when there are many, all their records are drafted in the
// stage, one syncfs(2) makes the drafts and the bytes durable, then all records are moved, one fsync makes their names
// durable, and then the bytes are moved. What is interrupted before leaves drafts, which the next recovery discards, or
// records without bytes, which it takes up. (fsyncs in parallel, which journals commit together, took half
// of the time; syncfs takes a hundredth, for which it may have to write what others have written as well.)

const (
	// many is from how many files on syncfs is worth it.
	many = 32
	// batch bounds the drafts.
	batch = 4096
)

// draft is a temp on its way to the salvage.
type draft struct {
	Action
	at   int    // the instance
	rec  Record // what Record becomes
	temp string // where it is written
}

// keepAll salvages temps that do not build on each other.
func (r *recovery) keepAll(actions []Action) {
	for len(actions) > 0 {
		n := min(len(actions), batch)
		one := actions[:n]
		if n >= many {
			one = r.keepTogether(one)
		}
		for _, a := range one {
			r.try(a)
		}
		actions = actions[n:]
	}
}

// keepTogether salvages many temps, and returns those that have to be tried one by one, for whatever reason.
func (r *recovery) keepTogether(actions []Action) (left []Action) {
	if r.open() != nil {
		return actions
	}
	s := shelf{r.sys, r.salvage, &r.newest}
	var drafts []draft
	for _, a := range actions {
		if d, ok := r.draft(s, a); ok {
			drafts = append(drafts, d)
		} else {
			left = append(left, a)
		}
	}
	synced := len(drafts) > 0 && r.sys.Syncfs(r.salvage) == nil
	var recorded []draft
	for _, d := range drafts {
		if synced && renameNew(r.sys, d.at, d.temp, s.dir, d.rec.ID+recordSuffix) == nil {
			recorded = append(recorded, d)
			continue
		}
		r.sys.Unlink(d.at, d.temp)
		left = append(left, d.Action)
	}
	if len(recorded) > 0 {
		r.sys.Fsync(s.dir) // as in fetch
	}
	for _, d := range recorded {
		if renameNew(r.sys, d.at, d.Name, s.dir, d.rec.ID) != nil {
			r.sys.Unlink(s.dir, d.rec.ID+recordSuffix)
			left = append(left, d.Action)
			continue
		}
		r.kept(d.rec)
	}
	return left
}

// draft writes the record of a temp. False: it is a case for the slow way, and nothing is left of this one.
func (r *recovery) draft(s shelf, a Action) (draft, bool) {
	dir, name, done, err := r.locate(a)
	if err != nil {
		return draft{}, false
	}
	defer done()
	var st unix.Statx_t
	d := draft{Action: a, at: r.plan.held[a.Instance]}
	if dir != d.at || a.Record.ID != "" || r.sys.Stat(dir, name, &st) != nil || !IsRegular(&st) {
		return draft{}, false
	}
	d.rec = a.Record
	d.rec.describe(&st)
	d.rec, err = s.reserve(d.rec, func(rec Record) (err error) {
		d.temp, err = s.draft(d.at, rec, false)
		return err
	})
	return d, err == nil
}

package txn

import "errors"

// ErrRival: a database is open for writing by somebody who does not come by here: on the backing itself, or by way of a
// mount whose daemon has died, where passthrough goes on working. The locks of the two would not meet, and two writers who
// do not see each other's locks destroy a database, or lose commits that were acknowledged.
var ErrRival = errors.New("the database is open for writing past this mount")

// Rival looks at the file behind fd, which is open for reading, for writers other than ours, of which there must be none.
// nil or ErrRival. Where leases cannot be had, nobody can be seen.
func (o *Overlay) Rival(fd int) error {
	if !o.opt.Rules.Databases() || !isDatabase(o.sys, fd) {
		return nil
	}
	if free, err := o.sys.Leased(fd); err != nil || free {
		return nil
	}
	return ErrRival
}

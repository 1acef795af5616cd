package txn

import "fmt"

// State of a staged file. doc.go has the diagram.
type State uint8

const (
	Preparing  State = iota // its name is taken, its temp is being made
	Writing                 // writers write
	Detached                // its last name is gone; writers go on, nothing will be published
	Publishing              // the last writer is gone
	Published               // it is the version of its path
	InPlace                 // it became the version while writers have it open, and they go on in it (databases)
	Salvaged                // its bytes are in the salvage
	Dropped                 // it held nothing that anybody could miss
)

func (s State) String() string {
	return [...]string{"preparing", "writing", "detached", "publishing", "published", "in place", "salvaged", "dropped"}[s]
}

// next lists the transitions that there are.
var next = map[State][]State{
	Preparing:  {Writing, Dropped},
	Writing:    {Detached, Publishing},
	Detached:   {Publishing},
	Publishing: {Published, InPlace, Salvaged, Dropped},
	Published:  {Writing}, // taken back: somebody had it open after all
}

// Ended reports whether the staged file has come to an end, which only a file that is taken back leaves again.
func (s State) Ended() bool { return s >= Published }

// to makes a transition. Any other than those listed is a mistake in this package.
//
// LOCKS_REQUIRED(st.mu)
func (st *Staged) to(s State) {
	for _, allowed := range next[st.state] {
		if s == allowed {
			st.state = s
			return
		}
	}
	panic(fmt.Sprintf("staged file: no way from %v to %v", st.state, s))
}

// Kind is how a staged file was started.
type Kind uint8

const (
	New       Kind = iota // a name that had no version
	Truncated             // empty, in place of a version: private to the process that opened it
	Copied                // with the bytes of a version: shared by all who open the path without O_TRUNC
)

func (k Kind) String() string { return [...]string{"new", "truncated", "copied"}[k] }

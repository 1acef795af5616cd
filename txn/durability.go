package txn

import "fmt"

// Durability is what a successful close(2) is worth after a power cut. Whatever it is, no version is ever torn by a
// killed program or daemon.
type Durability uint8

const (
	// Full: the version survives. fsync of the file, rename, fsync of the directory.
	Full Durability = iota
	// Ordered: never torn; the newest versions may be lost. fsync of the file, rename.
	Ordered
	// None: nothing is promised after a power cut. Rename only.
	None
)

// ParseDurability reads "full", "ordered" or "none".
func ParseDurability(s string) (Durability, error) {
	for d := Full; d <= None; d++ {
		if s == d.String() {
			return d, nil
		}
	}
	return Full, fmt.Errorf("durability %q is none of full, ordered, none", s)
}

func (d Durability) String() string { return [...]string{"full", "ordered", "none"}[d] }

package tests

import "testing"

// TestSmoke is the first thing to look at when everything fails.
func TestSmoke(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		for name, mk := range map[string]func(testing.TB, ...string) *mount{"beside": newMount, "over": newOverMount} {
			t.Run(name, func(t *testing.T) {
				m := mk(t, flags...)
				sh(t, m.Dir, "echo hello > f; mkdir d; echo there > d/g; cat f d/g; rm f")
				m.Unmount(t)
				sh(t, m.Backing, "[ ! -e f ]; [ $(cat d/g) = there ]")
			})
		}
	})
}

package tests

import (
	"testing"
)

// TestFuseBacking: a backing that is itself a FUSE filesystem.
func TestFuseBacking(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		doEveryday(t, newMountOn(t, newFaultyFS(t).Dir, flags...), ".")
	})
}

// TestPoorBacking: one that has no links, no attributes, no flags of rename, no O_TMPFILE and no fallocate.
func TestPoorBacking(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		f := newFaultyFS(t)
		f.poor(t)
		doEveryday(t, newMountOn(t, f.Dir, flags...), ".")
	})
}

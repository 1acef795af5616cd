package tests

import (
	"maps"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// posixtestReasons lists what cannot pass, each with the reason.
var posixtestReasons = map[string]string{
	"FcntlFlockLocksFile": "expects that the POSIX locks of one process conflict with each other, which they do on no Linux filesystem",
}

// TestPosix runs go-fuse's suite, each test on a fresh mount.
func TestPosix(t *testing.T) {
	for name := range posixtestReasons {
		if posixtest.All[name] == nil {
			t.Errorf("a reason is listed for %q, which the suite does not have", name)
		}
	}
	eachPath(t, func(t *testing.T, flags []string) {
		for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
			t.Run(name, func(t *testing.T) {
				if reason := posixtestReasons[name]; reason != "" {
					t.Skip(reason)
				}
				m := newMount(t, append(flags, "--durability=none")...)
				posixtest.All[name](t, m.Dir)
			})
		}
	})
}

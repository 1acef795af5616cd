package txn

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSalvageGivesWay: when the disk fills up, whoever fills it, the salvage is given up before, but for the youngest
// entry, and the log tells.
func TestSalvageGivesWay(t *testing.T) {
	s := newShop(t)
	for _, name := range []string{"1", "2", "3"} {
		s.keepNew(name, strings.Repeat(name, 8192), Record{Path: "p" + name})
	}
	s.giveWay()
	equal(t, "left while there is room", len(s.contents()), 3)
	s.sys.statfs = func(st *unix.Statfs_t) { st.Bavail = 0 }
	s.giveWay()
	if list := s.records(); len(list) != 1 || list[0].Path != "p3" {
		t.Errorf("left: %+v", list)
	}
	for _, path := range []string{"p1", "p2"} {
		if !strings.Contains(s.log.String(), "path="+path) || !strings.Contains(s.log.String(), "nearly full") {
			t.Errorf("nothing in the log about %s:\n%s", path, &s.log)
		}
	}
}

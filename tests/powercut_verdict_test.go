package tests

import (
	"strings"
	"testing"
)

// TestPowerCutVerdict: the judge sees each kind of damage, and nothing where there is none.
func TestPowerCutVerdict(t *testing.T) {
	h := history{}
	for i, event := range []string{
		1: "begin f 1", 2: "ack f 1", // there at the beginning
		3: "begin f 2", 4: "ack f 2",
		5: "begin g 3", 6: "ack g 3", 7: "move g f", // a rename is promised nothing
		8: "begin new 4", 9: "synced new 4", 10: "ack new 4",
		11: "remove f",
	} {
		if event == "" {
			continue
		}
		if err := h.add(i, event); err != nil {
			t.Fatal(err)
		}
	}
	type files map[string]found
	f := func(path string, n int) found { return found{path: path, n: n} }
	for name, c := range map[string]struct {
		at         int
		files      files
		kept       bool
		torn, lost string // part of what is said
	}{
		"begin":                    {at: 2, files: files{"f": f("f", 1)}},
		"what was there is gone":   {at: 2, files: files{}, torn: "f: it is gone"},
		"no version yet":           {at: 3, files: files{"f": f("f", 1)}},
		"already the new":          {at: 3, files: files{"f": f("f", 2)}},
		"not begun":                {at: 2, files: files{"f": f("f", 2)}, torn: "never had"},
		"promised and lost":        {at: 4, files: files{"f": f("f", 1)}, lost: "2 was promised"},
		"half":                     {at: 4, files: files{"f": {err: errTorn}}, torn: "no whole version"},
		"of another":               {at: 6, files: files{"f": f("g", 3), "g": f("g", 3)}, torn: "never had"},
		"stray":                    {at: 4, files: files{"f": f("f", 2), "x": f("x", 1)}, torn: "no such file"},
		"before the rename":        {at: 7, files: files{"f": f("f", 2), "g": f("g", 3)}},
		"after the rename":         {at: 7, files: files{"f": f("g", 3)}},
		"lost in the rename":       {at: 7, files: files{"f": f("f", 2)}, lost: "neither there nor at f"},
		"synced and lost":          {at: 9, files: files{"f": f("g", 3)}, lost: "neither there nor in the salvage"},
		"synced and in salvage":    {at: 9, files: files{"f": f("g", 3)}, kept: true},
		"salvage is no promise":    {at: 10, files: files{"f": f("g", 3)}, kept: true, lost: "4 was promised"},
		"removed":                  {at: 11, files: files{"new": f("new", 4)}},
		"removed, not yet on disk": {at: 11, files: files{"f": f("g", 3), "new": f("new", 4)}},
	} {
		v := h.judge(c.at, c.files, func(string, int) bool { return c.kept })
		for _, part := range []struct {
			said []string
			want string
		}{{v.torn, c.torn}, {v.lost, c.lost}} {
			if said := strings.Join(part.said, "; "); (said == "") != (part.want == "") || !strings.Contains(said, part.want) {
				t.Errorf("%s: said %q, want %q", name, said, part.want)
			}
		}
	}
}

// TestPowerCutVersions: a version is whole or it is not one.
func TestPowerCutVersions(t *testing.T) {
	first := chunk("d/f", 7, 0, 0, 3000)
	both := append(first[:len(first):len(first)], chunk("d/f", 8, 7, len(first), 500)...)
	for _, c := range []struct {
		content []byte
		n       int
	}{{first, 7}, {both, 8}} {
		if path, n, err := parseVersion(c.content); err != nil || path != "d/f" || n != c.n {
			t.Errorf("%q, %d, %v", path, n, err)
		}
	}
	flipped, zeroed := []byte(string(both)), []byte(string(both))
	flipped[len(first)+chunkHeader+100] ^= 1
	clear(zeroed[512:1024])
	for name, torn := range map[string][]byte{
		"empty": nil, "cut": both[:len(both)-1], "longer": append(both[:len(both):len(both)], 0), "flipped": flipped,
		"a sector of zeros": zeroed, "zeros": make([]byte, len(both)), "without its first": both[len(first):],
	} {
		if path, n, err := parseVersion(torn); err == nil {
			t.Errorf("%s: taken for version %d of %q", name, n, path)
		}
	}
}

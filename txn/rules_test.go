package txn

import (
	"strings"
	"testing"
)

func TestGlobs(t *testing.T) {
	for _, c := range []struct{ glob, yes, no string }{ // paths with blanks between
		{"*", "a .x a.b", "a/b"},
		{"/*", "a", "a/b /a"},
		{"*.o", "a.o .o", "a.oo d/a.o a.o/b ao"},
		{"**/*.o", "a.o d/a.o d/e/a.o .o", "a.o/b aXo"},
		{"**", "a a/b a/b/c", ""},
		{"d/**", "d/a d/e/f", "d da/b x/d/a"},
		{"d/**/f", "d/f d/e/f d/e/e/f", "df d/ef d/e/ff e/d/f"},
		{"**/d/*", "d/a x/d/a", "d/e/f xd/a"},
		{"a**b", "ab axb a/b a/x/b", "a ba"},
		{"?", "a", "ab /"},
		{"a?c", "abc", "ac a/c abbc"},
		{"[abc]x", "ax bx cx", "dx x [abc]x"},
		{"[a-c]", "a b c", "d -"},
		{"[!a-c]", "d -", "a b"},
		{"[.]", ".", "a"},
		{`[\]`, `\`, "a"},
		{"{a,b}c", "ac bc", "c abc a,bc"},
		{"{a,{b,c}}", "a b c", "d"},
		{"{*.o,*.a}", "x.o x.a", "x.so"},
		{"{,x}a", "a xa", "xxa"},
		{"a,b", "a,b", "a b"},
		{`\*`, "*", "a"},
		{`\{a\,b\}`, "{a,b}", "a b"},
		{`a\[b`, "a[b", "ab"},
		{`\\`, `\`, ""},
		{"a.b", "a.b", "aXb"},
		{"(a|b)+$^", "(a|b)+$^", "a b"},
		{"ü?", "üa", "ü uea"},
		{".untorn", ".untorn", "xuntorn"},
		{"a\nb", "a\nb", "ab"},
	} {
		r, err := NewRules([]Rule{{Glob: c.glob, Direct: true, Origin: "flag"}})
		must(t, err)
		for _, path := range strings.Split(c.yes, " ") {
			if _, by := r.Decide(path); by == nil || by.Glob != c.glob {
				t.Errorf("%q does not match %q", c.glob, path)
			}
		}
		for _, path := range strings.Fields(c.no) {
			if _, by := r.Decide(path); by != nil && by.Glob == c.glob {
				t.Errorf("%q matches %q", c.glob, path)
			}
		}
	}
}

// TestGlobsTakeAnyBytes: paths are bytes, whatever they are.
func TestGlobsTakeAnyBytes(t *testing.T) {
	for glob, paths := range map[string][]string{
		"*.o":    {"caf\xe9.o", "\xff\xfe.o", "new\nline.o"},
		"**/*.o": {"caf\xe9/\xff.o", "a\n/b\n.o"},
		"d/**":   {"d/\xff/\xfe"},
		"{é,e}*": {"é\xff", "e\xff"},
	} {
		r, err := NewRules([]Rule{{Glob: glob, Direct: true}})
		must(t, err)
		for _, path := range paths {
			if direct, _ := r.Decide(path); !direct {
				t.Errorf("%q does not match %q", glob, path)
			}
		}
	}
}

func TestEscapedLetter(t *testing.T) {
	r, err := NewRules([]Rule{{Glob: `\é*`, Direct: true}})
	if err != nil {
		t.Fatal(err)
	}
	if direct, _ := r.Decide("été"); !direct {
		t.Error("it does not match")
	}
}

func TestMalformedGlobs(t *testing.T) {
	for _, glob := range []string{"", "/", "[", "[a", "a[]", "[z-a]", "{", "{a", "a}", "{a,{b}", `a\`, "caf\xe9"} {
		_, err := NewRules([]Rule{{Glob: glob}})
		if err == nil {
			t.Errorf("%q passes", glob)
		} else if !strings.Contains(err.Error(), "glob ") {
			t.Errorf("%q: the error does not say which glob: %v", glob, err)
		}
	}
}

func TestDefaultRules(t *testing.T) {
	r := DefaultRules()
	for path, want := range map[string]bool{
		"a.db": true, "d/a.sqlite3": true, "d/e/a.sqlite": true, "a.db3": true, ".db": true,
		"a.db-journal": true, "d/a.sqlite-wal": true, "a.db3-shm": true,
		"a": false, "a.dbx": false, "db": false, "a.db/b": false, "a-journal": false, "a.db-other": false, "a.DB": false,
	} {
		if direct, by := r.Decide(path); direct != want || (by != nil) != want {
			t.Errorf("%q: direct is %v by %v", path, direct, by)
		}
	}
	if !r.Databases() {
		t.Error("databases are not recognised")
	}
	for _, rule := range r.List() {
		equal(t, rule.Glob, rule.Origin, "default")
	}
}

func TestLastMatchDecides(t *testing.T) {
	r, err := NewRules([]Rule{
		{Glob: "**/*.log", Direct: true, Origin: "flag"},
		{Glob: "keep/**", Origin: "flag"},
		{Glob: "keep/raw.log", Direct: true, Origin: "flag"},
		{Glob: "my.db", Origin: "flag"},
	})
	must(t, err)
	for path, want := range map[string]string{
		"a.log": "**/*.log", "keep/a.log": "keep/**", "keep/raw.log": "keep/raw.log", "keep/x.db": "keep/**",
		"my.db": "my.db", "d/my.db": "**/*.db", "x": "",
	} {
		direct, by := r.Decide(path)
		got := ""
		if by != nil {
			got = by.Glob
			equal(t, path, direct, by.Direct)
		}
		equal(t, "the rule for "+path, got, want)
	}
	// What List gives away is a copy.
	list := r.List()
	list[len(list)-1].Direct = true
	if direct, _ := r.Decide("my.db"); direct {
		t.Error("the rules can be changed from outside")
	}
}

// TestDirect matches the path below the mount, wherever the directory has gone.
func TestDirect(t *testing.T) {
	r, err := NewRules([]Rule{{Glob: "d/*.txt", Direct: true}})
	must(t, err)
	m := open(t, Options{Rules: r})
	must(t, m.Root().Mkdir("d", 0o755, 0, m.me))
	d := m.dir("d")
	check := func(want bool, dir *Dir, name string) {
		t.Helper()
		equal(t, dir.Path(name), dir.Direct(name), want)
	}
	check(true, d, "a.txt")
	check(true, d, "a.db")
	check(false, d, "a")
	check(false, m.Root(), "a.txt")
	must(t, m.rename("d", "e", 0, m.me))
	check(false, d, "a.txt")

	m = open(t, Options{}) // by default no path has to be found out
	must(t, m.Root().Mkdir("d", 0o755, 0, m.me))
	check(true, m.dir("d"), "a.db-wal")
	check(false, m.dir("d"), "a.txt")
}

func TestDurabilityNames(t *testing.T) {
	for _, d := range []Durability{Full, Ordered, None} {
		got, err := ParseDurability(d.String())
		must(t, err)
		equal(t, "durability", got, d)
	}
	for _, bad := range []string{"", "Full", "batch", "full "} {
		if _, err := ParseDurability(bad); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

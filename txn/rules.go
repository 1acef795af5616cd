package txn

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Rule says of the paths that a glob matches whether they are staged or opened in place.
type Rule struct {
	Glob   string
	Direct bool
	Origin string // "default", "flag": where it comes from
}

// Rules decide which files are staged. The last rule that matches decides; without any match a file is staged.
type Rules struct {
	list  []Rule
	exprs []*regexp.Regexp
	// suffixOnly: no rule looks at more than the last component, so no path has to be found out.
	suffixOnly bool
	databases  bool
}

// databaseNames are what databases are called; companionSuffixes what SQLite calls their journals
// (sqlite.org/tempfiles.html).
var (
	databaseNames     = []string{".db", ".db3", ".sqlite", ".sqlite3"}
	companionSuffixes = []string{"-journal", "-wal", "-shm"}
)

func companionOf(name string) (owner string, ok bool) {
	for _, s := range companionSuffixes {
		if owner, ok = strings.CutSuffix(name, s); ok && owner != "" {
			return owner, true
		}
	}
	return "", false
}

// DefaultRules are those without any flag: databases in place.
func DefaultRules() *Rules {
	r, err := NewRules(nil)
	if err != nil {
		panic(err)
	}
	return r
}

// NewRules puts rules behind the default ones, in order. The error names a glob that cannot be understood.
func NewRules(extra []Rule) (*Rules, error) {
	r := &Rules{databases: true, suffixOnly: true}
	for _, name := range databaseNames {
		r.list = append(r.list, Rule{"**/*" + name, true, "default"})
		for _, s := range companionSuffixes {
			r.list = append(r.list, Rule{"**/*" + name + s, true, "default"})
		}
	}
	defaults := len(r.list)
	r.list = append(r.list, extra...)
	for i, rule := range r.list {
		e, err := compileGlob(rule.Glob)
		if err != nil {
			return nil, err
		}
		r.exprs = append(r.exprs, e)
		base, ok := strings.CutPrefix(rule.Glob, "**/")
		if i >= defaults && (!ok || strings.Contains(base, "/")) {
			r.suffixOnly = false
		}
	}
	return r, nil
}

// List is every rule in order.
func (r *Rules) List() []Rule { return slices.Clone(r.list) }

// Databases reports whether files are recognised as databases by their header and companions.
func (r *Rules) Databases() bool { return r.databases }

// Decide tells whether a path below the mount is opened in place, and by which rule; by is nil when none matches.
func (r *Rules) Decide(path string) (direct bool, by *Rule) {
	for i := len(r.list) - 1; i >= 0; i-- {
		if r.exprs[i].MatchString(path) {
			return r.list[i].Direct, &r.list[i]
		}
	}
	return false, nil
}

// Direct tells whether a name in d is to be opened in place.
func (d *Dir) Direct(name string) bool {
	r := d.o.opt.Rules
	if r.suffixOnly {
		direct, _ := r.Decide(name)
		return direct
	}
	direct, _ := r.Decide(d.Path(name))
	return direct
}

// compileGlob translates a glob: * matches within a component, ** any number of components, ? one byte, [a-z] and [!a-z]
// classes, {a,b} alternatives, and \ takes the next byte as it is. A leading slash is allowed and means nothing.
func compileGlob(glob string) (*regexp.Regexp, error) {
	bad := func(why string) error { return fmt.Errorf("glob %q: %s", glob, why) }
	g := strings.TrimPrefix(glob, "/")
	if g == "" {
		return nil, bad("it is empty")
	}
	var b strings.Builder
	b.WriteString(`(?s)\A`)
	depth := 0
	for i := 0; i < len(g); i++ {
		switch c := g[i]; c {
		case '*':
			if strings.HasPrefix(g[i:], "**/") && (i == 0 || g[i-1] == '/') {
				b.WriteString(`(?:[^/]*/)*`)
				i += 2
			} else if strings.HasPrefix(g[i:], "**") {
				b.WriteString(`.*`)
				i++
			} else {
				b.WriteString(`[^/]*`)
			}
		case '?':
			b.WriteString(`[^/]`)
		case '[':
			n := strings.IndexByte(g[i+1:], ']')
			if n < 1 {
				return nil, bad("a [ without its ]")
			}
			class := g[i+1 : i+1+n]
			if class[0] == '!' {
				class = "^" + class[1:]
			}
			b.WriteString("[" + strings.ReplaceAll(class, `\`, `\\`) + "]")
			i += n + 1
		case '{':
			depth++
			b.WriteString("(?:")
		case '}':
			if depth == 0 {
				return nil, bad("a } without its {")
			}
			depth--
			b.WriteString(")")
		case ',':
			if depth > 0 {
				b.WriteString("|")
			} else {
				b.WriteString(",")
			}
		case '\\':
			if i+1 == len(g) {
				return nil, bad("it ends in a backslash")
			}
			_, n := utf8.DecodeRuneInString(g[i+1:])
			b.WriteString(regexp.QuoteMeta(g[i+1 : i+1+n]))
			i += n
		default:
			r, n := utf8.DecodeRuneInString(g[i:])
			if r == utf8.RuneError && n == 1 {
				return nil, bad("it is not UTF-8")
			}
			b.WriteString(regexp.QuoteMeta(g[i : i+n]))
			i += n - 1
		}
	}
	if depth > 0 {
		return nil, bad("a { without its }")
	}
	b.WriteString(`\z`)
	e, err := regexp.Compile(b.String())
	if err != nil {
		return nil, bad("it cannot be understood")
	}
	return e, nil
}

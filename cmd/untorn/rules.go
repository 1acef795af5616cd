package main

import (
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/alecthomas/kong"

	"untorn/txn"
)

// ruleFlags are the rules of the command line. The order between the two flags counts, which a slice for each loses;
// AfterApply restores it.
type ruleFlags struct {
	Direct []string `sep:"none" placeholder:"GLOB" help:"Open matching files in place, without staging. Matched on the path below the mount; ** matches across directories. Repeatable; of --direct and --stage the last match decides."`
	Stage  []string `sep:"none" placeholder:"GLOB" help:"Stage matching files; takes back a --direct or a default rule."`

	rules *txn.Rules
}

// AfterApply builds the rules. An error is one of usage.
func (f *ruleFlags) AfterApply(ctx *kong.Context) error {
	rules, err := txn.NewRules(f.inOrder(ctx.Path))
	if err != nil {
		return fail(exitUsage, "%w\nQuote it for the shell, and write it like '**/*.log', 'cache/**' or 'a/[bc]?.{x,y}'.", err)
	}
	f.rules = rules
	return nil
}

// inOrder merges both flags in the order of the command line: the parser's trace has one element per occurrence, and each
// occurrence has added one value.
func (f *ruleFlags) inOrder(trace []*kong.Path) (rules []txn.Rule) {
	direct, stage := f.Direct, f.Stage
	for _, p := range trace {
		switch {
		case p.Flag == nil:
		case p.Flag.Name == "direct" && len(direct) > 0:
			rules = append(rules, txn.Rule{Glob: direct[0], Direct: true, Origin: "flag"})
			direct = direct[1:]
		case p.Flag.Name == "stage" && len(stage) > 0:
			rules = append(rules, txn.Rule{Glob: stage[0], Origin: "flag"})
			stage = stage[1:]
		}
	}
	return rules
}

type rulesCmd struct {
	Backing string    `arg:"" help:"The backing directory (or a mount)."`
	Rules   ruleFlags `embed:""`
	Path    []string  `placeholder:"PATH" sep:"none" help:"Tell what is decided for this path below the mount. Repeatable."`
}

// Help is what --help says beyond the flags.
func (rulesCmd) Help() string {
	return "Prints the default rules and those of the flags given here, as a mount with the same flags would use them."
}

func (c *rulesCmd) Run() error {
	dir, err := openBacking(c.Backing)
	if err != nil {
		return err
	}
	defer dir.Close()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	if len(c.Path) > 0 {
		for _, p := range c.Path {
			direct, by := c.Rules.rules.Decide(p)
			why := "no rule matches"
			if by != nil {
				why = fmt.Sprintf("%s (%s)", quoted(by.Glob), by.Origin)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\n", quoted(p), verdict(direct), why)
		}
		return w.Flush()
	}
	fmt.Fprintln(w, "RULE\tGLOB\tFROM")
	for _, r := range c.Rules.rules.List() {
		fmt.Fprintf(w, "%s\t%s\t%s\n", verdict(r.Direct), quoted(r.Glob), r.Origin)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Println("\nThe last match decides; what matches nothing is staged. Besides, whatever its name, a file that begins with\n" +
		"the SQLite header is opened in place, and one beside which a -journal or -wal is made goes on in place.")
	return nil
}

func verdict(direct bool) string {
	if direct {
		return "direct"
	}
	return "stage"
}

package main

import (
	"slices"
	"testing"

	"untorn/txn"
)

// parse runs the parser alone.
func parse(t *testing.T, args ...string) (cli, error) {
	t.Helper()
	var c cli
	p, err := newParser(&c)
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Parse(args)
	return c, err
}

func TestRulesKeepTheOrderOfTheCommandLine(t *testing.T) {
	c, err := parse(t, "mount", "--direct", "A", "--durability=none", "--stage=B", "--direct=C,D", "dir", "--stage", "A")
	if err != nil {
		t.Fatal(err)
	}
	var got []txn.Rule
	for _, r := range c.Mount.Rules.rules.List() {
		if r.Origin == "flag" {
			got = append(got, r)
		}
	}
	want := []txn.Rule{{Glob: "A", Direct: true, Origin: "flag"}, {Glob: "B", Origin: "flag"},
		{Glob: "C,D", Direct: true, Origin: "flag"}, {Glob: "A", Origin: "flag"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for path, direct := range map[string]bool{"A": false, "B": false, "C,D": true, "x.db": true} {
		if got, by := c.Mount.Rules.rules.Decide(path); got != direct {
			t.Errorf("%s: direct is %v by %+v, want %v", path, got, by, direct)
		}
	}
}

func TestFlagOverridesDefaultRule(t *testing.T) {
	c, err := parse(t, "mount", "--stage", "**/*.db", "dir")
	if err != nil {
		t.Fatal(err)
	}
	if direct, _ := c.Mount.Rules.rules.Decide("a/x.db"); direct {
		t.Error("--stage did not take the default rule back")
	}
}

func TestUsageErrors(t *testing.T) {
	for _, args := range [][]string{
		{},
		{"mount"},
		{"mount", "--no-such-flag", "dir"},
		{"mount", "--durability=some", "dir"},
		{"mount", "--direct=a[b", "dir"},
		{"mount", "--cache=-1s", "dir"},
		{"mount", "--salvage-bytes=many", "dir"},
		{"mount", "--log-level=loud", "dir"},
		{"mount", "a", "b", "c"},
		{"salvage", "purge", "dir"},
		{"salvage", "purge", "--all", "dir", "id"},
	} {
		if code := run(args); code != exitUsage {
			t.Errorf("%q: exit code %d, want %d", args, code, exitUsage)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("UNTORN_DURABILITY", "ordered")
	t.Setenv("UNTORN_ON_KILL", "publish")
	c, err := parse(t, "mount", "--durability=none", "dir")
	if err != nil {
		t.Fatal(err)
	}
	if c.Mount.Durability != "none" || c.Mount.OnKill != "publish" {
		t.Errorf("durability %q, on-kill %q", c.Mount.Durability, c.Mount.OnKill)
	}
}

package main

import (
	"fmt"
	"strings"
)

// goal is what one figure has to be.
type goal struct {
	workload, subject string
	// ratio: the bound is of the ratio to the base of the workload, or, with to, to another subject of it.
	ratio bool
	to    string
	// atLeast: a lower bound; otherwise an upper one.
	atLeast bool
	bound   float64
}

// goals are the bounds that untorn is built for.
var goals = []goal{
	{workload: "stream write", subject: "untorn full", ratio: true, atLeast: true, bound: 0.95},
	{workload: "stream read", subject: "untorn full", ratio: true, atLeast: true, bound: 0.95},
	{workload: "stream re-read", subject: "untorn full", ratio: true, atLeast: true, bound: 0.95},
	{workload: "mmap read", subject: "untorn full", ratio: true, atLeast: true, bound: 0.95},
	{workload: "random read 4k", subject: "untorn full", ratio: true, atLeast: true, bound: 0.95},
	{workload: "random write 4k", subject: "untorn full", ratio: true, atLeast: true, bound: 0.95},
	{workload: "replace-4k full", subject: "untorn full", ratio: true, bound: 1.25},
	{workload: "replace-4k-p16 full", subject: "untorn full", ratio: true, bound: 1.0},
	{workload: "replace-4k none", subject: "untorn none", ratio: true, to: "bindfs", bound: 1.0},
	{workload: "replace-4k none", subject: "untorn none", ratio: true, to: "go-fuse loopback", bound: 1.0},
	{workload: "untar", subject: "untorn batch", ratio: true, bound: 1.5},
	{workload: "untar", subject: "untorn batch", ratio: true, to: careful, bound: 0.2},
	{workload: "make -j2", subject: "untorn full", ratio: true, bound: 1.1},
	{workload: "go build", subject: "untorn full", ratio: true, bound: 1.1},
	{workload: "stat, cold", subject: "untorn full", ratio: true, to: bestPeer, bound: 1.0},
	{workload: "stat, cached", subject: "untorn full", ratio: true, to: bestPeer, bound: 1.0},
	{workload: "readdir 10,000", subject: "untorn full", ratio: true, to: bestPeer, bound: 1.0},
	{workload: "find", subject: "untorn full", ratio: true, to: bestPeer, bound: 1.0},
	{workload: "git status", subject: "untorn full", ratio: true, to: bestPeer, bound: 1.0},
	{workload: "rm -rf 10,000", subject: "untorn full", ratio: true, to: bestPeer, bound: 1.0},
	{workload: "memory, walked", subject: "untorn full", bound: 64},
	{workload: "open staged file", subject: "untorn full", bound: 8},
	{workload: "idle CPU", subject: "untorn full", bound: 0},
	{workload: "recover 10,000", subject: "untorn full", bound: 3},
}

// bestPeer stands for the peer with the best figure of a workload.
const bestPeer = "best peer"

// verdict says whether a goal was met on one filesystem; ok is false when it was not measured.
func (b *bench) verdict(g goal, fs string) (line string, met, ok bool) {
	find := func(subject string) *result {
		for _, r := range b.results {
			if r.Filesystem == fs && r.Workload == g.workload && r.Subject == subject && r.Error == "" && len(r.Figures) > 0 {
				return r
			}
		}
		return nil
	}
	r := find(g.subject)
	if r == nil {
		return "", false, false
	}
	value, against := r.Median, ""
	switch {
	case g.to == bestPeer:
		best := b.bestOf(g.workload, fs)
		if best == nil {
			return "", false, false
		}
		value, against = r.Median/best.Median, " of "+best.Subject
	case g.to != "":
		other := find(g.to)
		if other == nil || other.Median == 0 {
			return "", false, false
		}
		value, against = r.Median/other.Median, " of "+g.to
	case g.ratio:
		value, against = r.Ratio, " of "+r.Base
	}
	word, sign := "missed", "≤"
	if g.atLeast {
		sign = "≥"
	}
	if met = value <= g.bound; g.atLeast {
		met = value >= g.bound
	}
	if met {
		word = "met"
	}
	unit := r.Unit
	if g.ratio {
		unit = "×" + against
	}
	return fmt.Sprintf("%-6s %-5s %-22s %-13s %.2f %s (%s %g)", word, fs, g.workload, g.subject, value, strings.TrimSpace(unit), sign, g.bound), met, true
}

// bestOf is the peer with the lowest figure; goals against the best peer are all of times.
func (b *bench) bestOf(workload, fs string) *result {
	class := map[string]class{}
	for _, s := range b.all {
		class[s.name] = s.class
	}
	var best *result
	for _, r := range b.results {
		if r.Filesystem != fs || r.Workload != workload || class[r.Subject] != peer || r.Error != "" || r.Median == 0 {
			continue
		}
		if best == nil || r.Median < best.Median {
			best = r
		}
	}
	return best
}

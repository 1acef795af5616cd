package main

import (
	"fmt"
	"math"
	"os"
	"slices"
)

// workload is one row of the benchmark: something that every subject does in its own directory.
type workload struct {
	name string
	unit string
	// more: higher figures are better (throughput); otherwise lower ones are (time, memory).
	more bool
	// base is the subject that the others are divided by; empty for absolute figures.
	base string
	// only says which subjects take part; nil: native, untorn full and the peers.
	only func(s *subject) bool
	// durability that the careful writer is to have
	durability string
	// once: a single round, because it is long or leaves its subject unmounted
	once bool

	setup func(b *bench, s *subject) error // once per subject
	run   func(b *bench, s *subject) (float64, error)
	clean func(b *bench, s *subject)
}

// usual are the subjects of a workload without an opinion of its own.
func usual(s *subject) bool {
	return s.name == "native" || s.class == peer || s.class == untorn && s.durability == "full"
}

// result is what one subject came to in one workload.
type result struct {
	Filesystem string    `json:"filesystem"`
	Workload   string    `json:"workload"`
	Subject    string    `json:"subject"`
	Unit       string    `json:"unit"`
	Figures    []float64 `json:"figures"`
	Median     float64   `json:"median"`
	// Ratio to the base, median over the rounds; above 1 is slower or, for throughput, faster. 0: there is no base.
	Ratio  float64   `json:"ratio,omitempty"`
	Spread []float64 `json:"spread,omitempty"` // lowest and highest ratio of a round
	Base   string    `json:"base,omitempty"`
	Error  string    `json:"error,omitempty"`
	Better string    `json:"better"` // more or less

	ratios []float64
}

// bench is one run.
type bench struct {
	work    string
	quick   bool
	rounds  int
	disk    *disk
	all     []*subject
	results []*result
}

// count scales a loop down for a quick run.
func (b *bench) count(n int) int {
	if b.quick {
		return max(n/20, 1)
	}
	return n
}

// measure runs one workload on all its subjects, alternating, and notes the results. A subject that fails is left out
// from then on, with its error in the result.
func (b *bench) measure(w *workload) {
	only := w.only
	if only == nil {
		only = usual
	}
	var taking []*subject
	of := map[*subject]*result{}
	for _, s := range b.all {
		if !only(s) {
			continue
		}
		better := "less"
		if w.more {
			better = "more"
		}
		r := &result{Filesystem: b.disk.kind, Workload: w.name, Subject: s.name, Unit: w.unit, Base: w.base, Better: better}
		of[s] = r
		b.results = append(b.results, r)
		if err := b.prepare(w, s); err != nil {
			r.Error = err.Error()
			continue
		}
		taking = append(taking, s)
	}
	rounds := b.rounds
	if w.once {
		rounds = 1
	}
	for round := range rounds {
		var base float64
		for _, s := range b.turn(w, taking, round) {
			r := of[s]
			if r.Error != "" {
				continue
			}
			figure, err := w.run(b, s)
			if err != nil {
				r.Error = err.Error()
				continue
			}
			r.Figures = append(r.Figures, figure)
			if s.name == w.base {
				base = figure
			}
		}
		for _, s := range taking {
			if r := of[s]; r.Error == "" && base > 0 {
				r.ratios = append(r.ratios, r.Figures[len(r.Figures)-1]/base)
			}
		}
	}
	for _, s := range taking {
		of[s].settle()
		if w.clean != nil {
			w.clean(b, s)
		}
	}
	for _, s := range b.all {
		if r := of[s]; r != nil {
			fmt.Fprintln(os.Stderr, r.line())
		}
	}
}

func (b *bench) prepare(w *workload, s *subject) error {
	if w.setup == nil {
		return nil
	}
	return w.setup(b, s)
}

// turn is the order of one round: the base first, so that a round has something to be divided by; the others begin with
// another one each time, because what runs after whom matters on a shared disk.
func (b *bench) turn(w *workload, taking []*subject, round int) []*subject {
	var order []*subject
	for _, s := range taking {
		if s.name == w.base {
			order = append(order, s)
		}
	}
	for i := range taking {
		if s := taking[(i+round)%len(taking)]; s.name != w.base {
			order = append(order, s)
		}
	}
	return order
}

// settle computes the medians.
func (r *result) settle() {
	r.Median = median(r.Figures)
	if len(r.ratios) > 0 {
		r.Ratio = median(r.ratios)
		r.Spread = []float64{slices.Min(r.ratios), slices.Max(r.ratios)}
	}
}

func (r *result) line() string {
	switch {
	case r.Error != "":
		return fmt.Sprintf("%-5s %-22s %-30s failed: %s", r.Filesystem, r.Workload, r.Subject, r.Error)
	case r.Ratio == 0:
		return fmt.Sprintf("%-5s %-22s %-30s %s", r.Filesystem, r.Workload, r.Subject, figure(r.Median, r.Unit))
	}
	return fmt.Sprintf("%-5s %-22s %-30s %14s  x %.2f (%.2f to %.2f)",
		r.Filesystem, r.Workload, r.Subject, figure(r.Median, r.Unit), r.Ratio, r.Spread[0], r.Spread[1])
}

// figure prints a number with three digits that matter.
func figure(v float64, unit string) string {
	if v == 0 {
		return "0 " + unit
	}
	digits := max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
	return fmt.Sprintf("%.*f %s", digits, v, unit)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

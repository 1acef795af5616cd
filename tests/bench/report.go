package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// writeJSON writes all results, with every figure of every round.
func (b *bench) writeJSON(path string) error {
	return toFile(path, func(w io.Writer) error {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(b.results)
	})
}

// writeMarkdown writes one table for each filesystem.
func (b *bench) writeMarkdown(path string) error {
	return toFile(path, func(w io.Writer) error {
		fs := ""
		for _, r := range b.results {
			if r.Filesystem != fs {
				fs = r.Filesystem
				fmt.Fprintf(w, "\n%s:\n\n| Workload | Subject | Median | Ratio to the base | Spread | Base |\n|---|---|---|---|---|---|\n", fs)
			}
			ratio, spread := "", ""
			if r.Ratio != 0 {
				ratio, spread = fmt.Sprintf("%.2f", r.Ratio), fmt.Sprintf("%.2f to %.2f", r.Spread[0], r.Spread[1])
			}
			median := figure(r.Median, r.Unit)
			if r.Error != "" {
				median = "failed: " + strings.ReplaceAll(r.Error, "|", "/")
			}
			fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", r.Workload, r.Subject, median, ratio, spread, r.Base)
		}
		return nil
	})
}

// writeGoals prints which goals were met.
func (b *bench) writeGoals(w io.Writer) {
	var fss []string
	for _, r := range b.results {
		if !slices.Contains(fss, r.Filesystem) {
			fss = append(fss, r.Filesystem)
		}
	}
	for _, fs := range fss {
		for _, g := range goals {
			if line, _, ok := b.verdict(g, fs); ok {
				fmt.Fprintln(w, line)
			}
		}
	}
}

func toFile(path string, write func(w io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := write(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

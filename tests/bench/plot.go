package main

import (
	"fmt"
	"html"
	"io"
	"math"
)

// writeSVG draws the ratios of the first filesystem as bars from 1 on a logarithmic scale: to the right is better.
func (b *bench) writeSVG(path string) error {
	var rows []*result
	for _, r := range b.results {
		if r.Ratio > 0 && r.Subject != r.Base && r.Filesystem == b.results[0].Filesystem {
			rows = append(rows, r)
		}
	}
	return toFile(path, func(w io.Writer) error {
		const line, left, width, scale = 16, 380, 900, 70.0 // pixels; scale: for a factor of 2
		middle := left + (width-left)/2
		fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n",
			width, line*(len(rows)+2))
		fmt.Fprintf(w, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
		for e := -3; e <= 3; e++ {
			x := float64(middle) + float64(e)*scale
			fmt.Fprintf(w, `<line x1="%.0f" y1="%d" x2="%.0f" y2="%d" stroke="#ddd"/>`, x, line, x, line*(len(rows)+1))
			fmt.Fprintf(w, `<text x="%.0f" y="%d" text-anchor="middle" fill="#666">×%g</text>`+"\n", x, line-4, math.Exp2(float64(e)))
		}
		last := ""
		for i, r := range rows {
			y := line * (i + 1)
			if r.Workload != last {
				last = r.Workload
				fmt.Fprintf(w, `<text x="4" y="%d" font-weight="bold">%s</text>`, y+12, html.EscapeString(r.Workload))
			}
			speed := r.Ratio
			if r.Better == "less" {
				speed = 1 / r.Ratio
			}
			length := max(-3.5*scale, min(3.5*scale, math.Log2(speed)*scale))
			x, color := float64(middle), "#2a7"
			if length < 0 {
				x, color = x+length, "#c64"
			}
			if len(r.Subject) < 6 || r.Subject[:6] != "untorn" {
				color = "#aab"
			}
			fmt.Fprintf(w, `<text x="150" y="%d">%s</text><rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n",
				y+12, html.EscapeString(r.Subject), x, y+3, math.Abs(length), line-5, color)
		}
		fmt.Fprintf(w, `<text x="%d" y="%d" text-anchor="middle" fill="#666">speed as a multiple of the base of each row (native, or the native careful writer)</text>`+"\n",
			middle, line*(len(rows)+2)-4)
		_, err := fmt.Fprintln(w, "</svg>")
		return err
	})
}

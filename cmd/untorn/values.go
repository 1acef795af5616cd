package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// byteSize is a flag value like 500M or 10G, in powers of 1024.
type byteSize int64

const units = "KMGTP"

func (b *byteSize) UnmarshalText(text []byte) error {
	s := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(string(text)), "B"), "I")
	shift := 0
	if s != "" {
		if i := strings.IndexByte(units, s[len(s)-1]); i >= 0 {
			shift, s = 10*(i+1), s[:len(s)-1]
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n<<shift>>shift != n {
		return fmt.Errorf("%q is no size: write it like 500M or 10G", text)
	}
	*b = byteSize(n << shift)
	return nil
}

// showSize writes a number of bytes the short way.
func showSize(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}

// age is a duration that may be given in days and weeks, like 30d.
type age time.Duration

func (a *age) UnmarshalText(text []byte) error {
	bad := fmt.Errorf("%q is no duration: write it like 12h, 30d or 4w", text)
	s := string(text)
	for suffix, unit := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		days, ok := strings.CutSuffix(s, suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(days, 10, 32)
		if err != nil || n > 36500 {
			return bad
		}
		*a = age(time.Duration(n) * unit)
		return nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return bad
	}
	*a = age(d)
	return nil
}

// quoted makes a string from elsewhere safe for one line of a terminal: a file name may hold newlines and escape
// sequences, and a table must not.
func quoted(s string) string {
	q := strconv.Quote(s)
	if q == `"`+s+`"` {
		return s
	}
	return q
}

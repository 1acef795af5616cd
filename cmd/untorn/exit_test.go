package main

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"untorn/fs"
	"untorn/txn"
)

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, exitDone},
		{errors.New("anything"), exitFailed},
		{fail(exitMountpoint, "x"), exitMountpoint},
		{fmt.Errorf("wrapped: %w", fail(exitBacking, "x")), exitBacking},
		{fmt.Errorf("opening: %w", txn.ErrFormat), exitFormat},
		{fmt.Errorf("opening: %w", txn.ErrPlanted), exitFormat},
		{txn.ErrNotDir, exitBacking},
		{fmt.Errorf("mounting: %w", fs.ErrNoDevice), exitNoMount},
		{fs.ErrNotPermitted, exitNoMount},
		{fmt.Errorf("unmounting: %w", unix.EBUSY), exitBusy},
		{txn.ErrNoEntry, exitFailed},
	} {
		if got := codeOf(c.err); got != c.want {
			t.Errorf("%v: exit code %d, want %d", c.err, got, c.want)
		}
		if got := codeOf(advise(c.err, "/dir")); got != c.want {
			t.Errorf("%v with advice: exit code %d, want %d", c.err, got, c.want)
		}
	}
}

func TestValues(t *testing.T) {
	for text, want := range map[string]byteSize{"0": 0, "12": 12, "5K": 5 << 10, "1g": 1 << 30, "2MiB": 2 << 20, "3TB": 3 << 40} {
		var b byteSize
		if err := b.UnmarshalText([]byte(text)); err != nil || b != want {
			t.Errorf("%q: %d (%v), want %d", text, b, err, want)
		}
	}
	for _, text := range []string{"", "G", "-1", "1.5G", "9000000P", "x"} {
		var b byteSize
		if err := b.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q: taken for %d", text, b)
		}
	}
	for text, want := range map[string]string{"30d": "720h0m0s", "2w": "336h0m0s", "90m": "1h30m0s", "0": "0s"} {
		var a age
		if err := a.UnmarshalText([]byte(text)); err != nil || fmt.Sprint(time.Duration(a)) != want {
			t.Errorf("%q: %v (%v), want %s", text, time.Duration(a), err, want)
		}
	}
	for _, text := range []string{"", "d", "-1d", "1.5d", "-3h", "month"} {
		var a age
		if err := a.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q: taken for %v", text, time.Duration(a))
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 1 << 30: "1.0 GiB"} {
		if got := showSize(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
	if got := quoted("a\n\x1b[31m"); got != `"a\n\x1b[31m"` {
		t.Errorf("quoted: %s", got)
	}
	if got := quoted("träge Datei"); got != "träge Datei" {
		t.Errorf("quoted: %s", got)
	}
}

package txn

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Format is the version of the on-disk layout that this code writes.
const Format = 1

// maxFormat bounds the format file; a longer one is not ours.
const maxFormat = 64

// checkFormat reads the format file. Where it is missing or empty, and nothing else is in .untorn yet, the very first mount
// was cut short: with create the file is written then. ErrFormat, ErrPlanted.
func checkFormat(sys Sys, base int, create bool) error {
	text, err := readEnd(sys, base, formatName, maxFormat+1)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("reading the format file: %w", err)
	}
	if len(strings.Trim(string(text), "\x00")) == 0 { // zeroes are what a power cut leaves of what was not synced
		return finishFormat(sys, base, create)
	}
	number, ok := strings.CutPrefix(strings.TrimSpace(string(text)), "untorn ")
	v, err := strconv.Atoi(number)
	if !ok || err != nil || v < 1 || len(text) > maxFormat {
		return fmt.Errorf("%w: the format file reads %.80q", ErrFormat, text)
	}
	if v > Format {
		return fmt.Errorf("%w: it is format %d, this untorn knows up to %d", ErrFormat, v, Format)
	}
	if create {
		settleFormat(sys, base)
	}
	return nil
}

// settleFormat makes the name of the format file durable before anything is put beside it: after a power cut that took it
// alone, nobody would know what the rest is. It may have been written by a daemon that died just then. Should the fsync
// fail, a close in Full will fail for the same reason.
func settleFormat(sys Sys, base int) { sys.Fsync(base) }

func finishFormat(sys Sys, base int, create bool) error {
	ok, err := fresh(sys, base)
	if err != nil {
		return fmt.Errorf("looking whether %s is new: %w", Hidden, err)
	}
	if !ok {
		return fmt.Errorf("%w: the format file is missing or empty, but %s is in use", ErrFormat, Hidden)
	}
	if !create {
		return nil
	}
	done := writing(sys, base)
	defer done()
	if err := writeFile(sys, base, formatName, fmt.Appendf(nil, "untorn %d\n", Format)); err != nil {
		return err
	}
	settleFormat(sys, base)
	return nil
}

// fresh reports whether nothing but what a first mount makes is in .untorn, and no bytes of anybody.
func fresh(sys Sys, base int) (bool, error) {
	all, err := names(sys, base)
	if err != nil {
		return false, err
	}
	for _, name := range all {
		empty := true
		switch name {
		case formatName, clockName:
		case journalName, salvageName:
			empty, err = emptyDir(sys, base, name, nil)
		case stageName:
			empty, err = emptyDir(sys, base, name, func(stage int, instance string) (bool, error) {
				return emptyDir(sys, stage, instance, func(_ int, name string) (bool, error) { return name == originsName, nil })
			})
		default:
			empty = strings.HasPrefix(name, formatName+tempMark)
		}
		if err != nil || !empty {
			return false, err
		}
	}
	return true, nil
}

// emptyDir reports whether all in a directory of ours passes a test, or nothing is in it. ErrPlanted.
func emptyDir(sys Sys, dir int, name string, pass func(dir int, name string) (bool, error)) (bool, error) {
	fd, err := existing(sys, dir, name)
	if err != nil || fd < 0 {
		return err == nil, err
	}
	defer sys.Close(fd)
	all, err := names(sys, fd)
	if err != nil || len(all) > 0 && pass == nil {
		return false, err
	}
	for _, name := range all {
		if ok, err := pass(fd, name); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

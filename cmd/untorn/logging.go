package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

type logFlags struct {
	Level  string `default:"info" enum:"debug,info,warn,error" env:"UNTORN_LOG_LEVEL" help:"One of debug, info, warn, error."`
	Format string `enum:"text,json" default:"text" env:"UNTORN_LOG_FORMAT" help:"text or json."`
	File   string `placeholder:"PATH" env:"UNTORN_LOG_FILE" help:"Append to this file. Default: stderr in the foreground; in the background a file named after the mountpoint, in /var/log/untorn when root, else in $XDG_STATE_HOME/untorn (~/.local/state/untorn)."`
}

// logger is the daemon's log and where it goes.
type logger struct {
	*slog.Logger
	file *os.File // nil: nowhere
}

// open prepares the log. It must be done before the mount: the file may lie below the mountpoint, and the daemon must not
// write through its own mount.
func (f *logFlags) open(mountpoint string, background bool) (*logger, error) {
	l := &logger{}
	var err error
	switch {
	case f.File != "":
		if l.file, err = openLog(f.File); err != nil {
			return nil, fail(exitUsage, "--log-file: %w", err)
		}
	case !background:
		l.file = os.Stderr
	default:
		if l.file, err = openDefaultLog(mountpoint); err != nil {
			notice("goes on without a log: %v\nuntorn: --log-file gives it another place", err)
		}
	}
	l.Logger, err = f.to(l.file)
	return l, err
}

// to makes a log that goes to a file; nil: nowhere.
func (f *logFlags) to(file *os.File) (*slog.Logger, error) {
	to := io.Discard
	if file != nil {
		to = file
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.Level)); err != nil {
		return nil, fail(exitUsage, "--log-level: %w", err)
	}
	opt := &slog.HandlerOptions{Level: level}
	if f.Format == "json" {
		return slog.New(slog.NewJSONHandler(to, opt)), nil
	}
	return slog.New(slog.NewTextHandler(to, opt)), nil
}

// openLog opens for appending, so that the file can be truncated by who rotates it.
func openLog(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}

func openDefaultLog(mountpoint string) (*os.File, error) {
	dir, err := stateDir()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return openLog(filepath.Join(dir, logName(mountpoint)))
}

// stateDir is where the logs of background mounts go.
func stateDir() (string, error) {
	if os.Geteuid() == 0 && inInitialUserNamespace() {
		return "/var/log/untorn", nil
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "untorn"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no place for it: %w", err)
	}
	return filepath.Join(home, ".local", "state", "untorn"), nil
}

// logName makes a file name of a mountpoint that tells it at a glance: /srv/data is srv-data.log.
func logName(mountpoint string) string {
	name := strings.ReplaceAll(strings.Trim(mountpoint, "/"), "/", "-")
	if name == "" {
		name = "root"
	}
	const most = 200 // names end at 255 bytes
	if len(name) > most {
		name = name[len(name)-most:]
	}
	return name + ".log"
}

// becomeStderr lets go of the terminal. What the runtime prints when it panics goes to the log.
func (l *logger) becomeStderr() {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		l.Warn("letting go of the terminal", "err", err)
		return
	}
	defer null.Close()
	errs := null
	if l.file != nil {
		errs = l.file
	}
	unix.Dup2(int(null.Fd()), 0)
	unix.Dup2(int(null.Fd()), 1)
	unix.Dup2(int(errs.Fd()), 2)
}

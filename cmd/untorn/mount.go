package main

import (
	"context"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"untorn/fs"
	"untorn/txn"
	"untorn/txn/proc"
)

type mountCmd struct {
	Backing    string `arg:"" help:"The directory whose writes are to be atomic."`
	Mountpoint string `arg:"" optional:"" help:"Where to mount it: an empty directory. Without it, over BACKING itself."`

	Foreground bool          `short:"f" env:"UNTORN_FOREGROUND" help:"Stay in the foreground. Otherwise untorn returns when the mount answers, and serves it in the background."`
	Durability string        `enum:"full,ordered,none" default:"full" env:"UNTORN_DURABILITY" help:"What a successful close is worth after a power cut. full: the new version is there. ordered: some whole version is. none: nothing is promised, only kills do no harm."`
	Rules      ruleFlags     `embed:""`
	OnKill     string        `name:"on-kill" enum:"discard,publish" default:"discard" env:"UNTORN_ON_KILL" help:"When a signal ends a writer. discard: the old version stays and the bytes go to salvage. publish: treat it like a close."`
	Fsync      string        `enum:"stage,publish" default:"stage" env:"UNTORN_FSYNC" help:"What a program's fsync does. stage: its bytes survive, in salvage. publish: they become the version, for programs that never close."`
	Cache      time.Duration `default:"1s" env:"UNTORN_CACHE" placeholder:"1s" help:"How long the kernel may remember names and attributes of what is not being written. 0 sees changes that are made in the backing at once."`
	NoPass     bool          `name:"no-passthrough" env:"UNTORN_NO_PASSTHROUGH" help:"Send reads and writes through the daemon, also where the kernel could pass them on."`
	AllowOther bool          `negatable:"" default:"${root}" env:"UNTORN_ALLOW_OTHER" help:"Let all users in, each with his own rights. Default when root; others need user_allow_other in /etc/fuse.conf."`
	ReadOnly   bool          `env:"UNTORN_READ_ONLY" help:"Mount read-only."`
	Supervise  bool          `negatable:"" default:"true" env:"UNTORN_SUPERVISE" help:"Serve the mount in a process of its own, and mount again when that dies."`
	Restarts   int           `default:"5" placeholder:"5" env:"UNTORN_RESTARTS" help:"End the mount when its server has died this many times in a row, each time within five seconds."`

	Salvage salvageLimits `embed:"" prefix:"salvage-" group:"Salvage"`
	Log     logFlags      `embed:"" prefix:"log-" group:"Log"`
}

// Help is what --help says beyond the flags.
func (mountCmd) Help() string {
	return `Every flag with an environment variable can be set by it. SIGTERM and SIGINT end the mount: when it is busy, the
log says who holds it, and untorn goes on trying; a second signal detaches it at once, and its last user ends it.`
}

// salvageLimits bound what is kept of unpublished writes.
type salvageLimits struct {
	Bytes byteSize `default:"1G" placeholder:"1G" env:"UNTORN_SALVAGE_BYTES" help:"Keep at most this many bytes; the oldest go first."`
	Count int      `default:"1000" placeholder:"1000" env:"UNTORN_SALVAGE_COUNT" help:"Keep at most this many files."`
	Age   age      `default:"30d" placeholder:"30d" env:"UNTORN_SALVAGE_AGE" help:"Keep them at most this long."`
}

// Validate is called by kong.
func (c *mountCmd) Validate() error {
	if c.Cache < 0 {
		return fail(exitUsage, "--cache: %v is negative; 0 turns caching off", c.Cache)
	}
	if c.Restarts < 1 {
		return fail(exitUsage, "--restarts: %d is less than 1; --no-supervise never mounts again", c.Restarts)
	}
	if c.Salvage.Count < 0 {
		return fail(exitUsage, "--salvage-count: %d is negative", c.Salvage.Count)
	}
	return nil
}

func (c *mountCmd) Run() error {
	if l, err := takeLink(); l != nil || err != nil {
		if err != nil {
			return err
		}
		return c.serveFor(l)
	}
	parent := takeReadyPipe()
	if !c.Foreground && parent == nil {
		return startInBackground()
	}
	at, err := findPlace(c.Backing, c.Mountpoint)
	if err != nil {
		return err
	}
	if err := canMount(c.AllowOther); err != nil {
		return err
	}
	s, err := newSeat(at, c.AllowOther)
	if err != nil {
		return err
	}
	log, err := c.Log.open(at.mountpoint, parent != nil)
	if err != nil {
		return err
	}
	// Nothing may hold the mount that serves it.
	if err := os.Chdir("/"); err != nil {
		return err
	}
	nameProcess("untorn")
	stop := catchSignals()
	if c.Supervise {
		return c.supervise(s, log, parent, stop)
	}
	return c.serveAlone(s, log, parent, stop)
}

// open prepares this process for serving, and takes over the backing.
func (c *mountCmd) open(backing string, fd int, log *slog.Logger, supervisor int) (*fs.Server, error) {
	unix.Umask(0) // modes come from the callers as they are meant
	raiseFileLimit(log)
	seesKills := proc.SeesKills("/proc/self/exe", "pause")
	if !seesKills {
		log.Warn("cannot see in /proc that a process was killed, so killed writers publish like those that close; see untorn doctor")
	}
	if err := txn.KeepCapabilities(); err != nil {
		log.Warn("cannot fix the capabilities; files may come out with the wrong owner, or past a quota", "err", err)
	}
	durability, err := txn.ParseDurability(c.Durability)
	if err != nil {
		return nil, fail(exitUsage, "%w", err)
	}
	s, err := fs.Open(context.Background(), fd, txn.Options{
		Durability:     durability,
		PublishKilled:  c.OnKill == "publish",
		PublishOnFsync: c.Fsync == "publish",
		Rules:          c.Rules.rules,
		Limits:         c.Salvage.limits(),
		Log:            log,
		SeesKills:      seesKills,
	}, fs.Options{
		Cache:         c.Cache,
		NoPassthrough: c.NoPass,
		ReadOnly:      c.ReadOnly,
		Source:        backing,
		Supervisor:    supervisor,
		Version:       version,
		Log:           log,
	})
	return s, advise(err, backing)
}

// logMounted tells what the mount is like.
func (c *mountCmd) logMounted(s *fs.Server, backing string, a *attachment, log *slog.Logger) {
	path, why := s.DataPath()
	log.Info("mounted", "backing", backing, "mountpoint", a.Path, "data_path", path, "why", why,
		"durability", c.Durability, "read_only", s.ReadOnly(), "pid", os.Getpid())
}

// noticeReadOnly tells the user when he gets less than he asked for.
func (c *mountCmd) noticeReadOnly(backing string, readOnly bool) {
	if readOnly && !c.ReadOnly {
		notice("%s cannot be written, so the mount is read-only", backing)
	}
}

// nameProcess makes ps show a name also where we were executed as /proc/self/exe. It is cosmetic, so it may fail.
func nameProcess(name string) { os.WriteFile("/proc/self/comm", []byte(name), 0) }

// raiseFileLimit raises the descriptor limit as far as it goes: a staged file costs descriptors of ours, and thousands may
// be written at once.
func raiseFileLimit(log *slog.Logger) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		log.Warn("reading the descriptor limit", "err", err)
		return
	}
	want := unix.Rlimit{Cur: lim.Max, Max: lim.Max}
	if most, err := readNumber("/proc/sys/fs/nr_open"); err == nil && most > lim.Max {
		// Works with CAP_SYS_RESOURCE only.
		want = unix.Rlimit{Cur: most, Max: most}
	}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &want) == nil {
		return
	}
	lim.Cur = lim.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		log.Warn("raising the descriptor limit", "err", err)
	}
}

// pauseCmd waits until it is killed.
type pauseCmd struct{}

func (pauseCmd) Run() error {
	// Not for ever: whoever started it may have died before killing it.
	time.Sleep(time.Minute)
	return nil
}

// limits are the flags as txn takes them, where 0 stands for the default and a negative value for keeping nothing.
func (l salvageLimits) limits() txn.Limits {
	limits := txn.Limits{Bytes: int64(l.Bytes), Count: l.Count, Age: time.Duration(l.Age)}
	if limits.Bytes == 0 || limits.Count == 0 || limits.Age == 0 {
		limits.Count = -1
	}
	return limits
}

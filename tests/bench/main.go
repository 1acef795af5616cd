package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"
)

type cli struct {
	Run      runCmd      `cmd:"" default:"withargs" help:"Measure."`
	Replace  replaceCmd  `cmd:"" hidden:""`
	SlowDisk slowDiskCmd `cmd:"" hidden:""`
}

type runCmd struct {
	Untorn    string        `required:"" help:"The binary to measure."`
	Against   string        `help:"A second binary, measured beside the first as 'untorn full (other)'."`
	FS        []string      `name:"fs" default:"ext4" help:"Filesystems to measure on: ext4, xfs, btrfs."`
	Workloads string        `default:"." help:"Only workloads that match this regular expression."`
	Subjects  string        `default:"." help:"Only subjects that match this regular expression; native ones always take part."`
	Rounds    int           `default:"5" help:"How often each workload is run on each subject."`
	Quick     bool          `help:"A twentieth of everything, to see that it runs. The figures mean nothing."`
	Delay     time.Duration `help:"What a flush of the disk costs, such as 4ms."`
	Work      string        `help:"Where to work; by default a temporary directory. It needs 10 GiB." type:"path"`
	JSON      string        `name:"json" help:"Write every figure to this file."`
	Markdown  string        `help:"Write tables to this file."`
	SVG       string        `name:"svg" help:"Draw the ratios into this file."`
}

func main() {
	ctx := kong.Parse(new(cli), kong.Name("bench"), kong.Description("Compares untorn with the native filesystem and its peers."))
	ctx.FatalIfErrorf(ctx.Run())
}

// Run measures everything that was asked for. The exit status tells whether it could be measured, not whether it was fast.
func (c *runCmd) Run() (err error) {
	if os.Geteuid() != 0 {
		return errors.New("only root can make the filesystems that are measured")
	}
	raiseLimit()
	if c.Work == "" {
		if c.Work, err = os.MkdirTemp("", "untorn-bench-"); err != nil {
			return err
		}
		defer os.Remove(c.Work)
	} else if err := os.MkdirAll(c.Work, 0o755); err != nil {
		return err
	}
	loopback := filepath.Join(c.Work, "loopback")
	defer os.Remove(loopback)
	if _, err := output("go", "build", "-o", loopback, "github.com/hanwen/go-fuse/v2/example/loopback"); err != nil {
		return err
	}
	b := &bench{work: c.Work, quick: c.Quick, rounds: c.Rounds}
	for _, kind := range c.FS {
		if err := c.on(b, kind); err != nil {
			return fmt.Errorf("on %s: %w", kind, err)
		}
	}
	b.writeGoals(os.Stdout)
	for path, write := range map[string]func(string) error{c.JSON: b.writeJSON, c.Markdown: b.writeMarkdown, c.SVG: b.writeSVG} {
		if path != "" {
			if err := write(path); err != nil {
				return err
			}
		}
	}
	for _, r := range b.results {
		if r.Error != "" && strings.HasPrefix(r.Subject, "untorn") {
			return fmt.Errorf("%s on %s: %s", r.Workload, r.Subject, r.Error)
		}
	}
	return nil
}

// on measures on one filesystem.
func (c *runCmd) on(b *bench, kind string) (err error) {
	only, err := regexp.Compile(c.Workloads)
	if err != nil {
		return fmt.Errorf("--workloads: %w", err)
	}
	if b.disk, err = makeDisk(c.Work, kind, c.Delay); err != nil {
		return err
	}
	defer b.disk.close()
	if b.all, err = c.mountAll(b.disk.top); err != nil {
		return err
	}
	defer os.Remove(tarPath(b))
	defer func() {
		for _, s := range b.all {
			if e := s.unmount(); e != nil && err == nil {
				err = fmt.Errorf("unmounting %s: %w", s.name, e)
			}
		}
	}()
	for _, w := range allWorkloads() {
		if only.MatchString(w.name) {
			b.measure(w)
		}
	}
	return nil
}

func allWorkloads() (all []*workload) {
	for _, group := range [][]*workload{replaceWorkloads(), fileWorkloads(), streamWorkloads(), metaWorkloads(),
		buildWorkloads(), idleWorkloads(), recoverWorkloads()} {
		all = append(all, group...)
	}
	return all
}

// mountAll mounts every subject that was asked for and is installed.
func (c *runCmd) mountAll(top string) ([]*subject, error) {
	only, err := regexp.Compile(c.Subjects)
	if err != nil {
		return nil, fmt.Errorf("--subjects: %w", err)
	}
	var mounted []*subject
	list := subjects(c.Untorn, c.Work, durabilities(c.Untorn))
	if c.Against != "" {
		list = append(list, &subject{name: "untorn full (other)", class: untorn, durability: "full", needs: c.Against,
			start: startUntorn(c.Against)})
	}
	for _, s := range list {
		if s.class != native && !only.MatchString(s.name) {
			continue
		}
		if !s.installed() {
			fmt.Fprintf(os.Stderr, "%s is not installed, and left out\n", s.name)
			continue
		}
		if err := s.mount(top); err != nil {
			for _, m := range mounted {
				m.unmount()
			}
			return nil, fmt.Errorf("mounting %s: %w", s.name, err)
		}
		mounted = append(mounted, s)
	}
	return mounted, nil
}

// durabilities are those that the binary knows.
func durabilities(bin string) []string {
	help, _ := exec.Command(bin, "mount", "--help").Output()
	list := []string{"full", "ordered", "none"}
	if strings.Contains(string(help), "--batch-interval") {
		list = append(list, "batch")
	}
	return list
}

func catchTerm() <-chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	return c
}

// raiseLimit makes room for 10,000 open files.
func raiseLimit() {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil {
		lim.Cur, lim.Max = max(lim.Max, 20000), max(lim.Max, 20000)
		unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
	}
}

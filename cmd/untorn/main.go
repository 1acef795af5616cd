// Command untorn mounts an overlay that makes ordinary writes atomic, and looks after what it keeps.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/alecthomas/kong"
)

const description = `Make ordinary writes atomic: mount untorn over a directory, and whoever opens a file in it sees a whole
version, the old one or the new one, whatever happens to its writer.

Exit codes: 0 done, 1 the operation failed, 2 usage, 3 the backing directory cannot be used, 4 the mountpoint cannot be
used, 5 cannot mount here (no /dev/fuse, no right), 6 .untorn has an unknown format, 7 the mount is busy, 8 check found
something wrong, 9 the server of the mount died again and again.`

type cli struct {
	Mount   mountCmd   `cmd:"" help:"Mount over a directory."`
	Umount  umountCmd  `cmd:"" help:"End a mount, and say who holds it when it is busy."`
	Salvage salvageCmd `cmd:"" help:"Look after what killed or failed writers left."`
	Recover recoverCmd `cmd:"" help:"Salvage what a crashed daemon left; the next mount does it too."`
	Check   checkCmd   `cmd:"" help:"List what is wrong in .untorn, and change nothing."`
	Rules   rulesCmd   `cmd:"" help:"Print which files are staged and which are opened in place."`
	Doctor  doctorCmd  `cmd:"" help:"Tell what this kernel, user and filesystem can do for untorn."`
	Version versionCmd `cmd:"" help:"Print the version."`

	Holders holdersCmd `cmd:"" hidden:"" help:"List the processes that hold a mount, as JSON."`
	Pause   pauseCmd   `cmd:"" hidden:"" help:"Wait until killed: what the mount tries out on a child of its own."`
}

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	var c cli
	parser, err := newParser(&c)
	if err != nil {
		return report(err)
	}
	ctx, err := parser.Parse(args)
	if err != nil {
		// The error may come from a hook of ours, with the exit code of its own; the parser's own are about usage.
		var f *failure
		if !asFailure(err, &f) {
			err = fail(exitUsage, "%w\nSee: untorn --help, or --help after a command.", err)
		}
		return report(err)
	}
	return report(ctx.Run())
}

func newParser(c *cli) (*kong.Kong, error) {
	return kong.New(c,
		kong.Name("untorn"),
		kong.Description(description),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 110}),
		kong.Vars{"root": strconv.FormatBool(os.Geteuid() == 0)},
	)
}

// report prints an error, if there is one, and returns the exit code for it.
func report(err error) int {
	if err != nil {
		// What comes from other programs may end in a newline of its own.
		fmt.Fprintln(os.Stderr, "untorn:", strings.ReplaceAll(err.Error(), "\n\n", "\n"))
	}
	return codeOf(err)
}

// notice tells the user something that is no error.
func notice(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "untorn: "+format+"\n", args...)
}

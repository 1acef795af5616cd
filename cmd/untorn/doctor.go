package main

import (
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"untorn/txn/proc"
)

type doctorCmd struct {
	Dir  string `arg:"" optional:"" default:"." help:"Directory to look at, of the filesystem that is to be mounted over."`
	JSON bool   `name:"json" help:"Print an array of {check, result, ok, meaning}, for scripts."`
}

// Help is what --help says beyond the flags.
func (doctorCmd) Help() string {
	return `Tries things out in a temporary directory in DIR, which is removed again. Nothing that is marked "-" keeps untorn from
working, unless it says so.`
}

// finding is the outcome of one check. The fields are a stable interface for scripts.
type finding struct {
	Check   string `json:"check"`
	Result  string `json:"result"`
	OK      bool   `json:"ok"`
	Meaning string `json:"meaning"`
}

func (c *doctorCmd) Run() error {
	dir, err := openBacking(c.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	list := append(checkSystem(dir), checkFilesystem(dir)...)
	if c.JSON {
		return printJSON(list)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  \tCHECK\tRESULT\tWHAT IT MEANS")
	for _, f := range list {
		mark := "ok"
		if !f.OK {
			mark = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", mark, f.Check, f.Result, f.Meaning)
	}
	return w.Flush()
}

// found makes a finding with one of two meanings.
func found(check string, ok bool, result, good, bad string) finding {
	f := finding{check, result, ok, good}
	if !ok {
		f.Meaning = bad
	}
	return f
}

// tried makes a finding of whether something worked.
func tried(check string, err error, good, bad string) finding {
	if err != nil {
		return found(check, false, err.Error(), good, bad)
	}
	return found(check, true, "works", good, bad)
}

// checkSystem looks at the kernel and at this user, who wants to mount over dir.
func checkSystem(dir *os.File) []finding {
	major, minor, release := kernelVersion()
	atLeast := func(a, b int) bool { return major > a || major == a && minor >= b }
	return []finding{
		checkDevice(),
		checkFusermount(),
		checkAllowOther(),
		found("kernel", atLeast(5, 14), release, kernelMeaning(atLeast),
			"before 5.14 too little can be seen of who holds a file: publishing happens shortly after close, not within it"),
		checkPassthrough(atLeast(6, 9), dir),
		checkFdinfo(),
		checkDescriptorCount(),
		checkKills(),
		checkHidepid(),
		checkUserNamespaces(),
	}
}

func kernelMeaning(atLeast func(int, int) bool) string {
	switch {
	case atLeast(6, 15):
		return "everything that untorn can use"
	case atLeast(6, 9):
		return "before 6.15 the end of a process that left only a mapping is not known: its file goes to salvage"
	case atLeast(6, 2):
		return "before 6.9 there is no passthrough: reads and writes go through the daemon"
	default:
		return "before 6.2 the last close of a file is harder to recognise: publishing may happen shortly after it"
	}
}

// kernelVersion reads "6.18.44-something".
func kernelVersion() (major, minor int, release string) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return 0, 0, err.Error()
	}
	release = unix.ByteSliceToString(u.Release[:])
	fmt.Sscanf(release, "%d.%d", &major, &minor)
	return major, minor, release
}

func checkDevice() finding {
	const name = "/dev/fuse"
	const bad = "without it nothing can be mounted: modprobe fuse, or docker run --device /dev/fuse"
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
		return found(name, true, "can be opened", "mounting is possible", bad)
	}
	if _, ferr := fusermount(); err == unix.EACCES && ferr == nil {
		return found(name, true, "there, for root alone", "fusermount3 opens it for you", bad)
	}
	return found(name, false, err.Error(), "", bad)
}

func checkFusermount() finding {
	const name = "fusermount3"
	path, err := fusermount()
	if err != nil {
		bad := "users cannot mount: install the package fuse3"
		if os.Geteuid() == 0 {
			bad += "; root can"
		}
		return found(name, false, err.Error(), "", bad)
	}
	return found(name, true, path, "users other than root can mount", "")
}

func checkAllowOther() finding {
	const name = "allow_other"
	if os.Geteuid() == 0 {
		return found(name, true, "root may", "all users can be let in (the default when root)", "")
	}
	if userAllowOther() {
		return found(name, true, "user_allow_other is set", "--allow-other lets all users in", "")
	}
	return found(name, false, "no user_allow_other in /etc/fuse.conf", "", "your mounts are for you alone, root included in the others")
}

func checkPassthrough(kernel bool, dir *os.File) finding {
	const name = "passthrough"
	const bad = "reads and writes go through the daemon: all works, streaming is slower"
	switch {
	case !kernel:
		return found(name, false, "the kernel is older than 6.9", "", bad)
	case !inInitialUserNamespace():
		return found(name, false, "not in the initial user namespace", "", bad)
	case !hasCapability(unix.CAP_SYS_ADMIN):
		return found(name, false, "needs CAP_SYS_ADMIN", "", bad)
	}
	var st unix.Statfs_t
	if unix.Fstatfs(int(dir.Fd()), &st) == nil && st.Type == unix.FUSE_SUPER_MAGIC {
		return found(name, false, "not over FUSE", "", bad+". Writes that fail there could not be seen otherwise")
	}
	return found(name, true, "possible", "reads and writes of big files run at the speed of the backing", "")
}

const lastClose = "the last close of a file cannot be recognised: publishing happens shortly after close, not within it"

func checkFdinfo() finding {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return found("/proc: fdinfo", false, err.Error(), "", lastClose)
	}
	defer f.Close()
	text, _ := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", f.Fd()))
	if !strings.Contains(string(text), "ino:") {
		return found("/proc: fdinfo", false, "does not show inodes", "", lastClose)
	}
	return found("/proc: fdinfo", true, "shows inodes", "who holds a file can be seen", "")
}

func checkDescriptorCount() finding {
	if n := proc.Descriptors(uint32(os.Getpid())); n > 0 {
		return found("/proc: descriptor count", true, "shown", "the last close of a file is recognised quickly", "")
	}
	return found("/proc: descriptor count", false, "not shown (before 6.2)", "", "the last close of a file is recognised more slowly")
}

func checkKills() finding {
	const name = "/proc: kills"
	if proc.SeesKills(self, "pause") {
		return found(name, true, "visible", "a killed writer is recognised, and publishes nothing", "")
	}
	return found(name, false, "not visible", "",
		"a killed writer looks like one that closed: IT PUBLISHES HALF FILES. Mount as the user of the writers, or as root with CAP_SYS_PTRACE")
}

func checkHidepid() finding {
	const name = "/proc: other users"
	m, err := mountAt("/proc")
	if err != nil || m == nil {
		return found(name, false, "no /proc is mounted", "", "untorn needs /proc to see who closes a file")
	}
	for opt := range strings.SplitSeq(m.Super, ",") {
		if v, ok := strings.CutPrefix(opt, "hidepid="); ok && v != "0" && v != "off" && !hasCapability(unix.CAP_SYS_PTRACE) {
			return found(name, false, opt, "", "with --allow-other, what other users write is published shortly after close")
		}
	}
	return found(name, true, "visible", "the processes of all users can be seen", "")
}

func checkUserNamespaces() finding {
	const name = "user namespaces"
	const bad = "users cannot mount in a namespace of their own; fusermount3 is the way"
	if n, err := readNumber("/proc/sys/user/max_user_namespaces"); err == nil && n == 0 {
		return found(name, false, "user.max_user_namespaces is 0", "", bad)
	}
	if n, err := readNumber("/proc/sys/kernel/unprivileged_userns_clone"); err == nil && n == 0 {
		return found(name, false, "kernel.unprivileged_userns_clone is 0", "", bad)
	}
	if n, err := readNumber("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"); err == nil && n == 1 {
		return found(name, false, "restricted by AppArmor", "", bad)
	}
	return found(name, true, "open to users", "users can mount in a namespace of their own too", "")
}

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// subject is a way to a directory: the directory itself, or through something mounted.
type subject struct {
	name  string
	class class
	// durability of an untorn subject
	durability string
	// start mounts back on dir; nil: it is used as it is.
	start func(s *subject) error
	// needs is the program without which the subject is left out.
	needs string

	back, dir string
	mounted   bool
	server    *os.Process // of those that stay in the foreground
}

// careful is the native directory again, written to by a program that does by itself what untorn does: temp, fsync,
// rename, fsync of the directory, as far as the durability asks for it.
const careful = "native, careful"

type class int

const (
	native class = iota
	untorn
	peer
)

// subjects are all that can be compared.
func subjects(bin, work string, durabilities []string) []*subject {
	list := []*subject{{name: "native", class: native}, {name: careful, class: native}}
	for _, d := range durabilities {
		list = append(list,
			&subject{name: "untorn " + d, class: untorn, durability: d, needs: bin, start: startUntorn(bin)},
			&subject{name: "untorn " + d + ", no passthrough", class: untorn, durability: d, needs: bin,
				start: startUntorn(bin, "--no-passthrough")})
	}
	loopback := filepath.Join(work, "loopback")
	return append(list,
		&subject{name: "go-fuse loopback", class: peer, needs: loopback, start: func(s *subject) error {
			return s.foreground(loopback, "-q", "-allow-other", s.dir, s.back)
		}},
		&subject{name: "bindfs", class: peer, needs: "bindfs", start: func(s *subject) error {
			return s.background("bindfs", s.back, s.dir)
		}},
		&subject{name: "fuse-overlayfs", class: peer, needs: "fuse-overlayfs", start: func(s *subject) error {
			for _, d := range []string{"lower", "work"} {
				if err := os.MkdirAll(s.back+"."+d, 0o755); err != nil {
					return err
				}
			}
			return s.background("fuse-overlayfs", "-o",
				fmt.Sprintf("lowerdir=%[1]s.lower,upperdir=%[1]s,workdir=%[1]s.work,allow_other", s.back), s.dir)
		}},
		&subject{name: "mergerfs", class: peer, needs: "mergerfs", start: func(s *subject) error {
			return s.background("mergerfs", "-o", "allow_other,cache.files=auto-full", s.back, s.dir)
		}},
		&subject{name: "gocryptfs", class: peer, needs: "gocryptfs", start: func(s *subject) error {
			if _, err := os.Stat(filepath.Join(s.back, "gocryptfs.conf")); err != nil {
				if _, err := output("gocryptfs", "-init", "-q", "-extpass", "echo untorn", "-scryptn", "10", s.back); err != nil {
					return err
				}
			}
			return s.background("gocryptfs", "-q", "-allow_other", "-extpass", "echo untorn", s.back, s.dir)
		}})
}

func startUntorn(bin string, flags ...string) func(s *subject) error {
	return func(s *subject) error {
		return s.background(bin, append(append([]string{"mount", "--durability", s.durability}, flags...), s.back, s.dir)...)
	}
}

// installed reports whether what the subject needs is there.
func (s *subject) installed() bool {
	if s.needs == "" {
		return true
	}
	_, err := exec.LookPath(s.needs)
	return err == nil
}

// mount makes the subject ready below top.
func (s *subject) mount(top string) error {
	base := filepath.Join(top, strings.NewReplacer(" ", "-", ",", "").Replace(s.name))
	s.back, s.dir = base, base
	if err := os.MkdirAll(base, 0o755); err != nil {
		return err
	}
	if s.start == nil {
		return nil
	}
	s.back = base + ".back"
	if err := os.MkdirAll(s.back, 0o755); err != nil {
		return err
	}
	if err := s.start(s); err != nil {
		return err
	}
	s.mounted = true
	return nil
}

// unmount ends it. Somebody's last RELEASE may still be under way, so busy is tried again for a while.
func (s *subject) unmount() error {
	if !s.mounted {
		return nil
	}
	s.mounted = false
	var err error
	if s.class == untorn {
		_, err = output(s.needs, "umount", s.dir)
	} else {
		for range 200 {
			if err = unix.Unmount(s.dir, 0); !errors.Is(err, unix.EBUSY) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	if err != nil {
		unix.Unmount(s.dir, unix.MNT_DETACH)
	}
	if s.server != nil {
		s.server.Wait()
	}
	return err
}

// remount ends the subject's server and starts a fresh one, which has nothing of earlier workloads in its memory.
func (s *subject) remount() error {
	if err := s.unmount(); err != nil {
		return err
	}
	if err := s.start(s); err != nil {
		return err
	}
	s.mounted = true
	return nil
}

// background runs a command that returns when the mount is there.
func (s *subject) background(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	log, err := os.CreateTemp("", "bench-*.log") // a daemon would keep a pipe open
	if err != nil {
		return err
	}
	defer os.Remove(log.Name())
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%s: %w: %s", cmd, err, said)
	}
	return awaitMount(s.dir)
}

// foreground runs a command that serves until the mount ends.
func (s *subject) foreground(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		return err
	}
	s.server = cmd.Process
	return awaitMount(s.dir)
}

// awaitMount waits until another filesystem than that of the parent is seen at dir.
func awaitMount(dir string) error {
	for range 1000 {
		var here, above unix.Stat_t
		if unix.Stat(dir, &here) == nil && unix.Stat(filepath.Dir(dir), &above) == nil && here.Dev != above.Dev {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("%s was not mounted within 5 s", dir)
}

// pids are the processes that serve the subject: those that were started with its directory as an argument.
func (s *subject) pids() []int {
	var pids []int
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		line, err := os.ReadFile(p)
		if err != nil || !strings.Contains(string(line), s.dir+"\x00") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p))); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// kill ends the subject's processes as a crash would, those that would restart others first, and clears the mount away.
func (s *subject) kill() {
	for range 100 {
		pids := s.pids()
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGSTOP)
		}
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(20 * time.Millisecond)
	}
	unix.Unmount(s.dir, unix.MNT_DETACH)
	s.mounted = false
}

package proc

import (
	"bytes"
	"fmt"
	"os/exec"

	"golang.org/x/sys/unix"
)

// End is how a process ended: a wait(2) status, as field 52 of /proc/TID/stat gives it (proc_pid_stat(5)).
type End struct {
	status unix.WaitStatus
	known  bool
}

// EndOf reads the exit code of a thread that is in exit(2) already (Process.Exiting): only then does /proc/TID/stat not
// block. The flag PF_SIGNALED beside it would be no evidence: an ordinary exit of a process with several threads has it.
func EndOf(tid uint32) End {
	var buf [1024]byte
	text, err := readRecord(dir(tid)+"/stat", buf[:])
	if err != nil {
		return End{}
	}
	// The name, in parentheses, may contain anything; the fields after it do not.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	const exitCode = 52 - 3 // the first field after the name is the third
	if len(fields) <= exitCode {
		return End{}
	}
	status := unix.WaitStatus(number(fields[exitCode]))
	if status == 0 && !mayTrace(tid) {
		return End{}
	}
	return End{status: status, known: true}
}

// mayTrace reports whether we have ptrace rights over a process, without which its exit code reads 0. The namespace links
// ask for the same rights as /proc/TID/stat (PTRACE_MODE_READ_FSCREDS), and outlive the descriptors in exit(2).
func mayTrace(tid uint32) bool {
	var buf [64]byte
	_, err := unix.Readlink(dir(tid)+"/ns/pid", buf[:])
	return err != unix.EACCES && err != unix.EPERM
}

// EndOfPidfd asks the kernel how the process behind a pidfd ended: PIDFD_GET_INFO, with the exit status since Linux 6.15.
func EndOfPidfd(fd int) End {
	status, ok := pidfdExit(fd)
	return End{status: unix.WaitStatus(status), known: ok}
}

// Known reports whether anything could be found out.
func (e End) Known() bool { return e.known }

// Signal is the signal that ended the process, or, for a status of 128+n, the one that ended the child on whose behalf it
// exits, as shells, env(1) and timeout(1) do; 0 if there was none.
func (e End) Signal() unix.Signal {
	if !e.known {
		return 0
	}
	if e.status.Signaled() {
		return e.status.Signal()
	}
	if n := e.status.ExitStatus() - 128; n > 0 && n <= 64 {
		return unix.Signal(n)
	}
	return 0
}

func (e End) String() string {
	switch sig := e.Signal(); {
	case !e.known:
		return "end unknown"
	case sig != 0 && e.status.Signaled():
		return fmt.Sprintf("killed by signal %d (%s)", int(sig), unix.SignalName(sig))
	case sig != 0:
		return fmt.Sprintf("exit status %d: its child was killed by signal %d (%s)", e.status.ExitStatus(), int(sig), unix.SignalName(sig))
	default:
		return fmt.Sprintf("exit status %d", e.status.ExitStatus())
	}
}

// SeesKills tells whether this process can see that another one was killed. Without ptrace rights over the other, field
// 52 reads 0 (proc_pid_stat(5)) and every killed writer looks like one that ended well. It kills a child of its own,
// started from argv with the given credentials left as they are, and looks; argv must run until it is killed.
func SeesKills(argv ...string) bool {
	cmd := exec.Command(argv[0], argv[1:]...)
	if err := cmd.Start(); err != nil {
		return false
	}
	defer cmd.Wait()
	cmd.Process.Kill()
	// Wait for the end without reaping: a zombie still shows its status.
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			break
		}
	}
	return EndOf(uint32(cmd.Process.Pid)).Signal() == unix.SIGKILL
}

package main

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseMounts(t *testing.T) {
	const text = `36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext4 /dev/ro\134ot rw,errors=continue
52 25 0:42 / /srv/a\011b rw,nosuid,nodev,relatime shared:31 - fuse.untorn /back\012ing rw,user_id=0,group_id=0
53 25 0:43 / /x rw - tmpfs  rw
`
	got, err := parseMounts(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []mountEntry{
		{36, "98:0", "/mnt 2", "ext4", `/dev/ro\ot`, "rw,errors=continue"},
		{52, "0:42", "/srv/a\tb", "fuse.untorn", "/back\ning", "rw,user_id=0,group_id=0"},
		{53, "0:43", "/x", "tmpfs", "", "rw"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if _, err := parseMounts(strings.NewReader("nonsense\n")); err == nil {
		t.Error("nonsense was understood")
	}
}

func TestMappingsOn(t *testing.T) {
	const maps = `00400000-00452000 r-xp 00000000 08:02 173521 /usr/bin/dbus-daemon
7f0000000000-7f0000001000 rw-s 00000000 00:2a 12 /srv/a file
7f0000001000-7f0000002000 rw-s 00001000 00:2a 12 /srv/a file
7f0000002000-7f0000003000 r--p 00000000 00:2a 13 /srv/gone (deleted)
7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0 [stack]
7ffe00022000-7ffe00023000 rw-p 00000000 00:00 0
`
	got := mappingsOn(strings.NewReader(maps), "0:42")
	if want := []string{"/srv/a file", "/srv/gone (deleted)"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFdinfoMount(t *testing.T) {
	if got := fdinfoMount("pos:\t0\nflags:\t02100000\nmnt_id:\t52\nino:\t7\n"); got != "52" {
		t.Errorf("got %q", got)
	}
	if got := fdinfoMount("pos:\t0\n"); got != "" {
		t.Errorf("got %q", got)
	}
}

// TestFindHolders looks for users of a mount that every machine has.
func TestFindHolders(t *testing.T) {
	m, err := mountAt("/dev/shm")
	if err != nil || m == nil {
		t.Skip("no /dev/shm")
	}
	dir, err := os.MkdirTemp("/dev/shm", "untorn-test-")
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("sh", "-c", "exec 7> 'a file'; echo; exec sleep 60")
	cmd.Dir = dir
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	out.Read(make([]byte, 1))

	list, err := findHolders("/dev/shm")
	if err != nil {
		t.Fatal(err)
	}
	var what []string
	for _, h := range list {
		if h.PID == cmd.Process.Pid {
			what = append(what, h.What)
		}
	}
	if want := []string{"working directory " + dir, "open file " + dir + "/a file"}; !slices.Equal(what, want) {
		t.Errorf("got %q, want %q", what, want)
	}
}

func TestBusyTable(t *testing.T) {
	err := busy("/mnt", []holder{{12, "vim notes", "open file /mnt/notes\n2"}})
	if codeOf(err) != exitBusy {
		t.Errorf("exit code %d", codeOf(err))
	}
	for _, part := range []string{"12", "vim notes", `"open file /mnt/notes\n2"`, "untorn umount --lazy /mnt"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is missing in:\n%v", part, err)
		}
	}
	if !strings.Contains(busy("/mnt", nil).Error(), "as root") {
		t.Error("nobody seen, and no advice")
	}
}

func TestLogName(t *testing.T) {
	for path, want := range map[string]string{"/": "root.log", "/srv/data": "srv-data.log", "/" + strings.Repeat("x", 300): strings.Repeat("x", 200) + ".log"} {
		if got := logName(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestPlaceRefusesBadInput(t *testing.T) {
	top := t.TempDir()
	mkdir := func(name string) string {
		dir := top + "/" + name
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	backing, empty, full := mkdir("backing"), mkdir("empty"), mkdir("full")
	file := full + "/file"
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	mkdir("backing/.untorn/stage")
	mkdir("backing/sub")
	for name, c := range map[string]struct {
		backing, mountpoint string
		want                int
	}{
		"good":                       {backing, empty, exitDone},
		"over itself":                {backing, "", exitDone},
		"over itself, by two names":  {backing, backing + "/../backing", exitDone},
		"no backing":                 {top + "/none", "", exitBacking},
		"backing is a file":          {file, "", exitBacking},
		"backing below .untorn":      {backing + "/.untorn/stage", "", exitBacking},
		"no mountpoint":              {backing, top + "/none", exitMountpoint},
		"mountpoint is a file":       {backing, file, exitMountpoint},
		"mountpoint is not empty":    {backing, full, exitMountpoint},
		"mountpoint lies in backing": {backing, backing + "/sub", exitMountpoint},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := findPlace(c.backing, c.mountpoint)
			if codeOf(err) != c.want {
				t.Errorf("exit code %d, want %d: %v", codeOf(err), c.want, err)
			}
			if err == nil {
				unix.Close(p.fd)
			} else if lines := strings.Count(err.Error(), "\n") + 1; lines > 2 {
				t.Errorf("%d lines: %v", lines, errors.Unwrap(err))
			}
		})
	}
}

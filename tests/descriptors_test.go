package tests

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// greedy opens files until the daemon has no descriptor left, then writes and closes them, and looks in the backing
// whether each is there when close(2) has returned 0.
//
//	greedy.py MOUNT BACKING NAME ROUNDS
const greedy = `
import errno, json, os, sys
mount, backing, name, rounds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
seen = {"published": 0, "refused": 0}
for r in range(rounds):
    files = {}
    for i in range(60):
        file = "%s-%d" % (name, i)
        try: files[file] = os.open(mount + "/" + file, os.O_WRONLY | os.O_CREAT | [os.O_TRUNC, 0][i % 2], 0o644)
        except OSError as e:
            if e.errno not in (errno.EMFILE, errno.ENFILE): sys.exit("opening %s: %s" % (file, e))
            seen["refused"] += 1
            break
    for file, fd in files.items():
        text = b"%s, round %03d" % (file.encode(), r)
        os.write(fd, text)
        os.close(fd) # an error ends the program
        got = open(backing + "/" + file, "rb").read()
        if got != text: sys.exit("%s holds %r when close has returned" % (file, got))
        seen["published"] += 1
print(json.dumps(seen))`

// TestDaemonOutOfDescriptors: programs use up all descriptors that the daemon may have. Opens are refused with EMFILE, and
// yet each file that is closed is published before close(2) returns, and what a killed program wrote is kept.
func TestDaemonOutOfDescriptors(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		m.put(t, "f", oldVersion)
		limit := unix.Rlimit{Cur: 180, Max: 180}
		if err := unix.Prlimit(m.server, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
			t.Fatal(err)
		}
		killed := startSteps(t, m.Dir, `exec bash -c 'echo kept; echo step >&8; read -u 9; kill -9 $$' > f`)
		killed.await(t)
		var clients []*exec.Cmd
		var outputs []*strings.Builder
		for i := range 6 {
			cmd := command(t, "/usr/bin/python3", "-c", greedy, m.Dir, m.Backing, fmt.Sprint("client", i), fmt.Sprint(max(2, rounds(3))))
			out := new(strings.Builder)
			cmd.Stdout, cmd.Stderr = out, out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			clients, outputs = append(clients, cmd), append(outputs, out)
		}
		killed.release(t)
		var all struct{ Published, Refused int }
		for i, cmd := range clients {
			if err := cmd.Wait(); err != nil {
				t.Fatalf("a client: %v\n%s", err, outputs[i])
			}
			var seen struct{ Published, Refused int }
			if err := json.Unmarshal([]byte(outputs[i].String()), &seen); err != nil {
				t.Fatal(err)
			}
			all.Published += seen.Published
			all.Refused += seen.Refused
		}
		t.Logf("%+v", all)
		if all.Refused == 0 {
			t.Error("the daemon never ran out of descriptors")
		}
		if killed.wait() == nil {
			t.Error("the killed writer lives")
		}
		m.wantVersion(t, "f", oldVersion)
		m.awaitSalvaged(t, "f", 1)
		m.checkDescriptors(t)
		sh(t, m.Dir, `echo a > after; [ "$(cat after)" = a ]`)
		if left, _ := filepath.Glob(m.real("client*")); len(left) == 0 {
			t.Error("nothing was published")
		}
	})
}

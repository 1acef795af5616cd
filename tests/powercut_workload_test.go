package tests

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	helpers["cutwriter"] = cutWriter
	helpers["cutkiller"] = cutKiller
	helpers["cutsyncer"] = cutSyncer
}

// What a workload says, each in a line, before it does it, but for ack and synced: those after the call has returned.
const (
	eventStart  = "start"  // from here on the power is cut
	eventEnd    = "end"    // up to here
	eventBegin  = "begin"  // PATH N: version N of PATH is being written
	eventAck    = "ack"    // PATH N: close(2) of it returned 0
	eventSynced = "synced" // PATH N: fsync(2) of it returned 0, before the close
	eventRemove = "remove" // PATH
	eventMove   = "move"   // FROM TO
)

// ledger is where a workload says what it does.
type ledger struct{ conn net.Conn }

func dialLedger(socket string) (ledger, error) {
	conn, err := net.Dial("unix", socket)
	return ledger{conn}, err
}

// say returns when it is written down. It fails when the power is cut, or pretended to be.
func (l ledger) say(words ...any) error {
	line := strings.TrimSuffix(fmt.Sprintln(words...), "\n")
	if _, err := l.conn.Write([]byte(line + "\n")); err != nil {
		return err
	}
	_, err := l.conn.Read(make([]byte, 1))
	return err
}

// A version of a file is one chunk, or several that were appended one after the other. Each begins with a line that is
// padded to chunkHeader bytes: who it is, whom it follows, and how long the file is with it.
const chunkHeader = 128

// chunk makes the bytes of version n of a path, to be put behind what has that length and ends in version after.
func chunk(path string, n, after, length, size int) []byte {
	body := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(len(path))}).Read(body)
	head := fmt.Sprintf("%s %d %d %d %d %08x", path, n, after, length+chunkHeader+size, size, crc32.ChecksumIEEE(body))
	b := fmt.Appendf(nil, "%-*s\n", chunkHeader-1, head)
	return append(b, body...)
}

var errTorn = errors.New("no whole version")

// parseVersion tells which version of which path a file holds. errTorn: none, or not all of it.
func parseVersion(content []byte) (path string, n int, err error) {
	length := 0
	for first := true; first || length < len(content); first = false {
		rest := content[length:]
		if len(rest) < chunkHeader {
			return path, n, fmt.Errorf("%w: %d bytes after version %d of %q", errTorn, len(rest), n, path)
		}
		f := strings.Fields(string(rest[:chunkHeader]))
		if len(f) != 6 {
			return path, n, fmt.Errorf("%w: at %d is no header but %.40q", errTorn, length, rest)
		}
		previous := n
		var numbers [4]int
		for i := range numbers {
			if numbers[i], err = strconv.Atoi(f[i+1]); err != nil {
				return path, n, fmt.Errorf("%w: at %d is no header but %.40q", errTorn, length, rest)
			}
		}
		path, n = f[0], numbers[0]
		size := numbers[3]
		if numbers[1] != previous || numbers[2] != length+chunkHeader+size || len(rest) < chunkHeader+size {
			return path, n, fmt.Errorf("%w: version %d of %q has another length or predecessor", errTorn, n, path)
		}
		body := rest[chunkHeader : chunkHeader+size]
		if fmt.Sprintf("%08x", crc32.ChecksumIEEE(body)) != f[5] {
			return path, n, fmt.Errorf("%w: version %d of %q has not its checksum", errTorn, n, path)
		}
		length += chunkHeader + size
	}
	return path, n, nil
}

// cutWriter changes files of its own in many ways, as programs do that take no care.
//
//	cutwriter DIR SOCKET NAME SEED OPERATIONS
//
// With 0 operations it only makes what the others find.
func cutWriter(args []string) {
	seed, err := strconv.ParseUint(args[3], 10, 64)
	check(err)
	operations, err := strconv.Atoi(args[4])
	check(err)
	ledger, err := dialLedger(args[1])
	check(err)
	w := &cutFiles{
		dir: args[0], name: args[2], ledger: ledger, rng: rand.New(rand.NewPCG(seed, 2)), last: map[string]int{}, next: 100,
	}
	if operations == 0 {
		check(w.lay())
		return
	}
	for i := range cutBase {
		w.last[w.path(i)] = 1
	}
	for range operations {
		check(w.step())
	}
}

// cutFiles are the files of one writer.
type cutFiles struct {
	dir, name string
	ledger    ledger
	rng       *rand.Rand
	last      map[string]int // version that each path has, 0 or missing: none
	next      int
}

const (
	cutBase  = 3 // files that are there at the beginning
	cutFlats = 6 // files in the writer's directory
)

// path is one of the writer's files: some in its directory, the others in directories that are still to be made.
func (w *cutFiles) path(i int) string {
	if i < cutFlats {
		return fmt.Sprintf("%s/f%d", w.name, i)
	}
	return fmt.Sprintf("%s/new%d/deep/f", w.name, i)
}

// lay makes the files of the beginning.
func (w *cutFiles) lay() error {
	if err := os.Mkdir(filepath.Join(w.dir, w.name), 0o755); err != nil {
		return err
	}
	for i := range cutBase {
		if err := w.ledger.say(eventBegin, w.path(i), 1); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(w.dir, w.path(i)), chunk(w.path(i), 1, 0, 0, 5000), 0o644); err != nil {
			return err
		}
		if err := w.ledger.say(eventAck, w.path(i), 1); err != nil {
			return err
		}
	}
	return nil
}

func (w *cutFiles) step() error {
	path := w.path(w.rng.IntN(cutFlats))
	if w.rng.IntN(6) == 0 {
		path = w.path(cutFlats + w.rng.IntN(20))
		if err := os.MkdirAll(filepath.Dir(filepath.Join(w.dir, path)), 0o755); err != nil {
			return err
		}
	}
	exists := w.last[path] != 0
	switch kind := w.rng.IntN(12); {
	case exists && kind == 0:
		if err := w.ledger.say(eventRemove, path); err != nil {
			return err
		}
		delete(w.last, path)
		return os.Remove(filepath.Join(w.dir, path))
	case kind <= 2:
		return w.replaceByRename(path)
	case exists && kind <= 4:
		return w.write(path, os.O_WRONLY|os.O_APPEND, false)
	case exists && kind <= 6:
		return w.write(path, os.O_RDWR, false)
	case kind == 7:
		return w.write(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, true)
	}
	return w.write(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, false)
}

// replaceByRename writes a new file and renames it, without any fsync.
func (w *cutFiles) replaceByRename(path string) error {
	temp := path + ".new"
	if err := w.write(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, false); err != nil {
		return err
	}
	if err := w.ledger.say(eventMove, temp, path); err != nil {
		return err
	}
	w.last[path] = w.last[temp]
	delete(w.last, temp)
	return os.Rename(filepath.Join(w.dir, temp), filepath.Join(w.dir, path))
}

// write makes the next version of a path, in pieces, and acknowledges it when close(2) has returned.
func (w *cutFiles) write(path string, flags int, sync bool) error {
	w.next++
	n := w.next
	if err := w.ledger.say(eventBegin, path, n); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(w.dir, path), flags, 0o644)
	if err != nil {
		return err
	}
	size := []int{100, 3000, 20000, 100000}[w.rng.IntN(4)] + w.rng.IntN(900)
	var b []byte
	if flags&os.O_APPEND != 0 {
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		b = chunk(path, n, w.last[path], int(fi.Size()), size)
	} else {
		b = chunk(path, n, 0, 0, size)
	}
	for piece := range slices.Chunk(b, len(b)/3+1) {
		if _, err := f.Write(piece); err != nil {
			return err
		}
	}
	if flags&os.O_RDWR != 0 {
		if err := f.Truncate(int64(len(b))); err != nil {
			return err
		}
	}
	if sync {
		if err := f.Sync(); err != nil {
			return err
		}
		if err := w.ledger.say(eventSynced, path, n); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	w.last[path] = n
	return w.ledger.say(eventAck, path, n)
}

// cutKiller starts writers that are killed: they must leave no version. One of the two files is there at the beginning.
//
//	cutkiller FILE... ROUNDS
func cutKiller(args []string) {
	rounds, err := strconv.Atoi(args[len(args)-1])
	check(err)
	for range rounds {
		for _, file := range args[:len(args)-1] {
			cmd := exec.Command("bash", "-c", `exec > "$1"; head -c 20000 /dev/urandom; kill -9 $$`, "", file)
			if cmd.Run() == nil {
				check(errors.New("the writer was not killed"))
			}
		}
	}
}

// cutSyncer writes and syncs an unrelated file now and then, and seldom the whole filesystem, until it is killed.
// Filesystems commit what other programs did with it (btrfs only with the latter); without, shortcuts look safe.
//
//	cutsyncer FILE
func cutSyncer(args []string) {
	f, err := os.Create(args[0])
	check(err)
	for i := 0; ; i++ {
		_, err := f.WriteAt([]byte(strconv.Itoa(i)), 0)
		check(err)
		check(f.Sync())
		if i%4 == 3 {
			check(unix.Syncfs(int(f.Fd())))
		}
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
	}
}

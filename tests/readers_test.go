package tests

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func init() {
	helpers["checksum-writer"] = checksumWriter
	helpers["checksum-reader"] = checksumReader
}

// A checked file is the checksum of its rest, in hexadecimal, and the rest: a multiple of
// checkUnit, so that stat alone recognises most of the half-written ones.
const (
	checkHead = 2 * sha256.Size
	checkUnit = 4099
)

func checkedFile(rng *rand.Rand) []byte {
	rest := make([]byte, checkUnit*(1+rng.IntN(10)))
	for i := range rest {
		rest[i] = byte(rng.Uint32())
	}
	sum := sha256.Sum256(rest)
	return append([]byte(hex.EncodeToString(sum[:])), rest...)
}

func verify(b []byte) error {
	if err := verifySize(int64(len(b))); err != nil {
		return err
	}
	sum := sha256.Sum256(b[checkHead:])
	if !bytes.Equal([]byte(hex.EncodeToString(sum[:])), b[:checkHead]) {
		return fmt.Errorf("torn: %d bytes with a wrong checksum", len(b))
	}
	return nil
}

func verifySize(n int64) error {
	if n <= checkHead || (n-checkHead)%checkUnit != 0 {
		return fmt.Errorf("%d bytes is the size of no version", n)
	}
	return nil
}

// checksumWriter PATH COUNT replaces the file COUNT times in small writes, in the three
// ways in which programs do.
func checksumWriter(args []string) {
	count, err := strconv.Atoi(args[1])
	check(err)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range count {
		flags := []int{unix.O_WRONLY | unix.O_TRUNC, unix.O_RDWR, unix.O_WRONLY}[i%3]
		fd, err := unix.Open(args[0], flags|unix.O_CLOEXEC, 0)
		check(err)
		version := checkedFile(rng)
		if i%3 == 2 {
			check(unix.Ftruncate(fd, 0))
		}
		for rest := version; len(rest) > 0; {
			n, err := unix.Write(fd, rest[:min(len(rest), 700+rng.IntN(2000))])
			check(err)
			rest = rest[n:]
		}
		if i%3 == 1 {
			check(unix.Ftruncate(fd, int64(len(version))))
		}
		check(unix.Close(fd))
	}
}

// checksumReader PATH looks at the file in every way until its standard input ends.
func checksumReader(args []string) {
	stop := make(chan struct{})
	go func() { io.Copy(io.Discard, os.Stdin); close(stop) }()
	for rounds := 0; ; rounds++ {
		select {
		case <-stop:
			fmt.Println(rounds)
			return
		default:
		}
		for how, look := range map[string]func(string) error{
			"read": lookByRead, "mmap": lookByMap, "stat": lookByStat,
		} {
			if err := look(args[0]); err != nil {
				check(fmt.Errorf("%s of %s in round %d: %w", how, args[0], rounds, err))
			}
		}
	}
}

func lookByRead(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var all []byte
	buf := make([]byte, 3000)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return verify(all)
		}
		all = append(all, buf[:n]...)
	}
}

func lookByMap(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if err := verifySize(st.Size); err != nil {
		return err
	}
	b, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(b)
	return verify(b)
}

func lookByStat(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	return verifySize(st.Size)
}

// TestReadersSeeWholeVersions: four readers, two in the mount and two in the backing, look
// at a file while it is replaced all the time.
func TestReadersSeeWholeVersions(t *testing.T) {
	count := strconv.Itoa(rounds(2000))
	eachPath(t, func(t *testing.T, flags []string) {
		eachDurability(t, flags, func(t *testing.T, flags []string) {
			m := newMount(t, flags...)
			m.put(t, "f", string(checkedFile(rand.New(rand.NewPCG(3, 4)))))
			var readers []*reader
			for _, p := range []string{m.path("f"), m.path("f"), m.real("f"), m.real("f")} {
				readers = append(readers, startReader(t, p))
			}
			runHelper(t, "checksum-writer", m.path("f"), count)
			for _, r := range readers {
				r.finish(t)
			}
		})
	})
}

type reader struct {
	cmd    *exec.Cmd
	stop   *os.File
	output bytes.Buffer
}

func startReader(t testing.TB, path string) *reader {
	t.Helper()
	r := &reader{cmd: helper(t, "checksum-reader", path)}
	stdin, stop := pipe(t)
	r.cmd.Stdin, r.stop = stdin, stop
	r.cmd.Stdout, r.cmd.Stderr = &r.output, &r.output
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	return r
}

func (r *reader) finish(t testing.TB) {
	t.Helper()
	r.stop.Close()
	err := r.cmd.Wait()
	rounds, convErr := strconv.Atoi(strings.TrimSpace(r.output.String()))
	if err != nil || convErr != nil || rounds == 0 {
		t.Errorf("reader: %v: %s", err, r.output.String())
	}
}

// TestOpenReaderKeepsItsVersion: who opened or mapped the old version goes on with it, in
// the mount as in the backing, also after it was replaced, and when the new version is
// being written at that moment.
func TestOpenReaderKeepsItsVersion(t *testing.T) {
	const long = 3 << 20 // more than any read-ahead
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		old := strings.Repeat("old\n", long/4)
		m.put(t, "f", old)
		var held []*os.File
		for _, p := range []string{m.path("f"), m.real("f")} {
			f, err := os.Open(p)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			held = append(held, f)
		}
		mapped, err := unix.Mmap(int(held[0].Fd()), 0, long, unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(mapped)

		stillOld := func(when string) {
			t.Helper()
			for _, f := range held {
				fi, err := f.Stat()
				if err != nil || fi.Size() != long {
					t.Fatalf("%s: fstat of %s: %v, %v", when, f.Name(), fi, err)
				}
				b := make([]byte, long)
				if n, err := f.ReadAt(b, 0); err != nil || string(b) != old {
					t.Fatalf("%s: %s was disturbed: %d bytes, %v", when, f.Name(), n, err)
				}
			}
			if string(mapped) != old {
				t.Fatalf("%s: the mapping was disturbed", when)
			}
		}
		for range 3 {
			s := startSteps(t, m.Dir, `{ echo a; step; echo b; } > f`)
			s.await(t)
			stillOld("while the new version is written")
			s.release(t)
			s.finish(t)
			stillOld("after it was published")
			m.wantVersion(t, "f", newVersion)
		}
	})
}

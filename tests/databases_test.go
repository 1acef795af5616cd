package tests

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// rowsPerTransaction makes transactions that could be half there.
const rowsPerTransaction = 5

// TestSQLite writes one database from two processes and kills one of them again and
// again in the middle of its transactions. Every row that was acknowledged is there
// afterwards, every transaction is there as a whole, and SQLite finds nothing wrong.
func TestSQLite(t *testing.T) {
	for _, journal := range []string{"delete", "truncate", "wal"} {
		// The last one can be told to be a database only by its content, and before it
		// has any, by what appears beside it.
		for _, name := range []string{"data.db", "data.sqlite3", "ledger"} {
			t.Run(journal+" "+name, func(t *testing.T) {
				eachPath(t, func(t *testing.T, flags []string) {
					killWriters(t, newMount(t, flags...), name, journal)
				})
			})
		}
	}
}

func killWriters(t *testing.T, m *mount, name, journal string) {
	const kills = 25
	create := fmt.Sprintf("PRAGMA journal_mode=%s; CREATE TABLE t (writer TEXT, n INTEGER, filler BLOB);", journal)
	if got := query(t, m.path(name), create); got != journal {
		t.Fatalf("journal mode %q, want %q", got, journal)
	}
	survivor := startWriter(t, m.path(name), "survivor")
	acknowledged := map[string]int{}
	for i := range kills {
		victim := startWriter(t, m.path(name), fmt.Sprintf("victim %d", i))
		victim.feedOn()
		// The survivor's transactions are interspersed. SQLite's waiting is not fair: two
		// writers without a pause would starve each other.
		turns := 1 + rand.IntN(6)
		for range turns {
			survivor.feed()
			acknowledged[victim.name] = victim.awaitRow()
		}
		// The victim has the next transactions in its pipe and is in the middle of one.
		victim.cmd.Process.Kill()
		acknowledged[victim.name] = max(acknowledged[victim.name], victim.end())
		for range turns {
			acknowledged[survivor.name] = survivor.awaitRow()
		}
	}
	survivor.end()

	checkDatabase(t, m.path(name), acknowledged)
	m.Unmount(t)
	checkDatabase(t, m.real(name), acknowledged)
	if salvaged := m.Salvaged(t); len(salvaged) > 0 {
		t.Errorf("%d files were salvaged from a database, the first: %+v", len(salvaged), salvaged[0])
	}
}

// checkDatabase counts each writer's whole transactions.
func checkDatabase(t *testing.T, db string, acknowledged map[string]int) {
	t.Helper()
	if got := query(t, db, "PRAGMA integrity_check;"); got != "ok" {
		t.Errorf("integrity_check: %s", got)
	}
	for _, writer := range sortedKeys(acknowledged) {
		last := acknowledged[writer]
		if last == 0 {
			t.Errorf("%s had nothing acknowledged: nothing was tested", writer)
		}
		got := query(t, db, fmt.Sprintf(
			"SELECT count(DISTINCT n) >= %d AND max(n) = count(DISTINCT n), count(*) - %d * count(DISTINCT n) FROM t WHERE writer = '%s';",
			last, rowsPerTransaction, writer))
		if got != "1|0" {
			t.Fatalf("%s: acknowledged 1 to %d, there is (count(*), min(n), max(n)) %s", writer, last,
				query(t, db, "SELECT count(*), min(n), max(n) FROM t WHERE writer = '"+writer+"';"))
		}
	}
}

func query(t *testing.T, db, sql string) string {
	t.Helper()
	out, err := command(t, "sqlite3", "-cmd", ".timeout 20000", db, sql).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", sql, err, out)
	}
	return strings.TrimSpace(string(out))
}

// writer is an sqlite3 process that commits numbered transactions and reports each.
type writer struct {
	t     *testing.T
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	acks  *bufio.Scanner
	sent  int
}

func startWriter(t *testing.T, db, name string) *writer {
	t.Helper()
	w := &writer{t: t, name: name}
	// What is killed is a process, not the machine: no need to wait for the disk.
	w.cmd = command(t, "sqlite3", "-bail", "-cmd", ".timeout 20000", "-cmd", "PRAGMA synchronous=OFF", db)
	var err error
	if w.stdin, err = w.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.cmd.Stderr = t.Output()
	w.acks = bufio.NewScanner(stdout)
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return w
}

// feed sends one transaction.
func (w *writer) feed() error {
	w.sent++
	var sql strings.Builder
	sql.WriteString("BEGIN IMMEDIATE;\n")
	for range rowsPerTransaction {
		fmt.Fprintf(&sql, "INSERT INTO t VALUES ('%s', %d, randomblob(3000));\n", w.name, w.sent)
	}
	fmt.Fprintf(&sql, "COMMIT;\nSELECT %d;\n", w.sent)
	_, err := io.WriteString(w.stdin, sql.String())
	return err
}

// feedOn sends transactions until nobody reads them any more.
func (w *writer) feedOn() {
	go func() {
		for w.feed() == nil {
		}
	}()
}

// awaitRow reads the next acknowledgement.
func (w *writer) awaitRow() (n int) {
	w.t.Helper()
	if !w.acks.Scan() {
		w.t.Fatalf("%s ended before its time", w.name)
	}
	fmt.Sscan(w.acks.Text(), &n)
	return n
}

// end waits for the process and returns the last that it acknowledged after all.
func (w *writer) end() (last int) {
	w.stdin.Close()
	for w.acks.Scan() {
		fmt.Sscan(w.acks.Text(), &last)
	}
	w.cmd.Wait()
	return last
}

// TestDatabaseUnderAnotherName: of the two names of a database the one that was looked up last is removed on the backing.
// Opened by the other, which the kernel remembers, it is opened in place; so is what a rule names.
func TestDatabaseUnderAnotherName(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, append([]string{"--cache=1m", "--direct=vm/**"}, flags...)...)
		mustMkdir(t, m.real("vm"))
		for name, content := range map[string]string{"ledger": "SQLite format 3\x00" + strings.Repeat("\x00", 84), "vm/disk": "old"} {
			gone := m.real(filepath.Base(name) + ".gone")
			if err := os.WriteFile(m.real(name), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Link(m.real(name), gone); err != nil {
				t.Fatal(err)
			}
			sh(t, m.Dir, "stat "+name+" "+filepath.Base(gone))
			if err := os.Remove(gone); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(m.path(name), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte("new"), 0); err != nil {
				t.Error(err)
			}
			if b, err := os.ReadFile(m.real(name)); err != nil || string(b[:3]) != "new" {
				t.Errorf("%s is not open in place: %.3q, %v", name, b, err)
			}
			f.Close()
		}
	})
}

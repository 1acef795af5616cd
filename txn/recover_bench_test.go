package txn

import (
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkRecover salvages what a daemon left that died with 10,000 files staged. UNTORN_BENCH_DIR names the filesystem.
func BenchmarkRecover(b *testing.B) {
	const leftovers = 10000
	for b.Loop() {
		b.StopTimer()
		path, err := os.MkdirTemp(os.Getenv("UNTORN_BENCH_DIR"), "recover-")
		fatal(b, err)
		dir, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		fatal(b, err)
		base, err := openBase(Linux{}, dir, true)
		fatal(b, err)
		s := &Store{o: quiet(Linux{}), base: base, fd: -1, salvage: -1, origins: -1}
		fatal(b, s.open())
		for i := range leftovers {
			name := s.next()
			fatal(b, s.note(Origin{Temp: name, Path: fmt.Sprint("some/directory/file", i), Pid: 1, Command: "cp", Time: time.Now()}))
			fd, err := unix.Openat(s.fd, name, unix.O_WRONLY|unix.O_CREAT, 0o644)
			fatal(b, err)
			_, err = unix.Write(fd, make([]byte, 1000))
			fatal(b, err)
			unix.Close(fd)
		}
		for _, fd := range []int{s.origins, s.salvage, s.fd, s.base} {
			unix.Close(fd)
		}
		b.StartTimer()
		report, err := Recover(Linux{}, dir)
		b.StopTimer()
		fatal(b, err)
		if report.Salvaged != leftovers {
			b.Fatalf("salvaged %d", report.Salvaged)
		}
		unix.Close(dir)
		os.RemoveAll(path)
		b.StartTimer()
	}
}

func fatal(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"untorn/tests/debsource"
)

// buildWorkloads: real projects are compiled inside.
func buildWorkloads() []*workload {
	return []*workload{
		{name: "make -j2", unit: "s", base: "native", setup: unpackC, run: makeC, clean: removeBuild},
		{name: "go build", unit: "s", base: "native", setup: copyGo, run: goBuild, clean: removeBuild},
	}
}

func buildDir(s *subject) string { return filepath.Join(s.dir, "build") }

func removeBuild(_ *bench, s *subject) { os.RemoveAll(buildDir(s)) }

// unpackC unpacks zlib from its Debian source package.
func unpackC(b *bench, s *subject) error {
	tarball, err := debsource.Tarball("zlib")
	if err != nil {
		return err
	}
	if err := os.Mkdir(buildDir(s), 0o755); err != nil {
		return err
	}
	if _, err := output("tar", "-xf", tarball, "--strip-components=1", "-C", buildDir(s)); err != nil {
		return err
	}
	_, err = output("sh", "-c", `cd "$0" && ./configure --static`, buildDir(s))
	return err
}

func makeC(b *bench, s *subject) (float64, error) {
	if _, err := output("make", "-s", "-C", buildDir(s), "clean"); err != nil {
		return 0, err
	}
	ms, err := timed(exec.Command("make", "-s", "-j2", "-C", buildDir(s), "libz.a"))
	return ms / 1000, err
}

// copyGo copies a module of this machine: untorn itself.
func copyGo(b *bench, s *subject) error {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	if err := os.Mkdir(buildDir(s), 0o755); err != nil {
		return err
	}
	_, err = output("cp", "-r", filepath.Join(root, "go.mod"), filepath.Join(root, "go.sum"), filepath.Join(root, "cmd"),
		filepath.Join(root, "fs"), filepath.Join(root, "txn"), buildDir(s))
	return err
}

// goBuild builds with the cache inside as well, but for the standard library and the modules, which are compiled once
// before: so what is written inside is what an edit causes.
func goBuild(b *bench, s *subject) (float64, error) {
	cache := filepath.Join(buildDir(s), "cache")
	build := func() *exec.Cmd {
		cmd := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(buildDir(s), "out"), "./cmd/untorn")
		cmd.Dir = buildDir(s)
		cmd.Env = append(os.Environ(), "GOCACHE="+cache, "CGO_ENABLED=0")
		return cmd
	}
	if _, err := os.Stat(cache); err != nil {
		if _, err := timed(build()); err != nil {
			return 0, err
		}
	}
	for _, pkg := range []string{"txn/state.go", "fs/errno.go", "cmd/untorn/version.go"} {
		f, err := os.OpenFile(filepath.Join(buildDir(s), pkg), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return 0, err
		}
		fmt.Fprintln(f, "//")
		if err := f.Close(); err != nil {
			return 0, err
		}
	}
	ms, err := timed(build())
	return ms / 1000, err
}

// Package debsource fetches the upstream sources of Debian packages: real projects to build in tests and benchmarks.
package debsource

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// Tarball returns the upstream tarball of a Debian source package. It is fetched once, by apt-get source, and kept in
// the user's cache directory.
func Tarball(name string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "untorn-tests", name)
	find := func() string {
		found, _ := filepath.Glob(filepath.Join(cache, name+"_*.orig.tar.*"))
		if len(found) == 0 {
			return ""
		}
		return found[0]
	}
	if found := find(); found != "" {
		return found, nil
	}
	if err := os.MkdirAll(filepath.Dir(cache), 0o755); err != nil {
		return "", err
	}
	// Fetched elsewhere, then renamed: an interrupted run leaves no half of it.
	dir, err := os.MkdirTemp(filepath.Dir(cache), name+".*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	result, err := fetch(name, dir)
	if err != nil {
		return "", fmt.Errorf("fetching the source of %s: %w", name, err)
	}
	if err := os.Rename(result, cache); err != nil && find() == "" {
		return "", err
	}
	return find(), nil
}

// fetch runs apt-get source with package lists of its own: most machines have no deb-src line, and nothing of the machine
// is to be changed.
func fetch(name, dir string) (string, error) {
	for _, sub := range []string{"sources", "lists/partial", "cache/archives/partial", "result"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return "", err
		}
	}
	if err := writeLists(filepath.Join(dir, "sources")); err != nil {
		return "", err
	}
	options := []string{"-qq", "-o", "APT::Sandbox::User=root", "-o", "Dir::Etc::sourcelist=/dev/null",
		"-o", "Dir::Etc::sourceparts=" + dir + "/sources", "-o", "Dir::State::lists=" + dir + "/lists",
		"-o", "Dir::Cache=" + dir + "/cache"}
	for _, args := range [][]string{{"update"}, {"source", "--download-only", name}} {
		cmd := exec.Command("apt-get", append(options, args...)...)
		cmd.Dir = filepath.Join(dir, "result")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("apt-get %s: %w: %s", args[0], err, out)
		}
	}
	return filepath.Join(dir, "result"), nil
}

var (
	oneLine = regexp.MustCompile(`(?m)^deb(\s.*/debian.*)$`)
	types   = regexp.MustCompile(`(?m)^Types:.*$`)
	debian  = regexp.MustCompile(`(?m)^URIs:.*/debian`)
)

// writeLists turns the machine's own Debian sources, in both formats of sources.list(5), into sources of source packages.
func writeLists(to string) error {
	lists, _ := filepath.Glob("/etc/apt/sources.list.d/*.list")
	for _, file := range append(lists, "/etc/apt/sources.list") {
		text, _ := os.ReadFile(file)
		var out strings.Builder
		for _, line := range oneLine.FindAllStringSubmatch(string(text), -1) {
			out.WriteString("deb-src" + line[1] + "\n")
		}
		if err := writeList(filepath.Join(to, filepath.Base(file)), out.String()); err != nil {
			return err
		}
	}
	files, _ := filepath.Glob("/etc/apt/sources.list.d/*.sources")
	for _, file := range files {
		text, _ := os.ReadFile(file)
		var out strings.Builder
		for stanza := range strings.SplitSeq(string(text), "\n\n") {
			if debian.MatchString(stanza) {
				out.WriteString(types.ReplaceAllString(stanza, "Types: deb-src") + "\n\n")
			}
		}
		if err := writeList(filepath.Join(to, filepath.Base(file)), out.String()); err != nil {
			return err
		}
	}
	return nil
}

func writeList(file, text string) error {
	if text == "" {
		return nil
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

package tests

import (
	"os"
	"strings"
	"testing"
	"time"
)

// TestWrongClock: entries that were kept while the clock was wrong, in 1970 and in 2100, can be listed and restored, and
// who purges by age gets what he asks for.
func TestWrongClock(t *testing.T) {
	needUntorn(t)
	eachPath(t, func(t *testing.T, flags []string) {
		flags = append([]string{"--salvage-age=30000d"}, flags...) // 1970 is not that long ago
		m := newMount(t, flags...)
		for _, year := range []string{"1970", "2100"} {
			redate(t, m, salvageOne(t, m, "f"+year, "kept in "+year), year)
		}
		m.Unmount(t)
		m = newMountOn(t, m.Backing, flags...)
		salvageOne(t, m, "now", "kept now") // bounds the salvage
		for _, year := range []string{"1970", "2100"} {
			if e := m.awaitSalvaged(t, "f"+year, 1)[0]; !strings.HasPrefix(e.ID, year) {
				t.Errorf("%+v", e)
			}
		}
		mustUntorn(t, "salvage", "purge", m.Backing, "--older-than", "30d")
		m.awaitSalvaged(t, "f1970", 0)
		m.awaitSalvaged(t, "now", 1)
		e := m.awaitSalvaged(t, "f2100", 1)[0]
		mustUntorn(t, "salvage", "restore", m.Backing, e.ID)
		m.awaitVersion(t, "f2100", "kept in 2100")
	})
}

// redate makes an entry one that was kept at the beginning of a year.
func redate(t *testing.T, m *mount, e salvageEntry, year string) {
	t.Helper()
	dir := m.real(".untorn/salvage/")
	id := year + "0101-000000-0000"
	at, err := time.Parse("20060102", year+"0101")
	if err != nil {
		t.Fatal(err)
	}
	record := mustRead(t, dir+"/"+e.ID+".json")
	now := e.Time.UTC().Format(time.RFC3339Nano)
	if !strings.Contains(record, now) {
		t.Fatalf("no %s in %s", now, record)
	}
	record = strings.ReplaceAll(strings.ReplaceAll(record, e.ID, id), now, at.UTC().Format(time.RFC3339Nano))
	if err := os.WriteFile(dir+"/"+id+".json", []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir + "/" + e.ID + ".json"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+"/"+e.ID, dir+"/"+id); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{id, id + ".json"} {
		if err := os.Chtimes(dir+"/"+name, at, at); err != nil {
			t.Fatal(err)
		}
	}
}

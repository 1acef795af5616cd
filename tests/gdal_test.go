package tests

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// gdalWrite is a GDAL command that writes out, given a directory tiles.
type gdalWrite struct {
	name, out, command string
	before             string // makes the old version
	// deletes: the program itself removes the old version first. Nobody can keep that
	// one, but there must never be half of a new one.
	deletes bool
}

var gdalWrites = []gdalWrite{
	{name: "new index", out: "index.vrt", command: "gdalbuildvrt -q -input_file_list many index.vrt"},
	{name: "index again", out: "index.vrt", command: "gdalbuildvrt -q -input_file_list many index.vrt",
		before: "gdalbuildvrt -q index.vrt tiles/t0*.tif"},
	{name: "new raster", out: "out.tif", command: "gdal_translate -q -co COMPRESS=DEFLATE in.vrt out.tif"},
	{name: "raster again", out: "out.tif", command: "gdal_translate -q in.vrt out.tif",
		before: "gdal_translate -q tiles/t00.tif out.tif", deletes: true},
	{name: "overviews", out: "out.tif", command: "gdaladdo -q out.tif 2 4",
		before: "gdal_translate -q in.vrt out.tif"},
}

// TestGDALKilled kills GDAL at each of its writes in turn: the old version is there
// every time. The run that gets to its end writes the same bytes as in a plain directory.
func TestGDALKilled(t *testing.T) {
	tiles := makeTiles(t)
	for _, w := range gdalWrites {
		t.Run(w.name, func(t *testing.T) {
			plain := tempDir(t)
			w.prepare(t, plain, tiles)
			sh(t, plain, w.command)
			want := mustRead(t, filepath.Join(plain, w.out))

			eachPath(t, func(t *testing.T, flags []string) {
				m := newMount(t, append(flags, "--durability=none")...)
				w.prepare(t, m.Dir, tiles)
				w.killAtEachWrite(t, m)
				if got := mustRead(t, m.path(w.out)); got != want {
					t.Errorf("the finished %s differs from the one in a plain directory", w.out)
				}
				m.Unmount(t)
				if got := mustRead(t, m.real(w.out)); got != want {
					t.Errorf("the finished %s in the backing differs from the one in a plain directory", w.out)
				}
			})
		})
	}
}

// makeTiles writes a grid of small georeferenced rasters.
func makeTiles(t *testing.T) string {
	t.Helper()
	dir := tempDir(t)
	for y := range 2 {
		for x := range 3 {
			sh(t, dir, fmt.Sprintf("gdal_create -q -of GTiff -outsize 200 200 -bands 1 -burn %d -a_srs EPSG:32632 -a_ullr %d %d %d %d t%d%d.tif",
				10*y+x, 500000+200*x, 5000000-200*y, 500200+200*x, 4999800-200*y, y, x))
		}
	}
	return dir
}

func (w gdalWrite) prepare(t *testing.T, dir, tiles string) {
	t.Helper()
	sh(t, dir, "cp -r "+tiles+` tiles; gdalbuildvrt -q in.vrt tiles/*.tif
		for i in $(seq 100); do ls tiles/*.tif; done > many # an index of more than one write
		`+w.before)
}

func (w gdalWrite) killAtEachWrite(t *testing.T, m *mount) {
	old, hadOld := readIfExists(t, m.path(w.out))
	kills := 0
	for ; ; kills++ {
		// strace delivers the signal on entry of the Nth write, which does not happen.
		_, err := trySh(t, m.Dir, fmt.Sprintf(
			"strace -qq -f -o /dev/null -e trace=write -e inject=write:signal=SIGKILL:when=%d %s", kills+1, w.command))
		if err == nil {
			break
		}
		for _, dir := range []string{m.Dir, m.Backing} {
			got, exists := readIfExists(t, filepath.Join(dir, w.out))
			if !exists && w.deletes {
				continue
			}
			if got != old || exists != hadOld {
				t.Fatalf("killed at write %d: %s has %d bytes (there: %v), the old version %d (there: %v)",
					kills+1, filepath.Join(dir, w.out), len(got), exists, len(old), hadOld)
			}
		}
	}
	if kills < 2 {
		t.Fatalf("%s wrote %d times: nothing was tested", w.name, kills)
	}
	w.checkSalvaged(t, m, kills)
}

// checkSalvaged looks for what the killed runs had written.
func (w gdalWrite) checkSalvaged(t *testing.T, m *mount, kills int) {
	t.Helper()
	withBytes := 0
	for _, e := range m.Salvaged(t) {
		if e.Path != w.out || !strings.Contains(e.Command, strings.Fields(w.command)[0]) {
			t.Errorf("salvaged, but not of this program: %+v", e)
		}
		if e.Size > 0 {
			withBytes++
		}
	}
	// The first kill came before any byte was written.
	if withBytes < kills-1 && !native {
		t.Errorf("%d killed writers had written, %d versions with bytes were salvaged", kills-1, withBytes)
	}
}

func readIfExists(t *testing.T, name string) (content string, exists bool) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(b), err == nil
}

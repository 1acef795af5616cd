package tests

import "testing"

// TestPython goes through Python's ways to write a file.
func TestPython(t *testing.T) {
	python := func(name, script string) program {
		return program{name: name, needs: []string{"python3"}, script: "python3 - <<'END'\nimport os, stat, sys\n" + script + "\nEND\n"}
	}
	comparePrograms(t, []program{
		python("open modes", `
def show(step):
    print(step, {n: open(n, 'rb').read() for n in sorted(os.listdir('.'))})

for mode in 'w', 'a', 'r+', 'w+', 'a+', 'x', 'wb', 'ab', 'r+b', 'xb':
    for existing in False, True:
        name = mode + str(existing)
        if existing:
            with open(name, 'w') as f: f.write('0123456789')
        try:
            f = open(name, mode, **({} if 'b' in mode else {'newline': ''}))
        except OSError as e:
            print(name, type(e).__name__)
            continue
        with f:
            print(name, f.tell(), end=' ')
            f.write(b'ab' if 'b' in mode else 'ab')
            f.seek(0)
            if '+' in mode: print(f.read(3), end=' ')
            f.seek(5); f.write(b'c' if 'b' in mode else 'c')
            if 'r' in mode: f.truncate(8)
            f.flush(); os.fsync(f.fileno())
            print(os.fstat(f.fileno()).st_size)
show('open')
with open('w+True', 'r+b', buffering=0) as f:
    for i in range(100): f.seek(i * 3); f.write(bytes([65 + i % 26]))
    f.seek(0); print(f.read())
print(open('w+True').read())
`),
		python("replace", `
import tempfile, pathlib, json, time
old = pathlib.Path('conf.json'); old.write_text('{}'); old.chmod(0o640)
with tempfile.NamedTemporaryFile('w', dir='.', prefix='.conf', delete=False) as f:
    json.dump({'n': 1}, f); f.flush(); os.fsync(f.fileno()); os.fchmod(f.fileno(), 0o640)
os.replace(f.name, old); print(old.read_text(), oct(old.stat().st_mode))
fd, name = tempfile.mkstemp(dir='.')
os.write(fd, b'two'); os.rename(name, 'conf.json'); os.write(fd, b' and a half'); os.close(fd); print(old.read_text())
with tempfile.TemporaryDirectory(dir='.') as d:
    with open(d + '/x', 'w') as f: f.write('x'); f.flush(); os.link(d + '/x', 'linked')
    print(open('linked').read(), os.stat('linked').st_nlink)
with tempfile.TemporaryFile(dir='.') as f:
    f.write(b'unnamed'); f.seek(0); print(f.read(), os.fstat(f.fileno()).st_nlink)
with tempfile.NamedTemporaryFile('w+', dir='.') as f:
    f.write('gone'); f.seek(0); print(f.read())
print(sorted(os.listdir('.')), os.stat('linked').st_nlink)
lock = os.open('lock', os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
try: os.open('lock', os.O_CREAT | os.O_EXCL | os.O_WRONLY)
except FileExistsError: print('locked')
os.close(lock); os.unlink('lock')
`),
		python("system calls", `
fd = os.open('f', os.O_RDWR | os.O_CREAT, 0o640)
print(os.pwrite(fd, b'hello', 10), os.pread(fd, 20, 0), os.lseek(fd, 0, os.SEEK_END), os.writev(fd, [b'one', b'two']))
os.posix_fallocate(fd, 0, 100); print(os.fstat(fd).st_size); os.ftruncate(fd, 50); os.fdatasync(fd)
os.utime(fd, ns=(1, 10**18 + 5)); os.fchmod(fd, 0o604); os.close(fd); print(os.stat('f').st_mtime_ns, oct(os.stat('f').st_mode))
os.truncate('f', 13); print(open('f', 'rb').read())
src, dst = os.open('f', os.O_RDONLY), os.open('g', os.O_WRONLY | os.O_CREAT)
print(os.copy_file_range(src, dst, 10), os.sendfile(dst, src, 0, 13)); os.close(dst); os.close(src); print(open('g', 'rb').read())
d = os.open('.', os.O_RDONLY); fd = os.open('h', os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600, dir_fd=d)
os.write(fd, b'1'); os.lseek(fd, 0, os.SEEK_SET); os.write(fd, b'2'); os.close(fd); os.fsync(d); print(open('h').read())
os.rename('h', 'i', src_dir_fd=d, dst_dir_fd=d); os.symlink('i', 'j', dir_fd=d); print(os.readlink('j'), os.path.samefile('i', 'j'))
with open('j', 'a') as f: f.write('3')
print(open('i').read(), os.path.islink('j'))
with open('s', 'wb') as f: f.seek(1 << 20); f.write(b'end')
fd = os.open('s', os.O_RDONLY); print(os.lseek(fd, 0, os.SEEK_DATA) > 0, os.lseek(fd, 0, os.SEEK_HOLE)); os.close(fd)
os.setxattr('i', 'user.note', b'kept')
with open('i', 'w') as f: f.write('replaced')
print(os.getxattr('i', 'user.note'), os.listxattr('i'))
`),
		python("mappings", `
import mmap
with open('m', 'w+b') as f:
    f.truncate(10000)
    with mmap.mmap(f.fileno(), 0) as m:
        m[0:5] = b'start'; m[9990:9995] = b'close'; m.flush()
        f.seek(0); print(f.read(8)); f.seek(100); f.write(b'by write'); f.flush(); print(m[100:108])
print(len(open('m', 'rb').read()), open('m', 'rb').read()[9990:])
with open('m', 'r+b') as f:
    m = mmap.mmap(f.fileno(), 0)
m[0:5] = b'after'; m.flush(); m.close()
with open('m', 'r+b') as f:
    m = mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE); m[5:7] = b'XX'; m.close()
with open('m', 'rb') as f:
    m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); os.unlink('m'); print(m[5:7], m[9990:9995]); m.close()
`),
		python("libraries", `
import shutil, logging, logging.handlers, zipfile, tarfile, gzip, dbm.dumb, pickle, configparser, csv, shelve
os.makedirs('a/b'); open('a/b/c', 'w').write('c'); os.utime('a/b/c', (10**9, 10**9)); shutil.copytree('a', 'd'); shutil.copy2('a/b/c', 'e'); shutil.move('e', 'a/e')
handler = logging.handlers.RotatingFileHandler('log', maxBytes=100, backupCount=2)
log = logging.Logger('x'); log.addHandler(handler)
for i in range(30): log.error('message %d', i)
handler.close(); print({n: open(n).read() for n in ('log', 'log.1', 'log.2')})
for mode in 'w', 'a', 'a':
    with zipfile.ZipFile('z.zip', mode) as z: z.writestr(zipfile.ZipInfo('m' + str(len(z.namelist()))), 'content')
print(zipfile.ZipFile('z.zip').namelist(), zipfile.ZipFile('z.zip').testzip())
with tarfile.open('t.tar', 'w') as t: t.add('a')
with tarfile.open('t.tar', 'a') as t: t.add('z.zip', filter=lambda i: setattr(i, 'mtime', 1) or i)
with tarfile.open('t.tar') as t: print(t.getnames())
with gzip.GzipFile('g.gz', 'wb', mtime=0) as g: g.write(b'x' * 1000)
with dbm.dumb.open('dumb', 'c') as d: d['k'] = 'v'
with dbm.dumb.open('dumb', 'w') as d: d['k'] = 'w'; d['l'] = 'x'
with shelve.Shelf(dbm.dumb.open('shelf', 'n')) as s: s['list'] = [1, 2, 3]
with open('data.csv', 'w', newline='') as f: csv.writer(f).writerows([[1, 2], [3, 4]])
with open('data.csv', 'a', newline='') as f: csv.writer(f).writerow([5, 6])
c = configparser.ConfigParser(); c.read_string('[a]\nb=c'); c.write(open('ini', 'w')); print(open('ini').read())
os.unlink('t.tar') # has times of this run
shutil.rmtree('d')
`),
	})
}

package tests

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// likePlain runs a script in a plain directory and in a mount and compares what it prints:
// programs that never heard of untorn behave as on the backing filesystem. What the
// script prints must not depend on the time or on inode numbers.
func likePlain(t *testing.T, flags []string, script string) {
	t.Helper()
	m := newMount(t, flags...)
	plain := filepath.Join(tempDir(t), "plain")
	mustMkdir(t, plain)
	for _, dir := range []string{plain, m.Dir} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	want, got := sh(t, plain, metaPrelude+script+"\ntrue"), sh(t, m.Dir, metaPrelude+script+"\ntrue")
	if want == "" {
		t.Fatalf("a script that prints nothing: %s", script)
	}
	if got != want {
		t.Errorf("%s\ngot:\n%s\nwant:\n%s", script, got, want)
	}
	if native {
		return
	}
	// What the mount shows is what the backing has.
	const listing = `find . -path ./.untorn -prune -o -printf '%P %y %m %U:%G %n %s %l\n' | sed '/^ /d' | sort`
	if there, behind := sh(t, m.Dir, listing), sh(t, m.Backing, listing); there != behind {
		t.Errorf("%s\nin the mount:\n%s\nin the backing:\n%s", script, there, behind)
	}
}

// metaPrelude: `show` prints what the tests are about. `as UID COMMAND` runs a command as
// another user.
// Commands may fail: what they say then is compared as well.
const metaPrelude = sysPrelude + `
set +e +o pipefail; exec 2>&1
show() { stat -c '%n %F %a %u:%g links %h size %s' "$@"; }
as() { setpriv --reuid "$1" --regid "$1" --clear-groups "${@:2}"; }
`

// metaScripts are run by likePlain. Each deals with one respect in which an overlay that
// replaces files may betray itself.
var metaScripts = map[string]string{
	"mode":                `echo a > f; chmod 751 f; echo b > f; show f; echo c >> f; show f; chmod 400 f; show f`,
	"owner":               `echo a > f; chown 12:34 f; echo b > f; show f; echo c >> f; show f`,
	"umask":               `for m in 000 022 027 077; do (umask $m; echo x > f$m; mkdir d$m; mkfifo p$m); done; show *`,
	"special modes":       `echo a > f; chmod 1644 f; echo b > f; show f; mkdir d; chmod 3777 d; show d; install -m 2755 /dev/null g; show g`,
	"setgid directory":    `mkdir d; chgrp 77 d; chmod 2775 d; echo x > d/f; mkdir d/e; mkfifo d/p; ln -s f d/l; echo y > d/f; show d d/*`,
	"setuid, other":       `echo a > f; chmod 6777 f; as 1000 bash -c 'echo b >> f'; show f; chmod 6777 f; as 1000 bash -c 'echo b > f'; show f`,
	"setuid, owner":       `echo a > f; chown 1000:1000 f; chmod 6755 f; as 1000 bash -c 'echo b >> f'; show f`,
	"setuid, root":        `echo a > f; chmod 6755 f; echo b >> f; show f; chmod 6755 f; truncate -s 1 f; show f`,
	"setuid, chown":       `echo a > f; chmod 6755 f; chown 5:5 f; show f`,
	"capabilities":        `cp /bin/true f; setcap cap_net_raw+ep f; getcap f; echo >> f; getcap f; echo done`,
	"extended attributes": `echo a > f; setfattr -n user.one -v 1 f; setfattr -n user.two -v 2 f; echo b > f; getfattr -d f; echo c >> f; getfattr -d f; setfattr -x user.one f; getfattr -d f; setfattr -x user.none f`,
	"trusted attributes":  `echo a > f; setfattr -n trusted.t -v 1 f; echo b > f; getfattr -d -m - f`,
	"big attribute":       `echo a > f; setfattr -n user.big -v $(printf %01500d 7) f; echo b > f; getfattr -d f | md5sum`,
	"acl":                 `echo a > f; setfacl -m u:1000:rw,g:77:r f; echo b > f; getfacl -c f; echo c >> f; getfacl -c f; show f`,
	"acl and mode":        `echo a > f; setfacl -m u:1000:rwx f; chmod 640 f; echo b > f; getfacl -c f`,
	"default acl":         `mkdir d; setfacl -m d:u:1000:rwx,d:g:77:r-x,d:o:- d; (umask 077; echo a > d/f; mkdir d/e); getfacl -c d/f d/e; echo b > d/f; getfacl -c d/f`,
	"acl holds":           `echo a > f; chmod 600 f; setfacl -m u:1000:rw f; as 1000 bash -c 'cat f; echo b >> f; cat f'; as 1001 cat f`,
	"rights":              `mkdir d; chmod 700 d; echo a > f; chmod 644 f; as 1000 bash -c 'cat f; echo b > f'; as 1000 bash -c 'echo x > d/f'; as 1000 bash -c 'echo mine > g; chmod 600 g'; show g; as 1001 cat g`,
	"read-only file":      `as 1000 bash -c 'echo a > f; chmod 444 f; echo b > f'; as 1000 bash -c 'set -C; (umask 777; echo x > g); show() { stat -c "%a" g; }; show'; as 1000 bash -c 'echo y > g'`,
	"created read-only":   `as 1000 /usr/bin/python3 -c 'import os; fd = os.open("f", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o400); os.write(fd, b"x"); os.close(fd)'; show f; cat f`,
	"other's file":        `echo a > f; chmod 666 f; as 1000 bash -c 'echo b > f; echo c >> f'; show f; cat f`,
	"directory not mine":  `mkdir d; echo a > d/f; chmod 666 d/f; chmod 755 d; as 1000 bash -c 'echo b > d/f; echo c >> d/f'; show d/f; cat d/f`,
	"sticky directory":    `mkdir d; chmod 1777 d; as 1000 bash -c 'echo a > d/f; chmod 666 d/f'; as 1001 bash -c 'rm -f d/f; mv d/f d/g; echo b > d/f'; show d/f; cat d/f`,
	"supplementary group": `mkdir d; chgrp 77 d; chmod 770 d; setpriv --reuid 1000 --regid 1000 --groups 77 bash -c 'echo a > d/f'; show d/f`,
	"truncate":            `printf 0123456789 > f; truncate -s 4 f; cat f; truncate -s 6 f; od -c f; truncate -s 0 f; show f; as 1001 truncate -s 1 f`,
	"ftruncate":           `printf 0123456789 > f; py='import os; fd = os.open("f", os.O_RDWR); os.ftruncate(fd, 3); os.lseek(fd, 0, 2); os.write(fd, b"x"); print(os.fstat(fd).st_size)'; /usr/bin/python3 -c "$py"; cat f`,
	"fallocate":           `echo a > f; fallocate -l 100000 f; show f; fallocate -n -l 200000 f; show f; fallocate -p -o 0 -l 4096 f; show f; head -c 3 f | od -c; fallocate -z -o 0 -l 10 f; show f; md5sum f`,
	"fallocate, new":      `xfs_io -f -c 'falloc 0 64k' -c 'pwrite -q 0 4k' f; show f; stat -c %b f`,
	"holes":               `truncate -s 1M f; printf x | dd of=f bs=1 seek=500000 conv=notrunc status=none; sys holes f; echo y >> f; sys holes f; stat -c %b f; cmp <(printf x) <(dd if=f bs=1 skip=500000 count=1 status=none) && echo kept`,
	"seek past the end":   `echo abc > f; sys holes f; : > g; sys holes g; echo done`,
	"copy_file_range":     `seq 100000 > f; sys copyrange f g; cmp f g; cp --reflink=auto f h; cmp f h; sys copyrange f f2; show *; xfs_io -c 'copy_range -s 10 -l 20 f' -f i; cat i`,
	"unnamed file":        `sys tmpfile . f content; show f; cat f; echo more >> f; cat f; sys tmpfile . f2 content; sys tmpfile . f content; mkdir d; chmod 2775 d; chgrp 77 d; sys tmpfile d d/f x; show d/f`,
	"rename noreplace":    `echo a > f; echo b > g; sys rename2 noreplace f g; cat f g; sys rename2 noreplace f h; cat h; mkdir d; sys rename2 noreplace d h; sys rename2 noreplace none x; ls`,
	"rename exchange":     `echo a > f; mkdir d; echo b > d/g; sys rename2 exchange f d; cat d f/g; sys rename2 exchange f none; sys rename2 exchange d f/g; cat d f/g`,
	"rename errors":       `mkdir -p d/e; echo a > f; mv -T d d/e/x; mv -T f d; mv -T d f; mkdir -p x/y z; mv -T z x; mv -T x z; ls -R`,
	"hard links":          `echo a > f; ln f g; show f g; [ f -ef g ] && echo one; rm f; cat g; show g; mkdir d; ln d e; ln -s g l; ln l m; show -c l m; ls`,
	"symbolic links":      `ln -s target l; readlink l; echo a > l; cat target; ln -s loop loop; cat loop; ln -s "$(printf %04000d 0)" long; readlink long | wc -c; ln -s x x/y; show *`,
	"special files":       `mkfifo p; (echo through > p &); cat p; mknod c c 1 3; echo gone > c; mknod b b 7 200; show *; /usr/bin/python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); s.bind("s")'; show s`,
	"aligned direct":      `sys direct f 0; show f; md5sum f`,
	"mapping":             `printf '%05000d' 0 > f; sys mapped f hello map; head -c 8 f; show f`,
	"append":              `for i in {1..50}; do echo $i >> f; done; md5sum f; exec 5>>f 6>>f; echo a >&5; echo b >&6; echo c >&5; exec 5>&- 6>&-; tail -n 3 f`,
	"dd notrunc":          `printf 0123456789 > f; printf abc | dd of=f bs=1 seek=3 conv=notrunc status=none; cat f`,
	"exclusive":           `(set -C; echo a > f; echo b > f); cat f`,
	"unlink while open":   `echo a > f; exec 5<f; rm f; cat <&5; exec 6<>g; rm g; echo x >&6; stat -L -c '%h %s' /proc/self/fd/6; ls`,
	"renamed over, open":  `echo a > f; echo b > g; exec 5<f; mv g f; stat -L -c %s /dev/fd/5; cat <&5; cat f`,
	"directories":         `mkdir -p a/b/c; rmdir a; mkdir a; rmdir a/b/c; rm a; mkdir f g; show . a a/b; rmdir f/.; mkdir none/x; cat a; echo x > a`,
	"long names":          `n=$(printf %0255d 1); echo a > $n; cat $n; echo b > $n; mv $n ${n%1}2; ls; touch ${n}x 2>&1 | tail -c 20; mkdir ${n}y 2>&1 | tail -c 20; mkdir $n; echo c > $n/$n; rm -r $n; ls`,
	"odd names":           `for n in $'new\nline' $'\xff\xfe' ' ' '*' $'tab\t' '"' '\' '-' 'é' 'a:b'; do echo x > "./$n"; echo y > "./$n"; mkdir "./d$n"; echo z > "./d$n/$n"; done; ls -b; cat -- *x 2>&1 | head -1; find . -type f -exec cat {} + | sort | uniq -c; rm -r -- ./*; ls -A`,
	"deep paths":          `sys deepfile 20; ls; echo gone`,
	"times":               `echo a > f; touch -d @1000.123456789 f; stat -c '%y %x' f; touch -a -d @2000 f; stat -c '%Y %X' f; touch -h -d @3000 f; cp -p f g; stat -c %Y g; ln -s f l; touch -h -d @4000 l; stat -c %Y l f; touch -d @-5 f; stat -c %Y f; touch -d @5000000000 f; stat -c %Y f`,
	"truncated to a size": `echo abc > f; touch -d @1000 f; truncate -s 4 f; [ $(stat -c %Y f) != 1000 ] && echo touched; cat f`,
	"statfs":              `stat -f -c '%b %S %l' .; df --output=size . | tail -1`,
	"locks":               `flock f true; (flock -n 9 && echo got) 9> f; exec 8>g; flock 8; flock -n g true || echo held; exec 8>&-; flock -n g echo free`,
	"rm -r":               `mkdir d; (cd d; touch $(seq 1000)); rm -r d; ls; echo empty`,
	"modes of creation":   `/usr/bin/python3 -c 'import os; os.umask(0); [os.close(os.open("f%o" % m, os.O_CREAT | os.O_WRONLY, m)) for m in (0o777, 0o4755, 0o2755, 0o1644, 0)]'; show *`,
}

func TestLikePlain(t *testing.T) {
	needRoot(t)
	eachPath(t, func(t *testing.T, flags []string) {
		for name, script := range metaScripts {
			t.Run(name, func(t *testing.T) { likePlain(t, flags, script) })
		}
	})
}

// TestUnmodifiedStays: a file that was opened for writing and not modified is the same
// inode with the same times.
func TestUnmodifiedStays(t *testing.T) {
	opens := []string{`: >> f`, `exec 5<>f; exec 5>&-`, `exec 5<>f; cat <&5; exec 5>&-`, `(exec 5>>f; exit 1) || true`,
		`flock f true`, `(exec 5<>f; kill -9 $BASHPID) || true`, `chmod 600 f; chmod 644 f`, `mv f g; mv g f`,
		`/usr/bin/python3 -c 'import os; fd = os.open("f", os.O_RDWR); os.fsync(fd)'`}
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		m.put(t, "f", "content\n")
		for _, open := range opens {
			const identity = `stat -c '%i %y %s' f`
			before, real := sh(t, m.Dir, identity), sh(t, m.Backing, identity)
			sh(t, m.Dir, open)
			// RELEASE drops the staged file after the close.
			eventually(t, "the unmodified file as it was after: "+open, func() bool {
				return sh(t, m.Dir, identity) == before && sh(t, m.Backing, identity) == real
			})
		}
		if len(m.Salvaged(t)) > 0 {
			t.Errorf("salvaged: %+v", m.Salvaged(t))
		}
	})
}

// TestOtherLinkKeepsTheOldVersion: the one deviation that replacing cannot avoid.
func TestOtherLinkKeepsTheOldVersion(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, append(flags, "--direct", "direct*")...)
		sh(t, m.Dir, `echo old > f; ln f g; ln f h; echo a > f; echo b >> f; echo more >> g`)
		m.wantVersion(t, "f", newVersion)
		m.wantVersion(t, "g", "old\nmore\n")
		m.wantVersion(t, "h", "old\n")
		sh(t, m.Dir, `[ $(stat -c %h f) = 1 ]; [ $(stat -c %h h) = 1 ]`)
		sh(t, m.Dir, `echo old > direct1; ln direct1 direct2; echo both > direct1`)
		m.wantVersion(t, "direct2", "both\n")
	})
}

// TestMappingOutlivesDescriptor: the version appears when the mapping is gone, whole.
func TestMappingOutlivesDescriptor(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		old := strings.Repeat(".", 5000)
		m.put(t, "f", old)
		cmd := helper(t, "sys", "mapped", m.path("f"), "hello", "descriptor", "wait")
		var errs bytes.Buffer
		cmd.Stderr = &errs
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("mapped\n"))); err != nil {
			t.Fatal(err, errs.String())
		}
		m.wantVersion(t, "f", old)
		fmt.Fprintln(in)
		if err := cmd.Wait(); err != nil {
			t.Fatal(err, errs.String())
		}
		m.awaitVersion(t, "f", "hello"+old[5:])
	})
}

// TestUnalignedDirect: a FUSE mount without O_DIRECT semantics takes any buffer; it must
// not pass the flag on to a backing that refuses.
func TestUnalignedDirect(t *testing.T) {
	eachPath(t, func(t *testing.T, flags []string) {
		m := newMount(t, flags...)
		want := sh(t, m.Dir, sysPrelude+`sys direct f 0 && md5sum < f`)
		got, err := trySh(t, m.Dir, sysPrelude+`sys direct g 7 && md5sum < g`)
		if err != nil && strings.TrimSpace(got) != "EINVAL" || err == nil && len(got) != len(want) {
			t.Errorf("unaligned: %s, %v", got, err)
		}
	})
}

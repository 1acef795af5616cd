package tests

import "testing"

// TestEditInPlace runs the programs that change a file under its own name.
func TestEditInPlace(t *testing.T) {
	const poem = `
		printf '%s\n' alpha beta gamma delta > f; chmod 640 f
	`
	comparePrograms(t, []program{
		{name: "sed", script: poem + `
			sed -i s/beta/BETA/ f; cat f; stat -c '%a %h' f
			sed -i.bak -e 2d f; cat f; cat f.bak
			ln -s f l; sed -i --follow-symlinks s/gamma/GAMMA/ l; readlink l; cat f
			sed -n -i 's/delta/&/pw out' f; cat f out
			seq 1000 > g; for i in 1 2 3 4 5 6 7 8 9; do sed -i "s/^$i/x/" g; done; sha256sum g
			sed -i s/x/y/ f g; sed -i s/a/b/ missing 2> /dev/null || echo no such file; ls -A
		`},
		{name: "ed", needs: []string{"ed"}, script: poem + `
			printf '%s\n' '/beta/s//BETA/' '$a' epsilon . w q | ed -s f; cat f
			printf '%s\n' '1,2W f' '1d' 'w g' q | ed -s f; cat f g
			printf '%s\n' 'r !echo from a command' wq | ed -s f; cat f; stat -c %a f
		`},
		{name: "perl", script: poem + `
			perl -i -pe 's/beta/BETA/' f; cat f; stat -c %a f
			perl -i.orig -ne 'print unless /gamma/' f; cat f f.orig
			perl -e 'open F, "+<", "f"; seek F, 2, 0; print F "XX"; close F or die'; cat f
			perl -e 'open F, ">>", "f"; print F "end\n"; close F or die'; cat f
			perl -e 'open F, "+>", "g"; print F "123456"; seek F, 0, 0; read F, $x, 3; truncate F, 4; close F or die; print "$x\n"'; cat g; echo
			perl -e 'use Fcntl; sysopen F, "h", O_CREAT|O_EXCL|O_RDWR, 0604 or die; syswrite F, "h\n"; close F or die'; cat h
		`},
		{name: "patch", needs: []string{"patch"}, script: poem + `
			mkdir a b; cp f a; sed s/beta/BETA/ f > b/f; echo new > b/new; echo old > a/old
			diff -uN a b > p || true
			patch -p1 -d a < p; ls a; cat a/f a/new
			patch -R -p1 -d a < p; ls a; cat a/f
			patch -b -p1 -d a < p; ls a
			patch -p1 -d a --dry-run < p > /dev/null || echo already applied
			patch f -o g b/f < /dev/null || true
			sed 's/ gamma/ nonsense/' p > q; patch -p1 -d b -f -r - < q > /dev/null || echo rejected; ls b
		`, ignore: []string{"p", "q"}}, // a diff has times in it
		{name: "dd", script: `
			seq 2000 > f; cp f g
			printf PATCH | dd of=f bs=1 seek=100 conv=notrunc status=none; sha256sum f; stat -c %s f
			printf CUT | dd of=g bs=1 seek=100 status=none; stat -c %s g
			dd if=/dev/zero of=h bs=4096 count=3 conv=fsync status=none; stat -c %s h
			dd if=f of=h bs=512 skip=2 seek=1 count=4 conv=notrunc,fdatasync status=none; sha256sum h
			dd if=f of=f bs=1000 count=1 seek=5 conv=notrunc status=none; sha256sum f
			dd if=f of=i bs=64K oflag=append conv=notrunc status=none; dd if=f of=i oflag=append conv=notrunc status=none; stat -c %s i
			dd if=f of=j bs=1 count=0 seek=1M status=none; stat -c %s j
			dd if=/dev/zero of=f bs=1 count=1 conv=excl status=none 2> /dev/null || echo exists
			dd if=f of=k oflag=nofollow conv=nocreat status=none 2> /dev/null || echo missing
			dd if=/dev/zero of=direct bs=64K count=4 oflag=direct status=none; stat -c %s direct
		`},
	})
}

package tests

import "testing"

// TestCopy runs the programs that copy trees and promise to keep what they copy.
func TestCopy(t *testing.T) {
	// A tree with everything that a copy can lose. What has several links is never
	// written in place: the other names would keep the old version, which is documented.
	const tree = `
		mkdir -p src/sub/empty; seq 5000 > src/a; echo b > src/sub/b; ln src/a src/sub/hard; ln -s ../a src/sub/soft
		chmod 600 src/a; chmod 755 src/sub/b; chmod 2775 src/sub; : > src/zero
		truncate -s 1M src/sparse; printf end >> src/sparse
		find src -exec touch -h -d 2003-03-03T03:03:03.123456789Z {} +
	`
	comparePrograms(t, []program{
		{name: "cp", script: tree + `
			cp -a src dst; cp -a src/. dst; diff -r src dst
			cp -r src plain; cp -rL src/sub followed
			rm dst/sub/hard; echo changed > dst/a; cp -a src/a dst/a; cp -u src/sub/b dst/a; cp --backup=numbered src/sub/b dst/zero
			cp -al src links; cp --remove-destination src/sub/b links/a; cp -n src/a dst/sub/b; cp --preserve=mode src/sub/b mode
			cp --attributes-only -p src/a attributes; cp src/sub/soft target; cp -P src/sub/soft soft
			cp -f src/a dst/sub/b; cp --parents src/sub/b plain
			for how in auto always never; do
				cp --sparse=$how src/sparse sparse.$how; cmp src/sparse sparse.$how
			done
			sync -f .; test $(stat -c %b sparse.always) -lt 100; test $(stat -c %b sparse.auto) -lt 100
			test $(stat -c %b sparse.never) -gt 2000
			cp --reflink=auto src/a reflink; cmp src/a reflink
		`},
		{name: "install", script: tree + `
			install -m 640 src/a one; install -D -m 755 src/a deep/er/two; install -p src/a three; install -d -m 1777 public
			install -b -S .old src/sub/b one; install -C src/sub/b four; install -C src/sub/b four; install src/a src/sub/b public
			stat -c %a one deep/er/two three four public
		`},
		{name: "rsync", needs: []string{"rsync"}, script: tree + `
			rsync -aH src/ dst/; rsync -aHi src/ dst/ # nothing to do
			rm src/a; seq 4000 > src/a; touch -d 2004-04-04T04:04:04Z src/a; rm src/zero; echo new > src/new
			rsync -aHi --delete src/ dst/ | sort
			rsync -a --inplace --no-whole-file src/ inplace/; seq 2 5000 > src/a; touch -d 2005-05-05T05:05:05Z src/a src/new src
			rsync -ai --inplace --no-whole-file src/ inplace/ | sort; cmp src/a inplace/a
			rsync -a --append src/a dst/sub/b; rsync -a --backup --suffix=.was src/a dst/new
			rsync -aS src/sparse dst/sparser; rsync -a --link-dest=../dst src/ linked/; rsync -a --delay-updates src/ delayed/
			touch -d 2003-03-03T03:03:03Z dst/sub # replacing a file in it, --append has moved its time
			rsync -a --partial --partial-dir=.part --temp-dir=. src/ partial/; rsync -rc --remove-source-files src/sub/ taken/
		`, ignore: []string{"dst/new.was", "*/new"}}, // carries a time of this run
	})
}

// TestArchives packs, changes and unpacks archives on the mount.
func TestArchives(t *testing.T) {
	const tree = `
		mkdir -p src/sub; for i in $(seq 40); do seq $i 500 > src/f$i; done; ln src/f1 src/sub/hard; ln -s ../f2 src/sub/soft
		chmod 600 src/f3; chmod 2750 src/sub; find src -exec touch -h -d 2003-03-03T03:03:03Z {} +
		pack="tar --sort=name --owner=0 --group=0 --numeric-owner --format=gnu"
	`
	comparePrograms(t, []program{
		{name: "tar", flags: []string{"--durability=full"}, script: tree + `
			$pack -cf a.tar src; mkdir out; tar -xpf a.tar -C out; diff -r src out/src
			tar --delete -f a.tar src/f5 src/f6; tar -tf a.tar | wc -l
			$pack -rf a.tar src/f5; $pack -uf a.tar src/f6 src/f7; tar -tf a.tar | sort | uniq -d; sha256sum a.tar
			cp a.tar b.tar; tar -Af a.tar b.tar; tar -tf a.tar | wc -l; tar --compare -f b.tar
			$pack -czf a.tgz src; tar -xzf a.tgz -C out --keep-newer-files 2> /dev/null; tar -xzf a.tgz -C out --recursive-unlink
			tar -xf a.tar -C out --overwrite; $pack -c src | tar -x -C out; tar -xf a.tar --occurrence=1 -O src/f9 | cmp - src/f9
			truncate -s 1M src/sparse; printf x >> src/sparse; touch -d 2004-04-04T04:04:04Z src/sparse; $pack -cSf s.tar src/sparse; stat -c %s s.tar; tar -xf s.tar -C out
			$pack -cf r.tar --remove-files src/sub; ls src/sub 2> /dev/null || echo removed
			$pack -cf i.tar -g snapshot out/src; echo more >> out/src/f8; $pack -cf j.tar -g snapshot out/src
		`, ignore: []string{"snapshot", "i.tar", "j.tar"}}, // hold inode numbers and times of this run
		{name: "zip", needs: []string{"zip", "unzip"}, script: tree + `
			zip -qrX a.zip src; mkdir out; unzip -qo a.zip -d out; diff -r src out/src
			echo more >> src/f8; touch -d 2004-04-04T04:04:04Z src/f8 src; zip -qrX -u a.zip src
			zip -qX -d a.zip src/f2; zip -qX -m a.zip src/f4; unzip -Z1 a.zip | sort | sha256sum; unzip -tqq a.zip
			unzip -qo a.zip -d out; zip -qX -g a.zip src/f3; zip -qX - src/f9 > piped.zip; unzip -p a.zip src/f9 | cmp - src/f9
			cat src/f9 | gzip -n > a.gz; gunzip -k a.gz; gzip -nf a; gzip -t a.gz
			printf '#!/bin/sh\n' > sfx; cat a.zip >> sfx; zip -qA sfx; unzip -tqq sfx
		`},
		{name: "ar and compressors", script: tree + `
			ar rcsD a.a src/f1 src/f2; ar rsD a.a src/f3; ar dD a.a f1; ar t a.a; mkdir out; (cd out; ar x ../a.a); ar qD a.a src/f4; ranlib -D a.a; cmp out/f2 src/f2
			xz -k src/f9; unxz -c src/f9.xz | cmp - src/f9; bzip2 -k src/f9; bunzip2 -f src/f9.bz2
		`},
	})
}

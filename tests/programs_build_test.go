package tests

import (
	"testing"

	"untorn/tests/debsource"
)

// TestGit compares repositories by their content: the objects, what refers to them and
// what git itself says about their health.
func TestGit(t *testing.T) {
	comparePrograms(t, []program{{
		name:  "repository",
		needs: []string{"git"},
		// These hold inode numbers and times of the run.
		ignore: []string{"*/.git/index", "*/.git/logs", "bare.git/logs", "*/.git/objects/pack/*.rev"},
		script: `
			export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null GIT_OPTIONAL_LOCKS=0
			export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
			git() { command git -c gc.auto=0 -c pack.threads=1 -c advice.detachedHead=false "$@"; }
			objects() { git -C "$1" cat-file --batch-all-objects --batch-check | sha256sum; }

			git init -q -b main repo; cd repo
			seq 200 > numbers; mkdir dir; echo start > dir/f
			git add .
			for i in $(seq 200); do
				export GIT_AUTHOR_DATE="$((1000000000 + i)) +0000" GIT_COMMITTER_DATE="$((1000000000 + i)) +0000"
				sed -i "${i}s/$/ changed/" numbers; echo "line $i" >> dir/f
				git commit -q -a -m "commit $i"
			done
			git log --format=%H | sha256sum; git status --porcelain; git fsck --strict
			git checkout -q -b side HEAD~100; echo side > dir/side; git add dir; git commit -q -m side
			git merge -q -m merge main; git checkout -q main; git rebase -q side; git tag -a -m tag v1
			git stash list; echo dirty >> numbers; git stash -q; git stash pop -q; git diff --stat; git reset -q --hard
			objects .; git gc -q --prune=now; objects .; git fsck --strict; git count-objects -v | grep -v size
			git verify-pack -v .git/objects/pack/*.idx | tail -1 | cut -d: -f1; cd ..

			git clone -q repo clone; objects clone; git -C clone fsck; git -C clone log -1 --format=%H
			find clone/.git/objects -type f -printf '%n\n' | sort | uniq -c
			git clone -q --bare --no-hardlinks repo bare.git; git -C bare.git fsck
			cd clone; echo pushed > pushed; git add pushed; git commit -q -m pushed; git push -q ../bare.git HEAD:main
			git -C ../bare.git log -1 --format=%H; git pull -q --rebase ../bare.git main; git worktree add -q ../tree v1; git -C ../tree status --porcelain
			git worktree remove ../tree; git repack -q -a -d -f; git prune; git fsck --full; git status --porcelain; objects .
			# The only absolute paths that git keeps.
			git remote set-url origin repo; git -C ../bare.git remote set-url origin repo
			find . ../repo ../bare.git -path '*/.git/*' -name '*.lock' # nothing must be left
		`,
	}})
}

// TestBuild builds a C project from its Debian source package with two jobs, and again
// when there is nothing left to do.
func TestBuild(t *testing.T) {
	source := debianSource(t, "zlib")
	unpack := "tar -xf '" + source + "' --strip-components=1\n"
	comparePrograms(t, []program{{
		name:  "zlib",
		needs: []string{"gcc", "make", "ar"},
		// Logs with the time and the directory of the build.
		ignore: []string{"configure.log"},
		script: unpack + `
			./configure > /dev/null
			make -s -j2 all
			make -q all && echo nothing to do
			make -s check | grep OK
			touch inflate.c; make -q all || echo out of date; make -s -j2 all
			make -s install prefix=$PWD/out > /dev/null; ls -R out
			make -q all && echo nothing to do
		`,
	}})
}

// debianSource returns the upstream tarball of a Debian source package.
func debianSource(t *testing.T, name string) string {
	t.Helper()
	tarball, err := debsource.Tarball(name)
	if err != nil {
		t.Fatal(err)
	}
	return tarball
}

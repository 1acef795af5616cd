package tests

import "testing"

// TestShell runs the idioms by which shell scripts write files.
func TestShell(t *testing.T) {
	comparePrograms(t, []program{
		{name: "redirections", flags: []string{"--durability=full"}, script: `
			echo new > a; cat a
			echo second > a; cat a
			echo more >> a; cat a
			: > a; wc -c < a
			{ echo one; echo two; } > b; cat b
			(echo three; echo four >&3) > c 3> d; cat c d
			cat <<-END > e
			here document
			END
			cat e
			echo first 2>&1 > f; cat f
			ls missing > g 2>&1 || true; cat g
			cat a b c d e f g > all; cat < all
			> empty; > b; ls
		`},
		{name: "numbered descriptors", script: `
			printf '0123456789\n' > a
			exec 3<> a; printf X >&3; read -r rest <&3; echo "$rest"; exec 3>&-; cat a
			exec 4> b; echo one >&4; echo two >&4; exec 4>&-; cat b
			exec 5>> b; echo three >&5; exec 5>&-; cat b
			exec 6> c 7>&6; echo six >&6; exec 6>&-; echo seven >&7; exec 7>&-; cat c
		`},
		{name: "noclobber", script: `
			set -o noclobber
			echo one > a
			(echo two > a) 2> /dev/null && echo overwritten || echo refused
			echo three >| a; cat a
		`},
		{name: "same file in and out", script: `
			printf '3\n1\n2\n1\n' > a
			sort -o a a; cat a
			sort -u -o a a; cat a
			sort -rn a -o a; cat a
			shuf --random-source=a -o a -e x; cat a
			content=$(cat a); printf '%s%s\n' "$content" "!" > a; cat a
			awk '{ print $0 "?" }' a > a.tmp && mv a.tmp a; cat a
		`},
		{name: "tee", script: `
			echo one | tee a b; echo two | tee -a a; cat a b
			seq 3 | tee c | wc -l; cat c
			echo three | tee -a a b > /dev/null; cat a b
		`},
		{name: "append logs", script: `
			log() { echo "$(printf '%s' "$1")" >> app.log; }
			for i in $(seq 50); do log "line $i"; done
			(log sub; log shell); cat app.log | wc -l; tail -3 app.log
			seq 100 | xargs -P 4 -I{} sh -c 'echo line {} >> parallel.log'
			sort -o sorted.log parallel.log; wc -l < sorted.log
			mv app.log app.log.1; log fresh; cp app.log app.log.2; : > app.log; log again; cat app.log*
			rm parallel.log # its order is up to the scheduler
		`},
		{name: "temp and rename", script: `
			echo old > conf; chmod 640 conf
			t=$(mktemp conf.XXXXXX); stat -c %a "$t"; echo new > "$t"; chmod --reference=conf "$t"; mv -f "$t" conf; cat conf
			t=$(mktemp -d); echo x > "$t/x"; mv "$t/x" moved; rmdir "$t"
			( umask 077; echo secret > key ); stat -c %a key
			trap 'rm -f scratch' EXIT; echo scratch > scratch
			echo a > link-target; ln link-target hard; ln -s link-target soft; ln -sfn moved soft; readlink soft
			ln -f moved hard; cat hard; mv -n conf key; cat key; mv -b conf moved; ls
			mv moved other; mv -T other moved; mkdir d; mv moved key d; ls d
		`},
		{name: "change while open", script: `
			{ echo one; chmod 600 a; touch -d 2001-02-03T04:05:06.789Z a; echo two; } > a; stat -c '%a %s' a
			{ echo one; mv b c; echo two; } > b; cat c; ls
			{ echo one; ln d e; echo two; } > d; cat d e; stat -c %h d e
			{ echo one; rm f; echo two; } > f; ls
			mkdir g; { echo one; mv g h; echo two; } > g/x; cat h/x
			echo other > i; { echo one; mv i j; echo two; } > j; cat j
		`},
		{name: "times", script: `
			touch -d 2001-02-03T04:05:06.123456789Z a; stat -c %y a
			touch -r a b; stat -c %y b
			echo text > c; touch -m -d 1999-12-31T23:59:59Z c; stat -c %y c
			cat c > /dev/null; stat -c %y c
			chmod 600 c; stat -c %y c
			cp -p c d; stat -c %y d
			mkdir e; touch -d 1980-01-01T00:00:00Z e; stat -c %y e
			touch -h -d 1990-01-01T00:00:00Z -r a l 2> /dev/null || ln -s c l; touch -h -d 1990-01-01T00:00:00Z l; stat -c %y l
		`},
		{name: "sizes", script: `
			printf 0123456789 > a
			truncate -s 4 a; cat a; echo
			truncate -s 8 a; od -c a
			truncate -s +100K a; stat -c %s a
			truncate -s %4096 a; stat -c %s a
			truncate -s 0 a; stat -c %s a
			truncate -s 1M new; stat -c %s new; truncate -c -s 5 missing; ls
			fallocate -l 64K b; stat -c %s b; fallocate -n -l 256K b; stat -c %s b
			printf abc > c; fallocate -z -o 1 -l 1 c; od -c c
			seq 3000 > e; fallocate -p -o 4096 -l 4096 e; sha256sum e
		`},
		{name: "split", script: `
			seq 1000 > a
			split -l 300 a part.; cat part.* | cmp - a; ls
			split -n 3 -d --additional-suffix=.txt a n; wc -c n*
			csplit -s a 100 '{2}'; wc -l xx*
			cat part.aa >> part.ab; cat part.?? | sort -n | uniq -c | sort -rn | sed -n 1p
		`},
		{name: "find", script: `
			mkdir -p a/b/c; for i in $(seq 200); do echo $i > a/b/f$i; echo $i > a/b/c/g$i.tmp; done
			find . -type f | wc -l
			find . -name '*.tmp' -delete; find . -type f | wc -l
			find a/b -name 'f1*' -exec sh -c 'echo changed > "$1"' - {} \;
			grep -rl changed . | wc -l
			find . -type f -size -1k -printf x | wc -c
			find a -depth -delete; ls -A
		`},
		{name: "directories", script: `
			mkdir -p a/b; mkdir -m 2770 s; stat -c '%a %h' a s; echo x > a/b/x; cp -r a c
			rmdir a 2> /dev/null || echo not empty; rm -r a; mv c/b .; rmdir c; ls -R
			mkdir d; cd d; echo x > f; mv ../d ../e; echo y >> f; cat f; cd ..; cat e/f
			mkfifo p; (echo through > p) & cat p; wait
			ls -lai > /dev/null; du -s . > /dev/null; df . > /dev/null
		`},
		{name: "odd names", script: `
			printf x > 'with space'; printf x > $'new\nline'; printf x > $'\xff\xfe not utf-8'; printf x > -dash; printf x > '*'
			printf x > .hidden; printf x > "$(printf 'n%.0s' $(seq 255))"
			for f in ./* ./.hidden; do printf y >> "$f"; mv -- "$f" "$f" 2> /dev/null || true; cat -- "$f"; done; echo
			(printf x > "$(printf 'n%.0s' $(seq 256))") 2> /dev/null || echo too long
			d=; for i in $(seq 60); do d=$d$(printf 'd%.0s' $(seq 100))/; done
			(p=; for i in $(seq 60); do mkdir ${d%%/*}; cd ${d%%/*}; done; echo deep > f; echo deeper >> f; cat f; mv f g; ls)
			rm -r "${d%%/*}"; ls | wc -l
		`},
		// Each way to open a lockfile: by flock itself, truncating, appending, read-write.
		{name: "flock", script: `
			increment() { read -r n < n; echo $((n + 1)) > n; }; export -f increment
			by_name() { flock lock bash -c increment; }
			truncating() { { flock 9; increment; } 9> lock; }
			appending() { { flock 9; increment; } 9>> lock; }
			reading() { { flock 9; increment; } 9<> lock; }
			for way in by_name truncating appending reading; do
				echo 0 > n; rm -f lock
				for p in 1 2 3 4; do (for i in 1 2 3 4 5 6 7 8 9 10; do $way; done) & done; wait
				echo $way: $(cat n)
			done
		`},
		{name: "waiting for a lock", needs: []string{"python3"}, script: `
			exec 9<> lock; flock 9
			flock -n lock true || echo busy
			flock -w 0.1 lock true || echo gave up # a signal ends its wait
			exec 9>&-; flock -w 60 lock echo got it
			python3 - <<-'END'
				import fcntl, os, signal
				held = open('lock', 'r+'); fcntl.lockf(held, fcntl.LOCK_EX)
				r, w = os.pipe()
				if os.fork() == 0:
				    def give_up(*_): raise TimeoutError
				    signal.signal(signal.SIGALRM, give_up); signal.setitimer(signal.ITIMER_REAL, 0.1)
				    try: fcntl.lockf(open('lock', 'r+'), fcntl.LOCK_EX); os.write(w, b'locked')
				    except TimeoutError: os.write(w, b'interrupted')
				    os._exit(0)
				print(os.read(r, 100)); os.wait()
			END
		`},
	})
}

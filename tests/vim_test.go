package tests

import "testing"

// TestVim writes files in each of vim's ways: over the old file, as a renamed new file,
// and as vim decides itself.
func TestVim(t *testing.T) {
	var programs []program
	for _, mode := range []string{"yes", "no", "auto"} {
		for _, settings := range []string{"nobackup writebackup", "backup"} {
			programs = append(programs, program{
				name:  mode + " " + settings,
				needs: []string{"vim"},
				script: `
					seq 100 > f; chmod 640 f; ln -s f link; mkdir d; seq 100 > d/g; seq 5000 > big
					edit() { vim -N -es -u NONE -i NONE -c 'set swapfile backupskip= backupcopy=` + mode + ` ` + settings + `' "$@" < /dev/null || echo "exit $?"; }
					edit -c '%s/5/FIVE/g' -c wq f; sha256sum f; stat -c '%a %h' f
					edit -c '1d' -c wq link; readlink link || echo no link any more; head -3 f
					edit -c 'normal Gonew last line' -c 'w' -c '1d' -c 'w' -c 'saveas other' -c 'normal ggOtop' -c wq f; tail -1 f; head -1 other
					edit -c 'w! copy' -c '3,4w >> copy' -c 'q!' f; tail -1 copy
					edit -c 'g/9/d' -c 'wn' -c '%s/1/one/' -c 'wq' big d/g; sha256sum big d/g
					edit -c 'normal Ochanged' -c wq new; cat new
					edit -c 'set fileformat=dos' -c wq f; file=$(od -An -c f | head -1); echo "$file"
					edit -c '%!sort -n' -c wq f; edit -c 'q!' f
					chmod 444 f; edit -c 'normal Oforced' -c 'w!' -c q f; stat -c '%a %h' f; head -1 f
					find . -name '.*.sw?' # swap files must be gone
				`,
			})
		}
	}
	comparePrograms(t, programs)
}

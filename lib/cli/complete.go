// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/leapio/leapio/lib/fault"
)

// completionFlag asks, as the last word, for the words that could stand in the
// place of the word before it, one per line. The scripts of script send it.
const completionFlag = "--generate-bash-completion"

// complete prints what the last of words, which may be empty, can become. It
// prints nothing where it has nothing to offer; it is never an error.
func complete(root *Command, words []string, stdio IO) {
	current := ""
	if n := len(words); n > 0 {
		words, current = words[:n-1], words[n-1]
	}
	s := sortArgs(root, words)
	s.fromEnv(stdio.Getenv)
	if unknownVerb := s.err != nil && s.want == nil; unknownVerb {
		return
	}
	for _, c := range s.candidates(current) {
		if strings.HasPrefix(c, current) {
			fmt.Fprintln(stdio.Stdout, c)
		}
	}
}

// candidates are the words that could follow, whether they begin with current
// or not.
func (s *sorted) candidates(current string) []string {
	node := s.node()
	runDir, _ := s.last("run-dir")
	if runDir == "" {
		runDir = DefaultRunDir
	}
	if s.want != nil {
		return flagWords(s.want, runDir, "")
	}
	if !s.ended && strings.HasPrefix(current, "-") {
		return s.flagCandidates(current, runDir)
	}
	if len(node.Commands) > 0 {
		var names []string
		for _, sub := range node.Commands {
			names = append(names, sub.Name)
		}
		return names
	}
	ops := node.operands()
	i := min(len(s.args), len(ops)-1)
	if i < 0 || len(s.args) >= len(ops) && !ops[i].repeated {
		return nil
	}
	return words(ops[i].word, runDir)
}

// flagCandidates are the flags, or the values behind "--flag=".
func (s *sorted) flagCandidates(current, runDir string) []string {
	name, _, glued := strings.Cut(current, "=")
	var found []string
	for _, f := range allFlags(s.node(), newCommon()) {
		switch {
		case f.hidden:
		case glued && name == "--"+f.Name:
			return flagWords(&f, runDir, name+"=")
		case !glued:
			found = append(found, "--"+f.Name)
		}
	}
	return found
}

// flagWords are the values of f with prefix before each.
func flagWords(f *Flag, runDir, prefix string) []string {
	values := f.choices()
	if values == nil {
		values = words(f.Arg, runDir)
	}
	found := make([]string, len(values))
	for i, v := range values {
		found[i] = prefix + v
	}
	return found
}

// words are what a placeholder such as "VOLUME" or "NQN|any" can stand for: the
// names under RUN/volume, and lower-case words themselves.
func words(placeholder, runDir string) []string {
	var found []string
	for _, word := range strings.Split(placeholder, "|") {
		lower := strings.ToLower(word)
		if word == lower {
			found = append(found, word)
			continue
		}
		if lower != filepath.Base(lower) {
			continue
		}
		entries, err := os.ReadDir(filepath.Join(runDir, lower))
		if err != nil {
			continue // no daemon, or no such facts
		}
		for _, e := range entries {
			found = append(found, e.Name())
		}
	}
	return found
}

// script prints the completion script of program for bash or zsh.
func script(w io.Writer, program, shell string) error {
	var text string
	switch shell {
	case "bash":
		text = bashScript
	case "zsh":
		text = zshScript
	default:
		return fault.Errorf(fault.Usage, "", "", "--%s: bad value %q: none of bash, zsh", completionName, shell)
	}
	function := strings.ReplaceAll(program, "-", "_")
	_, err := io.WriteString(w, strings.NewReplacer("@PROGRAM@", program, "@FUNCTION@", function).Replace(text))
	return err
}

// bashScript splits the line by itself: bash cuts words at = and :, which sizes,
// URLs and NQNs are full of, and wants only what follows the last of them back.
const bashScript = `# bash completion for @PROGRAM@
_@FUNCTION@() {
	local line words current head
	line=${COMP_LINE:0:COMP_POINT}
	read -ra words <<<"$line"
	case $line in
	*[[:space:]]) current= ;;
	*) current=${words[-1]}; unset 'words[-1]' ;;
	esac
	mapfile -t COMPREPLY < <("${words[@]}" "$current" --generate-bash-completion 2>/dev/null)
	head=${current%"${current##*[=:]}"}
	COMPREPLY=("${COMPREPLY[@]#"$head"}")
}
complete -o default -F _@FUNCTION@ @PROGRAM@
`

const zshScript = `#compdef @PROGRAM@
_@FUNCTION@() {
	local -a found
	found=("${(@f)$("${(@)words[1,CURRENT-1]}" "${words[CURRENT]}" --generate-bash-completion 2>/dev/null)}")
	if (( ${#found} )) && [[ -n ${found[1]} ]]; then
		compadd -Q -- "${found[@]}"
	else
		_files
	fi
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
	_@FUNCTION@ "$@"
else
	compdef _@FUNCTION@ @PROGRAM@
fi
`

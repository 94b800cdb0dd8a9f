// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli_test

import (
	"bytes"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/fault"
)

func TestReadLines(t *testing.T) {
	words := func(number int, words ...string) cli.Line { return cli.Line{Number: number, Words: words} }
	for _, tt := range []struct {
		text string
		want []cli.Line
	}{
		{"", nil},
		{"\n \t\n# nothing\n  # nothing", nil},
		{"a b\tc\nd", []cli.Line{words(1, "a", "b", "c"), words(2, "d")}},
		{"a#b # c", []cli.Line{words(1, "a#b")}},
		{"a '' \"\" \"b\"'c'd", []cli.Line{words(1, "a", "", "", "bcd")}},
		{`'a'\''b' "\$\` + "`" + `\"\\\n" \$\ \#`, []cli.Line{words(1, "a'b", "$`\"\\\\n", "$ #")}},
		{"\\\n \\\na \\\nb\\\nc 'd\n e' \"f\\\ng\nh\"\ni", []cli.Line{words(3, "a", "bc", "d\n e", "fg\nh"), words(9, "i")}},
		{"a=b é %+,-./:@_", []cli.Line{words(1, "a=b", "é", "%+,-./:@_")}},
		{"# it's\na", []cli.Line{words(2, "a")}},
	} {
		if d := cmp.Diff(tt.want, cli.ReadLines(tt.text)); d != "" {
			t.Errorf("%q: (-want +got)\n%s", tt.text, d)
		}
	}
}

func TestReadLinesFaults(t *testing.T) {
	for _, tt := range []struct {
		text string
		line int
		want string
	}{
		{"\n\na | b", 3, "| is an operator"},
		{"a &", 1, "& is an operator"},
		{"a; b", 1, "; is an operator"},
		{"a >b", 1, "> is an operator"},
		{"a 2<b", 1, "< is an operator"},
		{"(a)", 1, "( is an operator"},
		{"a $b", 1, "$ is an expansion"},
		{"a `b`", 1, "` is an expansion"},
		{`a "$b"`, 1, "$ is an expansion"},
		{"a \"`b`\"", 1, "` is an expansion"},
		{"a *", 1, "* is a pattern"},
		{"a b?", 1, "? is a pattern"},
		{"a [b", 1, "[ is a pattern"},
		{"a ~", 1, "~ is special"},
		{"a {b,c}", 1, "{ is special"},
		{"a 'b", 1, "' has no end"},
		{"a \"b", 1, "\" has no end"},
		{"a \\", 1, "nothing behind the last \\"},
		{"a\r\n", 1, `control character '\r'`},
		{"a \x00", 1, `control character '\x00'`},
		{"a '\x00'", 1, "a NUL character"},
		{"a \"\x00\"", 1, "a NUL character"},
		{"a \\\x00", 1, "a NUL character"},
		{"a 'b\nc' |", 2, "| is an operator"},
	} {
		lines := cli.ReadLines(tt.text + "\nnext")
		if strings.HasSuffix(tt.want, "no end") || strings.HasSuffix(tt.text, `\`) {
			lines = cli.ReadLines(tt.text) // what follows belongs to it
		} else if next := lines[len(lines)-1]; next.Err != nil || !slices.Equal(next.Words, []string{"next"}) {
			t.Errorf("%q: the next line is %v", tt.text, next)
		}
		bad := lines[0]
		if bad.Err == nil || bad.Words != nil || bad.Number != tt.line || !strings.Contains(bad.Err.Error(), tt.want) || fault.KindOf(bad.Err) != fault.Usage {
			t.Errorf("%q: %+v, want line %d: %s", tt.text, bad, tt.line, tt.want)
		}
	}
}

// shell is what sh makes of the words of one command.
func shell(t *testing.T, sh, text string) []string {
	t.Helper()
	cmd := exec.Command(sh, "-c", "set -f -- "+text+"\nfor w do printf '%s\\0' \"$w\"; done")
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %q: %v\n%s", sh, text, err, &errs)
	}
	words := strings.Split(out.String(), "\x00")
	return words[:len(words)-1]
}

// shells are those of this machine.
func shells() []string {
	var found []string
	for _, name := range []string{"sh", "bash"} {
		if path, err := exec.LookPath(name); err == nil {
			found = append(found, path)
		}
	}
	return found
}

// FuzzReadLines: what is read is what sh reads, and quoting it gives it back.
func FuzzReadLines(f *testing.F) {
	for _, text := range []string{
		"leap-soc volume create d1 file size=10G", `a 'b c' "d\"e" f\ g`, "a \\\nb # c", `'it'\''s'`, "a '\n' \"\\\n\"", "é 'ü\xff'", `"a\b\\"`, "a\\\n#b", "''#",
	} {
		f.Add(text)
	}
	shells := shells()
	f.Fuzz(func(t *testing.T, text string) {
		lines := cli.ReadLines(text)
		var again strings.Builder
		for _, l := range lines {
			if l.Err != nil {
				return
			}
			again.WriteString(cli.QuoteAll(l.Words) + "\n")
		}
		quoted := cli.ReadLines(again.String())
		if len(quoted) != len(lines) {
			t.Fatalf("%q: %d lines, quoted %d", text, len(lines), len(quoted))
		}
		for i, l := range lines {
			if !slices.Equal(quoted[i].Words, l.Words) {
				t.Errorf("%q: %q, quoted %q", text, l.Words, quoted[i].Words)
			}
		}
		if len(lines) != 1 || strings.TrimLeft(text, " \t\n#") != text || strings.HasPrefix(text, "\\\n") {
			return // the first line is to be that of the command
		}
		for _, sh := range shells {
			if got := shell(t, sh, text); !slices.Equal(got, lines[0].Words) {
				t.Errorf("%q: %q, %s reads %q", text, lines[0].Words, sh, got)
			}
		}
	})
}

// FuzzQuote: any words without NUL come back, from here and from sh.
func FuzzQuote(f *testing.F) {
	for _, word := range []string{"", "a", "it's", "a b", "$x", "\n", "\\", "~", "#", "=", "\xff", "-", "[::1]"} {
		f.Add(word, "b")
	}
	shells := shells()
	f.Fuzz(func(t *testing.T, a, b string) {
		if strings.ContainsRune(a+b, 0) {
			return
		}
		words := []string{a, b}
		text := cli.QuoteAll(words)
		lines := cli.ReadLines(text)
		if len(lines) != 1 || !slices.Equal(lines[0].Words, words) {
			t.Fatalf("%q: %q gives %v", words, text, lines)
		}
		for _, sh := range shells {
			if got := shell(t, sh, text); !slices.Equal(got, words) {
				t.Errorf("%q: %q, %s reads %q", words, text, sh, got)
			}
		}
	})
}

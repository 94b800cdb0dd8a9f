// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/leapio/leapio/lib/fault"
)

// Quote makes word one word of sh's, in quotes if it needs some. ReadLines reads
// it back.
func Quote(word string) string {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_=./:,@+%", c)
	}
	if word != "" && strings.IndexFunc(word, func(c rune) bool { return !plain(c) }) < 0 {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// QuoteAll is a command line of sh's with these words.
func QuoteAll(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = Quote(w)
	}
	return strings.Join(quoted, " ")
}

// Line is one command of a script.
type Line struct {
	Number int // of the line on which it begins, or on which the fault is, from 1 up
	Words  []string
	Err    error // what is wrong with it, a usage fault; there are no Words then
}

// ReadLines reads a script of simple commands, one a line, as sh does (POSIX
// Shell Command Language, sections 2.2 and 2.3): blanks between words, comments,
// quotes and backslashes. What sh would expand or act upon, such as variables,
// patterns, pipes and redirections, is an error, so that sh reads the same words
// wherever this does.
func ReadLines(text string) []Line {
	r := &lineReader{text: text, line: 1}
	var lines []Line
	for r.pos < len(r.text) {
		words, err := r.command()
		switch {
		case err != nil:
			lines = append(lines, Line{Number: r.line, Err: fault.New(fault.Usage, "", "", err)})
			r.skip()
		case len(words) > 0:
			lines = append(lines, Line{Number: r.began, Words: words})
		}
	}
	return lines
}

// lineReader is a script on its way through ReadLines.
type lineReader struct {
	text  string
	pos   int
	line  int // that pos is on
	began int // the line of the first word of the command
}

// command reads the words up to the end of the line, which it takes as well.
func (r *lineReader) command() ([]string, error) {
	var words []string
	for r.pos < len(r.text) {
		switch c := r.text[r.pos]; {
		case c == '\n':
			r.pos++
			r.line++
			return words, nil
		case c == ' ', c == '\t':
			r.pos++
		case c == '#':
			r.comment()
		case strings.HasPrefix(r.text[r.pos:], "\\\n"):
			r.pos += 2
			r.line++
		default:
			if len(words) == 0 {
				r.began = r.line
			}
			word, err := r.word()
			if err != nil {
				return nil, err
			}
			words = append(words, word)
		}
	}
	return words, nil
}

// comment goes to the end of the line.
func (r *lineReader) comment() {
	if n := strings.IndexByte(r.text[r.pos:], '\n'); n >= 0 {
		r.pos += n
	} else {
		r.pos = len(r.text)
	}
}

// skip goes to the line after the one that a fault is on.
func (r *lineReader) skip() {
	r.comment()
	if r.pos < len(r.text) {
		r.pos++
		r.line++
	}
}

// word reads a word; there is one.
func (r *lineReader) word() (string, error) {
	var b strings.Builder
	for r.pos < len(r.text) {
		c := r.text[r.pos]
		switch {
		case c == ' ', c == '\t', c == '\n':
			return b.String(), nil
		case c == '\'':
			if err := r.single(&b); err != nil {
				return "", err
			}
		case c == '"':
			if err := r.double(&b); err != nil {
				return "", err
			}
		case c == '\\':
			if err := r.escape(&b); err != nil {
				return "", err
			}
		default:
			if err := unquoted(c); err != nil {
				return "", err
			}
			b.WriteByte(c)
			r.pos++
		}
	}
	return b.String(), nil
}

// unquoted refuses what sh takes for more than a character.
func unquoted(c byte) error {
	what := ""
	switch {
	case strings.IndexByte("|&;<>()", c) >= 0:
		what = "an operator"
	case c == '$' || c == '`':
		what = "an expansion"
	case strings.IndexByte("*?[", c) >= 0:
		what = "a pattern"
	case strings.IndexByte("~{}!^", c) >= 0:
		what = "special in some shells"
	case c < ' ' || c == 0x7f:
		return fmt.Errorf("control character %q: it is to be in quotes", c)
	default:
		return nil
	}
	return fmt.Errorf("%c is %s: only plain commands are read; as a character it is to be in quotes", c, what)
}

// errNUL: no shell has words with a NUL in them.
var errNUL = errors.New("there is a NUL character")

// single reads '...'.
func (r *lineReader) single(b *strings.Builder) error {
	n := strings.IndexByte(r.text[r.pos+1:], '\'')
	if n < 0 {
		return errors.New("' has no end")
	}
	text := r.text[r.pos+1 : r.pos+1+n]
	if strings.IndexByte(text, 0) >= 0 {
		return errNUL
	}
	b.WriteString(text)
	r.line += strings.Count(text, "\n")
	r.pos += n + 2
	return nil
}

// double reads "...". In it a backslash quotes only what would have a meaning.
func (r *lineReader) double(b *strings.Builder) error {
	var text strings.Builder
	newlines := 0
	for i := r.pos + 1; i < len(r.text); i++ {
		switch c := r.text[i]; {
		case c == '"':
			b.WriteString(text.String())
			r.line += newlines
			r.pos = i + 1
			return nil
		case c == '$', c == '`':
			return unquoted(c)
		case c == 0:
			return errNUL
		case c == '\\' && i+1 < len(r.text) && strings.IndexByte("$`\"\\\n", r.text[i+1]) >= 0:
			if i++; r.text[i] != '\n' {
				text.WriteByte(r.text[i])
			} else {
				newlines++
			}
		default:
			if c == '\n' {
				newlines++
			}
			text.WriteByte(c)
		}
	}
	return errors.New(`" has no end`)
}

// escape reads a backslash and what it quotes; a newline is nothing then.
func (r *lineReader) escape(b *strings.Builder) error {
	if r.pos+1 == len(r.text) {
		return errors.New("there is nothing behind the last \\")
	}
	switch c := r.text[r.pos+1]; c {
	case 0:
		return errNUL
	case '\n':
		r.line++
	default:
		b.WriteByte(c)
	}
	r.pos += 2
	return nil
}

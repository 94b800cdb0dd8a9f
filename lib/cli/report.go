// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/leapio/leapio/lib/fault"
)

// report prints err to w: as "program: op name: cause" and "hint: ..." lines, or
// as one JSON object if the output format is JSON. The op is always the verb that
// ran: a fault that a daemon sent may name another one, which the user never
// typed.
func report(w io.Writer, s *sorted, err error) {
	if value, _ := s.last(outputFlag); Format(value) == JSON {
		e := *fault.From(err)
		e.Op = s.op()
		fmt.Fprintf(w, "%s\n", fault.Encode(&e))
		return
	}
	var b strings.Builder
	for _, e := range flatten(err, s.op()) {
		fmt.Fprintf(&b, "%s: %s\n", s.path[0].Name, visible(e.Error()))
	}
	for _, hint := range fault.Hints(err) {
		fmt.Fprintf(&b, "hint: %s\n", visible(hint))
	}
	io.WriteString(w, b.String())
}

// flatten takes the joined errors of several things apart, one line each.
func flatten(err error, op string) []*fault.Error {
	e := *fault.From(err)
	e.Op = op
	joined, ok := e.Err.(interface{ Unwrap() []error })
	if !ok || e.Name != "" {
		return []*fault.Error{&e}
	}
	var lines []*fault.Error
	for _, sub := range joined.Unwrap() {
		lines = append(lines, flatten(sub, op)...)
	}
	return lines
}

// visible replaces what is not printable by its Go escape, so that a name or
// message that came from a guest or a peer cannot steer a terminal or fake a
// line.
func visible(s string) string {
	return escape(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// escape replaces the runes that match, and bytes that are no UTF-8, by their Go
// escapes.
func escape(s string, match func(rune) bool) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, match) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case match(r):
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

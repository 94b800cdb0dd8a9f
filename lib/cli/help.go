// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli

import (
	"fmt"
	"io"
	"strings"
)

// usageLine shows how the last command of path is called.
func usageLine(path []*Command) string {
	c := path[len(path)-1]
	line := commandLine(path) + " [OPTION...]"
	if len(c.Commands) > 0 {
		line += " VERB"
	}
	if c.Args != "" {
		line += " " + c.Args
	}
	return line
}

// help prints the help of the last command of path.
func help(w io.Writer, path []*Command) error {
	c := path[len(path)-1]
	var b strings.Builder
	fmt.Fprintf(&b, "usage: %s\n\n%s\n", usageLine(path), c.Usage)
	if c.Help != "" {
		fmt.Fprintf(&b, "\n%s\n", strings.TrimSpace(c.Help))
	}
	var rows [][2]string
	for _, sub := range c.Commands {
		rows = append(rows, [2]string{strings.Join(sub.names(), ", "), sub.Usage})
	}
	section(&b, "verbs", rows)

	var own, shared [][2]string
	for i, f := range allFlags(c, newCommon()) {
		if f.hidden {
			continue
		}
		row := [2]string{flagSyntax(f), flagText(f)}
		if i < len(c.Flags) {
			own = append(own, row)
		} else {
			shared = append(shared, row)
		}
	}
	section(&b, "options", own)
	section(&b, "common options", shared)
	fmt.Fprintf(&b, "\nmanual: man %s\n", path[0].Name)
	_, err := io.WriteString(w, b.String())
	return err
}

// section prints rows in two columns under a title.
func section(b *strings.Builder, title string, rows [][2]string) {
	if len(rows) == 0 {
		return
	}
	width := 0
	for _, r := range rows {
		width = max(width, len(r[0]))
	}
	fmt.Fprintf(b, "\n%s:\n", title)
	for _, r := range rows {
		fmt.Fprintf(b, "  %-*s  %s\n", width, r[0], r[1])
	}
}

// flagSyntax is a flag as it is written: "-o, --output text|json|tsv".
func flagSyntax(f Flag) string {
	text := "    --" + f.Name
	if f.Short != "" {
		text = "-" + f.Short + ", --" + f.Name
	}
	if f.Arg != "" {
		text += " " + f.Arg
	}
	return text
}

// flagText is a flag's usage with what else there is to know about it.
func flagText(f Flag) string {
	var notes []string
	if f.Required {
		notes = append(notes, "required")
	}
	if f.repeatable() {
		notes = append(notes, "repeatable")
	}
	if text := f.defaultText(); text != "" {
		notes = append(notes, "default: "+text)
	}
	if f.Env != "" {
		notes = append(notes, "environment: "+f.Env)
	}
	if len(notes) == 0 {
		return f.Usage
	}
	return f.Usage + " (" + strings.Join(notes, "; ") + ")"
}

// defaultText is what holds without the flag, or "" where that goes without
// saying: an empty text, a zero, off.
func (f *Flag) defaultText() string {
	switch text := f.Value.String(); text {
	case "0", "0s", "false":
		return ""
	default:
		return text
	}
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package cli is what all commands share: the order of arguments, flags, help,
// completion, tables, errors, exit codes and logs.
//
// A command is a tree of Command values, made afresh for every run by a
// function, so that flags are plain local variables and nothing is global. The
// rooms in lib/command each export
//
//	func Command() *cli.Command
//
// and cmd/NAME/main.go is
//
//	func main() { os.Exit(cli.Main(soc.Command(), os.Args)) }
//
// A multi-call binary puts the same trees below one root. Tests call Run, or
// clitest.Run, with buffers.
//
// Under the hood github.com/urfave/cli/v2 parses and dispatches. It stops
// reading flags at the first positional argument, cuts repeated values at
// commas, prints usage errors to stdout and keeps its help flags in globals;
// therefore it never sees the user's own argv but the canonical one that sortArgs
// makes (verbs, --flag=value, --, positionals), and never prints.
package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Command is one node of a command's tree: a group of verbs, with Commands, or
// a verb, with Run.
type Command struct {
	Name    string   // the word: "volume", "create"; for the root the program's name
	Aliases []string // other words for it; list, delete and remove get theirs by themselves
	Usage   string   // one line in lower case without a full stop: "make a volume"
	Help    string   // more text for --help; optional

	// Args are the positional arguments as the manual shows them, and how many
	// there may be: "NAME KIND [KEY=VALUE...]" is two or more. An upper-case
	// word that names a folder under RUN (PORT, VOLUME, SUBSYSTEM) and
	// lower-case words ("NQN|any") are offered by completion.
	Args  string
	Flags []Flag

	Daemon bool // it is a daemon: has --state-dir and handles signals itself
	State  bool // it has --state-dir, too, to look at what is kept
	Binary bool // it has raw data to give: -o binary is allowed

	Commands []*Command
	Run      func(ctx context.Context, call *Call) error
}

// Flag is an option of a verb. Its default is what Value holds at first.
type Flag struct {
	Name     string // the long name, without dashes
	Short    string // one letter, or none
	Arg      string // the word for its value in help and manual: "SIZE"; empty for Bool
	Env      string // environment variable that stands in for the flag; may be empty
	Usage    string // one line in lower case without a full stop
	Value    Value  // where it goes, see String, Strings, Bool, Int, Duration, Enum; &size for a units.Size
	Required bool   // leaving it out is a usage error

	hidden bool
}

// takesValue reports whether the flag is followed by a value.
func (f *Flag) takesValue() bool {
	b, ok := f.Value.(interface{ IsBoolFlag() bool })
	return !ok || !b.IsBoolFlag()
}

// repeatable reports whether every use of the flag adds a value.
func (f *Flag) repeatable() bool {
	_, ok := f.Value.(*stringsValue)
	return ok
}

// choices are the values the flag can have, or nil if they are not a closed list.
func (f *Flag) choices() []string {
	if c, ok := f.Value.(interface{ Choices() []string }); ok {
		return c.Choices()
	}
	return nil
}

// standardAliases are the words every command has for these verbs.
var standardAliases = map[string]string{"list": "ls", "delete": "rm", "remove": "rm"}

// names are the words for the command, its name first.
func (c *Command) names() []string {
	names := append([]string{c.Name}, c.Aliases...)
	if alias, ok := standardAliases[c.Name]; ok && !slices.Contains(names, alias) {
		names = append(names, alias)
	}
	return names
}

// child finds the verb or group that word names, or nil.
func (c *Command) child(word string) *Command {
	for _, sub := range c.Commands {
		if slices.Contains(sub.names(), word) {
			return sub
		}
	}
	return nil
}

// operand is one positional argument of Command.Args.
type operand struct {
	word               string // without brackets and dots: "KEY=VALUE"
	optional, repeated bool
}

// operands reads Command.Args.
func (c *Command) operands() []operand {
	var ops []operand
	for _, word := range strings.Fields(c.Args) {
		var o operand
		if inner, ok := strings.CutPrefix(word, "["); ok {
			o.optional, word = true, strings.TrimSuffix(inner, "]")
		}
		o.word, o.repeated = strings.CutSuffix(word, "...")
		ops = append(ops, o)
	}
	return ops
}

// checkArgs tells whether args can be the positional arguments of c.
func (c *Command) checkArgs(args []string) error {
	ops := c.operands()
	for i, o := range ops {
		if i >= len(args) {
			if o.optional {
				return nil
			}
			return fmt.Errorf("missing %s", o.word)
		}
		if o.repeated {
			return nil
		}
	}
	if len(args) > len(ops) {
		return fmt.Errorf("unexpected argument %q", args[len(ops)])
	}
	return nil
}

// check tells what is wrong with the declaration of a tree, so that a mistake
// in it fails every test of its command and not only those that meet it.
func check(root *Command) error {
	takes := make(map[string]bool) // by "--name" or "-x": whether it takes a value
	var visit func(c *Command, path string) error
	visit = func(c *Command, path string) error {
		if c.Name == "" || c.Usage == "" {
			return fmt.Errorf("command %q: no name or no usage", path)
		}
		if (c.Run == nil) == (len(c.Commands) == 0) {
			return fmt.Errorf("command %q: needs either a Run or Commands", path)
		}
		if err := checkFlags(c, takes); err != nil {
			return fmt.Errorf("command %q: %w", path, err)
		}
		if err := checkOperands(c); err != nil {
			return fmt.Errorf("command %q: %w", path, err)
		}
		seen := make(map[string]bool)
		for _, sub := range c.Commands {
			for _, name := range sub.names() {
				if seen[name] {
					return fmt.Errorf("command %q: two verbs %q", path, name)
				}
				seen[name] = true
			}
			if err := visit(sub, path+" "+sub.Name); err != nil {
				return err
			}
		}
		return nil
	}
	return visit(root, root.Name)
}

// checkFlags tells what is wrong with the flags of c. Flags are accepted in
// front of the verb, so takes remembers over the tree which ones have a value.
func checkFlags(c *Command, takes map[string]bool) error {
	if len(c.Commands) > 0 && len(c.Flags) > 0 {
		return errors.New("a group has no flags of its own")
	}
	seen := make(map[string]bool)
	for _, f := range allFlags(c, &common{}) {
		if f.Name == "" || f.Usage == "" || f.Value == nil || len(f.Short) > 1 {
			return fmt.Errorf("flag %q: no name, usage or value, or a long short name", f.Name)
		}
		if f.takesValue() != (f.Arg != "") {
			return fmt.Errorf("flag %q: Arg and the kind of value do not fit", f.Name)
		}
		for _, key := range []string{"--" + f.Name, "-" + f.Short} {
			if key == "-" {
				continue
			}
			if seen[key] {
				return fmt.Errorf("two flags %s", key)
			}
			seen[key] = true
			if was, ok := takes[key]; ok && was != f.takesValue() {
				return fmt.Errorf("flag %s takes a value in one verb and none in another", key)
			}
			takes[key] = f.takesValue()
		}
	}
	return nil
}

// checkOperands tells what is wrong with Args: the order must be required,
// optional, repeated, or arguments could not be told apart.
func checkOperands(c *Command) error {
	ops := c.operands()
	for i, o := range ops {
		switch {
		case strings.ContainsAny(o.word, "[]") || o.word == "":
			return fmt.Errorf("args %q: bad word", c.Args)
		case o.repeated && i != len(ops)-1:
			return fmt.Errorf("args %q: only the last may repeat", c.Args)
		case i > 0 && ops[i-1].optional && !o.optional:
			return fmt.Errorf("args %q: a required one after an optional one", c.Args)
		}
	}
	return nil
}

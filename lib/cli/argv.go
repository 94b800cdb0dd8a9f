// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli

import (
	"slices"
	"strings"

	"github.com/leapio/leapio/lib/fault"
)

// setting is one use of a flag, on the command line or in the environment.
type setting struct {
	flag  Flag
	name  string // as the user wrote it: "--size", "-o" or "LEAP_OUTPUT"
	value string
}

// sorted is an argv in order: verbs first, then flags, then positionals. It is
// complete as far as the arguments were understood even when there is an error.
type sorted struct {
	path  []*Command // from the root to the verb
	flags []setting
	args  []string

	ended bool  // "--" was seen
	want  *Flag // the last word was this flag, which needs a value still
	err   error // the first usage error
}

// node is the last command found: the verb if all is well.
func (s *sorted) node() *Command { return s.path[len(s.path)-1] }

// op is the verb with its groups, "volume create"; empty for the root.
func (s *sorted) op() string { return pathOp(s.path) }

// pathOp joins the names of path without its root.
func pathOp(path []*Command) string {
	var words []string
	for _, c := range path[1:] {
		words = append(words, c.Name)
	}
	return strings.Join(words, " ")
}

// fail records the first usage error.
func (s *sorted) fail(hint, format string, args ...any) {
	if s.err == nil {
		s.err = fault.Errorf(fault.Usage, s.op(), "", format, args...).Hint(hint)
	}
}

// seeHelp is the hint that goes with most usage errors.
func (s *sorted) seeHelp() string {
	return commandLine(s.path) + " --help shows what it takes"
}

// commandLine is the program with its verbs: "leap-soc volume create".
func commandLine(path []*Command) string {
	return strings.TrimSpace(path[0].Name + " " + pathOp(path))
}

// is reports whether the boolean flag of this name was given.
func (s *sorted) is(name string) bool {
	return slices.ContainsFunc(s.flags, func(t setting) bool { return t.flag.Name == name })
}

// last gives the value of the last use of the flag of this name.
func (s *sorted) last(name string) (value string, ok bool) {
	for _, t := range s.flags {
		if t.flag.Name == name {
			value, ok = t.value, true
		}
	}
	return value, ok
}

// sortArgs reads the words after the program's name in GNU order: flags may come
// before, between and after verbs and positionals, "--" ends them. Which flags
// take a value is known from the tree: for a flag in front of the verb, from
// the verbs that can still follow.
func sortArgs(root *Command, words []string) *sorted {
	s := &sorted{path: []*Command{root}}
	for i := 0; i < len(words); i++ {
		word := words[i]
		if s.ended || word == "-" || !strings.HasPrefix(word, "-") {
			s.word(word)
			continue
		}
		if word == "--" {
			s.ended = true
			continue
		}
		if s.option(word); s.want != nil && i+1 < len(words) {
			i++
			s.flags[len(s.flags)-1].value = words[i]
			s.want = nil
		}
	}
	s.settle()
	return s
}

// word takes a word that is no flag: a verb as long as there are any to choose
// from, then a positional.
func (s *sorted) word(word string) {
	node := s.node()
	if len(node.Commands) == 0 {
		s.args = append(s.args, word)
		return
	}
	if sub := node.child(word); sub != nil {
		s.path = append(s.path, sub)
		return
	}
	if len(s.path) == 1 && word == helpFlag && !s.is(helpFlag) {
		f, _ := findFlag(node, func(f Flag) bool { return f.Name == helpFlag })
		s.flags = append(s.flags, setting{flag: f, name: word, value: "true"})
		return
	}
	s.fail(verbsHint(node), "unknown verb %q", word)
}

// verbsHint lists the verbs of a group.
func verbsHint(c *Command) string {
	var names []string
	for _, sub := range c.Commands {
		names = append(names, sub.Name)
	}
	return "the verbs are " + strings.Join(names, ", ")
}

// option takes a word that begins with a dash: --flag, --flag=value, or a
// cluster of short flags of which the last may have its value glued on.
func (s *sorted) option(word string) {
	if long, ok := strings.CutPrefix(word, "--"); ok {
		name, value, has := strings.Cut(long, "=")
		f, ok := findFlag(s.node(), func(f Flag) bool { return f.Name == name })
		switch {
		case !ok:
			s.fail(s.seeHelp(), "unknown option --%s", name)
		case has && !f.takesValue():
			s.fail(s.seeHelp(), "option --%s takes no value", name)
		default:
			s.add(f, "--"+name, value, has)
		}
		return
	}
	for rest := word[1:]; rest != ""; {
		short := rest[:1]
		rest = rest[1:]
		f, ok := findFlag(s.node(), func(f Flag) bool { return f.Short == short })
		if !ok {
			s.fail(s.seeHelp(), "unknown option -%s", printable(short))
			return
		}
		if f.takesValue() {
			s.add(f, "-"+short, rest, rest != "")
			return
		}
		s.add(f, "-"+short, "", false)
	}
}

// printable keeps half a character out of a message.
func printable(s string) string { return strings.ToValidUTF8(s, "?") }

// add records a use of f.
func (s *sorted) add(f Flag, name, value string, has bool) {
	if !f.takesValue() {
		value = "true"
	} else if !has {
		s.want = &f
	}
	s.flags = append(s.flags, setting{flag: f, name: name, value: value})
}

// findFlag looks for a flag among those of c and, in a group, of the verbs
// below it.
func findFlag(c *Command, match func(Flag) bool) (Flag, bool) {
	flags := allFlags(c, newCommon())
	if i := slices.IndexFunc(flags, match); i >= 0 {
		return flags[i], true
	}
	for _, sub := range c.Commands {
		if f, ok := findFlag(sub, match); ok {
			return f, true
		}
	}
	return Flag{}, false
}

// settle holds the flags, some of which were looked up before the verb was
// known, against those of the verb.
func (s *sorted) settle() {
	if s.want != nil {
		s.fail(s.seeHelp(), "option %s needs a value", s.flags[len(s.flags)-1].name)
	}
	if s.node().Run == nil {
		return // the verb is missing, and complete says so
	}
	own := allFlags(s.node(), newCommon())
	for _, t := range s.flags {
		if !slices.ContainsFunc(own, func(f Flag) bool { return f.Name == t.flag.Name }) {
			s.fail(s.seeHelp(), "unknown option %s", t.name)
		}
	}
}

// fromEnv puts the flags that the environment sets, and the command line does
// not, in front. An empty variable is an unset one.
func (s *sorted) fromEnv(getenv func(string) string) {
	var found []setting
	for _, f := range allFlags(s.node(), newCommon()) {
		if f.Env == "" || s.is(f.Name) {
			continue
		}
		if value := getenv(f.Env); value != "" {
			found = append(found, setting{flag: f, name: f.Env, value: value})
		}
	}
	s.flags = append(found, s.flags...)
}

// complete tells whether a verb was found and has all it needs.
func (s *sorted) complete() error {
	node := s.node()
	if s.err == nil && len(node.Commands) > 0 {
		s.fail(verbsHint(node), "missing verb")
	}
	for _, f := range node.Flags {
		if f.Required && !s.is(f.Name) {
			s.fail(s.seeHelp(), "missing option --%s", f.Name)
		}
	}
	if s.err == nil {
		if err := node.checkArgs(s.args); err != nil {
			s.fail("usage: "+usageLine(s.path), "%w", err)
		}
	}
	return s.err
}

// argv is the canonical argument list: verbs, flags by their long names with
// the value glued on, "--" and positionals.
func (s *sorted) argv() []string {
	var words []string
	for _, c := range s.path {
		words = append(words, c.Name)
	}
	for _, t := range s.flags {
		word := "--" + t.flag.Name
		if t.flag.takesValue() {
			word += "=" + t.value
		}
		words = append(words, word)
	}
	return append(append(words, "--"), s.args...)
}

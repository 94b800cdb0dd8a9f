// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package clitest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/leapio/leapio/lib/cli"
)

// page is what a manual page says about a command.
type page struct {
	verbs      []string                   // in order of appearance
	verbFlags  map[string]map[string]bool // by verb: the flags in its entry
	otherFlags map[string]bool            // the flags outside of entries
	words      map[string]bool            // every word marked with Cm or Ev
}

// callable are the mdoc macros that end the words of the one before them.
var callable = strings.Fields("Ac Ao Ap Aq Ar Bc Bo Bq Brc Bro Brq Cm Dc Do Dq Em Ev Fl Ic Li Nm No Ns Oc Oo Op Pa Pc Po Pq Ql Qc Qo Qq Sc So Sq Sy Ta Va Xc Xo Xr")

// parsePage reads an mdoc page as far as ManPage needs it.
func parsePage(text string) page {
	p := page{verbFlags: make(map[string]map[string]bool), otherFlags: make(map[string]bool), words: make(map[string]bool)}
	section, verb, depth := "", "", 0
	for _, line := range strings.Split(text, "\n") {
		if !strings.HasPrefix(line, ".") || strings.HasPrefix(line, `.\"`) {
			continue
		}
		tokens := strings.Fields(strings.ReplaceAll(line[1:], `"`, ""))
		if len(tokens) == 0 {
			continue
		}
		switch tokens[0] {
		case "Sh":
			section, verb, depth = strings.Join(tokens[1:], " "), "", 0
		case "Bl":
			depth++
		case "El":
			depth--
		case "It":
			if section == "COMMANDS" && depth == 1 {
				verb = macroWords(tokens, "Cm")
				p.verbs = append(p.verbs, verb)
				p.verbFlags[verb] = make(map[string]bool)
			}
		}
		flags := p.otherFlags
		if depth > 0 && verb != "" {
			flags = p.verbFlags[verb]
		}
		p.mark(tokens, flags)
	}
	return p
}

// mark notes the flags of a line in flags, and its Cm and Ev words.
func (p *page) mark(tokens []string, flags map[string]bool) {
	for i := 0; i+1 < len(tokens); i++ {
		switch next := tokens[i+1]; tokens[i] {
		case "Fl":
			flags["-"+next] = true
		case "Cm", "Ev":
			for _, w := range tokens[i+1:] {
				if slices.Contains(callable, w) {
					break
				}
				p.words[w] = true
			}
		}
	}
}

// macroWords are the words of the first use of macro in a line.
func macroWords(tokens []string, macro string) string {
	i := slices.Index(tokens, macro)
	if i < 0 {
		return ""
	}
	words := tokens[i+1:]
	if end := slices.IndexFunc(words, func(w string) bool { return slices.Contains(callable, w) }); end >= 0 {
		words = words[:end]
	}
	return strings.Join(words, " ")
}

// compare lists what the command and its page do not have in common.
func compare(m cli.Metadata, p page) []string {
	var problems []string
	missing := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }

	everywhere := make(map[string]bool)
	addFlags(everywhere, m.Flags)
	onPage := make(map[string]bool)
	for f := range p.otherFlags {
		onPage[f] = true
	}
	known := make(map[string]bool)
	addFlags(known, m.Flags)
	var verbs []string
	for _, v := range m.Verbs {
		verbs = append(verbs, v.Verb)
		own := make(map[string]bool)
		addFlags(own, v.Flags)
		addFlags(known, v.Flags)
		there, ok := p.verbFlags[v.Verb]
		if v.Verb == "" {
			there = p.otherFlags
		} else if !ok {
			missing("no entry for the verb %q", v.Verb)
			continue
		}
		for f := range there {
			onPage[f] = true
			if v.Verb != "" && !own[f] && !everywhere[f] {
				missing("the entry of %q has the flag %s, the command has not", v.Verb, f)
			}
		}
		for _, f := range v.Flags {
			if !there["--"+f.Name] {
				missing("%s lacks the flag --%s", place(v.Verb), f.Name)
			}
		}
		for _, alias := range v.Aliases {
			if !p.words[alias] {
				missing("no mention of %s, an alias of %q", alias, v.Verb)
			}
		}
		problems = append(problems, environment(v.Flags, p)...)
	}
	for _, f := range m.Flags {
		if !onPage["--"+f.Name] {
			missing("no mention of the flag --%s", f.Name)
		}
	}
	problems = append(problems, environment(m.Flags, p)...)
	for _, verb := range p.verbs {
		if !slices.Contains(verbs, verb) {
			missing("there is an entry for %q, which is no verb", verb)
		}
	}
	for f := range p.otherFlags {
		if !known[f] {
			missing("the flag %s is no flag of the command", f)
		}
	}
	slices.Sort(problems)
	return slices.Compact(problems)
}

// environment lists the variables of flags that the page does not mention.
func environment(flags []cli.FlagMetadata, p page) []string {
	var problems []string
	for _, f := range flags {
		if f.Env != "" && !p.words[f.Env] {
			problems = append(problems, "no mention of the variable "+f.Env)
		}
	}
	return problems
}

// addFlags adds the spellings of flags to set.
func addFlags(set map[string]bool, flags []cli.FlagMetadata) {
	for _, f := range flags {
		set["--"+f.Name] = true
		if f.Short != "" {
			set["-"+f.Short] = true
		}
	}
}

// place is where the flags of a verb are looked for.
func place(verb string) string {
	if verb == "" {
		return "the page"
	}
	return fmt.Sprintf("the entry of %q", verb)
}

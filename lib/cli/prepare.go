// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli

import (
	"context"
	"slices"

	"github.com/leapio/leapio/lib/fault"
)

// Prepared is a command line that was found in order and has not run: its verb
// exists, and so do its flags, which have values they can have, and the number
// of its arguments fits. What the arguments mean, the verb tells when it runs.
type Prepared struct {
	tree   func() *Command
	words  []string
	sorted *sorted
}

// Prepare reads args as Run does (args[0] is the program). Flags that every verb
// has are refused: they belong to the command that runs this one. tree makes the
// command's tree afresh. Errors are usage faults.
func Prepare(tree func() *Command, args []string) (*Prepared, error) {
	p := &Prepared{tree: tree, words: args[1:]}
	p.sorted = sortArgs(tree(), p.words)
	if err := p.sorted.err; err != nil {
		return nil, err
	}
	node := p.sorted.node()
	for _, t := range p.sorted.flags {
		if !p.Takes(t.flag.Name) {
			return nil, fault.Errorf(fault.Usage, p.Op(), "", "option %s is not for a line of its own", t.name).
				Hint("it is given once, to the command that reads the line")
		}
	}
	if err := p.sorted.complete(); err != nil {
		return nil, err
	}
	values := &parser{sorted: p.sorted}
	for _, t := range p.sorted.flags {
		i := slices.IndexFunc(node.Flags, func(f Flag) bool { return f.Name == t.flag.Name })
		v := parsed{Value: node.Flags[i].Value, flag: node.Flags[i], parser: values}
		if v.Set(t.value) != nil {
			return nil, values.err
		}
	}
	return p, nil
}

// Op is the verb with its groups: "volume create".
func (p *Prepared) Op() string { return p.sorted.op() }

// Args are the positional arguments.
func (p *Prepared) Args() []string { return p.sorted.args }

// Takes reports whether the verb has a flag of its own of this long name.
func (p *Prepared) Takes(flag string) bool {
	return slices.ContainsFunc(p.sorted.node().Flags, func(f Flag) bool { return f.Name == flag })
}

// Value is the text of the last use of a flag, and whether there is one.
func (p *Prepared) Value(flag string) (text string, ok bool) { return p.sorted.last(flag) }

// Run runs the verb. The flags that every verb has come from the environment.
func (p *Prepared) Run(ctx context.Context, stdio IO) error {
	s := sortArgs(p.tree(), p.words)
	s.fromEnv(stdio.Getenv)
	return dispatch(ctx, s, stdio)
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli

import "io"

// metadataVersion is raised when the meaning of a key changes; keys may be
// added without.
const metadataVersion = 1

// Metadata is what --dump-metadata prints: all that a manual page must have and
// a completion may offer.
type Metadata struct {
	Version int            `json:"version"`
	Name    string         `json:"name"`
	Usage   string         `json:"usage"`
	Flags   []FlagMetadata `json:"flags"` // those every verb has
	Verbs   []VerbMetadata `json:"verbs"` // in the order of help; for a command without verbs one, named ""
}

// VerbMetadata is one verb.
type VerbMetadata struct {
	Verb    string         `json:"verb"`    // with its groups: "volume create"
	Aliases []string       `json:"aliases"` // of the last word
	Args    string         `json:"args"`
	Usage   string         `json:"usage"`
	Flags   []FlagMetadata `json:"flags"` // without those every verb has
}

// FlagMetadata is one flag.
type FlagMetadata struct {
	Name       string   `json:"name"`
	Short      string   `json:"short"`
	Arg        string   `json:"arg"` // empty: takes no value
	Env        string   `json:"env"`
	Default    string   `json:"default"`
	Usage      string   `json:"usage"`
	Required   bool     `json:"required"`
	Repeatable bool     `json:"repeatable"`
	Choices    []string `json:"choices"`
}

// Describe gives the metadata of a tree.
func Describe(root *Command) Metadata {
	m := Metadata{Version: metadataVersion, Name: root.Name, Usage: root.Usage, Verbs: []VerbMetadata{}}
	shared := make(map[string]bool)
	for _, f := range allFlags(&Command{}, newCommon()) {
		shared[f.Name] = true
	}
	m.Flags = describeFlags(allFlags(&Command{}, newCommon()), nil)
	var visit func(path []*Command)
	visit = func(path []*Command) {
		c := path[len(path)-1]
		for _, sub := range c.Commands {
			visit(append(path[:len(path):len(path)], sub))
		}
		if c.Run == nil {
			return
		}
		v := VerbMetadata{Verb: pathOp(path), Aliases: append([]string{}, c.names()[1:]...), Args: c.Args, Usage: c.Usage}
		v.Flags = describeFlags(allFlags(c, newCommon()), shared)
		m.Verbs = append(m.Verbs, v)
	}
	visit([]*Command{root})
	return m
}

// describeFlags gives the metadata of the flags that are not hidden and not in
// without.
func describeFlags(flags []Flag, without map[string]bool) []FlagMetadata {
	list := []FlagMetadata{}
	for _, f := range flags {
		if f.hidden || without[f.Name] {
			continue
		}
		list = append(list, FlagMetadata{
			Name: f.Name, Short: f.Short, Arg: f.Arg, Env: f.Env, Default: f.Value.String(), Usage: f.Usage,
			Required: f.Required, Repeatable: f.repeatable(), Choices: append([]string{}, f.choices()...),
		})
	}
	return list
}

// dumpMetadata prints the metadata as JSON.
func dumpMetadata(w io.Writer, root *Command) error {
	return printJSON(w, Describe(root), "  ")
}

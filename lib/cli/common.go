// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli

import "fmt"

// Where daemons keep their sockets and facts, and their state, unless told
// otherwise.
const (
	DefaultRunDir   = "/run/leapio"
	DefaultStateDir = "/var/lib/leapio"
)

// Format is how a command writes its data, -o.
type Format string

// The formats.
const (
	Text   Format = "text"   // for people
	JSON   Format = "json"   // list: an array, show: an object, streams: one object per line
	TSV    Format = "tsv"    // for scripts: no header, tabs between columns, - for none
	Binary Format = "binary" // raw data, where a verb has some
)

// formatValue is the value of -o.
type formatValue struct {
	p      *Format
	binary bool // binary is allowed
}

// normal is the word nvme-cli has for text.
const normal = "normal"

func (v *formatValue) String() string { return string(*v.p) }
func (v *formatValue) Set(s string) error {
	switch f := Format(s); {
	case s == normal:
		*v.p = Text
	case f == Text, f == JSON, f == TSV, f == Binary && v.binary:
		*v.p = f
	case f == Binary:
		return fmt.Errorf("this command has no raw data")
	default:
		return fmt.Errorf("none of text, json, tsv")
	}
	return nil
}

// Choices are the formats, for completion.
func (v *formatValue) Choices() []string {
	words := []string{string(Text), string(JSON), string(TSV)}
	if v.binary {
		words = append(words, string(Binary))
	}
	return words
}

// common holds the values of the flags that every verb has.
type common struct {
	format           Format
	runDir, stateDir string
	levels           logLevels
	verbose          bool

	help, version, metadata bool
	completion              string
}

// newCommon has the defaults.
func newCommon() *common {
	return &common{format: Text, runDir: DefaultRunDir, stateDir: DefaultStateDir}
}

// Flags with a meaning of their own. generate-bash-completion is no
// flag: it only counts as the last word, see completionFlag.
const (
	helpFlag       = "help"
	versionFlag    = "version"
	outputFlag     = "output"
	metadataFlag   = "dump-metadata"
	completionName = "completion"
)

// allFlags are the flags of c: its own and the common ones, bound to v.
func allFlags(c *Command, v *common) []Flag {
	flags := append([]Flag(nil), c.Flags...)
	arg := "text|json|tsv"
	if c.Binary {
		arg += "|binary"
	}
	flags = append(flags,
		Flag{Name: outputFlag, Short: "o", Arg: arg, Env: "LEAP_OUTPUT", Usage: "how to write data", Value: &formatValue{&v.format, c.Binary}},
		Flag{Name: "run-dir", Arg: "DIR", Env: "LEAP_RUN_DIR", Usage: "the folder of sockets and facts", Value: String(&v.runDir)},
	)
	if c.Daemon || c.State {
		flags = append(flags, Flag{Name: "state-dir", Arg: "DIR", Env: "LEAP_STATE_DIR", Usage: "the folder of what is kept over restarts", Value: String(&v.stateDir)})
	}
	return append(flags,
		Flag{Name: "log", Arg: "LEVELS", Env: "LEAP_LOG", Usage: "what to log: a level, component=level, or both with commas", Value: &v.levels},
		Flag{Name: "verbose", Short: "v", Usage: "log everything: the level debug", Value: Bool(&v.verbose)},
		Flag{Name: helpFlag, Short: "h", Usage: "print this help", Value: Bool(&v.help)},
		Flag{Name: versionFlag, Usage: "print the version", Value: Bool(&v.version)},
		Flag{Name: metadataFlag, Usage: "print the verbs and flags as JSON", Value: Bool(&v.metadata), hidden: true},
		Flag{Name: completionName, Arg: "SHELL", Usage: "print a completion script", Value: Enum(&v.completion, "bash", "zsh"), hidden: true},
	)
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package volume

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/units"
)

// DefaultBlock is the logical block in bytes where block= is not given: what
// every guest and boot loader can use.
const DefaultBlock = 512

// BlockKey is the option block=, for the Keys of a Kind; see Spec.Block.
var BlockKey = Key{
	Name: "block", Value: "512|4096", Default: strconv.Itoa(DefaultBlock),
	Usage: "logical block in bytes",
}

// usage is the fault of an option.
func usage(format string, args ...any) error {
	return fault.Errorf(fault.Usage, "", "", format, args...)
}

// CheckKeys refuses, as a usage fault, an option that is not among keys or has
// no value.
func (s *Spec) CheckKeys(keys []Key) error {
	for _, name := range slices.Sorted(maps.Keys(s.Options)) {
		if !slices.ContainsFunc(keys, func(k Key) bool { return k.Name == name }) {
			return usage("unknown option %s=: a %s volume takes %s", name, s.Kind, list(keys))
		}
		if s.Options[name] == "" {
			return usage("option %s= has no value: a %s volume takes %s", name, s.Kind, list(keys))
		}
	}
	return nil
}

// list names keys and their values for an error.
func list(keys []Key) string {
	words := make([]string, len(keys))
	for i, k := range keys {
		words[i] = k.Name + "=" + k.Value
	}
	return strings.Join(words, " ")
}

// ParseSwitch reads the value of option name, on or off. Errors are usage faults.
func ParseSwitch(name, text string) (bool, error) {
	if text != "on" && text != "off" {
		return false, usage("option %s=%s: neither on nor off", name, text)
	}
	return text == "on", nil
}

// Size reads size=: bytes, at least 1; 0 where it is not given. Errors are
// usage faults.
func (s *Spec) Size() (uint64, error) {
	text, ok := s.Options["size"]
	if !ok {
		return 0, nil
	}
	n, err := units.ParseSize(text)
	if err != nil {
		return 0, usage("option size=: %w", err)
	}
	if n == 0 {
		return 0, usage("option size=%s: a volume is not empty", text)
	}
	return uint64(n), nil
}

// Block reads block=: 512 or 4096 bytes, DefaultBlock where it is not given,
// which it then notes in the Options. Errors are usage faults.
func (s *Spec) Block() (uint32, error) {
	text, ok := s.Options["block"]
	if !ok {
		s.Note("block", BlockKey.Default)
		return DefaultBlock, nil
	}
	switch n, err := units.ParseSize(text); {
	case err == nil && (n == 512 || n == 4096):
		return uint32(n), nil
	default:
		return 0, usage("option block=%s: neither 512 nor 4096", text)
	}
}

// SizeAndBlock reads the options of a kind whose size must be given.
func (s *Spec) SizeAndBlock() (size uint64, block uint32, err error) {
	if size, err = s.Size(); err != nil {
		return 0, 0, err
	}
	if size == 0 {
		return 0, 0, usage("option size= is missing: %s needs it", s.Kind)
	}
	if block, err = s.Block(); err != nil {
		return 0, 0, err
	}
	return size, block, CheckSize(size, block)
}

// CheckSize refuses, as a usage fault, a size that is not whole blocks.
func CheckSize(size uint64, block uint32) error {
	if rest := size % uint64(block); rest != 0 {
		return usage("size %d is not a multiple of the block of %d bytes: %d too many", size, block, rest)
	}
	return nil
}

// Note keeps an option that Make chose.
func (s *Spec) Note(key, value string) {
	if s.Options == nil {
		s.Options = make(map[string]string)
	}
	s.Options[key] = value
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Value is where a flag's text goes. It is the standard library's flag.Value,
// so *units.Size and the types of other rooms can be one. Set must leave the
// value as it was when it returns an error.
type Value interface {
	Set(string) error
	String() string
}

// String stores the text in *p. Empty text is refused: it comes from a variable
// that a script forgot to set, and must not mean the default.
func String(p *string) Value { return (*stringValue)(p) }

type stringValue string

func (v *stringValue) String() string { return string(*v) }
func (v *stringValue) Set(s string) error {
	if s == "" {
		return errors.New("it is empty")
	}
	*v = stringValue(s)
	return nil
}

// Strings appends the text of every use of the flag to *p. A comma is a
// character like any other.
func Strings(p *[]string) Value { return (*stringsValue)(p) }

type stringsValue []string

func (v *stringsValue) Set(s string) error { *v = append(*v, s); return nil }
func (v *stringsValue) String() string     { return strings.Join(*v, " ") }

// Bool sets *p to true; the flag takes no value.
func Bool(p *bool) Value { return (*boolValue)(p) }

type boolValue bool

func (v *boolValue) IsBoolFlag() bool { return true }
func (v *boolValue) String() string   { return strconv.FormatBool(bool(*v)) }
func (v *boolValue) Set(s string) error {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return errors.New("neither true nor false")
	}
	*v = boolValue(b)
	return nil
}

// Integer is what Int can store.
type Integer interface {
	~int | ~int32 | ~int64 | ~uint8 | ~uint16 | ~uint32
}

// Int stores a decimal number of min to max in *p. There is no other base: 010
// is ten.
func Int[T Integer](p *T, min, max T) Value { return &intValue[T]{p, min, max} }

type intValue[T Integer] struct {
	p        *T
	min, max T
}

func (v *intValue[T]) String() string { return strconv.FormatInt(int64(*v.p), 10) }
func (v *intValue[T]) Set(s string) error {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return errors.New("not a number")
	}
	if err != nil || n < int64(v.min) || n > int64(v.max) {
		return fmt.Errorf("not in %d to %d", v.min, v.max)
	}
	*v.p = T(n)
	return nil
}

// Duration stores a duration as Go writes them, such as 1m30s, in *p. It must
// not be negative.
func Duration(p *time.Duration) Value { return (*durationValue)(p) }

type durationValue time.Duration

func (v *durationValue) String() string { return time.Duration(*v).String() }
func (v *durationValue) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil {
		return errors.New("not a duration such as 500ms, 30s or 1m30s")
	}
	if d < 0 {
		return errors.New("negative")
	}
	*v = durationValue(d)
	return nil
}

// Enum stores one of a closed list of words in *p.
func Enum[T ~string](p *T, choices ...T) Value { return &enumValue[T]{p, choices} }

type enumValue[T ~string] struct {
	p       *T
	choices []T
}

func (v *enumValue[T]) String() string { return string(*v.p) }
func (v *enumValue[T]) Set(s string) error {
	if !slices.Contains(v.choices, T(s)) {
		return fmt.Errorf("none of %s", strings.Join(v.Choices(), ", "))
	}
	*v.p = T(s)
	return nil
}

// Choices are the words of the list, for completion.
func (v *enumValue[T]) Choices() []string {
	words := make([]string, len(v.choices))
	for i, c := range v.choices {
		words[i] = string(c)
	}
	return words
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package units reads and prints what users write on command lines and in
// requests: sizes and names. Durations are Go's own (time.ParseDuration and
// time.Duration.String) and need nothing here.
package units

import (
	"encoding/json"
	"math/big"
	"math/bits"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/leapio/leapio/lib/fault"
)

// Size is a number of bytes, 0 to 2^63-1. In JSON it is an integer.
//
// The text forms are the ones of qemu-img, nbdkit, lvm and dd: 1G is 2^30 bytes.
type Size int64

// Binary multiples.
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
	TiB Size = 1 << 40
	PiB Size = 1 << 50
	EiB Size = 1 << 60
)

// Sector is the size of the sectors that the suffix s counts, in bytes.
const Sector Size = 512

// suffixes has the multiplier of every suffix. They are case-sensitive, because
// K is 1024 and k alone would be read as 1000 by some and as 1024 by others.
var suffixes = map[string]Size{
	"": 1, "B": 1, "s": Sector,
	"K": KiB, "M": MiB, "G": GiB, "T": TiB, "P": PiB, "E": EiB,
	"KiB": KiB, "MiB": MiB, "GiB": GiB, "TiB": TiB, "PiB": PiB, "EiB": EiB,
	"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15, "EB": 1e18,
}

// maxText bounds the length of a size's text. 2^63-1 in bytes has 19 digits; the
// rest is room for fractions such as 0.0009765625K.
const maxText = 64

// ParseSize reads a size: digits, optionally a fraction, optionally a blank, and
// a suffix: K M G T P E or KiB MiB .. (powers of 1024), kB (or KB) MB GB ..
// (powers of 1000), s (sectors of 512 bytes), B or none (bytes). The result must
// be a whole number of bytes of at most 2^63-1: 1.5K is 1536, 1.3B is refused.
// There is no sign, no exponent and no other base. Errors are usage faults.
func ParseSize(s string) (Size, error) {
	bad := func(why string) (Size, error) {
		if len(s) > maxText {
			s = s[:maxText] + "..."
		}
		return 0, fault.Errorf(fault.Usage, "", "", "bad size %q: %s", s, why)
	}
	if s == "" {
		return bad("it is empty")
	}
	if len(s) > maxText {
		return bad("it is too long")
	}
	n := digits(s)
	if n == 0 {
		return bad("it does not begin with a digit")
	}
	if n < len(s) && s[n] == '.' {
		frac := digits(s[n+1:])
		if frac == 0 {
			return bad("no digit after the point")
		}
		n += 1 + frac
	}
	number, suffix := s[:n], s[n:]
	unit, ok := suffixes[strings.TrimPrefix(suffix, " ")]
	if !ok || suffix == " " {
		return bad("the unit is none of K M G T P E, KiB .. EiB, kB MB .. EB, s, B")
	}
	value, ok := new(big.Rat).SetString(number)
	if !ok {
		return bad("it is not a number")
	}
	value.Mul(value, new(big.Rat).SetInt64(int64(unit)))
	if !value.IsInt() {
		return bad("it is not a whole number of bytes")
	}
	if !value.Num().IsInt64() {
		return bad("it is above 2^63-1 bytes")
	}
	return Size(value.Num().Int64()), nil
}

// digits counts the decimal digits that s begins with.
func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

// String is the shortest exact form that ParseSize reads back to the same
// value: 10G, 1536, 0.
func (s Size) String() string {
	const letters = "KMGTPE"
	n, unit := int64(s), 0
	for n != 0 && n%1024 == 0 && unit < len(letters) {
		n /= 1024
		unit++
	}
	text := strconv.FormatInt(n, 10)
	if unit == 0 {
		return text
	}
	return text + letters[unit-1:unit]
}

// Human is the size for people, rounded: 10 GiB, 9.3 GiB, 512 B. It is not
// exact; a reader who needs exactness gets String or the integer.
func (s Size) Human() string {
	if s < 0 {
		return s.String()
	}
	n := uint64(s)
	text := humanize.IBytes(n)
	if strings.HasPrefix(text, "1024 ") {
		// go-humanize picks the unit before it rounds: 2^20-1 is "1024 KiB".
		text = humanize.IBytes(1 << bits.Len64(n))
	}
	return text
}

// Set reads s as ParseSize does: a *Size is a flag value.
func (s *Size) Set(text string) error {
	v, err := ParseSize(text)
	if err != nil {
		return err
	}
	*s = v
	return nil
}

// UnmarshalJSON reads an integer number of bytes; a negative one is refused.
func (s *Size) UnmarshalJSON(b []byte) error {
	var n int64
	if err := json.Unmarshal(b, &n); err != nil {
		return err
	}
	if n < 0 {
		return fault.Errorf(fault.Usage, "", "", "bad size %d: it is negative", n)
	}
	*s = Size(n)
	return nil
}

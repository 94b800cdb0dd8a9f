// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file holds the rules for names on the wire: padded ASCII fields and NVMe qualified names.

package nvme

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// SetASCII stores s in a fixed field such as IdentifyController.SN, MN and FR: left aligned, padded with spaces, cut where it is too long.
// A character other than printable ASCII becomes one '?'.
func SetASCII(field []byte, s string) {
	n := 0
	for _, r := range s {
		if n == len(field) {
			return
		}
		if r < ' ' || r > '~' {
			r = '?'
		}
		field[n] = byte(r)
		n++
	}
	for ; n < len(field); n++ {
		field[n] = ' '
	}
}

// ASCII reads a fixed field as SetASCII stores it, without trailing spaces and NULs; a byte other than printable ASCII becomes '?', so that
// the result is safe to print whoever wrote the field.
func ASCII(field []byte) string {
	out := bytes.Clone(bytes.TrimRight(field, " \x00"))
	for i, b := range out {
		if b < ' ' || b > '~' {
			out[i] = '?'
		}
	}
	return string(out)
}

// Limits and well-known names of NVMe qualified names (Base Specification, "NVMe Qualified Names").
const (
	NQNMax       = 223 // bytes of a NQN, without a terminating NUL
	nqnLinuxMax  = 222 // Linux hosts take one byte less
	nqnPrefix    = "nqn."
	NQNDiscovery = "nqn.2014-08.org.nvmexpress.discovery"
	NQNUUID      = "nqn.2014-08.org.nvmexpress:uuid:" // followed by a UUID in lower case
)

// CheckNQN tells what makes nqn no name that hosts and targets accept: it has to start with "nqn.", to hold more than that, at most NQNMax
// bytes, all valid UTF-8, printable and without blanks. Date, domain and ":name" are not demanded, since Linux does not either; see
// NQNWarning.
func CheckNQN(nqn string) error {
	switch {
	case nqn == "":
		return errors.New("NQN is empty")
	case len(nqn) > NQNMax:
		return fmt.Errorf("NQN that starts with %.40q has %d bytes, more than %d", nqn, len(nqn), NQNMax)
	case !strings.HasPrefix(nqn, nqnPrefix) || len(nqn) == len(nqnPrefix):
		return fmt.Errorf("NQN %q does not start with %q and a name", nqn, nqnPrefix)
	case !utf8.ValidString(nqn):
		return fmt.Errorf("NQN %q is not valid UTF-8", nqn)
	}
	for _, r := range nqn {
		if r == ' ' || !unicode.IsPrint(r) {
			return fmt.Errorf("NQN %q holds the character %q", nqn, r)
		}
	}
	return nil
}

// NQNWarning tells what some hosts may refuse about a subsystem's nqn that CheckNQN accepts; it is "" where nothing is wrong.
func NQNWarning(nqn string) string {
	if len(nqn) > nqnLinuxMax {
		return fmt.Sprintf("longer than %d bytes: Linux hosts ignore it", nqnLinuxMax)
	}
	if nqn == NQNDiscovery {
		return ""
	}
	if uuid, ok := strings.CutPrefix(nqn, NQNUUID); ok {
		if _, err := ParseUUID(uuid); err != nil {
			return "no UUID follows " + NQNUUID
		}
		if uuid != strings.ToLower(uuid) {
			return "the UUID is not in lower case: NQNs are compared byte by byte"
		}
		return ""
	}
	authority, name, _ := strings.Cut(strings.TrimPrefix(nqn, nqnPrefix), ":")
	if name == "" || !isNamingAuthority(authority) {
		return "not of the form nqn.YYYY-MM.reverse.domain:name"
	}
	return ""
}

// isNamingAuthority tells whether s is YYYY-MM.reverse.domain.
func isNamingAuthority(s string) bool {
	const date = "0000-00."
	if len(s) <= len(date) {
		return false
	}
	for i, want := range []byte(date) {
		if got := s[i]; want == '0' && (got < '0' || got > '9') || want != '0' && got != want {
			return false
		}
	}
	for label := range strings.SplitSeq(s[len(date):], ".") {
		if label == "" || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return false
		}
		for _, r := range label {
			if r != '-' && (r > '~' || !unicode.IsLetter(r) && !unicode.IsDigit(r)) {
				return false
			}
		}
	}
	return true
}

// SetNQN stores nqn in a 256-byte field such as IdentifyController.SUBNQN, NUL padded. nqn passes CheckNQN.
func SetNQN(field *[256]byte, nqn string) {
	clear(field[copy(field[:NQNMax], nqn):])
}

// NQNField reads a 256-byte NQN field that a peer wrote. A field that has no terminating NUL or does not pass CheckNQN is an error.
func NQNField(field *[256]byte) (string, error) {
	n := bytes.IndexByte(field[:], 0)
	if n < 0 {
		return "", errors.New("NQN field has no terminating NUL")
	}
	nqn := string(field[:n])
	if err := CheckNQN(nqn); err != nil {
		return "", err
	}
	return nqn, nil
}

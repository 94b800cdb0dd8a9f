// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package units

import "github.com/leapio/leapio/lib/fault"

// MaxName is the length limit of a name in bytes.
const MaxName = 32

// CheckName tells whether s can name a volume, port, subsystem or runtime:
// [a-z0-9][a-z0-9_.-]{0,31}. Such a name is safe as a file name and in the
// shell. kind is the word for the thing in the error, which is a usage fault.
func CheckName(kind, s string) error {
	why := ""
	switch {
	case s == "":
		why = "it is empty"
	case len(s) > MaxName:
		why = "it is longer than 32 characters"
		s = s[:MaxName] + "..."
	case !alphanumeric(s[0]):
		why = "it does not begin with a-z or 0-9"
	default:
		for i := range len(s) {
			if c := s[i]; !alphanumeric(c) && c != '_' && c != '.' && c != '-' {
				why = "only a-z 0-9 _ . - may be in it"
			}
		}
	}
	if why == "" {
		return nil
	}
	return fault.Errorf(fault.Usage, "", "", "bad %s name %q: %s", kind, s, why)
}

// alphanumeric reports whether c is a lower-case letter or a digit.
func alphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

import (
	"strconv"
	"strings"
)

// flagString prints the set bits of v by name, bit 0 first, joined by "|".
// Bits without a name are printed together in hexadecimal; 0 prints as "0".
func flagString(v uint32, names ...string) string {
	if v == 0 {
		return "0"
	}
	var parts []string
	for bit, name := range names {
		if mask := uint32(1) << bit; v&mask != 0 && name != "" {
			parts = append(parts, name)
			v &^= mask
		}
	}
	if v != 0 {
		parts = append(parts, "0x"+strconv.FormatUint(uint64(v), 16))
	}
	return strings.Join(parts, "|")
}

// indexName prints a small number by name, or as prefix and number.
func indexName(v uint32, prefix string, names []string) string {
	if uint64(v) < uint64(len(names)) && names[v] != "" {
		return names[v]
	}
	return prefix + strconv.FormatUint(uint64(v), 10)
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// VMA is one mapping of a process, a line of /proc/PID/maps (proc(5)).
type VMA struct {
	Start, End uint64 // [Start, End)
	Perms      string // rwxp or rwxs, - for what is not
	Offset     uint64 // of Start in the file
	Major      uint32 // device of the file
	Minor      uint32
	Inode      uint64 // 0: no file
	Name       string // the file's path, or [heap], [stack], ...; may be empty
}

// Size returns the length in bytes.
func (v *VMA) Size() uint64 { return v.End - v.Start }

// Contains reports whether the mapping covers addr.
func (v *VMA) Contains(addr uint64) bool { return v.Start <= addr && addr < v.End }

// Shared reports whether writes are seen by others that map the file.
func (v *VMA) Shared() bool { return strings.HasSuffix(v.Perms, "s") }

// parseVMA reads a line of /proc/PID/maps.
func parseVMA(line string) (v VMA, err error) {
	bad := func(what string) (VMA, error) { return VMA{}, fmt.Errorf("bad %s in mapping %q", what, line) }
	rest := line
	word := func() string {
		w, after, _ := strings.Cut(rest, " ")
		rest = after
		return w
	}
	first, last, ok := strings.Cut(word(), "-")
	if v.Start, err = hex(first, 64); err != nil || !ok {
		return bad("start")
	}
	if v.End, err = hex(last, 64); err != nil || v.End <= v.Start || v.Start%pageSize != 0 || v.End%pageSize != 0 {
		return bad("end")
	}
	if v.Perms = word(); len(v.Perms) != 4 || strings.Trim(v.Perms, "rwxps-") != "" {
		return bad("permissions")
	}
	if v.Offset, err = hex(word(), 64); err != nil {
		return bad("offset")
	}
	major, minor, ok := strings.Cut(word(), ":")
	ma, err := hex(major, 32)
	if err != nil || !ok {
		return bad("device")
	}
	mi, err := hex(minor, 32)
	if err != nil {
		return bad("device")
	}
	v.Major, v.Minor = uint32(ma), uint32(mi)
	if v.Inode, err = strconv.ParseUint(word(), 10, 64); err != nil {
		return bad("inode")
	}
	v.Name = unescape(strings.TrimLeft(rest, " "))
	return v, nil
}

// hex reads digits as the kernel prints them: no sign, no prefix.
func hex(s string, size int) (uint64, error) {
	if strings.ContainsAny(s, "+_xX") {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseUint(s, 16, size)
}

// unescape undoes what the kernel does to a newline in a path. It leaves
// backslashes alone, so that \012 in a name is the same; nothing depends on it.
func unescape(s string) string { return strings.ReplaceAll(s, `\012`, "\n") }

// readVMAs calls f for each line of a maps file, until it returns false.
// Memory does not grow with their number.
func readVMAs(r io.Reader, f func(VMA) bool) error {
	scan := bufio.NewScanner(r)
	scan.Buffer(make([]byte, 4096), 64<<10) // a path is at most PATH_MAX, escaped four times that
	before := uint64(0)
	for scan.Scan() {
		v, err := parseVMA(scan.Text())
		if err != nil {
			return err
		}
		if v.Start < before {
			// The kernel reads on where it was; a mapping that grew down meanwhile
			// would be told twice.
			continue
		}
		before = v.End
		if !f(v) {
			return nil
		}
	}
	return scan.Err()
}

// readPageSize finds the KernelPageSize of the mapping that begins at start in an
// smaps file, in bytes; 0: the mapping is not there.
func readPageSize(r io.Reader, start uint64) (uint64, error) {
	scan := bufio.NewScanner(r)
	scan.Buffer(make([]byte, 4096), 64<<10)
	inside := false
	for scan.Scan() {
		key, value, _ := strings.Cut(scan.Text(), ":")
		switch {
		case strings.Contains(key, "-"): // a mapping's line: addresses come first
			v, err := parseVMA(scan.Text())
			if err != nil {
				return 0, err
			}
			inside = v.Start == start
		case inside && key == "KernelPageSize":
			number, ok := strings.CutSuffix(strings.TrimSpace(value), " kB")
			kib, err := strconv.ParseUint(number, 10, 64-10)
			if err != nil || !ok {
				return 0, fmt.Errorf("bad page size %q", scan.Text())
			}
			return kib << 10, nil
		}
	}
	return 0, scan.Err()
}

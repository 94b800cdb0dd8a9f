// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command_test

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// auditArch is what the kernel calls this machine to a filter.
var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]

// callNumbers returns the numbers of all system calls of a machine by their names,
// as golang.org/x/sys has them.
func callNumbers(t testing.TB, arch string) map[string]uint32 {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		t.Fatalf("looking for golang.org/x/sys: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "unix", "zsysnum_linux_"+arch+".go"))
	if err != nil {
		t.Fatal(err)
	}
	numbers := make(map[string]uint32)
	for _, m := range regexp.MustCompile(`(?m)^\s*SYS_(\w+)\s+=\s+(\d+)$`).FindAllStringSubmatch(string(text), -1) {
		n, err := strconv.ParseUint(m[2], 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		numbers[strings.ToLower(m[1])] = uint32(n)
	}
	if n, ok := numbers["fstatat"]; ok { // the kernel's name is the same everywhere
		numbers["newfstatat"] = n
	}
	if len(numbers) < 300 {
		t.Fatalf("%s has %d system calls", arch, len(numbers))
	}
	return numbers
}

// documentedCalls returns the system calls that the page of a daemon lists.
func documentedCalls(t *testing.T, daemon string) []string {
	t.Helper()
	m := regexp.MustCompile(`(?s)\n\.Sh SYSTEM CALLS\n.*?\n\.Bd -filled[^\n]*\n(.*?)\n\.Ed\n`).FindStringSubmatch(readPage(t, daemon+".8"))
	if m == nil {
		t.Fatalf("%s.8 lists no system calls", daemon)
	}
	return strings.Fields(m[1])
}

// TestSystemCalls: what a unit allows is what the page says, in words that mean
// something.
func TestSystemCalls(t *testing.T) {
	amd64, arm64 := callNumbers(t, "amd64"), callNumbers(t, "arm64")
	for _, daemon := range []string{"leap-wpt", "leap-soc"} {
		calls := documentedCalls(t, daemon)
		if !slices.IsSorted(calls) || len(slices.Compact(slices.Clone(calls))) != len(calls) {
			t.Errorf("%s.8: the system calls are not in order, or one is there twice", daemon)
		}
		var missing []string
		for _, call := range calls {
			_, x86 := amd64[call]
			_, arm := arm64[call]
			switch {
			case !x86 && !arm:
				t.Errorf("%s.8: there is no system call %s", daemon, call)
			case !x86 || !arm:
				missing = append(missing, call)
			}
		}
		if want := []string{"arch_prctl"}; !slices.Equal(missing, want) {
			t.Errorf("%s.8: calls of one machine only: %v, want %v", daemon, missing, want)
		}
		if allowed := readService(t, daemon).words("SystemCallFilter"); !slices.Equal(allowed, calls) {
			only := func(a, b []string) []string {
				set := make(map[string]bool)
				for _, call := range a {
					set[call] = true
				}
				for _, call := range b {
					delete(set, call)
				}
				return slices.Sorted(maps.Keys(set))
			}
			t.Errorf("%s: only in the unit: %v; only in the page: %v", daemon, only(allowed, calls), only(calls, allowed))
		}
	}
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command_test

import (
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// service is the section [Service] of a unit: the values of each name, in order.
type service map[string][]string

// readService reads the unit of a daemon.
func readService(t testing.TB, daemon string) service {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(unitDir, daemon+".service"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(strings.ReplaceAll(string(b), "\\\n", " "), "[Service]\n")
	text, _, _ = strings.Cut(text, "\n[")
	s := make(service)
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			t.Fatalf("%s: %q is no setting", daemon, line)
		}
		s[name] = append(s[name], strings.TrimSpace(value))
	}
	return s
}

// words returns the words of all values of a name.
func (s service) words(name string) []string { return strings.Fields(strings.Join(s[name], " ")) }

// elsewhere are settings that say nothing about what the daemon may do, or that
// only systemd can carry out.
var elsewhere = []string{
	"Type", "NotifyAccess", "Restart", "RestartSec", "RestartMode", "TimeoutStopSec", "TimeoutStartSec", "KillMode", "ExecStart", "FileDescriptorStoreMax", "FileDescriptorStorePreserve",
	"StateDirectory", "StateDirectoryMode", "User", "Group", "SupplementaryGroups", "IPAddressDeny", "RemoveIPC",
	// What these forbid needs capabilities or system calls that are not there.
	"ProtectClock", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "LockPersonality", "RestrictRealtime",
	// A call that is not allowed is a fault here.
	"SystemCallFilter", "SystemCallErrorNumber",
	"SystemCallArchitectures",
}

// confine reads what a unit does to its daemon. With a sandbox it is all of that,
// else what anybody can do to himself. What it does not know fails the test.
func (s service) confine(t testing.TB, box *sandbox) *confinement {
	t.Helper()
	numbers := callNumbers(t, runtime.GOARCH)
	c := &confinement{Sandbox: box, NewPrivs: true}
	for _, call := range s.words("SystemCallFilter") {
		if n, ok := numbers[call]; ok {
			c.Allowed = append(c.Allowed, n)
		}
	}
	number := func(name, value string, base int) uint64 {
		n, err := strconv.ParseUint(value, base, 64)
		if value == "infinity" {
			n, err = math.MaxUint64, nil
		}
		if err != nil {
			t.Fatalf("%s=%s", name, value)
		}
		return n
	}
	for _, name := range slices.Sorted(maps.Keys(s)) {
		value := s[name][len(s[name])-1]
		switch name {
		case "NoNewPrivileges":
			c.NewPrivs = value != "yes"
		case "UMask":
			c.Umask = int(number(name, value, 8))
		case "MemoryDenyWriteExecute":
			c.NoNewCode = value == "yes"
		case "RestrictSUIDSGID":
			c.NoSetID = value == "yes"
		case "RestrictNamespaces":
			c.NoMoreNS = value == "yes"
		case "RestrictAddressFamilies":
			for _, family := range s.words(name) {
				n, ok := map[string]uint32{"AF_UNIX": unix.AF_UNIX, "AF_INET": unix.AF_INET, "AF_INET6": unix.AF_INET6, "AF_NETLINK": unix.AF_NETLINK}[family]
				if !ok {
					t.Fatalf("%s=%s", name, family)
				}
				c.Families = append(c.Families, n)
			}
		default:
			if box == nil || !box.restrict(name, value, s, c, number) {
				if box != nil && !slices.Contains(elsewhere, name) {
					t.Errorf("%s= is a setting that this test does not know", name)
				}
			}
		}
	}
	if box != nil {
		box.arrange()
	}
	return c
}

// restrict carries out a setting that only root can; it reports whether it is
// one.
func (b *sandbox) restrict(name, value string, s service, c *confinement, number func(name, value string, base int) uint64) bool {
	on := value == "yes"
	empty := func(mode uint32, paths ...string) {
		for _, path := range paths {
			b.Bound = append(b.Bound, bound{Path: path, Mode: mode})
		}
	}
	switch name {
	case "AmbientCapabilities":
		for _, word := range s.words(name) {
			b.Capabilities = append(b.Capabilities, map[string]int{
				"CAP_CHOWN": unix.CAP_CHOWN, "CAP_FOWNER": unix.CAP_FOWNER, "CAP_KILL": unix.CAP_KILL, "CAP_NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE,
			}[word])
		}
	case "CapabilityBoundingSet":
		return slices.Equal(s.words(name), s.words("AmbientCapabilities"))
	case "LimitNOFILE":
		c.OpenFiles = number(name, value, 10)
	case "LimitMEMLOCK":
		c.LockMemory = number(name, value, 10)
	case "PrivateNetwork":
		b.NoNetwork = on
	case "PrivateDevices":
		b.NoDevices = on
	case "ProtectSystem":
		switch value {
		case "strict":
			b.readOnly, b.writable = append(b.readOnly, "/"), append(b.writable, "/dev", "/proc", "/sys", "/tmp", "/var/tmp")
		case "full":
			b.readOnly = append(b.readOnly, "/usr", "/boot", "/efi", "/etc")
		default:
			return false
		}
	case "ReadWritePaths":
		b.writable = append(b.writable, s.words(name)...)
	case "PrivateTmp":
		if on {
			empty(0o1777, "/tmp", "/var/tmp")
		}
	case "ProtectHome":
		if on {
			empty(0, "/home", "/root")
		}
	case "ProtectKernelTunables":
		b.system = append(b.system, "/proc/sys", "/sys")
	case "ProtectControlGroups":
		b.system = append(b.system, "/sys/fs/cgroup")
	default:
		return false
	}
	return true
}

// arrange puts mounts into the order in which they count.
func (b *sandbox) arrange() {
	for _, path := range b.readOnly {
		b.Mounts = append(b.Mounts, mount{Path: path, ReadOnly: true})
	}
	for _, path := range b.writable {
		b.Mounts = append(b.Mounts, mount{Path: path})
	}
	for _, path := range b.system {
		b.Mounts = append(b.Mounts, mount{Path: path, ReadOnly: true})
	}
}

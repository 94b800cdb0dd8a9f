// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package doctor

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// The oldest QEMU with vfio-user-pci.
const (
	qemuMajor = 10
	qemuMinor = 1
)

// machines are the words for processors in QEMU's names.
var machines = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}

// ask runs a program that is to print something and end.
func ask(ctx context.Context, path string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = time.Second // its children may keep its output
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return "", fmt.Errorf("%s %s: no answer within %v", path, strings.Join(args, " "), callLimit)
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return "", fmt.Errorf("%s %s: %w: %s", path, strings.Join(args, " "), err, firstLine(string(exit.Stderr)))
	}
	return string(out), err
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// programs compares our own commands in PATH with this one.
func (d *Doctor) programs(ctx context.Context) []Finding {
	var findings []Finding
	for _, name := range []string{"leap-wpt", "leap-soc", "leap-qmap", "leap-rdma", "leap-pagemap"} {
		check := "command " + name
		path, err := exec.LookPath(name)
		if err != nil {
			findings = append(findings, Finding{check, Skip, "not in PATH", ""})
			continue
		}
		out, err := ask(ctx, path, "--version")
		if err != nil {
			findings = append(findings, failure(check, err, "install it again"))
			continue
		}
		version := strings.TrimPrefix(firstLine(out), name+" ")
		if version != d.Version {
			findings = append(findings, Finding{check, Warn, fmt.Sprintf("%s is %s, and this is %s", path, version, d.Version), "install all commands from one build"})
			continue
		}
		findings = append(findings, Finding{check, OK, path + " is " + version, ""})
	}
	return findings
}

var qemuVersion = regexp.MustCompile(`version (\d+)\.(\d+)(\.\d+)?`)

// qemu looks for the one that has vfio-user-pci.
func (d *Doctor) qemu(ctx context.Context) []Finding {
	const check = "qemu"
	name := "qemu-system-" + machines[runtime.GOARCH]
	path, err := exec.LookPath(name)
	if err != nil {
		return one(check, Skip, name+" is not in PATH", "only virtual machines need it")
	}
	out, err := ask(ctx, path, "--version")
	if err != nil {
		return []Finding{failure(check, err, "install it again")}
	}
	found := path + " is " + firstLine(out)
	fix := fmt.Sprintf("install QEMU %d.%d or later; Debian 13 has it in trixie-backports", qemuMajor, qemuMinor)
	version := qemuVersion.FindStringSubmatch(out)
	if version == nil {
		return one(check, Warn, found+", whose version cannot be told", fix)
	}
	major, merr := strconv.Atoi(version[1])
	minor, err := strconv.Atoi(version[2])
	if err := errors.Join(merr, err); err != nil {
		return one(check, Warn, found+", whose version cannot be told", fix)
	}
	if major < qemuMajor || major == qemuMajor && minor < qemuMinor {
		return one(check, Fail, found+", which is too old", fix)
	}
	devices, err := ask(ctx, path, "-machine", "none", "-device", "help")
	if err != nil {
		return []Finding{failure(check, err, "install it again")}
	}
	if !strings.Contains(devices, `"vfio-user-pci"`) {
		return one(check, Fail, found+", and was built without vfio-user-pci", fix)
	}
	return one(check, OK, found, "")
}

// nvmeCLI looks for what hosts connect with.
func (d *Doctor) nvmeCLI(ctx context.Context) []Finding {
	const check = "nvme-cli"
	path, err := exec.LookPath("nvme")
	if err != nil {
		return one(check, Skip, "nvme is not in PATH", "only hosts over a network need it")
	}
	out, err := ask(ctx, path, "version")
	if err != nil {
		return []Finding{failure(check, err, "install it again")}
	}
	return one(check, OK, path+" is "+firstLine(out), "")
}

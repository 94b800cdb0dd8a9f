// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package doctor

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
)

// daemons asks leap-wpt and the runtimes, and looks for what those have left that
// do not answer.
func (d *Doctor) daemons(ctx context.Context) []Finding {
	findings, answers := d.daemon(ctx, "leap-wpt", broker, "leap-wpt run", d.Paths.Wpt())
	if answers {
		findings = append(findings, d.ports(ctx)...)
		findings = append(findings, limits(ctx, "leap-wpt", d.Paths.Wpt())...)
	} else {
		findings = append(findings, d.staleSockets()...)
	}
	for _, name := range d.runtimes() {
		client, err := d.Paths.Runtime(name)
		if err != nil {
			continue // runtimes returns none of these
		}
		start := "leap-soc run"
		if name != api.DefaultRuntime {
			start += " --name " + name
		}
		found, answers := d.daemon(ctx, "runtime "+name, name, start, client)
		findings = append(findings, found...)
		if answers {
			findings = append(findings, d.runtime(ctx, name, client)...)
			findings = append(findings, limits(ctx, "runtime "+name, client)...)
		}
	}
	return findings
}

// get makes a call of a daemon.
func get(ctx context.Context, client *api.Client, path string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return client.Get(ctx, path, out)
}

// daemon finds out whether a daemon runs. file names its pid file.
func (d *Doctor) daemon(ctx context.Context, check, file, start string, client *api.Client) (findings []Finding, answers bool) {
	pid, err := readPidFile(d.Paths.PidFile(file))
	if err != nil {
		return []Finding{failure(check, err, "")}, false
	}
	var info api.Info
	err = get(ctx, client, "/v1/", &info)
	switch {
	case err == nil && info.Version != d.Version:
		return one(check, Warn, fmt.Sprintf("process %d runs %s, and this is %s", info.PID, info.Version, d.Version),
			fmt.Sprintf("`%s upgrade` replaces it under guests that run", info.Daemon)), true
	case err == nil:
		return one(check, OK, fmt.Sprintf("process %d runs %s", info.PID, info.Version), ""), true
	case fault.KindOf(err) == fault.Permission:
		return []Finding{failure(check, err, "")}, false
	case pid.locked && pid.pid == 0:
		return one(check, Warn, "it is starting", "look again; its log says what it waits for"), false
	case pid.locked:
		return one(check, Fail, fmt.Sprintf("process %d does not answer: %v", pid.pid, err), "see its log; if it hangs, kill it and start it again"), false
	case pid.there:
		return one(check, Fail, fmt.Sprintf("process %d has ended without a stop: %s is left", pid.pid, d.Paths.PidFile(file)), "see its log for the reason; `"+start+"` starts it again"), false
	}
	return one(check, Skip, "not running", "`"+start+"` starts it"), false
}

// staleSockets looks for sockets of ports that a broker has left, in the kernel's
// list of sockets: to connect to one is to be a machine.
func (d *Doctor) staleSockets() []Finding {
	all, err := filepath.Glob(filepath.Join(d.Paths.Facts(api.KindPort), "*", "cntrl"))
	if err != nil || len(all) == 0 {
		return nil
	}
	b, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return []Finding{failure("port-sockets", err, "")}
	}
	var stale []string
	for _, path := range all {
		if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket && !listens(string(b), path) {
			stale = append(stale, filepath.Base(filepath.Dir(path)))
		}
	}
	if len(stale) == 0 {
		return nil
	}
	return one("port-sockets", Warn, "nobody listens on those of "+strings.Join(stale, ", "), "`leap-wpt run` serves them again; machines that used them have lost their drives")
}

// listens looks for a socket in /proc/net/unix.
func listens(sockets, path string) bool {
	for line := range strings.Lines(sockets) {
		fields := strings.Fields(line)
		if len(fields) == 8 && fields[7] == path && fields[3] == "00010000" { // __SO_ACCEPTCON
			return true
		}
	}
	return false
}

// ports looks for machines that wait.
func (d *Doctor) ports(ctx context.Context) []Finding {
	var ports []api.Port
	if err := get(ctx, d.Paths.Wpt(), api.Path("ports"), &ports); err != nil {
		return []Finding{failure("ports", err, "")}
	}
	var findings []Finding
	for _, p := range ports {
		if p.State == api.PortFrozen {
			findings = append(findings, Finding{"port " + p.Name, Fail,
				fmt.Sprintf("frozen since %s: no runtime serves it, and the guest drops its drive in %v", p.Since.Format(time.RFC3339), p.TimeLeft.Round(time.Second)),
				"start the runtime " + p.Runtime})
		}
	}
	return summed("ports", len(ports), "none is frozen", findings)
}

// summed are findings, or that there are none.
func summed(check string, n int, fine string, findings []Finding) []Finding {
	if len(findings) > 0 {
		return findings
	}
	return one(check, OK, fmt.Sprintf("%d, %s", n, fine), "")
}

// runtime looks at a runtime that answers, and what it serves.
func (d *Doctor) runtime(ctx context.Context, name string, client *api.Client) []Finding {
	check := func(what string) string {
		if name == api.DefaultRuntime {
			return what
		}
		return name + ": " + what
	}
	var (
		info      api.RuntimeInfo
		volumes   []api.Volume
		listeners []api.Listener
	)
	for path, out := range map[string]any{"runtime": &info, "volumes": &volumes, "listeners": &listeners} {
		if err := get(ctx, client, api.Path(path), out); err != nil {
			return []Finding{failure(check(path), err, "")}
		}
	}
	var findings []Finding
	bad := func(what string, state State, found, fix string) {
		findings = append(findings, Finding{check(what), state, found, fix})
	}
	if info.Epoch == 0 {
		bad("link", Warn, "not attached to leap-wpt: no port is served", "`leap-wpt run` starts it, and the runtime attaches by itself")
	} else {
		bad("link", OK, fmt.Sprintf("attached to leap-wpt, epoch %d", info.Epoch), "")
	}
	if !info.IOUring {
		bad("runtime-io_uring", Warn, "it serves files by threads, which is slower", "its log says why, when it starts")
	}
	if info.UpgradeError != "" {
		bad("upgrade", Warn, info.UpgradeError, "upgrade again when that is cured")
	}
	if info.Setup == api.SetupFailed {
		bad("setup", Warn, "some of its setup could not be made", "its log says what; `leap-soc apply FILE` tries it again")
	}
	if info.StateDir != d.Paths.State {
		bad("state-dir", Warn, fmt.Sprintf("it keeps its state in %s, and this looked at %s", info.StateDir, d.Paths.State), "run leap-soc doctor with LEAP_STATE_DIR="+info.StateDir)
	}
	var failed []Finding
	for _, v := range volumes {
		if v.Error != "" {
			failed = append(failed, Finding{check("volume " + v.Name), Fail, v.State + ": " + v.Error, "its I/O waits or fails until that is cured; see REMOTE VOLUMES in leap-soc(8) for those of kind remote"})
		}
	}
	findings = append(findings, summed(check("volumes"), len(volumes), "all ready", failed)...)
	failed = nil
	for _, l := range listeners {
		if l.State == api.ListenerRetrying {
			failed = append(failed, Finding{check(fmt.Sprintf("listener %d", l.Number)), Fail, l.URL + ": " + l.Error, "it is tried again; see that the machine has the address, and that nobody else has the port"})
		}
	}
	return append(findings, summed(check("listeners"), len(listeners), "all listening", failed)...)
}

// limits looks for what is nearly used up. Daemons of before do not know the call.
func limits(ctx context.Context, check string, client *api.Client) []Finding {
	var all []api.Limit
	if err := get(ctx, client, api.Path("limits"), &all); err != nil {
		if fault.KindOf(err) == fault.Unsupported {
			return nil
		}
		return []Finding{failure(check+" limits", err, "")}
	}
	var near []Finding
	for _, l := range all {
		if l.Used != nil && float64(*l.Used) >= nearly*float64(l.Value) {
			fix := "it cannot be raised"
			if l.From != "" {
				fix = "raise " + l.From
			}
			near = append(near, Finding{check + " " + l.Name, Warn, fmt.Sprintf("%d of %d are used", *l.Used, l.Value), fix})
		}
	}
	return near
}

// nearly is the share of a limit from which on it is a finding.
const nearly = 0.9

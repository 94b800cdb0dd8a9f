// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// All file names under RUN and STATE.

package api

import (
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/units"
)

// DefaultRuntime is the name of a runtime that was given none.
const DefaultRuntime = "soc"

// The kinds of facts under RUN, and of events.
const (
	KindPort      = "port"
	KindVolume    = "volume"
	KindSubsystem = "subsystem"
	KindNamespace = "namespace" // events only
	KindListener  = "listener"
	KindRuntime   = "runtime" // events only
)

// maxSocketPath is what fits sun_path of unix(7) with its terminating NUL.
const maxSocketPath = 107

// Paths knows the name of every file that LeapIO keeps. Names of things that
// its methods take have passed units.CheckName.
type Paths struct {
	Run   string // sockets, facts, pid files; gone after a reboot
	State string // what must survive a reboot
}

// NewPaths makes both folders absolute and checks them: words with paths under
// run must survive an unquoted $(...) in sh and the JSON of QEMU's -device, so
// blanks, control characters, *?[, backslashes, double quotes and bytes that are
// no UTF-8 are refused, as is a run whose sockets do not fit sun_path. Errors are
// usage faults.
func NewPaths(run, state string) (Paths, error) {
	if run == "" || state == "" {
		return Paths{}, fault.Errorf(fault.Usage, "", "", "the name of the run or state folder is empty")
	}
	run, err := filepath.Abs(run)
	if err != nil {
		return Paths{}, err
	}
	state, err = filepath.Abs(state)
	if err != nil {
		return Paths{}, err
	}
	if !utf8.ValidString(run) {
		return Paths{}, fault.Errorf(fault.Usage, "", "", "bad run folder %q: it is not UTF-8", run)
	}
	bad := strings.IndexFunc(run, func(c rune) bool {
		return c <= ' ' || c == 0x7f || strings.ContainsRune(`*?[\"`, c)
	})
	if bad >= 0 {
		return Paths{}, fault.Errorf(fault.Usage, "", "",
			`bad run folder %q: blanks, control characters and any of *?[\" are refused`, run)
	}
	p := Paths{Run: run, State: state}
	return p, CheckSocketPath(p.LinkSocket())
}

// CheckRuntime tells whether s can name a runtime: a name of units.CheckName
// other than those whose sockets are leap-wpt's. Empty stands for
// DefaultRuntime. The error is a usage fault.
func CheckRuntime(s string) error {
	switch s {
	case "":
		return nil
	case "wpt", "link":
		return fault.Errorf(fault.Usage, "", "", "bad runtime name %q: that socket is leap-wpt's", s)
	}
	return units.CheckName("runtime", s)
}

// CheckSocketPath tells whether path fits the address of a Unix socket. The
// error is a usage fault that names the limit.
func CheckSocketPath(path string) error {
	if len(path) <= maxSocketPath {
		return nil
	}
	return fault.Errorf(fault.Usage, "", "", "socket path %s has %d bytes, the limit is %d", path, len(path), maxSocketPath).
		Hint("set LEAP_RUN_DIR to a shorter folder")
}

// WptSocket is the control socket of leap-wpt.
func (p Paths) WptSocket() string { return filepath.Join(p.Run, "wpt.sock") }

// LinkSocket is where runtimes attach to leap-wpt.
func (p Paths) LinkSocket() string { return filepath.Join(p.Run, "link.sock") }

// RuntimeSocket is the control socket of the runtime of this name; empty means
// DefaultRuntime. The error is that of CheckRuntime.
func (p Paths) RuntimeSocket(name string) (string, error) {
	if err := CheckRuntime(name); err != nil {
		return "", err
	}
	if name == "" {
		name = DefaultRuntime
	}
	return filepath.Join(p.Run, name+".sock"), nil
}

// PidFile is the pid file of a daemon: "wpt" or the name of a runtime.
func (p Paths) PidFile(daemon string) string { return filepath.Join(p.Run, daemon+".pid") }

// StateFile is the state file of a daemon: "wpt" or the name of a runtime.
func (p Paths) StateFile(daemon string) string { return filepath.Join(p.State, daemon+".json") }

// VolumeData is the data file that leap-soc makes for the volume of this name.
func (p Paths) VolumeData(name string) string {
	return filepath.Join(p.State, "volumes", name+".img")
}

// Facts is the folder with a folder for each thing of this kind: KindPort,
// KindVolume, KindSubsystem or KindListener.
func (p Paths) Facts(kind string) string { return filepath.Join(p.Run, kind) }

// PortDir has the socket and the facts of a port.
func (p Paths) PortDir(name string) string { return filepath.Join(p.Facts(KindPort), name) }

// PortSocket is the vfio-user socket of a port. It may be too long for an
// address: Listen tells.
func (p Paths) PortSocket(name string) string { return filepath.Join(p.PortDir(name), "cntrl") }

// VolumeDir has the facts of a volume.
func (p Paths) VolumeDir(name string) string { return filepath.Join(p.Facts(KindVolume), name) }

// SubsystemDir has the facts of a subsystem, whose name may be an NQN.
func (p Paths) SubsystemDir(name string) string {
	return filepath.Join(p.Facts(KindSubsystem), fileName(name))
}

// ListenerDir has the facts of a listener.
func (p Paths) ListenerDir(number int) string {
	return filepath.Join(p.Facts(KindListener), strconv.Itoa(number))
}

// escapes make a file name of an NQN, another one for each: hosts accept those
// with a slash in them.
var escapes = strings.NewReplacer("/", "%2F", "%", "%25")

// fileName is the name of a thing's folder.
func fileName(name string) string { return escapes.Replace(name) }

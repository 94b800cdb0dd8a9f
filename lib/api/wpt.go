// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// The types of leap-wpt's control API.

package api

import (
	"strings"
	"time"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/units"
)

// How a guest's doorbell writes reach the runtime.
const (
	DoorbellsTrap = "trap" // each write is a vfio-user message; the default
	DoorbellsMap  = "map"  // the page is mapped into the guest and polled
)

// The states of a port.
const (
	PortWaiting  = "waiting"  // no vfio-user client is connected
	PortAttached = "attached" // a client is connected, its guest has not set CC.EN
	PortEnabled  = "enabled"  // CSTS.RDY is 1: the guest uses the drive
	PortFrozen   = "frozen"   // CC.EN is 1, but no runtime is attached: the guest waits
)

// PortSpec asks for a port. What is empty takes its default.
type PortSpec struct {
	Name      string `json:"name"`
	Owner     string `json:"owner"`     // USER[:GROUP] that may connect; default: the caller
	Doorbells string `json:"doorbells"` // DoorbellsTrap (default) or DoorbellsMap
	Subsystem string `json:"subsystem"` // name or NQN of what the port shows; may come later
	Runtime   string `json:"runtime"`   // name of the runtime that serves it; default: DefaultRuntime
	ExistOK   bool   `json:"exist_ok"`  // an equal port that exists is no error
}

// Check tells whether the words of the request are well-formed.
func (s PortSpec) Check() error {
	if err := units.CheckName("port", s.Name); err != nil {
		return err
	}
	if err := checkDoorbells(s.Doorbells); err != nil {
		return err
	}
	if s.Owner != "" {
		user, group, pair := strings.Cut(s.Owner, ":")
		if user == "" || pair && group == "" || strings.ContainsAny(s.Owner, " \t\n\x00") {
			return fault.Errorf(fault.Usage, "", "", "bad owner %q: it is not USER[:GROUP]", s.Owner)
		}
	}
	if s.Subsystem != "" {
		if err := CheckSubsystem(s.Subsystem); err != nil {
			return err
		}
	}
	return CheckRuntime(s.Runtime)
}

// PortBinding says what a port shows, and who serves it. An empty Subsystem
// takes the wire away.
type PortBinding struct {
	Subsystem string `json:"subsystem"` // name or NQN
	Runtime   string `json:"runtime"`   // default: DefaultRuntime
	Poll      string `json:"poll"`      // PollAdaptive, ...; empty: as the runtime
}

// Check tells whether the words of the request are well-formed.
func (b PortBinding) Check() error {
	if b.Subsystem != "" {
		if err := CheckSubsystem(b.Subsystem); err != nil {
			return err
		}
	}
	switch b.Poll {
	case "", PollAdaptive, PollBusy, PollInterrupt:
		return CheckRuntime(b.Runtime)
	}
	return fault.Errorf(fault.Usage, "", "", "bad poll mode %q: it is none of adaptive, busy, interrupt", b.Poll)
}

// Port is a vfio-user entry for one VM.
type Port struct {
	Name       string        `json:"name"`
	State      string        `json:"state"` // PortWaiting, PortAttached, PortEnabled or PortFrozen
	Since      time.Time     `json:"since"` // when State was entered
	Socket     string        `json:"socket"`
	Owner      string        `json:"owner"`
	Doorbells  string        `json:"doorbells"`
	Subsystem  string        `json:"subsystem"`   // empty while nothing is mapped
	Runtime    string        `json:"runtime"`     // the runtime it is meant for, attached or not
	Poll       string        `json:"poll"`        // as bound; empty: as the runtime
	Epoch      uint64        `json:"epoch"`       // of the runtime that serves it, 0 without one
	ClientPID  int           `json:"client_pid"`  // 0 without a client
	ClientName string        `json:"client_name"` // command name of that process, such as qemu-system-x86
	Queues     int           `json:"queues"`      // I/O queue pairs the guest has made
	Regions    int           `json:"regions"`     // mapped regions of guest memory
	Memory     units.Size    `json:"memory"`      // bytes in those regions
	ResetGen   uint64        `json:"reset_gen"`   // resets seen since the port was made
	TimeLeft   time.Duration `json:"time_left"`   // frozen: until the guest drops its drive; else 0
}

// PortRegions is the guest memory of a port, as its client has registered it.
type PortRegions struct {
	ClientPID  int          `json:"client_pid"` // 0 without a client
	Generation uint64       `json:"generation"` // rises with every change of the table
	Regions    List[Region] `json:"regions"`    // by address
}

// Region is a range of guest memory. Device and Inode are those of the file the
// client gave for it, as stat(2) has them; without a file both are 0, and the
// memory is reached by messages.
type Region struct {
	Addr   uint64     `json:"addr"` // guest-physical
	Size   units.Size `json:"size"`
	Perms  string     `json:"perms"` // r, w, rw: what devices may do
	Device uint64     `json:"device"`
	Inode  uint64     `json:"inode"`
	Offset uint64     `json:"offset"` // of Addr in the file
}

// Runtime is a leap-soc process that is attached to leap-wpt.
type Runtime struct {
	Name  string       `json:"name"`
	PID   int          `json:"pid"`
	Epoch uint64       `json:"epoch"` // rises with every attachment
	Since time.Time    `json:"since"`
	Ports List[string] `json:"ports"` // names of the ports it serves
}

// Kept is a file that a runtime left with leap-wpt to outlive the runtime.
type Kept struct {
	Name    string     `json:"name"`
	Runtime string     `json:"runtime"`
	Size    units.Size `json:"size"`
}

// WptShow is all that leap-wpt knows.
type WptShow struct {
	Version  string        `json:"version"`
	PID      int           `json:"pid"`
	Since    time.Time     `json:"since"`
	Ports    List[Port]    `json:"ports"`
	Runtimes List[Runtime] `json:"runtimes"`
	Kept     List[Kept]    `json:"kept"`

	// Pause is how long guests had to wait when this program took over from
	// another one; 0 if it did not. UpgradeError is why the last upgrade did not
	// come about; empty if nothing went wrong.
	Pause        time.Duration `json:"pause"`
	UpgradeError string        `json:"upgrade_error"`
}

// checkDoorbells accepts the two modes and "" for the default.
func checkDoorbells(s string) error {
	switch s {
	case "", DoorbellsTrap, DoorbellsMap:
		return nil
	}
	return fault.Errorf(fault.Usage, "", "", "bad doorbells %q: it is neither trap nor map", s)
}

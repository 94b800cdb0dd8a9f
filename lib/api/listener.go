// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// The types of listeners in leap-soc's control API.

package api

import (
	"slices"
	"time"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/units"
)

// States of a listener.
const (
	ListenerListening = "listening" // hosts can connect
	ListenerRetrying  = "retrying"  // its address cannot be had; that is tried again
)

// ListenerSpec asks for a listener. Its targets are subsystems, by name or NQN,
// or else volumes, for which an implicit subsystem is made that goes with the
// listener, or else nvme.NQNDiscovery alone: there hosts discover what they may
// use at all other listeners. The same request again is answered with the listener that exists;
// another one for the same address is an exists fault.
type ListenerSpec struct {
	URL       string       `json:"url"`       // tcp://HOST[:PORT]; an NQN in it is the only target; port 0: any that is free, which is kept
	Targets   List[string] `json:"targets"`   // none: every subsystem
	Allow     List[string] `json:"allow"`     // volumes only: the hosts that may connect, NQNs or HostAny
	Advertise string       `json:"advertise"` // HOST[:PORT] that discovery tells hosts; empty: the address they have come to
	Referrals List[string] `json:"referrals"` // URLs of other discovery controllers that discovery names, without an NQN the well-known one
	Shared    bool         `json:"shared"`    // volumes only, as NamespaceSpec.Shared
	ReadOnly  bool         `json:"read_only"` // volumes only, as NamespaceSpec.ReadOnly
	UUID      string       `json:"uuid"`      // volumes only, as SubsystemSpec.UUID
}

// Check tells whether the words of the request are well-formed. The URL and the
// address are for the runtime to read.
func (s ListenerSpec) Check() error {
	for i, target := range s.Targets {
		if err := CheckTarget(target); err != nil {
			return err
		}
		if slices.Contains(s.Targets[:i], target) {
			return fault.Errorf(fault.Usage, "", "", "target %s is given twice", target)
		}
	}
	for _, host := range s.Allow {
		if err := (HostSpec{host}).Check(); err != nil {
			return err
		}
	}
	return CheckUUID(s.UUID)
}

// CheckTarget tells whether a word can be a subsystem, by name or NQN, or a
// volume. The error is a usage fault.
func CheckTarget(target string) error {
	if IsNQN(target) {
		return CheckNQN(target)
	}
	return units.CheckName("target", target)
}

// Listener is an address at which hosts connect.
type Listener struct {
	Number    int          `json:"number"` // 1 and up
	URL       string       `json:"url"`
	Targets   List[string] `json:"targets"` // names of subsystems; none: every subsystem; or nvme.NQNDiscovery
	Advertise string       `json:"advertise"`
	Referrals List[string] `json:"referrals"` // with port and NQN, sorted
	State     string       `json:"state"`
	Error     string       `json:"error"` // why it is not listening
	// Subsystems are the NQNs of those it shows now to hosts that they allow, or
	// nvme.NQNDiscovery where it is for discovery only.
	Subsystems   List[string]      `json:"subsystems"`
	Associations List[Association] `json:"associations"`
}

// Association is a host that is connected to a controller.
type Association struct {
	Host      string    `json:"host"`      // its NQN
	Subsystem string    `json:"subsystem"` // the NQN of the subsystem
	CNTLID    uint16    `json:"cntlid"`    // of the controller
	Queues    int       `json:"queues"`    // connections, that of the admin queue among them
	Address   string    `json:"address"`   // of the host, HOST:PORT
	Since     time.Time `json:"since"`
}

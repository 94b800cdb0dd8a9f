// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// The types of leap-soc's control API.

package api

import (
	"time"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/units"
)

// How pollers wait for work.
const (
	PollAdaptive  = "adaptive"  // spin a little, then sleep; the default
	PollBusy      = "busy"      // never sleep
	PollInterrupt = "interrupt" // always sleep
)

// What has become of the setup that a runtime makes when it starts.
const (
	SetupNone     = "none"     // there is none
	SetupApplying = "applying" // its lines are being made
	SetupApplied  = "applied"  // all of it is there
	SetupFailed   = "failed"   // some of it is not
)

// HostAny in the place of a host's NQN means every host.
const HostAny = "any"

// VolumeSpec asks for a volume.
type VolumeSpec struct {
	Name    string       `json:"name"`
	Kind    string       `json:"kind"`
	UUID    string       `json:"uuid"`     // default: a new one
	On      List[string] `json:"on"`       // names of the volumes below it, in order
	Options Options      `json:"options"`  // the key=value words of the kind
	ExistOK bool         `json:"exist_ok"` // an equal volume that exists is no error
}

// Check tells whether the words of the request are well-formed. Which kinds
// exist and which options they take is for the runtime to know.
func (s VolumeSpec) Check() error {
	if err := units.CheckName("volume", s.Name); err != nil {
		return err
	}
	if err := units.CheckName("kind", s.Kind); err != nil {
		return err
	}
	if err := CheckUUID(s.UUID); err != nil {
		return err
	}
	for _, on := range s.On {
		if err := units.CheckName("volume", on); err != nil {
			return err
		}
		if on == s.Name {
			return fault.Errorf(fault.Usage, "", "", "volume %s cannot be on itself", s.Name)
		}
	}
	return nil
}

// Volume is addressable blocks.
type Volume struct {
	Name    string       `json:"name"`
	Kind    string       `json:"kind"`
	Size    units.Size   `json:"size"`  // bytes
	Block   units.Size   `json:"block"` // bytes in a logical block
	State   string       `json:"state"` // such as "ready"; the words are the kind's
	Error   string       `json:"error"` // why it is not ready
	UUID    string       `json:"uuid"`
	Path    string       `json:"path"` // the file or device, empty for kinds without one
	On      List[string] `json:"on"`
	Options Options      `json:"options"`
	UsedBy  List[string] `json:"used_by"` // "namespace SUBSYSTEM/NSID"
}

// VolumeResize gives a volume another size.
type VolumeResize struct {
	Size   units.Size `json:"size"`   // bytes
	Add    bool       `json:"add"`    // to the size it has; else that is its size
	Shrink bool       `json:"shrink"` // it may be less: what is beyond is given up
}

// Check tells whether the words of the request are well-formed.
func (s VolumeResize) Check() error {
	switch {
	case s.Size == 0 && !s.Add:
		return fault.Errorf(fault.Usage, "", "", "bad size 0: a volume is not empty")
	case s.Add && s.Shrink:
		return fault.Errorf(fault.Usage, "", "", "a volume does not shrink by an addition")
	}
	return nil
}

// VolumeDelete says what goes with the entry of a volume.
type VolumeDelete struct {
	Data bool `json:"data"` // the data file as well, if leap-soc made it
}

// KindInfo describes a kind of volume.
type KindInfo struct {
	Kind    string    `json:"kind"`
	Summary string    `json:"summary"` // one line
	Keys    List[Key] `json:"keys"`
}

// Key describes one key=value option of a kind.
type Key struct {
	Name    string `json:"name"`
	Type    string `json:"type"`    // what its value is, as help writes it: SIZE, PATH, or the choices, 512|4096
	Default string `json:"default"` // empty: none
	Summary string `json:"summary"` // one line
}

// SubsystemSpec asks for an NVM subsystem. Name may be an NQN, which is then
// also its NQN.
type SubsystemSpec struct {
	Name     string `json:"name"`
	NQN      string `json:"nqn"`       // default: nqn.2014-08.org.nvmexpress:uuid:UUID
	UUID     string `json:"uuid"`      // its serial number is made of it; default: a new one
	AllowAny bool   `json:"allow_any"` // every host may connect
	ExistOK  bool   `json:"exist_ok"`  // an equal subsystem that exists is no error

	// Implicit marks a subsystem that goes with its last use, as those that
	// leap-qmap map makes. Volumes are shown in it from the start, as namespaces 1
	// and up: all of it is made or nothing.
	Implicit bool         `json:"implicit"`
	Volumes  List[string] `json:"volumes"`
	Shared   bool         `json:"shared"`    // of the namespaces, as NamespaceSpec.Shared
	ReadOnly bool         `json:"read_only"` // of the namespaces, as NamespaceSpec.ReadOnly
}

// Check tells whether the words of the request are well-formed.
func (s SubsystemSpec) Check() error {
	if err := CheckSubsystem(s.Name); err != nil {
		return err
	}
	if err := CheckUUID(s.UUID); err != nil {
		return err
	}
	if s.NQN == "" {
		return nil
	}
	if IsNQN(s.Name) && s.Name != s.NQN {
		return fault.Errorf(fault.Usage, "", "", "two different NQNs: %s and %s", s.Name, s.NQN)
	}
	return CheckNQN(s.NQN)
}

// Subsystem is an NVM subsystem.
type Subsystem struct {
	Name       string          `json:"name"`
	NQN        string          `json:"nqn"`
	Serial     string          `json:"serial"`
	UUID       string          `json:"uuid"`
	Implicit   bool            `json:"implicit"` // made by map or listen, goes with its last use
	AllowAny   bool            `json:"allow_any"`
	Hosts      List[string]    `json:"hosts"` // NQNs that may connect
	Namespaces List[Namespace] `json:"namespaces"`
	Ports      List[string]    `json:"ports"`     // names of the ports that show it
	Listeners  List[int]       `json:"listeners"` // numbers of those that have it as a target
}

// NamespaceSpec asks for a volume to be shown in a subsystem, which the path of
// the request names.
type NamespaceSpec struct {
	Volume   string `json:"volume"`
	NSID     uint32 `json:"nsid"`      // 1 to 2^32-2; 0: the lowest that is free
	Shared   bool   `json:"shared"`    // the volume may be in use elsewhere, too
	ReadOnly bool   `json:"read_only"` // hosts cannot write; it is a use of the volume all the same
	ExistOK  bool   `json:"exist_ok"`  // an equal namespace that exists is no error
}

// Check tells whether the words of the request are well-formed.
func (s NamespaceSpec) Check() error {
	if s.NSID == 1<<32-1 {
		// NVMe Base: FFFFFFFFh is the broadcast value.
		return fault.Errorf(fault.Usage, "", "", "bad nsid %d: it means all namespaces", s.NSID)
	}
	return units.CheckName("volume", s.Volume)
}

// Namespace is a volume shown in a subsystem.
type Namespace struct {
	Subsystem string     `json:"subsystem"` // its name
	NSID      uint32     `json:"nsid"`
	Volume    string     `json:"volume"`
	UUID      string     `json:"uuid"`
	Size      units.Size `json:"size"`  // bytes
	Block     units.Size `json:"block"` // bytes in a logical block
	Shared    bool       `json:"shared"`
	ReadOnly  bool       `json:"read_only"`
	// WriteProtected: hosts have write protected it, and can take that back.
	WriteProtected bool `json:"write_protected"`
}

// HostSpec lets a host use the subsystem that the path of the request names.
type HostSpec struct {
	Host string `json:"host"` // an NQN or HostAny
}

// Check tells whether the words of the request are well-formed.
func (s HostSpec) Check() error {
	if s.Host == HostAny {
		return nil
	}
	return CheckNQN(s.Host)
}

// QueuePair is a submission queue with its completion queue, as the runtime
// serves it.
type QueuePair struct {
	Port        string `json:"port"`
	QID         uint16 `json:"qid"`  // of the submission queue; 0 is the admin queue
	CQID        uint16 `json:"cqid"` // several submission queues may share one
	SQEntries   uint32 `json:"sq_entries"`
	CQEntries   uint32 `json:"cq_entries"`
	SQAddr      uint64 `json:"sq_addr"` // guest-physical
	CQAddr      uint64 `json:"cq_addr"`
	SQHead      uint32 `json:"sq_head"` // next entry to fetch
	SQTail      uint32 `json:"sq_tail"` // as the guest last published it
	CQHead      uint32 `json:"cq_head"` // as the guest last published it
	CQTail      uint32 `json:"cq_tail"` // next entry to publish
	Vector      uint32 `json:"vector"`
	Interrupts  bool   `json:"interrupts"`
	Outstanding int    `json:"outstanding"` // commands fetched and not completed
	Shadow      bool   `json:"shadow"`      // Doorbell Buffer Config is in use
	Poller      string `json:"poller"`      // that serves it

	Since     time.Time `json:"since"`     // this runtime serves it
	Completed uint64    `json:"completed"` // commands since then, without event requests
}

// Ring is the content of one ring at a moment. The guest goes on meanwhile.
type Ring struct {
	Port    string       `json:"port"`
	QID     uint16       `json:"qid"`
	Kind    string       `json:"kind"` // "sq" or "cq"
	Addr    uint64       `json:"addr"` // guest-physical
	Head    uint32       `json:"head"`
	Tail    uint32       `json:"tail"`
	Entries List[[]byte] `json:"entries"` // raw, 64 or 16 bytes each
}

// RuntimeInfo describes a leap-soc process.
type RuntimeInfo struct {
	Name    string           `json:"name"`
	Version string           `json:"version"`
	PID     int              `json:"pid"`
	Since   time.Time        `json:"since"`
	Uptime  time.Duration    `json:"uptime"`
	Epoch   uint64           `json:"epoch"` // that leap-wpt granted, 0 while not attached
	Poll    string           `json:"poll"`
	IOUring bool             `json:"io_uring"` // false: the pread pool stands in
	Pollers List[PollerInfo] `json:"pollers"`

	// Pause is how long guests had to wait when this runtime took over from
	// another at an upgrade; 0 if it did not. UpgradeError is why an upgrade did
	// not come about; empty if nothing went wrong.
	Pause        time.Duration `json:"pause"`
	UpgradeError string        `json:"upgrade_error"`

	StateDir string `json:"state_dir"` // the folder of what it keeps
	Setup    string `json:"setup"`     // SetupNone, ...
}

// PollerInfo describes one poller.
type PollerInfo struct {
	ID     int `json:"id"`
	CPU    int `json:"cpu"`    // -1: not bound to one
	Queues int `json:"queues"` // queue pairs it serves
}

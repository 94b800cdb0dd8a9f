// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"cmp"
	"slices"
	"time"

	"github.com/leapio/leapio/lib/vfiouser"
)

// All that a program has to know to go on where this one stopped, by an upgrade
// or by a crash, is in shared pages, in journals of connections, and in these
// tables, which are written whenever something of theirs changes: before anybody
// outside learns of it.

// brokerTable is what belongs to no port.
type brokerTable struct {
	From     string         `json:"from"`    // version of the program
	Layouts  map[string]int `json:"layouts"` // of what else is left
	PID      fileID         `json:"pid"`     // files: the pid file, the sockets
	Links    fileID         `json:"links"`
	Control  fileID         `json:"control"`
	Epoch    uint64         `json:"epoch"`
	LastID   uint32         `json:"last_id"`
	Runtimes []runtimeEntry `json:"runtimes"`
	Kept     []keptEntry    `json:"kept"`
	Ports    []portEntry    `json:"ports"`
}

// runtimeEntry is a runtime that is not gone yet.
type runtimeEntry struct {
	Name  string    `json:"name"`
	PID   int       `json:"pid"`
	Epoch uint64    `json:"epoch"`
	Since time.Time `json:"since"`
	Fence fileID    `json:"fence"`
}

type keptEntry struct {
	Runtime string `json:"runtime"`
	Name    string `json:"name"`
	File    fileID `json:"file"`
}

// portEntry says where the table of a port is.
type portEntry struct {
	Name  string `json:"name"`
	Table fileID `json:"table"`
}

// portTable is what a port is and has.
type portTable struct {
	ID          uint32        `json:"id"`
	Record      record        `json:"record"`
	Registers   fileID        `json:"registers"`
	Doorbells   fileID        `json:"doorbells"`
	State       fileID        `json:"state"`
	Kick        fileID        `json:"kick"`
	Listener    fileID        `json:"listener"`
	Journal     fileID        `json:"journal"`
	Config      []byte        `json:"config"`
	FunctionGen uint64        `json:"function_gen"`
	Holder      uint64        `json:"holder"` // epoch; 0: none
	Subsystem   string        `json:"subsystem"`
	Poll        string        `json:"poll"` // with Subsystem, what the holder was told
	Shown       string        `json:"shown"`
	Since       time.Time     `json:"since"`
	Regions     []regionEntry `json:"regions"`
	Vectors     []vectorEntry `json:"vectors"`
	MSIX        bool          `json:"msix"`
	Mask        bool          `json:"mask"`
	Client      *clientEntry  `json:"client"`
}

type regionEntry struct {
	Addr   uint64 `json:"addr"`
	Size   uint64 `json:"size"`
	Offset uint64 `json:"offset"`
	Flags  uint32 `json:"flags"`
	File   fileID `json:"file"` // noFile: the client does not share it
}

type vectorEntry struct {
	Index  vfiouser.IRQ `json:"index"`
	Vector uint32       `json:"vector"`
	File   fileID       `json:"file"`
}

type clientEntry struct {
	Socket     fileID `json:"socket"`
	Negotiated bool   `json:"negotiated"`
	Limit      uint64 `json:"limit"` // of a piece
}

// note writes the broker's table. The caller holds no lock that is below admin.
func (b *Broker) note() {
	step()
	b.noteMu.Lock()
	defer b.noteMu.Unlock()
	if b.table == nil {
		return // not all is there yet
	}
	t := brokerTable{
		From: b.version, Layouts: layouts,
		PID: b.files.id(b.pidFD), Links: b.files.id(b.linksFD), Control: b.files.id(b.controlFD),
	}
	b.mu.Lock()
	t.LastID = b.lastID
	for _, p := range b.ports {
		t.Ports = append(t.Ports, portEntry{p.name, b.files.id(p.table.fd)})
	}
	b.mu.Unlock()
	b.linkMu.Lock()
	t.Epoch = b.epoch
	for _, rt := range b.runtimes {
		t.Runtimes = append(t.Runtimes, runtimeEntry{Name: rt.name, PID: rt.pid, Epoch: rt.epoch, Since: rt.since, Fence: b.files.id(rt.fenceFD)})
	}
	b.linkMu.Unlock()
	slices.SortFunc(t.Runtimes, func(a, b runtimeEntry) int { return cmp.Compare(a.Epoch, b.Epoch) })
	t.Kept = b.kept.entries()
	if err := b.table.write(&t); err != nil {
		b.log.Error("writing what the next program has to know", "err", err)
	}
	step()
}

// note writes the port's table. The caller holds mu.
func (p *port) note() {
	step()
	f := p.broker.files
	t := portTable{
		ID: p.id, Record: p.record,
		Registers: f.id(p.regs.FD()), Doorbells: f.id(p.bells.FD()), State: f.id(p.state.FD()),
		Kick: f.id(p.kick), Listener: f.id(p.listenerFD), Journal: f.id(p.journalFD),
		Config: p.config[:], FunctionGen: p.functionGen,
		Subsystem: p.told.subsystem, Poll: p.told.poll, Shown: p.shown, Since: p.since,
		MSIX: p.irqs.msix, Mask: p.irqs.mask,
	}
	if p.holder != nil {
		t.Holder = p.holder.epoch
	}
	for _, r := range p.regions.regions {
		t.Regions = append(t.Regions, regionEntry{Addr: r.addr, Size: r.size, Offset: r.offset, Flags: r.flags, File: f.id(r.fd)})
	}
	for index, vectors := range p.irqs.fds {
		for v, fd := range vectors {
			if fd != noFD {
				t.Vectors = append(t.Vectors, vectorEntry{Index: vfiouser.IRQ(index), Vector: uint32(v), File: f.id(fd)})
			}
		}
	}
	if c := p.client; c != nil {
		t.Client = &clientEntry{Socket: f.id(c.socketFD), Negotiated: c.negotiated, Limit: c.relays.limit}
	}
	if err := p.table.write(&t); err != nil {
		p.log.Error("writing what the next program has to know", "err", err)
	}
	step()
}

// step is called before and after something is noted, and where something that
// others see is half done. Tests kill the program there.
var step = func() {}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package remote

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leapio/leapio/lib/fabrics/host"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
)

// association is an association with the controller: what it can do, and what
// of it is not in use.
type association struct {
	admin   *host.Admin
	ctrl    nvme.IdentifyController
	info    volume.Info
	id      string        // of the namespace
	queues  uint16        // I/O queues that there may be
	next    uint16        // the last QID that was used
	quiesce time.Duration // from the last command on the admin queue until nothing is in execution

	// What one command can do, in bytes; 0: it cannot.
	data, zeroes, discard uint64

	broken chan error // why a connection of it has broken; the first counts

	lost atomic.Bool
	safe atomic.Int64 // when nothing of it is in execution any more, as remote.now; 0: it is not lost yet

	mu   sync.Mutex
	idle []*host.Socket // of lanes that have ended
}

// connect makes an association, and checks that its namespace is the volume's.
func (r *remote) connect(ctx context.Context) (*association, error) {
	a := &association{broken: make(chan error, 1)}
	var err error
	if a.admin, err = host.Connect(ctx, r.addr, r.options); err != nil {
		return nil, fmt.Errorf("%s: %w", r.addr, err)
	}
	if err = a.identify(ctx, r.addr.NSID, r.options.KeepAlive); err == nil {
		err = r.check(a)
	}
	if err != nil {
		a.admin.Close()
		return nil, fmt.Errorf("%s: %w", r.addr, err)
	}
	return a, nil
}

// check holds the namespace against what the volume is.
func (r *remote) check(a *association) error {
	info := r.info.Load()
	switch {
	case info == nil: // it is being made
		return nil
	case a.id != r.id:
		return otherNamespace(r.id, a.id)
	case a.info.Block != info.Block:
		return fault.Errorf(fault.Failure, "", "", "the block of the namespace has changed from %d to %d bytes", info.Block, a.info.Block)
	case a.info.Size < info.Size:
		return fault.Errorf(fault.Failure, "", "", "the namespace has shrunk from %d to %d bytes", info.Size, a.info.Size)
	}
	return nil
}

// identify enables the controller and asks for all that is to be known.
func (a *association) identify(ctx context.Context, nsid uint32, keepAlive time.Duration) error {
	if err := a.admin.Enable(ctx); err != nil {
		return err
	}
	id, err := a.admin.IdentifyController(ctx)
	if err != nil {
		return err
	}
	a.ctrl = *id
	if a.ctrl.KAS == 0 {
		return fault.Errorf(fault.Unsupported, "", "", "the controller has no Keep Alive")
	}
	a.quiesce = keepAlive + time.Duration(a.ctrl.KAS)*100*time.Millisecond // it rounds up
	if cqt := time.Duration(a.ctrl.CQT) * time.Millisecond; cqt > 0 {
		a.quiesce += cqt
	} else {
		a.quiesce += keepAlive
	}
	var ns nvme.IdentifyNamespace
	var e nvme.SQE
	e.NSID = nsid
	nvme.Identify{CNS: nvme.CNSNamespace}.Put(&e)
	if _, err := a.admin.Do(ctx, "Identify", e, nil, nvme.Bytes(&ns)); err != nil {
		return err
	}
	if err := a.namespace(nsid, &ns); err != nil {
		return err
	}
	if err := a.limit(ctx, &ns); err != nil {
		return err
	}
	return a.countQueues(ctx)
}

// namespace takes what the namespace is.
func (a *association) namespace(nsid uint32, ns *nvme.IdentifyNamespace) error {
	if ns.NSZE == 0 {
		return fault.Errorf(fault.NotFound, "", "", "there is no namespace %d", nsid)
	}
	block, ok := ns.BlockSize()
	format := ns.LBAF[ns.FormatIndex()]
	switch {
	case !ok || block != 512 && block != 4096:
		return fault.Errorf(fault.Unsupported, "", "", "namespace %d has blocks of %d bytes, neither 512 nor 4096", nsid, block)
	case format.MS != 0:
		return fault.Errorf(fault.Unsupported, "", "", "namespace %d has %d bytes of metadata in each block", nsid, format.MS)
	case ns.NSZE > math.MaxInt64/uint64(block):
		return fault.Errorf(fault.Peer, "", "", "namespace %d has %d blocks of %d bytes", nsid, ns.NSZE, block)
	}
	a.id = namespaceID(ns)
	blocks := func(n uint16) uint32 { return uint32(min(uint64(n)+1, math.MaxUint32/uint64(block)) * uint64(block)) }
	a.info = volume.Info{
		Size: ns.NSZE * uint64(block), Block: block, ReadOnly: ns.NSATTR&nvme.NSATTRWriteProtected != 0,
		VolatileCache:    a.ctrl.VWC&nvme.VWCPresent != 0,
		WriteGranularity: block, DiscardGranularity: block, AtomicUnit: blocks(a.ctrl.AWUPF),
	}
	if ns.NSFEAT&nvme.NSFEATOptimal != 0 {
		a.info.WriteGranularity, a.info.DiscardGranularity = blocks(ns.NPWG), blocks(ns.NPDG)
	}
	if ns.NSFEAT&nvme.NSFEATAtomic != 0 {
		switch {
		case ns.NABSPF != 0: // there are boundaries
			a.info.AtomicUnit = block
		case ns.NAWUPF != 0:
			a.info.AtomicUnit = blocks(ns.NAWUPF)
		}
	}
	return nil
}

// maxBlocks is the most blocks of a command with NLB.
const maxBlocks = 1 << 16

// minPage is the least unit of MDTS and WZSL, CAP.MPSMIN 0.
const minPage = 4096

// limit takes what one command can do. Identify for the NVM command set is
// younger than NVMe/TCP: a controller need not know it.
func (a *association) limit(ctx context.Context, ns *nvme.IdentifyNamespace) error {
	var nvm nvme.IdentifyNVMController
	var e nvme.SQE
	nvme.Identify{CNS: nvme.CNSIOCSController, CSI: nvme.CSINVM}.Put(&e)
	var status *host.StatusError
	if _, err := a.admin.Do(ctx, "Identify", e, nil, nvme.Bytes(&nvm)); errors.As(err, &status) {
		nvm = nvme.IdentifyNVMController{}
	} else if err != nil {
		return err
	}
	block := uint64(a.info.Block)
	power := func(n uint8) uint64 { return minPage << min(n, 40) }
	a.data = host.MaxTransfer
	if a.ctrl.MDTS != 0 {
		a.data = min(a.data, power(a.ctrl.MDTS))
	}
	a.info.AtomicUnit = min(a.info.AtomicUnit, uint32(a.data)) // what is longer becomes several commands
	if a.ctrl.ONCS&nvme.ONCSWriteZeroes != 0 {
		if a.zeroes = maxBlocks * block; nvm.WZSL != 0 {
			a.zeroes = min(a.zeroes, power(nvm.WZSL))
		}
	}
	// What is given up reads zero or as before, or it is not given up.
	const reads = 7
	if a.ctrl.ONCS&nvme.ONCSDatasetManagement != 0 && ns.DLFEAT&reads == nvme.DLFEATReadsZeroes {
		n := uint64(math.MaxUint32)
		if nvm.DMRSL != 0 {
			n = uint64(nvm.DMRSL)
		}
		if nvm.DMSL != 0 {
			n = min(n, nvm.DMSL)
		}
		a.discard = n * block
	}
	return nil
}

// countQueues asks for as many I/O queues as there may be.
func (a *association) countQueues(ctx context.Context) error {
	const most = 1024
	var e nvme.SQE
	nvme.SetFeatures{FID: nvme.FeatNumberOfQueues, Value: uint32(nvme.MakeNumberOfQueues(most-1, most-1))}.Put(&e)
	c, err := a.admin.Do(ctx, "Set Features Number of Queues", e, nil, nil)
	if err != nil {
		return err
	}
	n := nvme.NumberOfQueues(c.DW0)
	a.queues = uint16(min(int(n.NSQ()), int(n.NCQ()), most-1)) + 1
	return nil
}

// report tells that a connection has broken.
func (a *association) report(err error) {
	select {
	case a.broken <- err:
	default:
	}
}

// park keeps the socket of a lane that has ended for the next one.
func (a *association) park(s *host.Socket) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lost.Load() {
		s.Close()
		return
	}
	a.idle = append(a.idle, s)
}

// socket returns an I/O queue that no lane has.
func (a *association) socket(ctx context.Context, r *remote) (*host.Socket, error) {
	a.mu.Lock()
	if n := len(a.idle); n > 0 {
		s := a.idle[n-1]
		a.idle = a.idle[:n-1]
		a.mu.Unlock()
		return s, nil
	}
	a.mu.Unlock()
	if a.next == a.queues {
		return nil, fault.Errorf(fault.Unsupported, "", "", "more pollers use the volume than the controller has I/O queues for a host, %d", a.queues)
	}
	a.next++
	return a.admin.ConnectQueue(ctx, r.addr, r.options, &a.ctrl, a.next)
}

// end closes what of the association is not with a lane.
func (a *association) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lost.Store(true)
	a.admin.Close()
	for _, s := range a.idle {
		s.Close()
	}
	a.idle = nil
}

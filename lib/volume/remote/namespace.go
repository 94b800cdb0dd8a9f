// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package remote

import (
	"context"
	"encoding/hex"
	"math"

	"github.com/leapio/leapio/lib/fabrics/host"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
)

// namespace is what a namespace is, and what one command can do with it.
type namespace struct {
	info volume.Info
	ids  identifiers

	// Bytes of one command; 0: it cannot.
	data, zeroes, discard uint64
}

// identifiers are those of a namespace, in hexadecimal, or as UUIDs are written;
// "": it has none.
type identifiers struct{ nguid, eui64, uuid string }

// noID is noted of a namespace that has none.
const noID = "none"

// String returns the identifier to note: the first that there is.
func (i *identifiers) String() string {
	for _, id := range []string{i.nguid, i.eui64, i.uuid} {
		if id != "" {
			return id
		}
	}
	return noID
}

// are reports whether these are the identifiers of the namespace of which noted
// was noted. Before UUIDs were looked at, only NGUID and EUI64 were.
func (i *identifiers) are(noted string) bool {
	if noted == noID {
		return i.nguid == "" && i.eui64 == ""
	}
	return noted == i.nguid || noted == i.eui64 || noted == i.uuid
}

// check holds a namespace against what the volume is.
func (r *remote) check(ns *namespace) error {
	info := r.info.Load()
	switch {
	case info == nil: // it is being made
		return nil
	case !ns.ids.are(r.id):
		return otherNamespace(r.id, &ns.ids)
	case ns.info.Block != info.Block:
		return fault.Errorf(fault.Failure, "", "", "the block of the namespace has changed from %d to %d bytes", info.Block, ns.info.Block)
	case ns.info.Size < info.Size:
		return fault.Errorf(fault.Failure, "", "", "the namespace has shrunk from %d to %d bytes", info.Size, ns.info.Size)
	}
	return nil
}

func otherNamespace(want string, got *identifiers) error {
	return fault.Errorf(fault.Failure, "", "", "the namespace is another one: it was %s, and is %s", want, got)
}

// identify asks a controller what its namespace nsid is.
func (n *namespace) identify(ctx context.Context, admin *host.Admin, ctrl *nvme.IdentifyController, nsid uint32) error {
	var ns nvme.IdentifyNamespace
	e := nvme.SQE{NSID: nsid}
	nvme.Identify{CNS: nvme.CNSNamespace}.Put(&e)
	if _, err := admin.Do(ctx, "Identify", e, nil, nvme.Bytes(&ns)); err != nil {
		return err
	}
	if err := n.describe(nsid, ctrl, &ns); err != nil {
		return err
	}
	// Both are younger than NVMe over Fabrics: a controller need not know them.
	list := make([]byte, nvme.IdentifySize)
	nvme.Identify{CNS: nvme.CNSNamespaceDescriptors}.Put(&e)
	ok, err := optional(admin.Do(ctx, "Identify", e, nil, list))
	if err == nil && ok {
		err = n.describeMore(nsid, list)
	}
	if err != nil {
		return err
	}
	var nvm nvme.IdentifyNVMController
	e = nvme.SQE{}
	nvme.Identify{CNS: nvme.CNSIOCSController, CSI: nvme.CSINVM}.Put(&e)
	if ok, err = optional(admin.Do(ctx, "Identify", e, nil, nvme.Bytes(&nvm))); err != nil {
		return err
	}
	if !ok {
		nvm = nvme.IdentifyNVMController{}
	}
	n.limit(ctrl, &ns, &nvm)
	return nil
}

// describeMore takes identifier descriptors. An identifier that Identify
// Namespace has is the same there.
func (n *namespace) describeMore(nsid uint32, list []byte) error {
	all, err := nvme.ParseIDDescriptors(list)
	if err != nil {
		return fault.New(fault.Peer, "", "", err)
	}
	for _, d := range all {
		switch {
		case d.Type == nvme.NIDTCSI && len(d.ID) == 1 && nvme.CSI(d.ID[0]) != nvme.CSINVM:
			return fault.Errorf(fault.Unsupported, "", "", "namespace %d is not of the NVM command set, but of number %d", nsid, d.ID[0])
		case d.Type == nvme.NIDTNGUID && len(d.ID) == 16 && n.ids.nguid == "":
			n.ids.nguid = identifier(d.ID)
		case d.Type == nvme.NIDTEUI64 && len(d.ID) == 8 && n.ids.eui64 == "":
			n.ids.eui64 = identifier(d.ID)
		case d.Type == nvme.NIDTUUID && len(d.ID) == 16 && identifier(d.ID) != "":
			n.ids.uuid = nvme.UUID(d.ID).String()
		}
	}
	return nil
}

// identifier returns an identifier in hexadecimal, "" if it is all zeroes.
func identifier(id []byte) string {
	for _, b := range id {
		if b != 0 {
			return hex.EncodeToString(id)
		}
	}
	return ""
}

// describe takes what Identify Namespace says.
func (n *namespace) describe(nsid uint32, ctrl *nvme.IdentifyController, ns *nvme.IdentifyNamespace) error {
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
	n.ids = identifiers{nguid: identifier(ns.NGUID[:]), eui64: identifier(ns.EUI64[:])}
	blocks := func(n uint16) uint32 { return uint32(min(uint64(n)+1, math.MaxUint32/uint64(block)) * uint64(block)) }
	n.info = volume.Info{
		Size: ns.NSZE * uint64(block), Block: block, ReadOnly: ns.NSATTR&nvme.NSATTRWriteProtected != 0,
		VolatileCache:    ctrl.VWC&nvme.VWCPresent != 0,
		WriteGranularity: block, DiscardGranularity: block, AtomicUnit: blocks(ctrl.AWUPF),
	}
	if ns.NSFEAT&nvme.NSFEATOptimal != 0 {
		n.info.WriteGranularity, n.info.DiscardGranularity = blocks(ns.NPWG), blocks(ns.NPDG)
	}
	if ns.NSFEAT&nvme.NSFEATAtomic != 0 {
		switch {
		case ns.NABSPF != 0: // there are boundaries
			n.info.AtomicUnit = block
		case ns.NAWUPF != 0:
			n.info.AtomicUnit = blocks(ns.NAWUPF)
		}
	}
	return nil
}

// maxBlocks is the most blocks of a command with NLB.
const maxBlocks = 1 << 16

// minPage is the least unit of MDTS and WZSL, CAP.MPSMIN 0.
const minPage = 4096

// limit takes what one command can do.
func (n *namespace) limit(ctrl *nvme.IdentifyController, ns *nvme.IdentifyNamespace, nvm *nvme.IdentifyNVMController) {
	block := uint64(n.info.Block)
	power := func(exponent uint8) uint64 { return minPage << min(exponent, 40) }
	n.data = host.MaxTransfer
	if ctrl.MDTS != 0 {
		n.data = min(n.data, power(ctrl.MDTS))
	}
	n.info.AtomicUnit = min(n.info.AtomicUnit, uint32(n.data)) // what is longer becomes several commands
	if ctrl.ONCS&nvme.ONCSWriteZeroes != 0 {
		if n.zeroes = maxBlocks * block; nvm.WZSL != 0 {
			n.zeroes = min(n.zeroes, power(nvm.WZSL))
		}
	}
	// What is given up reads zero or as before, or it is not given up.
	const reads = 7
	if ctrl.ONCS&nvme.ONCSDatasetManagement != 0 && ns.DLFEAT&reads == nvme.DLFEATReadsZeroes {
		most := uint64(math.MaxUint32)
		if nvm.DMRSL != 0 {
			most = uint64(nvm.DMRSL)
		}
		if nvm.DMSL != 0 {
			most = min(most, nvm.DMSL)
		}
		n.discard = most * block
	}
}

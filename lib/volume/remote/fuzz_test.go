// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package remote

import (
	"math"
	"testing"

	"github.com/leapio/leapio/lib/nvme"
)

// FuzzNamespace: whatever a controller says of itself and its namespace, it is
// an error, or a volume that keeps what volumes promise and whose commands can be
// composed.
func FuzzNamespace(f *testing.F) {
	ctrl := nvme.IdentifyController{MDTS: 5, ONCS: nvme.ONCSWriteZeroes | nvme.ONCSDatasetManagement, AWUPF: 7}
	ns := nvme.IdentifyNamespace{NSZE: 1 << 20, NSFEAT: nvme.NSFEATAtomic | nvme.NSFEATOptimal, NAWUPF: 3, NPWG: 7, DLFEAT: nvme.DLFEATReadsZeroes}
	ns.LBAF[0].LBADS = 12
	nvm := nvme.IdentifyNVMController{WZSL: 3, DMRSL: 100, DMSL: 1000}
	list := nvme.AppendIDDescriptor(nil, nvme.NIDTUUID, []byte("0123456789abcdef"))
	f.Add(nvme.Bytes(&ctrl)[:512], nvme.Bytes(&ns)[:384], nvme.Bytes(&nvm)[:32], list)
	f.Add([]byte{}, []byte{}, []byte{}, []byte{3, 16})
	f.Fuzz(func(t *testing.T, controller, space, limits, list []byte) {
		var (
			ctrl nvme.IdentifyController
			ns   nvme.IdentifyNamespace
			nvm  nvme.IdentifyNVMController
			n    namespace
		)
		copy(nvme.Bytes(&ctrl), controller)
		copy(nvme.Bytes(&ns), space)
		copy(nvme.Bytes(&nvm), limits)
		all := make([]byte, nvme.IdentifySize)
		copy(all, list)
		if n.describe(1, &ctrl, &ns) != nil || n.describeMore(1, all) != nil {
			return
		}
		n.limit(&ctrl, &ns, &nvm)
		i, block := n.info, uint64(n.info.Block)
		if block != 512 && block != 4096 || i.Size == 0 || i.Size > math.MaxInt64 {
			t.Fatalf("%+v", i)
		}
		for _, v := range []uint64{i.Size, uint64(i.WriteGranularity), uint64(i.DiscardGranularity), uint64(i.AtomicUnit), n.data} {
			if v == 0 || v%block != 0 {
				t.Errorf("%d is not blocks: %+v", v, n)
			}
		}
		if uint64(i.AtomicUnit) > n.data || n.zeroes%block != 0 || n.zeroes/block > maxBlocks || n.data/block > maxBlocks ||
			n.discard%block != 0 || n.discard/block > math.MaxUint32 {
			t.Errorf("%+v", n)
		}
		if !n.ids.are(n.ids.String()) {
			t.Errorf("%+v", n.ids)
		}
	})
}

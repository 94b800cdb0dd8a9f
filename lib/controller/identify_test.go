// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/nvme"
)

// identified returns the data of an Identify command that must succeed.
func (h *host) identified(id nvme.Identify, nsid uint32) []byte {
	h.t.Helper()
	p := h.admin(id, nsid).data()
	if len(p) != nvme.IdentifySize {
		h.t.Fatalf("%+v: %d bytes of data", id, len(p))
	}
	return p
}

func TestIdentifyController(t *testing.T) {
	h, _ := connectPCI(t)
	var got nvme.IdentifyController
	copy(nvme.Bytes(&got), h.identified(nvme.Identify{CNS: nvme.CNSController}, 0))
	want := nvme.IdentifyController{
		VID: 0x1234, SSVID: 0x5678, MDTS: 8, CNTLID: h.c.CNTLID(), VER: nvme.MakeVS(2, 0, 0),
		OAES: 0x100, CNTRLTYPE: 1, OACS: 0x102, ACL: 3, AERL: 3, FRMW: 3, LPA: 0x26, ELPE: 63,
		SQES: 0x66, CQES: 0x44, NN: 1024, MNAN: 1024, ONCS: 0x1dd, FUSES: 1, NWPC: 1, CDFS: 0xf, FNA: 8, VWC: 7, TNVMCAP: nvme.Uint128{Lo: 1 << 20},
	}
	nvme.SetASCII(want.SN[:], "0123456789abcdef0123")
	nvme.SetASCII(want.MN[:], Model)
	nvme.SetASCII(want.FR[:], Firmware)
	nvme.SetNQN(&want.SUBNQN, h.sub.NQN)
	if diff := cmp.Diff(nvme.Bytes(&want), nvme.Bytes(&got)); diff != "" {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

// What a transport has or has not shows.
func TestIdentifyControllerTransport(t *testing.T) {
	sub := newSubsystem(t)
	fabrics := connect(t, sub, func(c *Config) {
		c.KeepAliveExpired, c.KeepAlive = func() {}, 60000
		c.Fabrics = Fabrics{IOCCSZ: 516, IORCSZ: 1, ICDOFF: 2, MSDBD: 3, OFCS: 4, MAXCMD: 128}
	})
	var id nvme.IdentifyController
	copy(nvme.Bytes(&id), fabrics.identified(nvme.Identify{CNS: nvme.CNSController}, 0))
	if id.KAS == 0 || id.OACS != nvme.OACSFormatNVM || id.CMIC != 0 {
		t.Errorf("fabrics: KAS %d, OACS %#x, CMIC %#x", id.KAS, id.OACS, id.CMIC)
	}
	if got := (Fabrics{id.IOCCSZ, id.IORCSZ, id.ICDOFF, id.MSDBD, id.OFCS, id.MAXCMD}); got != (Fabrics{516, 1, 2, 3, 4, 128}) {
		t.Errorf("fabrics: %+v", got)
	}
	if cmd := fabrics.admin(nvme.GetFeatures{FID: nvme.FeatKeepAliveTimer}, 0); cmd.DW0 != 60000 {
		t.Errorf("fabrics: keep alive timeout %d", cmd.DW0)
	}
	shared := testNamespace(1, newMemory(4096, 512))
	shared.Shared = true
	if err := sub.Add(shared); err != nil {
		t.Fatal(err)
	}
	copy(nvme.Bytes(&id), fabrics.identified(nvme.Identify{CNS: nvme.CNSController}, 0))
	if id.CMIC != nvme.CMICMultiPort|nvme.CMICMultiController {
		t.Errorf("with a shared namespace: CMIC %#x", id.CMIC)
	}
	if err := sub.Add(testNamespace(2, newMemory(4096, 512))); err != nil {
		t.Fatal(err)
	}
	copy(nvme.Bytes(&id), fabrics.identified(nvme.Identify{CNS: nvme.CNSController}, 0))
	if id.CMIC != 0 {
		t.Errorf("with one that is not shared, too: CMIC %#x", id.CMIC)
	}
}

func TestIdentifyNamespace(t *testing.T) {
	big := newMemory(1<<20, 4096)
	big.info.VolatileCache, big.info.ReadOnly = false, true
	big.info.WriteGranularity, big.info.DiscardGranularity, big.info.AtomicUnit = 4096, 1<<30, 64<<10
	sub := newSubsystem(t, newMemory(1<<20, 512))
	shared := testNamespace(5, big)
	shared.Shared = true
	if err := sub.Add(shared); err != nil {
		t.Fatal(err)
	}
	h := connect(t, sub, nil)
	for nsid, want := range map[uint32]nvme.IdentifyNamespace{
		1: {
			NSZE: 2048, NCAP: 2048, NUSE: 2048, NSFEAT: 0x12, FPI: 0x80, DLFEAT: 8, NAWUN: 7, NAWUPF: 7, NACWU: 7, MSSRL: 2048, MCL: 32768, MSRC: 255, NPWG: 7, NPWA: 7, NOWS: 7,
			NPDG: 127, NPDA: 127, NVMCAP: nvme.Uint128{Lo: 1 << 20}, NGUID: nvme.UUID(testNamespace(1, nil).UUID).NGUID(),
			LBAF: [64]nvme.LBAFormat{{LBADS: 9}},
		},
		5: {
			NSZE: 256, NCAP: 256, NUSE: 256, NSFEAT: 0x12, FPI: 0x80, DLFEAT: 8, NAWUN: 15, NAWUPF: 15, NACWU: 15, MSSRL: 256, MCL: 4096, MSRC: 255, NPDG: 65535, NPDA: 65535,
			NVMCAP: nvme.Uint128{Lo: 1 << 20}, NGUID: nvme.UUID(testNamespace(5, nil).UUID).NGUID(), NMIC: 1, NSATTR: 1,
			NLBAF: 1, FLBAS: 1, LBAF: [64]nvme.LBAFormat{{}, {LBADS: 12}},
		},
	} {
		for _, cns := range []nvme.CNS{nvme.CNSNamespace, nvme.CNSAllocatedNamespace} {
			if diff := cmp.Diff(nvme.Bytes(&want), h.identified(nvme.Identify{CNS: cns}, nsid)); diff != "" {
				t.Errorf("namespace %d, CNS %02Xh: %s", nsid, cns, diff)
			}
		}
	}
	protected := testNamespace(6, newMemory(4096, 512))
	protected.ReadOnly = true
	if err := sub.Add(protected); err != nil {
		t.Fatal(err)
	}
	for nsid, want := range map[uint32]nvme.IdentifyIndependentNamespace{
		6: {NSTAT: 1, FPI: 0x80, NSATTR: 1},
		1: {NSTAT: 1, FPI: 0x80},
		5: {NSTAT: 1, FPI: 0x80, NMIC: 1, NSATTR: 1, NSFEAT: nvme.IndependentNSFEATNoVWC},
	} {
		if diff := cmp.Diff(nvme.Bytes(&want), h.identified(nvme.Identify{CNS: nvme.CNSIndependentNamespace}, nsid)); diff != "" {
			t.Errorf("namespace %d, independent: %s", nsid, diff)
		}
	}
}

func TestIdentifyDescriptors(t *testing.T) {
	h := connect(t, newSubsystem(t, newMemory(4096, 512)), nil)
	got, err := nvme.ParseIDDescriptors(h.identified(nvme.Identify{CNS: nvme.CNSNamespaceDescriptors}, 1))
	if err != nil {
		t.Fatal(err)
	}
	uuid := testNamespace(1, nil).UUID
	nguid := nvme.UUID(uuid).NGUID()
	want := []nvme.IDDescriptor{{Type: nvme.NIDTNGUID, ID: nguid[:]}, {Type: nvme.NIDTUUID, ID: uuid[:]}, {Type: nvme.NIDTCSI, ID: []byte{0}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// nsids returns the NSIDs that a CNS lists above nsid.
func (h *host) nsids(cns nvme.CNS, nsid uint32) []uint32 {
	h.t.Helper()
	var l nvme.NSList
	copy(nvme.Bytes(&l), h.identified(nvme.Identify{CNS: cns}, nsid))
	n := slices.Index(l.NSIDs[:], 0)
	if n < 0 {
		n = len(l.NSIDs)
	}
	return slices.Clone(l.NSIDs[:n])
}

func TestIdentifyLists(t *testing.T) {
	sub := newSubsystem(t)
	for _, nsid := range []uint32{7, 1024, 2} {
		if err := sub.Add(testNamespace(nsid, newMemory(4096, 512))); err != nil {
			t.Fatal(err)
		}
	}
	h := connect(t, sub, nil)
	for _, cns := range []nvme.CNS{nvme.CNSActiveNamespaces, nvme.CNSIOCSActiveNamespaces, nvme.CNSAllocatedNamespaces} {
		for after, want := range map[uint32][]uint32{0: {2, 7, 1024}, 2: {7, 1024}, 6: {7, 1024}, 1024: {}, 0xfffffffd: {}} {
			if got := h.nsids(cns, after); !slices.Equal(got, want) {
				t.Errorf("CNS %02Xh after %d: %v, want %v", cns, after, got, want)
			}
		}
	}
	other := connect(t, sub, nil)
	ids := []uint16{h.c.CNTLID(), other.c.CNTLID()}
	slices.Sort(ids)
	for _, tt := range []struct {
		cns  nvme.CNS
		nsid uint32
		from uint16
		want []uint16
	}{
		{nvme.CNSControllers, 0, 0, ids},
		{nvme.CNSControllers, 0, ids[1], ids[1:]},
		{nvme.CNSControllers, 0, 0xffff, nil},
		{nvme.CNSNamespaceControllers, 7, 0, ids},
		{nvme.CNSNamespaceControllers, 8, 0, nil},
	} {
		var l nvme.ControllerList
		copy(nvme.Bytes(&l), h.identified(nvme.Identify{CNS: tt.cns, CNTID: tt.from}, tt.nsid))
		if got := l.IDs[:l.Num]; !slices.Equal(got, tt.want) {
			t.Errorf("CNS %02Xh, NSID %d, from %d: %v, want %v", tt.cns, tt.nsid, tt.from, got, tt.want)
		}
	}
}

func TestIdentifyNVM(t *testing.T) {
	h := connect(t, newSubsystem(t, newMemory(4096, 512)), nil)
	want := nvme.IdentifyNVMController{VSL: 11, WZSL: 11} // 8 MiB
	if !bytes.Equal(h.identified(nvme.Identify{CNS: nvme.CNSIOCSController}, 0), nvme.Bytes(&want)) {
		t.Error("CNS 06h differs")
	}
	var sets nvme.IOCommandSets
	sets.Vectors[0] = 1
	for _, id := range []uint16{0xffff, h.c.CNTLID()} {
		if !bytes.Equal(h.identified(nvme.Identify{CNS: nvme.CNSIOCommandSets, CNTID: id}, 0), nvme.Bytes(&sets)) {
			t.Errorf("CNS 1Ch of controller %d differs", id)
		}
	}
}

// NSIDs that could be in use but are not give zeroes, or Invalid Field where
// there is nothing to be zero; those that never are, Invalid Namespace.
func TestIdentifyErrors(t *testing.T) {
	h := connect(t, newSubsystem(t, newMemory(4096, 512)), nil)
	const ok, zero, field, ns, ctrl = nvme.StatusSuccess, nvme.StatusMore, nvme.StatusInvalidField, nvme.StatusInvalidNamespaceOrFormat, nvme.StatusInvalidControllerIdentifier
	for _, tt := range []struct {
		id   nvme.Identify
		want map[uint32]nvme.Status // by NSID
	}{
		{nvme.Identify{CNS: nvme.CNSNamespace}, map[uint32]nvme.Status{0: ns, 1: ok, 2: zero, 1024: zero, 1025: ns, nvme.NSIDBroadcast: ns}},
		{nvme.Identify{CNS: nvme.CNSController}, map[uint32]nvme.Status{0: ok, 1: ok, nvme.NSIDBroadcast: ok}},
		{nvme.Identify{CNS: nvme.CNSActiveNamespaces}, map[uint32]nvme.Status{0: ok, 1: zero, 0xfffffffd: zero, 0xfffffffe: ns, 0xffffffff: ns}},
		{nvme.Identify{CNS: nvme.CNSNamespaceDescriptors}, map[uint32]nvme.Status{0: ns, 1: ok, 2: field, 1025: ns, nvme.NSIDBroadcast: ns}},
		{nvme.Identify{CNS: nvme.CNSIOCSNamespace}, map[uint32]nvme.Status{0: ns, 1: zero, 2: zero, 1025: ns, nvme.NSIDBroadcast: ns}},
		{nvme.Identify{CNS: nvme.CNSIOCSNamespace, CSI: nvme.CSIZNS}, map[uint32]nvme.Status{1: field}},
		{nvme.Identify{CNS: nvme.CNSIOCSController, CSI: nvme.CSIKV}, map[uint32]nvme.Status{0: field}},
		{nvme.Identify{CNS: nvme.CNSIOCSActiveNamespaces, CSI: nvme.CSIZNS}, map[uint32]nvme.Status{0: field}},
		{nvme.Identify{CNS: nvme.CNSIndependentNamespace}, map[uint32]nvme.Status{0: ns, 1: ok, 2: zero, 1025: ns, nvme.NSIDBroadcast: ns}},
		{nvme.Identify{CNS: nvme.CNSAllocatedNamespaces}, map[uint32]nvme.Status{0: ok, 0xfffffffe: ns}},
		{nvme.Identify{CNS: nvme.CNSAllocatedNamespace}, map[uint32]nvme.Status{0: ns, 1: ok, 2: zero, 1025: ns}},
		{nvme.Identify{CNS: nvme.CNSIOCSAllocatedNamespaces}, map[uint32]nvme.Status{0: ok, 1: zero, 0xfffffffe: ns}},
		{nvme.Identify{CNS: nvme.CNSIOCSAllocatedNamespaces, CSI: nvme.CSIZNS}, map[uint32]nvme.Status{0: field}},
		{nvme.Identify{CNS: nvme.CNSIOCSAllocatedNamespace}, map[uint32]nvme.Status{0: ns, 1: zero, 1025: ns}},
		{nvme.Identify{CNS: nvme.CNSIndependentAllocated}, map[uint32]nvme.Status{0: ns, 1: ok, 2: zero}},
		{nvme.Identify{CNS: nvme.CNSNamespaceControllers}, map[uint32]nvme.Status{0: ns, 1: ok, 2: zero, 1025: ns, nvme.NSIDBroadcast: field}},
		{nvme.Identify{CNS: nvme.CNSIOCommandSets, CNTID: 0xfffe}, map[uint32]nvme.Status{0: ctrl}},
	} {
		for nsid, want := range tt.want {
			if want != ok && want != zero {
				h.refused(want, tt.id, nsid)
				continue
			}
			p := h.identified(tt.id, nsid)
			if isZero := !slices.ContainsFunc(p, func(b byte) bool { return b != 0 }); isZero != (want == zero) {
				t.Errorf("%+v, NSID %d: all zero is %v", tt.id, nsid, isZero)
			}
		}
	}
	for cns := range 256 {
		if identifications[cns] == nil {
			h.refused(field, nvme.Identify{CNS: nvme.CNS(cns)}, 1)
		}
	}
}

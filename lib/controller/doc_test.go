// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/template"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/units"
)

// This file makes docs/nvme.md. What is supported comes from the tables of this
// package, numbers from constants and Identify, and every status from asking a
// controller. Text that only people can write is in docTemplate.

const docFile = "../../docs/nvme.md"

// TestNVMeDoc finds docs/nvme.md as it has to be, or makes it so.
func TestNVMeDoc(t *testing.T) {
	var b strings.Builder
	d := newDocument(t)
	page := template.Must(template.New("").Funcs(template.FuncMap{"table": table, "size": size}).Parse(docTemplate))
	if err := page.Execute(&b, d); err != nil {
		t.Fatal(err)
	}
	if t.Failed() {
		return
	}
	if os.Getenv("LEAP_UPDATE") == "1" {
		if err := os.WriteFile(docFile, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(b.String(), "\n"), strings.Split(string(got), "\n")); diff != "" {
		t.Errorf("docs/nvme.md is not what the code does; LEAP_UPDATE=1 go test ./lib/controller -run TestNVMeDoc writes it anew (-want +got):\n%s", diff)
	}
}

// document is what docTemplate shows. A refusal is what everything else gets
// that has no name in the specification.
type document struct {
	h, relayed, fabrics *host // controllers to ask, by what carries their commands

	Model, Firmware string
	Vendor, IEEE    string // as Identify Controller has them, hexadecimal
	UUID, Serial    string // of a subsystem
	NGUID, EUI64    string // of a volume with that UUID
	Queues, Entries int
	Page            uint64
	Blocks          []int // bytes, by LBA format
	AWUN            int   // blocks, as the next two
	AWUPF, ACWU     int
	SGLS            uint32
	SGLPieces       int
	SGLQueue        string
	SGLType         string
	SGLCount        string
	SGLLength       string
	PSDTReserved    string
	CopyFormats     string
	CopyAcross      string

	Limits                                             [][]string
	Admin, AdminRest, IO, IORest                       [][]string
	Features, FeaturesRest, Logs, LogsRest             [][]string
	Identify, IdentifyRest                             [][]string
	AdminRefusal, IORefusal, FeatureRefusal            string
	LogRefusal, IdentifyRefusal, NotOffered, Protected string
}

func newDocument(t *testing.T) *document {
	sub := newSubsystem(t, newMemory(64<<20, 512), newMemory(1<<20, 4096))
	sub.Namespace(1).Reblock = func(uint32, func(nvme.Status)) {}
	sub.Namespace(2).Volume.Info().ReadOnly = true
	pci := func(shadow bool) *host {
		return connect(t, sub, func(c *Config) {
			c.Queues = &testQueues{p: c.Poller, noShadow: !shadow}
			c.MaxQueues = qpair.MaxQueues - 1
			c.SGLS = dma.SGLS
			c.PCIVendor, c.PCISubsystemVendor = qpair.PCIVendor, qpair.PCIVendor
		})
	}
	d := &document{h: pci(true), relayed: pci(false), fabrics: connect(t, sub, func(c *Config) { c.KeepAliveExpired = func() {} })}
	d.facts(t)
	d.limits()
	d.adminCommands(t)
	d.ioCommands(t)
	d.features(t)
	d.logPages(t)
	d.identifications(t)
	return d
}

// facts fills in the numbers of the introduction.
func (d *document) facts(t *testing.T) {
	var id nvme.IdentifyController
	copy(nvme.Bytes(&id), d.h.identified(nvme.Identify{CNS: nvme.CNSController}, 0))
	var ns nvme.IdentifyNamespace
	copy(nvme.Bytes(&ns), d.h.identified(nvme.Identify{CNS: nvme.CNSNamespace}, 1))
	for _, f := range ns.LBAF[:ns.NLBAF+1] {
		d.Blocks = append(d.Blocks, 1<<f.LBADS)
	}
	uuid, err := nvme.ParseUUID("d9b2d63d-a233-4123-8478-36c2f8a6d1f5")
	if err != nil {
		t.Fatal(err)
	}
	nguid := uuid.NGUID()
	d.Model, d.Firmware = nvme.ASCII(id.MN[:]), nvme.ASCII(id.FR[:])
	d.Vendor, d.IEEE = fmt.Sprintf("%04Xh", id.VID), fmt.Sprintf("%X", id.IEEE)
	d.UUID, d.Serial = uuid.String(), uuid.SerialNumber()
	d.NGUID, d.EUI64 = fmt.Sprintf("%x", nguid), fmt.Sprintf("%x", ns.EUI64)
	d.Queues, d.Entries = qpair.MaxQueues-1, qpair.MaxEntries
	d.Page = dma.PageSize
	d.AWUN, d.AWUPF, d.ACWU = int(id.AWUN)+1, int(id.AWUPF)+1, int(id.ACWU)+1
	d.SGLS, d.SGLPieces = id.SGLS, dma.MaxSGLRanges
	// What a transport's walk of an SGL finds wrong; here nothing walks one.
	d.SGLType = status(dnr(nvme.StatusInvalidSGLDescriptorType))
	d.SGLCount = status(dnr(nvme.StatusInvalidNumberOfSGLDescriptors))
	d.SGLLength = status(dnr(nvme.StatusInvalidDataSGLLength))
	queue := sqe(nvme.CreateCQ{QID: 1, QSIZE: 1, PC: true}, 0)
	queue.SetPSDT(nvme.PSDTSGL)
	d.SGLQueue = d.h.ask(true, queue)
	read := rwSQE(nvme.IORead, 1, nvme.RW{})
	read.SetPSDT(nvme.PSDTSGLMPTRSGL + 1)
	d.PSDTReserved = d.h.ask(false, read)
	d.CopyFormats, d.CopyAcross = bitList(id.CDFS), bitList(copyAcross)
}

// limits gives each limit, and the status of what is just beyond it.
func (d *document) limits() {
	h := d.h
	const block = 512
	read := func(nsid uint32, slba uint64) string {
		return h.ask(false, rwSQE(nvme.IORead, nsid, nvme.RW{SLBA: slba}))
	}
	// length and cp say what one block, or one range, more gets.
	length := func(op nvme.IOOpcode, most uint64) string {
		h.works(rwSQE(op, 1, nvme.RW{NLB: uint16(most/block - 1)}))
		return h.ask(false, rwSQE(op, 1, nvme.RW{NLB: uint16(most / block)}))
	}
	cp := func(n, blocks int) string {
		c := h.copyCommand(nvme.Copy{SDLBA: maxCopy / block}, slices.Repeat([]copyRange{{n: blocks}}, n)...)
		h.start(false, c).wait()
		return status(c.Status)
	}
	for _, n := range []int{1, maxCopy / maxCopyRange} {
		if st := cp(n, maxCopyRange/block); st != status(nvme.StatusSuccess) {
			h.t.Errorf("copy of %d ranges, as long as can be: %s", n, st)
		}
	}
	end := h.sub.Namespace(1).Volume.Info().Size / block
	h.works(rwSQE(nvme.IORead, 1, nvme.RW{SLBA: end - 1}))
	h.admin(nvme.CreateCQ{QID: uint16(d.Queues), QSIZE: 1, PC: true}, 0)
	var requests []*hostCommand
	for range aerl + 1 {
		requests = append(requests, h.park())
	}
	events := h.ask(true, nvme.SQE{Opcode: uint8(nvme.AdminAsyncEventRequest), CID: 7})
	for _, r := range requests {
		h.admin(nvme.Abort{CID: r.SQE.CID}, 0)
		r.wait()
	}
	d.Limits = [][]string{
		{"data of one command", "MDTS", size(dma.MaxTransfer), length(nvme.IORead, dma.MaxTransfer)},
		{"Write Zeroes", "WZSL", size(maxWriteZeroes), length(nvme.IOWriteZeroes, maxWriteZeroes)},
		{"Verify", "VSL", size(maxVerify), length(nvme.IOVerify, maxVerify)},
		{"Copy, one source range", "MSSRL", size(maxCopyRange), cp(1, maxCopyRange/block+1)},
		{"Copy, all source ranges", "MCL", size(maxCopy), cp(maxCopy/maxCopyRange+1, maxCopyRange/block)},
		{"Copy, source ranges", "MSRC", strconv.Itoa(maxCopyRanges), "cannot be asked for"},
		{"blocks of a namespace", "NSZE", "the volume's", read(1, end)},
		{"namespace identifiers", "NN", fmt.Sprintf("1 to %d", MaxNamespaces), read(MaxNamespaces+1, 0)},
		{"namespaces in use", "", "the subsystem's", read(MaxNamespaces, 0)},
		{"I/O queue pairs (PCI)", "Number of Queues", strconv.Itoa(d.Queues), h.ask(true, sqe(nvme.CreateCQ{QID: uint16(d.Queues + 1), QSIZE: 1, PC: true}, 0))},
		{"Asynchronous Event Requests", "AERL", strconv.Itoa(aerl + 1), events},
	}
}

// carriers names the controllers that have an admin command.
func (d *document) carriers(op *adminCommand) string {
	var has [3]bool
	for i, h := range []*host{d.h, d.relayed, d.fabrics} {
		has[i] = op.has(h.c)
	}
	switch has {
	case [3]bool{true, true, true}:
		return "all"
	case [3]bool{true, true, false}:
		return "PCI"
	case [3]bool{true, false, false}:
		return "PCI, shared memory"
	case [3]bool{false, false, true}:
		return "fabrics"
	}
	return ""
}

func (d *document) adminCommands(t *testing.T) {
	for i := range adminCommands {
		op := &adminCommands[i]
		where := d.carriers(op)
		if op.execute == nil {
			continue
		}
		if where == "" {
			t.Errorf("%v: no word for who offers it", nvme.AdminOpcode(i))
		}
		d.Admin = append(d.Admin, []string{hex(i), nvme.AdminOpcode(i).String(), where, announced("OACS", op.oacs)})
		for _, h := range []*host{d.h, d.relayed, d.fabrics} {
			if !op.has(h.c) {
				once(t, &d.NotOffered, h.ask(true, nvme.SQE{Opcode: uint8(i)}))
			}
		}
	}
	d.AdminRest, d.AdminRefusal = rest(t, "AdminOpcode", func(i int) bool { return adminCommands[i].execute != nil },
		func(i int) string { return nvme.AdminOpcode(i).String() },
		func(i int) string { return d.h.ask(true, nvme.SQE{Opcode: uint8(i), NSID: 1}) })
}

func (d *document) ioCommands(t *testing.T) {
	for i := range ioCommands {
		op := &ioCommands[i]
		if op.execute == nil {
			continue
		}
		d.IO = append(d.IO, []string{hex(i), nvme.IOOpcode(i).String(), yes(op.changes), yes(op.broadcast), announced("ONCS", op.oncs), announced("FUSES", op.fuses)})
		if op.changes {
			once(t, &d.Protected, d.h.ask(false, nvme.SQE{Opcode: uint8(i), NSID: 2}))
		}
	}
	d.IORest, d.IORefusal = rest(t, "IOOpcode", func(i int) bool { return ioCommands[i].execute != nil },
		func(i int) string { return nvme.IOOpcode(i).String() },
		func(i int) string { return d.h.ask(false, nvme.SQE{Opcode: uint8(i), NSID: 1}) })
}

func (d *document) features(t *testing.T) {
	for i := range featureTable {
		f := &featureTable[i]
		if f.name == "" {
			continue
		}
		fid, h, where := nvme.FeatureID(i), d.h, "all"
		switch onPCI, onFabrics := d.h.c.feature(fid) != nil, d.fabrics.c.feature(fid) != nil; {
		case !onFabrics:
			where = "PCI"
		case !onPCI:
			h, where = d.fabrics, "fabrics"
		}
		nsid := uint32(0)
		if f.perNamespace {
			nsid = 1
		}
		initial := h.admin(nvme.GetFeatures{FID: fid, SEL: nvme.SelectDefault}, nsid)
		value := fmt.Sprintf("%Xh", initial.DW0)
		if n := initial.asked; n != 0 {
			value = fmt.Sprintf("%d bytes", n)
		}
		can := h.admin(nvme.GetFeatures{FID: fid, SEL: nvme.SelectSupported}, nsid).DW0
		scope := "controller"
		if can&nvme.CapabilityNamespaceSpecific != 0 {
			scope = "namespace"
		}
		d.Features = append(d.Features, []string{hex(i), f.name, where, scope, value, yes(can&nvme.CapabilityChangeable != 0), yes(can&nvme.CapabilitySaveable != 0)})
	}
	d.FeaturesRest, d.FeatureRefusal = rest(t, "FeatureID", func(i int) bool { return featureTable[i].name != "" },
		func(i int) string { return featureNames[nvme.FeatureID(i)] },
		func(i int) string {
			fid := nvme.FeatureID(i)
			get, set := d.h.ask(true, sqe(nvme.GetFeatures{FID: fid}, 1)), d.h.ask(true, sqe(nvme.SetFeatures{FID: fid}, 1))
			if get != set {
				t.Errorf("feature %02Xh: Get ends with %s, Set with %s; the document knows one status", i, get, set)
			}
			return get
		})
}

func (d *document) logPages(t *testing.T) {
	for i := range logPages {
		if n := logPages[i].size; n != 0 {
			d.Logs = append(d.Logs, []string{hex(i), named(t, logNames, nvme.LogPageID(i)), strconv.FormatUint(n, 10)})
		}
	}
	d.LogsRest, d.LogRefusal = rest(t, "LogPageID", func(i int) bool { return logPages[i].size != 0 },
		func(i int) string { return logNames[nvme.LogPageID(i)] },
		func(i int) string {
			return d.h.ask(true, sqe(nvme.GetLogPage{LID: nvme.LogPageID(i), NUMD: 1}, nvme.NSIDBroadcast))
		})
}

func (d *document) identifications(t *testing.T) {
	for i := range identifications {
		if identifications[i] == nil {
			continue
		}
		cns, other := nvme.CNS(i), "ignored"
		d.h.admin(nvme.Identify{CNS: cns, CNTID: d.h.c.CNTLID()}, 1)
		if st := d.h.ask(true, sqe(nvme.Identify{CNS: cns, CSI: nvme.CSIZNS, CNTID: d.h.c.CNTLID()}, 1)); st != status(nvme.StatusSuccess) {
			other = "0 (NVM); others: " + st
		}
		d.Identify = append(d.Identify, []string{hex(i), named(t, cnsNames, cns), other})
	}
	d.IdentifyRest, d.IdentifyRefusal = rest(t, "CNS", func(i int) bool { return identifications[i] != nil },
		func(i int) string { return cnsNames[nvme.CNS(i)] },
		func(i int) string { return d.h.ask(true, sqe(nvme.Identify{CNS: nvme.CNS(i)}, 1)) })
}

// ask executes a command and returns how it ended.
func (h *host) ask(admin bool, e nvme.SQE) string {
	h.t.Helper()
	return status(h.run(admin, e).Status)
}

// works executes an I/O command that must succeed.
func (h *host) works(e nvme.SQE) {
	h.t.Helper()
	if st := h.ask(false, e); st != status(nvme.StatusSuccess) {
		h.t.Errorf("%s: %s", nvme.FormatSQE(false, &e), st)
	}
}

// status is a status for people: words, type and code, and the bit that says
// whether the same command could end better.
func status(st nvme.Status) string {
	text := fmt.Sprintf("%v (%Xh/%02Xh)", st, st.SCT(), st.SC())
	if st.DNR() {
		text += ", DNR"
	}
	return text
}

// rest asks for every code from 00h to FFh that is not supported. It returns a
// row for each that lib/nvme has a constant of the type for, and the status of
// all others, which must be the same.
func rest(t *testing.T, typ string, supported func(int) bool, name, ask func(int) string) (rows [][]string, others string) {
	t.Helper()
	known := constants(t, typ)
	for i := range 256 {
		switch constant, ok := known[i]; {
		case supported(i):
			if !ok {
				t.Errorf("%s %02Xh: supported, but lib/nvme has no constant", typ, i)
			}
		case !ok || strings.HasSuffix(constant, "VendorSpecific"):
			once(t, &others, ask(i))
		default:
			if name(i) == "" {
				t.Errorf("%s: no name in this file", constant)
			}
			st := ask(i)
			if strings.HasPrefix(st, nvme.StatusSuccess.String()) {
				t.Errorf("%s: in no table, but it succeeds", constant)
			}
			rows = append(rows, []string{hex(i), name(i), st})
		}
	}
	return rows, others
}

// constants returns the names of lib/nvme's constants of a type, by value.
func constants(t *testing.T, typ string) map[int]string {
	t.Helper()
	files, err := filepath.Glob("../nvme/*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[int]string)
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Values) != 1 {
				return true
			}
			if id, ok := spec.Type.(*ast.Ident); !ok || id.Name != typ {
				return true
			}
			lit, ok := spec.Values[0].(*ast.BasicLit)
			if !ok {
				t.Fatalf("%s is not a number", spec.Names[0].Name)
			}
			v, err := strconv.ParseUint(lit.Value, 0, 8)
			if err != nil {
				t.Fatal(err)
			}
			found[int(v)] = spec.Names[0].Name
			return true
		})
	}
	if len(found) == 0 {
		t.Fatalf("lib/nvme has no constants of type %s", typ)
	}
	return found
}

// once stores a status for which the document has one place.
func once(t *testing.T, have *string, st string) {
	t.Helper()
	if *have != "" && *have != st {
		t.Errorf("%s here, %s there: the document has place for one", *have, st)
	}
	*have = st
}

// named returns the name of a code.
func named[K ~uint8](t *testing.T, names map[K]string, code K) string {
	t.Helper()
	if names[code] == "" {
		t.Errorf("%T %02Xh: no name in this file", code, uint8(code))
	}
	return names[code]
}

func hex(i int) string { return fmt.Sprintf("%02Xh", i) }

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// size is a size of whole KiB or more for people, exactly.
func size(n uint64) string {
	text := units.Size(n).String()
	last := len(text) - 1
	return text[:last] + " " + text[last:] + "iB"
}

// announced names a bit of a field of Identify Controller; "" for none.
func announced(field string, mask uint16) string {
	if mask == 0 {
		return ""
	}
	return fmt.Sprintf("%s bit %d", field, bits.TrailingZeros16(mask))
}

// bitList lists the bits of a mask.
func bitList(mask uint16) string {
	var l []string
	for i := range 16 {
		if mask>>i&1 != 0 {
			l = append(l, strconv.Itoa(i))
		}
	}
	return strings.Join(l, ", ")
}

// table writes rows as Markdown, below the heads of their columns.
func table(rows [][]string, heads ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s |\n|%s", strings.Join(heads, " | "), strings.Repeat("---|", len(heads)))
	for _, r := range rows {
		fmt.Fprintf(&b, "\n| %s |", strings.Join(r, " | "))
	}
	return b.String()
}

// Every name is that of a constant: what is not in lib/nvme is not asked for.
func TestNVMeDocNames(t *testing.T) {
	for typ, names := range map[string][]int{"FeatureID": codes(featureNames), "LogPageID": codes(logNames), "CNS": codes(cnsNames)} {
		known := constants(t, typ)
		for _, code := range names {
			if known[code] == "" {
				t.Errorf("%s %02Xh has a name, but no constant in lib/nvme", typ, code)
			}
		}
	}
}

func codes[K ~uint8](names map[K]string) (l []int) {
	for _, k := range slices.Sorted(maps.Keys(names)) {
		l = append(l, int(k))
	}
	return l
}

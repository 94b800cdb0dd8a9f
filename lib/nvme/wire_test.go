// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package nvme

import (
	"bytes"
	"reflect"
	"testing"
)

// layouts lists offsets and sizes as the specifications' tables give them, in decimal.
var layouts = []struct {
	value  any
	size   uintptr
	fields map[string]uintptr
}{
	{SQE{}, 64, map[string]uintptr{
		"Opcode": 0, "Flags": 1, "CID": 2, "NSID": 4, "CDW2": 8, "CDW3": 12, "MPTR": 16, "PRP1": 24, "PRP2": 32,
		"CDW10": 40, "CDW11": 44, "CDW12": 48, "CDW13": 52, "CDW14": 56, "CDW15": 60,
	}},
	{CQE{}, 16, map[string]uintptr{"DW0": 0, "DW1": 4, "SQHead": 8, "SQID": 10, "CID": 12, "Status": 14}},
	{SGLDescriptor{}, 16, map[string]uintptr{"Address": 0, "Length": 8, "ID": 15}},
	{DSMRange{}, 16, map[string]uintptr{"Attributes": 0, "NLB": 4, "SLBA": 8}},
	{CopyRange{}, 32, map[string]uintptr{"SNSID": 0, "SLBA": 8, "NLB": 16, "SOPT": 22, "EILBRT": 24, "ELBAT": 28, "ELBATM": 30}},
	{CopyRangeExtended{}, 40, map[string]uintptr{"SNSID": 0, "SLBA": 8, "NLB": 16, "SOPT": 22, "ELBT": 26, "ELBAT": 36, "ELBATM": 38}},
	{PowerState{}, 32, map[string]uintptr{
		"MP": 0, "Flags": 3, "ENLAT": 4, "EXLAT": 8, "RRT": 12, "RRL": 13, "RWT": 14, "RWL": 15, "IDLP": 16, "IPS": 18, "ACTP": 20, "APWS": 22,
	}},
	{IdentifyController{}, 4096, map[string]uintptr{
		"VID": 0, "SSVID": 2, "SN": 4, "MN": 24, "FR": 64, "RAB": 72, "IEEE": 73, "CMIC": 76, "MDTS": 77, "CNTLID": 78, "VER": 80,
		"RTD3R": 84, "RTD3E": 88, "OAES": 92, "CTRATT": 96, "RRLS": 100, "NSSL": 104, "CNTRLTYPE": 111, "FGUID": 112, "CRDT1": 128,
		"CRDT3": 132, "NVMSR": 253, "OACS": 256, "ACL": 258, "AERL": 259, "FRMW": 260, "LPA": 261, "ELPE": 262, "NPSS": 263, "AVSCC": 264,
		"APSTA": 265, "WCTEMP": 266, "CCTEMP": 268, "MTFA": 270, "HMPRE": 272, "HMMIN": 276, "TNVMCAP": 280, "UNVMCAP": 296, "RPMBS": 312,
		"EDSTT": 316, "DSTO": 318, "FWUG": 319, "KAS": 320, "HCTMA": 322, "MNTMT": 324, "MXTMT": 326, "SANICAP": 328, "HMMINDS": 332,
		"HMMAXD": 336, "NSETIDMAX": 338, "ENDGIDMAX": 340, "ANATT": 342, "ANACAP": 343, "ANAGRPMAX": 344, "NANAGRPID": 348, "PELS": 352,
		"DID": 356, "MEGCAP": 368, "TMPTHHA": 384, "CQT": 386, "SQES": 512, "CQES": 513, "MAXCMD": 514, "NN": 516, "ONCS": 520,
		"FUSES": 522, "FNA": 524, "VWC": 525, "AWUN": 526, "AWUPF": 528, "ICSVSCC": 530, "NWPC": 531, "ACWU": 532, "CDFS": 534, "SGLS": 536,
		"MNAN": 540, "MAXDNA": 544, "MAXCNA": 560, "SUBNQN": 768, "IOCCSZ": 1792, "IORCSZ": 1796, "ICDOFF": 1800, "FCATT": 1802,
		"MSDBD": 1803, "OFCS": 1804, "PSD": 2048, "VS": 3072,
	}},
	{IdentifyNVMController{}, 4096, map[string]uintptr{"VSL": 0, "WZSL": 1, "WUSL": 2, "DMRL": 3, "DMRSL": 4, "DMSL": 8}},
	{IOCommandSets{}, 4096, map[string]uintptr{"Vectors": 0}},
	{ControllerList{}, 4096, map[string]uintptr{"Num": 0, "IDs": 2}},
	{NSList{}, 4096, map[string]uintptr{"NSIDs": 0}},
	{LBAFormat{}, 4, map[string]uintptr{"MS": 0, "LBADS": 2, "RP": 3}},
	{IdentifyNamespace{}, 4096, map[string]uintptr{
		"NSZE": 0, "NCAP": 8, "NUSE": 16, "NSFEAT": 24, "NLBAF": 25, "FLBAS": 26, "MC": 27, "DPC": 28, "DPS": 29, "NMIC": 30, "RESCAP": 31,
		"FPI": 32, "DLFEAT": 33, "NAWUN": 34, "NAWUPF": 36, "NACWU": 38, "NABSN": 40, "NABO": 42, "NABSPF": 44, "NOIOB": 46, "NVMCAP": 48,
		"NPWG": 64, "NPWA": 66, "NPDG": 68, "NPDA": 70, "NOWS": 72, "MSSRL": 74, "MCL": 76, "MSRC": 80, "ANAGRPID": 92, "NSATTR": 99,
		"NVMSETID": 100, "ENDGID": 102, "NGUID": 104, "EUI64": 120, "LBAF": 128, "VS": 384,
	}},
	{IdentifyNVMNamespace{}, 4096, map[string]uintptr{"LBSTM": 0, "PIC": 8, "ELBAF": 12, "NPDGL": 268}},
	{IdentifyIndependentNamespace{}, 4096, map[string]uintptr{
		"NSFEAT": 0, "NMIC": 1, "RESCAP": 2, "FPI": 3, "ANAGRPID": 4, "NSATTR": 8, "NVMSETID": 10, "ENDGID": 12, "NSTAT": 14,
	}},
	{SupportedLogPages{}, 1024, map[string]uintptr{"LIDs": 0}},
	{ErrorLogEntry{}, 64, map[string]uintptr{
		"ErrorCount": 0, "SQID": 8, "CID": 10, "Status": 12, "ParameterError": 14, "LBA": 16, "NSID": 24, "VS": 28, "TRTYPE": 29,
		"CS": 32, "TransportInfo": 40, "LPVER": 63,
	}},
	{SMARTLog{}, 512, map[string]uintptr{
		"CriticalWarning": 0, "CompositeTemperature": 1, "AvailableSpare": 3, "AvailableSpareThreshold": 4, "PercentageUsed": 5,
		"DataUnitsRead": 32, "DataUnitsWritten": 48, "HostReadCommands": 64, "HostWriteCommands": 80, "ControllerBusyTime": 96,
		"PowerCycles": 112, "PowerOnHours": 128, "UnsafeShutdowns": 144, "MediaErrors": 160, "ErrorLogEntries": 176,
		"WarningTempTime": 192, "CriticalTempTime": 196, "TempSensors": 200, "ThermalMgmtCount1": 216, "ThermalMgmtTime2": 228,
	}},
	{FirmwareSlotLog{}, 512, map[string]uintptr{"AFI": 0, "FRS": 8}},
	{CommandEffectsLog{}, 4096, map[string]uintptr{"Admin": 0, "IO": 1024}},
	{FeatureEffectsLog{}, 1024, map[string]uintptr{"FIDs": 0}},
	{ANALogHeader{}, 16, map[string]uintptr{"ChangeCount": 0, "NumGroups": 8}},
	{ANAGroupDescriptor{}, 32, map[string]uintptr{"GroupID": 0, "NumNSIDs": 4, "ChangeCount": 8, "State": 16}},
	{HostBehavior{}, 512, map[string]uintptr{"ACRE": 0, "ETDAS": 1, "LBAFEE": 2, "HDISNS": 3, "CDFE": 4}},
	{Timestamp{}, 8, map[string]uintptr{"Value": 0, "Attributes": 6}},
}

func TestLayouts(t *testing.T) {
	for _, l := range layouts {
		typ := reflect.TypeOf(l.value)
		if got, want := typ.Size(), l.size; got != want {
			t.Errorf("size of %s: got %d, want %d", typ.Name(), got, want)
		}
		for name, want := range l.fields {
			f, ok := typ.FieldByName(name)
			if !ok {
				t.Errorf("%s has no field %s", typ.Name(), name)
				continue
			}
			if got := f.Offset; got != want {
				t.Errorf("offset of %s.%s: got %d, want %d", typ.Name(), name, got, want)
			}
		}
	}
}

// Padding would make bytes on the wire that no field names.
func TestNoPadding(t *testing.T) {
	for _, l := range layouts {
		typ := reflect.TypeOf(l.value)
		if got, want := fieldBytes(typ), typ.Size(); got != want {
			t.Errorf("fields of %s: got %d bytes, want %d", typ.Name(), got, want)
		}
	}
}

func fieldBytes(typ reflect.Type) uintptr {
	switch typ.Kind() {
	case reflect.Array:
		return uintptr(typ.Len()) * fieldBytes(typ.Elem())
	case reflect.Struct:
		var n uintptr
		for i := range typ.NumField() {
			n += fieldBytes(typ.Field(i).Type)
		}
		return n
	}
	return typ.Size()
}

func TestBytes(t *testing.T) {
	e := SQE{
		Opcode: 0x02, Flags: 0x41, CID: 0x1234, NSID: 0x01020304, CDW2: 5, CDW3: 6, MPTR: 0x1122334455667788,
		PRP1: 0x8000000000001000, PRP2: 0x2000, CDW10: 0xa0b0c0d0, CDW11: 1, CDW12: 2, CDW13: 3, CDW14: 4, CDW15: 0xf0000000,
	}
	want := []byte{
		0x02, 0x41, 0x34, 0x12, 0x04, 0x03, 0x02, 0x01, 5, 0, 0, 0, 6, 0, 0, 0,
		0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x00, 0x10, 0, 0, 0, 0, 0, 0x80,
		0x00, 0x20, 0, 0, 0, 0, 0, 0, 0xd0, 0xc0, 0xb0, 0xa0, 1, 0, 0, 0,
		2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0xf0,
	}
	if got := Bytes(&e); !bytes.Equal(got, want) {
		t.Errorf("bytes of an SQE:\ngot  %x\nwant %x", got, want)
	}
	var decoded SQE
	copy(Bytes(&decoded), want)
	if got, want := decoded, e; got != want {
		t.Errorf("SQE from bytes: got %+v, want %+v", got, want)
	}
}

func TestSliceBytes(t *testing.T) {
	if got := SliceBytes([]DSMRange{}); got != nil {
		t.Errorf("no ranges: got %x, want nil", got)
	}
	ranges := []DSMRange{{NLB: 8, SLBA: 0x10}, {NLB: 1, SLBA: 0x0100000000000000}}
	want := []byte{
		0, 0, 0, 0, 8, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0,
		0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
	}
	if got := SliceBytes(ranges); !bytes.Equal(got, want) {
		t.Errorf("bytes of two ranges:\ngot  %x\nwant %x", got, want)
	}
}

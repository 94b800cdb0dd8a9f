// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package nvme

import "testing"

func TestStatusFields(t *testing.T) {
	s := StatusUnrecoveredReadError.WithDNR()
	if got, want := uint16(s), uint16(0x4281); got != want {
		t.Errorf("Unrecovered Read Error with DNR: got %#x, want %#x", got, want)
	}
	if got, want := s.Code(), StatusUnrecoveredReadError; got != want {
		t.Errorf("Code: got %#x, want %#x", got, want)
	}
	if got, want := s.SCT(), SCTMedia; got != want {
		t.Errorf("SCT: got %d, want %d", got, want)
	}
	if got, want := s.SC(), uint8(0x81); got != want {
		t.Errorf("SC: got %#x, want %#x", got, want)
	}
	if !s.DNR() || s.More() || s.CRD() != 0 {
		t.Errorf("DNR, M, CRD: got %v, %v, %d, want true, false, 0", s.DNR(), s.More(), s.CRD())
	}
	r := (StatusNamespaceNotReady | StatusMore).WithCRD(1).WithCRD(2)
	if got, want := uint16(r), uint16(0x3082); got != want {
		t.Errorf("Namespace Not Ready with M and CRD 2: got %#x, want %#x", got, want)
	}
	if r.DNR() || !r.More() || r.CRD() != 2 {
		t.Errorf("DNR, M, CRD: got %v, %v, %d, want false, true, 2", r.DNR(), r.More(), r.CRD())
	}
}

func TestStatusString(t *testing.T) {
	tests := []struct {
		raw  uint16 // SCT in bits 10:8, SC in bits 7:0
		want string
	}{
		{0x000, "Successful Completion"},
		{0x001, "Invalid Command Opcode"},
		{0x002, "Invalid Field in Command"},
		{0x003, "Command ID Conflict"},
		{0x004, "Data Transfer Error"},
		{0x005, "Commands Aborted due to Power Loss Notification"},
		{0x006, "Internal Error"},
		{0x007, "Command Abort Requested"},
		{0x008, "Command Aborted due to SQ Deletion"},
		{0x00b, "Invalid Namespace or Format"},
		{0x00c, "Command Sequence Error"},
		{0x013, "PRP Offset Invalid"},
		{0x018, "Host Identifier Inconsistent Format"},
		{0x021, "Command Interrupted"},
		{0x080, "LBA Out of Range"},
		{0x081, "Capacity Exceeded"},
		{0x082, "Namespace Not Ready"},
		{0x083, "Reservation Conflict"},
		{0x100, "Completion Queue Invalid"},
		{0x101, "Invalid Queue Identifier"},
		{0x102, "Invalid Queue Size"},
		{0x105, "Asynchronous Event Request Limit Exceeded"},
		{0x108, "Invalid Interrupt Vector"},
		{0x109, "Invalid Log Page"},
		{0x10a, "Invalid Format"},
		{0x10c, "Invalid Queue Deletion"},
		{0x10d, "Feature Identifier Not Saveable"},
		{0x10e, "Feature Not Changeable"},
		{0x10f, "Feature Not Namespace Specific"},
		{0x182, "Attempted Write to Read Only Range"},
		{0x280, "Write Fault"},
		{0x281, "Unrecovered Read Error"},
		{0x285, "Compare Failure"},
		{0x287, "Deallocated or Unwritten Logical Block"},
		{0x302, "Asymmetric Access Inaccessible"},
		{0x371, "Command Aborted By Host"},
		{0x7000 | 0x002, "Invalid Field in Command"},
		{0x07f, "Generic Command Status 7Fh"},
		{0x1ff, "Command Specific Status FFh"},
		{0x2c0, "Media and Data Integrity Error C0h"},
		{0x3c0, "Path Related Status C0h"},
		{0x401, "Reserved Status 4h/01h"},
		{0x7ab, "Vendor Specific Status ABh"},
	}
	for _, tt := range tests {
		if got := Status(tt.raw).String(); got != tt.want {
			t.Errorf("name of status %#x: got %q, want %q", tt.raw, got, tt.want)
		}
	}
}

// A retry bit in a key of the table would make its name unreachable, and two statuses of one name would be told apart nowhere.
func TestStatusNames(t *testing.T) {
	seen := make(map[string]Status)
	for s, name := range statusNames {
		if s.Code() != s {
			t.Errorf("status %#x named %q has bits beside its code", uint16(s), name)
		}
		if other, ok := seen[name]; ok {
			t.Errorf("statuses %#x and %#x are both named %q", uint16(s), uint16(other), name)
		}
		seen[name] = s
	}
}

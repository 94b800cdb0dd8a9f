// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package nvme

import "testing"

func TestAdminOpcodeString(t *testing.T) {
	tests := []struct {
		opcode uint8
		want   string
	}{
		{0x00, "Delete I/O Submission Queue"},
		{0x01, "Create I/O Submission Queue"},
		{0x02, "Get Log Page"},
		{0x04, "Delete I/O Completion Queue"},
		{0x05, "Create I/O Completion Queue"},
		{0x06, "Identify"},
		{0x08, "Abort"},
		{0x09, "Set Features"},
		{0x0a, "Get Features"},
		{0x0c, "Asynchronous Event Request"},
		{0x18, "Keep Alive"},
		{0x7c, "Doorbell Buffer Config"},
		{0x80, "Format NVM"},
		{0x84, "Sanitize"},
		{0x03, "Reserved Admin 03h"},
		{0xc0, "Vendor Specific Admin C0h"},
		{0xff, "Vendor Specific Admin FFh"},
	}
	for _, tt := range tests {
		if got := AdminOpcode(tt.opcode).String(); got != tt.want {
			t.Errorf("admin opcode %#x: got %q, want %q", tt.opcode, got, tt.want)
		}
	}
}

func TestIOOpcodeString(t *testing.T) {
	tests := []struct {
		opcode uint8
		want   string
	}{
		{0x00, "Flush"},
		{0x01, "Write"},
		{0x02, "Read"},
		{0x04, "Write Uncorrectable"},
		{0x05, "Compare"},
		{0x08, "Write Zeroes"},
		{0x09, "Dataset Management"},
		{0x0c, "Verify"},
		{0x0d, "Reservation Register"},
		{0x19, "Copy"},
		{0x7d, "Zone Append"},
		{0x7e, "Reserved I/O 7Eh"},
		{0x90, "Vendor Specific I/O 90h"},
	}
	for _, tt := range tests {
		if got := IOOpcode(tt.opcode).String(); got != tt.want {
			t.Errorf("I/O opcode %#x: got %q, want %q", tt.opcode, got, tt.want)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package nvme

import "testing"

func TestSGLDescriptor(t *testing.T) {
	d := MakeSGL(SGLLastSegment, SGLOffset, 0x1122334455667788, 0x1000)
	want := [16]byte{0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x00, 0x10, 0, 0, 0, 0, 0, 0x31}
	if got := [16]byte(Bytes(&d)); got != want {
		t.Errorf("last segment descriptor: got %x, want %x", got, want)
	}
	if d.Type() != SGLLastSegment || d.Subtype() != SGLOffset {
		t.Errorf("type and sub type: got %d, %d, want %d, %d", d.Type(), d.Subtype(), SGLLastSegment, SGLOffset)
	}

	var keyed SGLDescriptor
	copy(Bytes(&keyed), []byte{0, 0, 1, 0, 0, 0, 0, 0, 0x00, 0x20, 0x01, 0xd4, 0xc3, 0xb2, 0xa1, 0x4a})
	if keyed.Type() != SGLKeyedDataBlock || keyed.Subtype() != SGLTransport {
		t.Errorf("keyed type and sub type: got %d, %d, want %d, %d", keyed.Type(), keyed.Subtype(), SGLKeyedDataBlock, SGLTransport)
	}
	if got, want := keyed.KeyedLength(), uint32(0x012000); got != want {
		t.Errorf("keyed length: got %#x, want %#x", got, want)
	}
	if got, want := keyed.Key(), uint32(0xa1b2c3d4); got != want {
		t.Errorf("key: got %#x, want %#x", got, want)
	}

	var e SQE
	e.SetSGL1(keyed)
	if got := [16]byte(Bytes(&e)[24:40]); got != [16]byte(Bytes(&keyed)) {
		t.Errorf("data pointer of a command: got %x, want %x", got, Bytes(&keyed))
	}
	if got := e.SGL1(); got != keyed {
		t.Errorf("descriptor read from a command: got %+v, want %+v", got, keyed)
	}
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package nvme

import (
	"bytes"
	"strings"
	"testing"
)

func TestASCIIFields(t *testing.T) {
	tests := []struct {
		in, stored, out string
	}{
		{"", "        ", ""},
		{"1.0", "1.0     ", "1.0"},
		{"12345678", "12345678", "12345678"},
		{"123456789", "12345678", "12345678"},
		{"a\x00\nb", "a??b    ", "a??b"},
		{"é\xff世", "???     ", "???"},
		{"1234567世", "1234567?", "1234567?"},
	}
	for _, tt := range tests {
		field := []byte("xxxxxxxx")
		SetASCII(field, tt.in)
		if got := string(field); got != tt.stored {
			t.Errorf("field of %q: got %q, want %q", tt.in, got, tt.stored)
		}
		if got := ASCII(field); got != tt.out {
			t.Errorf("text of field %q: got %q, want %q", field, got, tt.out)
		}
	}
	field := []byte("a\x1b[2J\xff \x00")
	if got, want := ASCII(field), "a?[2J?"; got != want {
		t.Errorf("text of a hostile field: got %q, want %q", got, want)
	}
	if got, want := string(field), "a\x1b[2J\xff \x00"; got != want {
		t.Errorf("field after reading it: got %q, want %q", got, want)
	}
}

func TestCheckNQN(t *testing.T) {
	const uuid = "12345678-9abc-4def-8123-456789abcdef"
	tests := []struct {
		nqn     string
		err     string // part of the error; "" for none
		warning string // part of the warning; "" for none
	}{
		{"nqn.2014-08.org.nvmexpress:uuid:" + uuid, "", ""},
		{"nqn.2014-08.org.nvmexpress.discovery", "", ""},
		{"nqn.2024-01.io.example:vm1", "", ""},
		{"nqn.2024-01.io.exa-mple:vm1:with:colons", "", ""},
		{"nqn.2014-08.org.nvmexpress:uuid:" + strings.ToUpper(uuid), "", "lower case"},
		{"nqn.2014-08.org.nvmexpress:uuid:1234", "", "no UUID"},
		{"nqn.t", "", "not of the form"},
		{"nqn.2024-01.io.example", "", "not of the form"},
		{"nqn.2024-01.io.example:", "", "not of the form"},
		{"nqn.2024-1.io.example:vm1", "", "not of the form"},
		{"nqn.2024-01.:vm1", "", "not of the form"},
		{"nqn.2024-01.io..example:vm1", "", "not of the form"},
		{"nqn.2024-01.io.-example:vm1", "", "not of the form"},
		{"nqn.2024-01.io.exämple:vm1", "", "not of the form"},
		{"nqn.2024-01.io.example:" + strings.Repeat("x", 199), "", ""},
		{"nqn.2024-01.io.example:" + strings.Repeat("x", 200), "", "222 bytes"},
		{"nqn.2024-01.io.example:" + strings.Repeat("x", 201), "has 224 bytes, more than 223", ""},
		{"nqn.2024-01.io.example:größe", "", ""},
		{"", "empty", ""},
		{"nqn.", "does not start with", ""},
		{"NQN.2024-01.io.example:vm1", "does not start with", ""},
		{"iqn.2024-01.io.example:vm1", "does not start with", ""},
		{"nqn.2024-01.io.example:\xff", "UTF-8", ""},
		{"nqn.2024-01.io.example:a b", `holds the character ' '`, ""},
		{"nqn.2024-01.io.example:a\n", `holds the character '\n'`, ""},
		{"nqn.2024-01.io.example:a\x00b", `holds the character '\x00'`, ""},
		{"nqn.2024-01.io.example:a\u202eb", `holds the character '\u202e'`, ""},
	}
	for _, tt := range tests {
		err := CheckNQN(tt.nqn)
		if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("checking %q: got %v, want an error with %q", tt.nqn, err, tt.err)
		}
		if err != nil {
			continue
		}
		if got := NQNWarning(tt.nqn); (got == "") != (tt.warning == "") || !strings.Contains(got, tt.warning) {
			t.Errorf("warning about %q: got %q, want %q", tt.nqn, got, tt.warning)
		}
	}
}

func TestNQNField(t *testing.T) {
	field := [256]byte(bytes.Repeat([]byte{'x'}, 256))
	if got, err := NQNField(&field); err == nil {
		t.Errorf("field without a NUL: got %q, want an error", got)
	}
	nqn := "nqn.2024-01.io.example:" + strings.Repeat("x", 200)
	SetNQN(&field, nqn)
	if got, err := NQNField(&field); got != nqn || err != nil {
		t.Errorf("NQN of %d bytes: got %q, %v", len(nqn), got, err)
	}
	if got, want := field[223:], make([]byte, 33); !bytes.Equal(got, want) {
		t.Errorf("padding: got %x, want %x", got, want)
	}
	SetNQN(&field, NQNDiscovery)
	if got, err := NQNField(&field); got != NQNDiscovery || err != nil {
		t.Errorf("shorter NQN: got %q, %v, want %q", got, err, NQNDiscovery)
	}
	field = [256]byte{'n', 'q', 'n', '.', '\n'}
	if got, err := NQNField(&field); got != "" || err == nil {
		t.Errorf("field with a line feed: got %q, %v, want an error", got, err)
	}
}

func FuzzNQNField(f *testing.F) {
	f.Add([]byte(NQNDiscovery))
	f.Add([]byte("nqn.2024-01.io.example:vm1\x00trailing"))
	f.Add([]byte("nqn.\xc3"))
	f.Add(bytes.Repeat([]byte("nqn."), 64))
	f.Fuzz(func(t *testing.T, data []byte) {
		var field, again [256]byte
		copy(field[:], data)
		nqn, err := NQNField(&field)
		if err != nil {
			return
		}
		NQNWarning(nqn)
		SetNQN(&again, nqn)
		if got, err := NQNField(&again); got != nqn || err != nil {
			t.Fatalf("NQN stored and read: got %q, %v, want %q", got, err, nqn)
		}
	})
}

func TestUUID(t *testing.T) {
	const text = "01234567-89ab-4cde-8f01-23456789abcd"
	u, err := ParseUUID(strings.ToUpper(text))
	if err != nil {
		t.Fatalf("parsing %s: %v", text, err)
	}
	if got, want := u, (UUID{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0x4c, 0xde, 0x8f, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd}); got != want {
		t.Errorf("parsed: got %x, want %x", got, want)
	}
	if got := u.String(); got != text {
		t.Errorf("text: got %s, want %s", got, text)
	}
	if got, want := u.NQN(), "nqn.2014-08.org.nvmexpress:uuid:"+text; got != want {
		t.Errorf("NQN: got %s, want %s", got, want)
	}
	if got, want := u.SerialNumber(), "0123456789ab4cde8f01"; got != want {
		t.Errorf("serial number: got %s, want %s", got, want)
	}
	var back UUID
	if marshaled, err := u.MarshalText(); err != nil || back.UnmarshalText(marshaled) != nil || back != u {
		t.Errorf("text round trip: got %v, %v, want %v", back, err, u)
	}
	for _, bad := range []string{"", "0", text[1:], text + "0", strings.ReplaceAll(text, "-", "x"), "g" + text[1:], "é" + text[2:]} {
		if got, err := ParseUUID(bad); err == nil || got != (UUID{}) {
			t.Errorf("parsing %q: got %v, %v, want zero and an error", bad, got, err)
		}
		if err := back.UnmarshalText([]byte(bad)); err == nil || back != u {
			t.Errorf("unmarshaling %q: got %v, %v, want %v and an error", bad, back, err, u)
		}
	}
}

func TestNewUUID(t *testing.T) {
	a, b := NewUUID(), NewUUID()
	if a == b {
		t.Errorf("two new UUIDs are both %v", a)
	}
	if got, want := a.String()[14], byte('4'); got != want {
		t.Errorf("version of %v: got %c, want %c", a, got, want)
	}
	if got, want := a[8]>>6, uint8(2); got != want {
		t.Errorf("variant of %v: got %d, want %d", a, got, want)
	}
}

func TestNGUID(t *testing.T) {
	u := UUID{0: 0x11, 7: 0x22, 8: 0x81, 9: 0x33, 15: 0x44}
	if got, want := u.NGUID(), ([16]uint8{0: 0x11, 7: 0x22, 8: 0x82, 9: 0x33, 15: 0x44}); got != want {
		t.Errorf("NGUID: got %x, want %x", got, want)
	}
	if got, want := u[8], uint8(0x81); got != want {
		t.Errorf("UUID after deriving: got %#x, want %#x", got, want)
	}
	if got := (UUID{}).NGUID(); got == ([16]uint8{}) {
		t.Error("NGUID of the nil UUID: got zero, which means none")
	}
}

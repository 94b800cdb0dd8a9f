// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package nvme

import "testing"

func TestSMARTTemperature(t *testing.T) {
	var l SMARTLog
	l.SetTemperature(0x0134)
	if got, want := [2]byte(Bytes(&l)[1:3]), ([2]byte{0x34, 0x01}); got != want {
		t.Errorf("bytes 1 and 2: got %x, want %x", got, want)
	}
	if got, want := l.Temperature(), uint16(308); got != want {
		t.Errorf("temperature: got %d, want %d", got, want)
	}
}

func TestDataUnits(t *testing.T) {
	tests := []struct{ bytes, want uint64 }{
		{0, 0}, {1, 1}, {511_999, 1}, {512_000, 1}, {512_001, 2}, {1 << 40, 2147484}, {^uint64(0), 36028797018964},
	}
	for _, tt := range tests {
		if got := DataUnits(tt.bytes); got != tt.want {
			t.Errorf("data units of %d bytes: got %d, want %d", tt.bytes, got, tt.want)
		}
	}
}

func TestUint128(t *testing.T) {
	const top = ^uint64(0)
	tests := []struct {
		got  Uint128
		want Uint128
		text string
	}{
		{Uint128{}, Uint128{}, "0"},
		{Uint128{Lo: 1}.Add(2), Uint128{Lo: 3}, "3"},
		{Uint128{Lo: top}.Add(1), Uint128{Hi: 1}, "18446744073709551616"},
		{Uint128{Lo: top, Hi: top}.Add(1), Uint128{Lo: top, Hi: top}, "340282366920938463463374607431768211455"},
		{Mul64(1<<63, 4096), Uint128{Hi: 1 << 11}, "37778931862957161709568"},
		{Mul64(10_000_000_000_000_000_000, 10), Uint128{Lo: 7766279631452241920, Hi: 5}, "100000000000000000000"},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("value of %s: got %+v, want %+v", tt.text, tt.got, tt.want)
		}
		if got := tt.want.String(); got != tt.text {
			t.Errorf("text of %+v: got %s, want %s", tt.want, got, tt.text)
		}
	}
	l := SMARTLog{DataUnitsRead: Uint128{Lo: 0x0102, Hi: 0x03}}
	if got, want := [16]byte(Bytes(&l)[32:48]), ([16]byte{2, 1, 0, 0, 0, 0, 0, 0, 3}); got != want {
		t.Errorf("bytes of a counter: got %x, want %x", got, want)
	}
}

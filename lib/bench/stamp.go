// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package bench

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// A stamp fills a block, all numbers little-endian:
//
//	0   8  magic
//	8   8  address: the number of the block on its medium
//	16  4  seed
//	20  4  pass
//	24  4  CRC32C of the block without these four bytes
//	28  4  zero
//	32     numbers that look random, made of the fields above
const (
	offMagic   = 0
	offAddress = 8
	offSeed    = 16
	offPass    = 20
	offSum     = 24
	offFill    = 32
)

// magic is "LEAPIO", a version, and a byte that is no text.
const magic = 0xfe01_4f49_5041_454c

// stamp is what the stamp of a block says. As what is expected, a seed or pass
// of 0 is any.
type stamp struct {
	address    uint64
	seed, pass uint32
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sum is the checksum of a block.
func sum(block []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, block[:offSum]), castagnoli, block[offSum+4:])
}

// put stamps a block.
func (s stamp) put(block []byte) {
	binary.LittleEndian.PutUint64(block[offMagic:], magic)
	binary.LittleEndian.PutUint64(block[offAddress:], s.address)
	binary.LittleEndian.PutUint32(block[offSeed:], s.seed)
	binary.LittleEndian.PutUint32(block[offPass:], s.pass)
	binary.LittleEndian.PutUint64(block[offSum:], 0)
	fill(block[offFill:], newSource(s.address, uint64(s.seed)<<32|uint64(s.pass)))
	binary.LittleEndian.PutUint32(block[offSum:], sum(block))
}

// erase leaves no stamp in a block.
func erase(block []byte) { clear(block[:offAddress]) }

// fill fills memory of a multiple of 8 bytes.
func fill(p []byte, numbers source) {
	for ; len(p) >= 8; p = p[8:] {
		binary.LittleEndian.PutUint64(p, numbers.next())
	}
}

// read reads the stamp of a block. intact is false if it is none, or if the block
// does not match its checksum.
func read(block []byte) (s stamp, intact bool) {
	s = stamp{
		address: binary.LittleEndian.Uint64(block[offAddress:]),
		seed:    binary.LittleEndian.Uint32(block[offSeed:]),
		pass:    binary.LittleEndian.Uint32(block[offPass:]),
	}
	return s, binary.LittleEndian.Uint64(block[offMagic:]) == magic && binary.LittleEndian.Uint32(block[offSum:]) == sum(block)
}

// check reports whether a block is as expected.
func (s stamp) check(block []byte) bool {
	got, intact := read(block)
	return intact && got.address == s.address && (s.seed == 0 || got.seed == s.seed) && (s.pass == 0 || got.pass == s.pass)
}

// String is for people.
func (s stamp) String() string {
	number := func(n uint32) string {
		if n == 0 {
			return "any"
		}
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("LBA %d, seed %s, pass %s", s.address, number(s.seed), number(s.pass))
}

// Mismatch is a block that is not as expected.
type Mismatch struct {
	LBA      uint64 `json:"lba"`
	Expected string `json:"expected"`
	Found    string `json:"found"`
}

// mismatch describes a block that check does not like.
func (s stamp) mismatch(block []byte) Mismatch {
	m := Mismatch{LBA: s.address, Expected: s.String()}
	got, intact := read(block)
	switch {
	case intact:
		m.Found = got.String()
	case binary.LittleEndian.Uint64(block[offMagic:]) != magic:
		const shown = 16
		m.Found = fmt.Sprintf("no stamp, but % x ...", block[:shown])
	default:
		m.Found = fmt.Sprintf("%v, and the checksum %08x of a block that has %08x", got, binary.LittleEndian.Uint32(block[offSum:]), sum(block))
	}
	return m
}

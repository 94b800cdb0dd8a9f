// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
)

const (
	// tableVersion is the version of what is in tables. A program takes over
	// from one that writes the same.
	tableVersion = 2

	tableMagic = 0x4c6561705461626c // "LeapTabl"
	tableHead  = 32                 // bytes: magic, version, checksum, number, length
	tableSlot  = 1 << 30            // where the second slot begins; the file is sparse
)

// table is a document in a memfd which outlives this program. It is written to
// two slots by turns, each with a number and a checksum: whoever is killed while
// he writes leaves the document before. The head is the same in all versions.
type table struct {
	fd     int
	number uint64 // of the last that was written
}

// errDamaged is a table that has no document.
var errDamaged = errors.New("the table is damaged")

// newTable makes a table without a document.
func newTable() (*table, error) {
	fd, err := unix.MemfdCreate("leapio-table", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("creating a table: %w", err)
	}
	return &table{fd: fd}, nil
}

// write makes v the document.
func (t *table) write(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	b := make([]byte, tableHead, tableHead+len(text))
	le := binary.LittleEndian
	le.PutUint64(b[0:], tableMagic)
	le.PutUint32(b[8:], tableVersion)
	le.PutUint64(b[16:], t.number+1)
	le.PutUint64(b[24:], uint64(len(text)))
	b = append(b, text...)
	le.PutUint32(b[12:], crc32.ChecksumIEEE(b[16:]))
	at := int64((t.number+1)%2) * tableSlot
	for n := 0; n < len(b); {
		m, err := unix.Pwrite(t.fd, b[n:], at+int64(n))
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("writing a table: %w", err)
		}
		n += max(m, 0)
	}
	t.number++
	return nil
}

// openTable reads the table in fd into v. If its version is not the one that this
// program writes, the error is an unsupported fault; errDamaged is in the chain
// of all others.
func openTable(fd int, v any) (*table, error) {
	var last []byte
	for slot := range int64(2) {
		b, err := readSlot(fd, slot*tableSlot)
		if err == nil && (last == nil || tableNumber(b) > tableNumber(last)) {
			last = b
		}
	}
	if last == nil {
		return nil, errDamaged
	}
	if version := binary.LittleEndian.Uint32(last[8:]); version != tableVersion {
		return nil, fault.Errorf(fault.Unsupported, "", "", "what the program before has left is of version %d, and this build knows %d", version, tableVersion)
	}
	if err := json.Unmarshal(last[tableHead:], v); err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return &table{fd: fd, number: tableNumber(last)}, nil
}

func tableNumber(b []byte) uint64 { return binary.LittleEndian.Uint64(b[16:]) }

// readSlot reads a slot whose checksum is right.
func readSlot(fd int, at int64) ([]byte, error) {
	b := make([]byte, tableHead)
	if n, err := unix.Pread(fd, b, at); err != nil || n != len(b) {
		return nil, errDamaged
	}
	le := binary.LittleEndian
	size := le.Uint64(b[24:])
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if le.Uint64(b) != tableMagic || size > tableSlot-tableHead || st.Size < at+tableHead+int64(size) {
		return nil, errDamaged
	}
	b = append(b, make([]byte, size)...)
	for n := tableHead; n < len(b); {
		m, err := unix.Pread(fd, b[n:], at+int64(n))
		if err != nil && err != unix.EINTR || m == 0 {
			return nil, errDamaged
		}
		n += max(m, 0)
	}
	if crc32.ChecksumIEEE(b[16:]) != le.Uint32(b[12:]) {
		return nil, errDamaged
	}
	return b, nil
}

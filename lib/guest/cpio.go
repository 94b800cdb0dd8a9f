// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"bufio"
	"fmt"
	"io"
)

// File types in a cpio mode field (inode(7)).
const (
	cpioDir    = 0o040000
	cpioFile   = 0o100000
	cpioLink   = 0o120000
	cpioDevice = 0o020000 // character device
)

// cpioEntry is one member of an archive.
type cpioEntry struct {
	name         string // without a leading slash
	mode         uint32 // file type and permissions
	size         int64  // bytes of body
	body         io.Reader
	major, minor uint32 // of a device
}

// cpioWriter writes the "newc" format the kernel unpacks as its initial file system (Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst). Everything belongs to root and has no time stamp.
type cpioWriter struct {
	w     *bufio.Writer
	inode uint32
	off   int64
}

func newCpioWriter(w io.Writer) *cpioWriter { return &cpioWriter{w: bufio.NewWriterSize(w, 1<<20)} }

// add writes one entry. A body shorter or longer than the size is an error.
func (c *cpioWriter) add(e cpioEntry) error {
	if e.size < 0 || e.size > 1<<32-1 {
		return fmt.Errorf("cpio: %s: %d bytes do not fit the format", e.name, e.size)
	}
	c.inode++
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.inode, e.mode, 0, 0, 1, 0, e.size, 0, 0, e.major, e.minor, len(e.name)+1, 0, e.name)
	if err := c.write([]byte(header)); err != nil {
		return err
	}
	if err := c.align(); err != nil {
		return err
	}
	if e.size == 0 {
		return nil
	}
	n, err := io.Copy(c.w, io.LimitReader(e.body, e.size))
	c.off += n
	if err == nil && n != e.size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		var probe [1]byte
		if more, _ := e.body.Read(probe[:]); more > 0 {
			err = fmt.Errorf("longer than %d bytes", e.size)
		}
	}
	if err != nil {
		return fmt.Errorf("cpio: %s: %w", e.name, err)
	}
	return c.align()
}

// close writes the trailer.
func (c *cpioWriter) close() error {
	if err := c.add(cpioEntry{name: "TRAILER!!!"}); err != nil {
		return err
	}
	return c.w.Flush()
}

// align pads to a multiple of four bytes.
func (c *cpioWriter) align() error {
	var zero [4]byte
	return c.write(zero[:-c.off&3])
}

func (c *cpioWriter) write(p []byte) error {
	n, err := c.w.Write(p)
	c.off += int64(n)
	if err != nil {
		return fmt.Errorf("cpio: %w", err)
	}
	return nil
}

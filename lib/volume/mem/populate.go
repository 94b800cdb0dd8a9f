// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package mem

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
)

// hugePage is a large page of this and most processors, in bytes.
const hugePage = 2 << 20

// populate has the memory from byte from on, a multiple of hugePage, be there, and
// in huge pages where the kernel can: a page of 4 KiB costs a walk through page
// tables with each access to another, a third of the time to copy it. What is in
// the memory stays. Others may use it meanwhile.
func populate(ctx context.Context, data []byte, from uint64) error {
	for len(data[from:]) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := data[from:min(from+hugePage, uint64(len(data)))]
		switch err := advise(part, unix.MADV_POPULATE_WRITE); {
		case errors.Is(err, unix.EINVAL):
			return fault.Errorf(fault.Unsupported, "", "", "populate=on needs Linux 5.14 or newer")
		case errors.Is(err, unix.EFAULT), errors.Is(err, unix.ENOMEM): // EFAULT: of shared memory
			return fault.Errorf(fault.Failure, "", "", "no memory: %d of %d bytes are there", from, len(data))
		case err != nil:
			return fmt.Errorf("taking memory, %d of %d bytes: %w", from, len(data), err)
		}
		if len(part) == hugePage {
			// Small pages do as well: a kernel before 6.1, or memory in pieces.
			_ = advise(part, unix.MADV_COLLAPSE)
		}
		from += uint64(len(part))
	}
	return nil
}

func advise(data []byte, advice int) error {
	for {
		err := unix.Madvise(data, advice)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package mem

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/units"
)

// hugePage is a large page of this and most processors, in bytes.
const hugePage = 2 << 20

// populate has the memory from byte from on, a multiple of hugePage, be there, and
// in huge pages where the kernel can: a page of 4 KiB costs a walk through page
// tables with each access to another, a third of the time to copy it. What is in
// the memory stays. Others may use it meanwhile.
func populate(ctx context.Context, data []byte, from uint64) error {
	// The kernel would kill processes to find what there is not.
	need := units.Size(uint64(len(data)) - from)
	if free, err := available(); err != nil {
		return err
	} else if need > free {
		return fault.Errorf(fault.Failure, "", "", "populate=on needs %s of memory, and %s are available", need.Human(), free.Human())
	}
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

// available is how much memory can be taken without others having to give up
// theirs, as the kernel estimates it (proc_meminfo(5)).
func available() (units.Size, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if text, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(text), " kB"), 10, 64)
			return units.Size(kib) * units.KiB, err
		}
	}
	return 0, errors.New("/proc/meminfo does not say how much memory is available")
}

func advise(data []byte, advice int) error {
	for {
		err := unix.Madvise(data, advice)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

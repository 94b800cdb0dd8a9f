// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/units"
)

// maxRegions is how many regions of guest memory one client may register, as
// VERSION tells it. QEMU has some ten, one or two more per hot-plugged DIMM.
// Each may hold a file descriptor open.
const maxRegions = 512

// region is one range of guest memory. It owns fd.
type region struct {
	addr, size uint64 // guest-physical
	offset     uint64 // of addr in fd
	flags      uint32 // qpair.Region*
	fd         int    // -1: the client does not share it
}

// end returns the last address, which cannot overflow.
func (r *region) end() uint64 { return r.addr + (r.size - 1) }

// regionTable is the guest memory of a client: regions sorted by address that
// do not overlap.
type regionTable struct{ regions []region }

// add adds r and owns r.fd from then on; on an error it stays the caller's.
// Errors carry the errno to answer with.
func (t *regionTable) add(r region) error {
	if err := dma.CheckRange(r.addr, r.size); err != nil {
		return fmt.Errorf("%w: %w", err, unix.EINVAL)
	}
	if r.fd >= 0 {
		if err := checkMemory(r.fd, r.offset, r.size); err != nil {
			return err
		}
	}
	if len(t.regions) >= maxRegions {
		return fmt.Errorf("region %#x+%#x: more than %d regions: %w", r.addr, r.size, maxRegions, unix.ENOSPC)
	}
	i := t.search(r.addr)
	if i < len(t.regions) && t.regions[i].addr <= r.end() {
		return fmt.Errorf("region %#x+%#x overlaps %#x+%#x: %w", r.addr, r.size, t.regions[i].addr, t.regions[i].size, unix.EEXIST)
	}
	t.regions = slices.Insert(t.regions, i, r)
	return nil
}

// search returns the index of the first region that ends at or after addr.
func (t *regionTable) search(addr uint64) int {
	i, _ := slices.BinarySearchFunc(t.regions, addr, func(r region, a uint64) int {
		if r.end() < a {
			return -1
		}
		return 1
	})
	return i
}

// remove takes out the regions inside [addr, addr+size), which must exist and
// lie inside as a whole. The fds of what it returns are the caller's.
func (t *regionTable) remove(addr, size uint64) ([]region, error) {
	if err := dma.CheckRange(addr, size); err != nil {
		return nil, fmt.Errorf("%w: %w", err, unix.EINVAL)
	}
	last := addr + (size - 1)
	from := t.search(addr)
	to := from
	for to < len(t.regions) && t.regions[to].addr <= last {
		to++
	}
	if from == to {
		return nil, fmt.Errorf("range %#x+%#x is not mapped: %w", addr, size, unix.ENOENT)
	}
	for _, r := range t.regions[from:to] {
		if r.addr < addr || r.end() > last {
			return nil, fmt.Errorf("range %#x+%#x cuts region %#x+%#x: %w", addr, size, r.addr, r.size, unix.EINVAL)
		}
	}
	gone := slices.Clone(t.regions[from:to])
	t.regions = slices.Delete(t.regions, from, to)
	return gone, nil
}

// removeAll empties the table. The fds of what it returns are the caller's.
func (t *regionTable) removeAll() []region {
	gone := t.regions
	t.regions = nil
	return gone
}

// covers reports whether every byte of [addr, addr+size) is in a region with
// all of flags that is not the port's own page.
func (t *regionTable) covers(addr, size uint64, flags uint32) bool {
	if size == 0 || addr+(size-1) < addr {
		return false
	}
	last := addr + (size - 1)
	for i := t.search(addr); i < len(t.regions); i++ {
		r := &t.regions[i]
		if r.addr > addr || r.flags&flags != flags || r.flags&qpair.RegionOwn != 0 {
			return false
		}
		if r.end() >= last {
			return true
		}
		addr = r.end() + 1
	}
	return false
}

// bytes returns the size of all regions.
func (t *regionTable) bytes() uint64 {
	var n uint64
	for i := range t.regions {
		n += t.regions[i].size
	}
	return n
}

// find returns the region that is the same as r but for its fd, or nil.
func (t *regionTable) find(r region) *region {
	if i := t.search(r.addr); i < len(t.regions) {
		found := t.regions[i]
		found.fd = r.fd
		if found == r {
			return &t.regions[i]
		}
	}
	return nil
}

// closeRegions closes what regions hold. No table names them any more.
func (f *files) closeRegions(regions []region) {
	for i := range regions {
		f.close(regions[i].fd)
	}
}

// fuseMagic is the type of a FUSE file system (statfs(2)).
const fuseMagic = 0x65735546

// checkMemory reports whether fd can be the memory of a region: a file that
// has all of it now, and that no other process of the client's serves, since a
// page fault in such a mapping would wait for that process.
func checkMemory(fd int, offset, size uint64) error {
	if offset%dma.PageSize != 0 || offset+size < offset {
		return fmt.Errorf("file offset %#x: %w", offset, unix.EINVAL)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("memory file: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("memory is not a regular file: %w", unix.EINVAL)
	}
	if st.Size < 0 || offset+size > uint64(st.Size) {
		return fmt.Errorf("memory file of %d bytes, %d needed: %w", st.Size, offset+size, unix.EINVAL)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return fmt.Errorf("memory file: %w", err)
	}
	if fs.Type == fuseMagic {
		return fmt.Errorf("memory file on a FUSE file system: %w", unix.EINVAL)
	}
	return nil
}

// showRegions describes the guest memory of the port. Its own page is none, also
// if the client has registered it.
func (p *port) showRegions() (api.PortRegions, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return api.PortRegions{}, nil // it was there a moment ago
	}
	out := api.PortRegions{Generation: p.regs.Page.LoadMapGen()}
	if p.client != nil {
		out.ClientPID = p.client.pid
	}
	for i := range p.regions.regions {
		r := &p.regions.regions[i]
		if r.flags&qpair.RegionOwn != 0 {
			continue
		}
		shown := api.Region{Addr: r.addr, Size: units.Size(r.size), Perms: perms(r.flags), Offset: r.offset}
		if r.fd >= 0 {
			var st unix.Stat_t
			if err := unix.Fstat(r.fd, &st); err != nil {
				return api.PortRegions{}, fmt.Errorf("region %#x+%#x: %w", r.addr, r.size, err)
			}
			shown.Device, shown.Inode = st.Dev, st.Ino
		}
		out.Regions = append(out.Regions, shown)
	}
	return out, nil
}

// perms are the letters of api.Region.
func perms(flags uint32) (s string) {
	if flags&qpair.RegionRead != 0 {
		s += "r"
	}
	if flags&qpair.RegionWrite != 0 {
		s += "w"
	}
	return s
}

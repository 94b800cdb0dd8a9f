// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

import (
	"bytes"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// scanArg is struct pm_scan_arg (Linux, include/uapi/linux/fs.h).
type scanArg struct {
	size, flags                   uint64
	start, end, walkEnd           uint64
	vec, vecLen, maxPages         uint64
	inverted, mask, anyOf, report uint64
}

// region is struct page_region.
type region struct{ start, end, categories uint64 }

// mapQuery is struct procmap_query.
type mapQuery struct {
	size, flags, addr            uint64
	start, end, vmaFlags, pageSz uint64
	offset, inode                uint64
	major, minor                 uint32
	nameSize, buildIDSize        uint32
	name, buildID                uint64
}

var (
	_ [96]struct{}  = [unsafe.Sizeof(scanArg{})]struct{}{}
	_ [24]struct{}  = [unsafe.Sizeof(region{})]struct{}{}
	_ [104]struct{} = [unsafe.Sizeof(mapQuery{})]struct{}{}
)

// Both are _IOWR('f', n, struct).
const (
	ioctlPagemapScan  = 3<<30 | 96<<16 | 'f'<<8 | 16
	ioctlProcmapQuery = 3<<30 | 104<<16 | 'f'<<8 | 17
)

// vmaShared is a bit of mapQuery.vmaFlags; 1, 2 and 4 are r, w and x.
const vmaShared = 8

// room is what the kernel writes to by addresses that only it knows: it must
// not be on a stack, which may move.
type room struct {
	found [64]region
	name  [unix.PathMax + 1]byte
}

// scan finds regions in [start, end) whose pages have any of the categories,
// and tells which of those and of also they have. It returns up to where it has
// looked. The regions are valid until the next scan.
func (p *Process) scan(start, end, anyOf, also uint64) (found []region, walked uint64, err error) {
	arg := scanArg{
		size: uint64(unsafe.Sizeof(scanArg{})), start: start, end: end,
		vec: uint64(uintptr(unsafe.Pointer(&p.found))), vecLen: uint64(len(p.found)),
		anyOf: anyOf, report: anyOf | also,
	}
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, p.pagemap.Fd(), ioctlPagemapScan, uintptr(unsafe.Pointer(&arg)))
		switch errno {
		case 0:
			return p.found[:r], arg.walkEnd, nil
		case unix.EINTR:
		case unix.ESRCH:
			return nil, 0, fmt.Errorf("process %d: %w", p.pid, ErrGone)
		default:
			return nil, 0, fmt.Errorf("process %d: scanning from %#x: %w", p.pid, start, errno)
		}
	}
}

// query is Find by PROCMAP_QUERY (Linux 6.11).
func (p *Process) query(addr uint64) (v VMA, size uint64, ok bool, err error) {
	q := mapQuery{
		size: uint64(unsafe.Sizeof(mapQuery{})), addr: addr,
		name: uint64(uintptr(unsafe.Pointer(&p.name))), nameSize: uint32(len(p.name)),
	}
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, p.maps.Fd(), ioctlProcmapQuery, uintptr(unsafe.Pointer(&q)))
		switch errno {
		case 0:
			text, _, _ := bytes.Cut(p.name[:min(int(q.nameSize), len(p.name))], []byte{0})
			return VMA{
				Start: q.start, End: q.end, Perms: permissions(q.vmaFlags), Offset: q.offset,
				Major: q.major, Minor: q.minor, Inode: q.inode, Name: string(text),
			}, q.pageSz, true, nil
		case unix.EINTR:
		case unix.ENOENT:
			return VMA{}, 0, false, nil
		case unix.ESRCH:
			return VMA{}, 0, false, fmt.Errorf("process %d: %w", p.pid, ErrGone)
		default:
			return VMA{}, 0, false, fmt.Errorf("process %d: mapping of %#x: %w", p.pid, addr, errno)
		}
	}
}

// permissions are the letters of /proc/PID/maps.
func permissions(flags uint64) string {
	b := []byte("---p")
	for i, c := range []byte("rwx") {
		if flags&(1<<i) != 0 {
			b[i] = c
		}
	}
	if flags&vmaShared != 0 {
		b[3] = 's'
	}
	return string(b)
}

// node returns the NUMA node of the page at addr, -1 if the kernel does not
// tell: it wants CAP_SYS_NICE for processes of others.
func (p *Process) node(addr uint64) int {
	pages := [1]uintptr{uintptr(addr / pageSize * pageSize)}
	status := [1]int32{-1}
	_, _, errno := unix.Syscall6(unix.SYS_MOVE_PAGES, uintptr(p.pid), 1, uintptr(unsafe.Pointer(&pages[0])),
		0, uintptr(unsafe.Pointer(&status[0])), 0)
	if errno != 0 || status[0] < 0 {
		return -1
	}
	return int(status[0])
}

// addrOf returns where b is.
func addrOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qpair

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/nvme"
)

// The layouts are shared between processes of different builds: their sizes
// and the offsets of what is accessed by the other side are fixed here.
var (
	_ [256]byte           = [unsafe.Sizeof(Registers{})]byte{}
	_ [192]byte           = [unsafe.Offsetof(Registers{}.Status)]byte{}
	_ [128]byte           = [unsafe.Sizeof(Slot{})]byte{}
	_ [128]byte           = [unsafe.Sizeof(CQPage{})]byte{}
	_ [128]byte           = [unsafe.Offsetof(SQPage{}.Slots)]byte{}
	_ [33 * PageSize]byte = [unsafe.Sizeof(SQPage{})]byte{}
	_ [PageSize]byte      = [unsafe.Sizeof(StateHeader{})]byte{}
	_ [32]byte            = [unsafe.Offsetof(StateHeader{}.Life)]byte{}
	_ [2 * PageSize]byte  = [unsafe.Sizeof(ControllerPage{})]byte{}
	_ [PageSize]byte      = [unsafe.Sizeof(Doorbells{})]byte{}
	_ [MessageSize]byte   = [unsafe.Sizeof(Message{})]byte{}
)

// DoorbellOffset is where the doorbell page begins in its memfd: as in BAR0,
// so that a client maps the region of BAR0 at its own offset in the file. The
// page before it is never touched.
const DoorbellOffset = PageSize

// Shared is a shared page or area: its memfd and its mapping.
type Shared[T layout] struct {
	Page *T
	fd   int
}

// Page types that can be shared.
type layout interface{ Registers | Doorbells | State }

// Create makes a zeroed, sealed memfd for a T and maps it. Nobody can shrink
// or grow it, so that no access to it can fault.
func Create[T layout](name string) (*Shared[T], error) {
	fd, err := unix.MemfdCreate("leapio-"+name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("creating %s memory: %w", name, err)
	}
	if err = unix.Ftruncate(fd, int64(offsetOf[T]()+sizeOf[T]())); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("sizing %s memory: %w", name, err)
	}
	return Open[T](fd)
}

// Open maps the T that fd holds and takes over fd, also on error.
func Open[T layout](fd int) (*Shared[T], error) {
	offset, size := offsetOf[T](), sizeOf[T]()
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil && st.Size < int64(offset+size) {
		err = fmt.Errorf("shared memory of %d bytes where %d are needed", st.Size, offset+size)
	}
	var p unsafe.Pointer
	if err == nil {
		p, err = unix.MmapPtr(fd, int64(offset), nil, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("mapping shared memory: %w", err)
	}
	return &Shared[T]{(*T)(p), fd}, nil
}

// FD returns the memfd, which s keeps.
func (s *Shared[T]) FD() int { return s.fd }

// Close unmaps and closes. The pointer must not be used afterwards.
func (s *Shared[T]) Close() error {
	if s.Page == nil {
		return nil
	}
	err := unix.MunmapPtr(unsafe.Pointer(s.Page), sizeOf[T]())
	s.Page = nil
	unix.Close(s.fd)
	return err
}

// Release unmaps and returns the memfd, which is the caller's.
func (s *Shared[T]) Release() int {
	// It fails for addresses that were never mapped only.
	_ = unix.MunmapPtr(unsafe.Pointer(s.Page), sizeOf[T]())
	s.Page = nil
	return s.fd
}

// sizeOf returns the size of T rounded up to whole pages.
func sizeOf[T layout]() uintptr {
	var t *T
	return (unsafe.Sizeof(*t) + PageSize - 1) &^ (PageSize - 1)
}

// offsetOf returns where a T begins in its memfd.
func offsetOf[T layout]() uintptr {
	if _, ok := any((*T)(nil)).(*Doorbells); ok {
		return DoorbellOffset
	}
	return 0
}

// ringSQE reads entry i of a submission ring: once, since the guest may change
// it at any time.
func ringSQE(ring unsafe.Pointer, i uint32, to *nvme.SQE) {
	*to = *(*nvme.SQE)(unsafe.Add(ring, uintptr(i)*unsafe.Sizeof(*to)))
}

// putCQE writes entry i of a completion ring: dwords 0 to 2, then dword 3 with
// the phase tag in one atomic store, which pairs with the guest's read of it.
func putCQE(ring unsafe.Pointer, i uint32, cqe *nvme.CQE) {
	to := (*[4]uint32)(unsafe.Add(ring, uintptr(i)*unsafe.Sizeof(*cqe)))
	from := (*[4]uint32)(unsafe.Pointer(cqe))
	to[0], to[1], to[2] = from[0], from[1], from[2]
	release32(&to[3], from[3])
}

// sqeBytes returns the memory of an SQE.
func sqeBytes(s *nvme.SQE) []byte { return (*[unsafe.Sizeof(*s)]byte)(unsafe.Pointer(s))[:] }

// cqeBytes returns the memory of a CQE.
func cqeBytes(c *nvme.CQE) []byte { return (*[unsafe.Sizeof(*c)]byte)(unsafe.Pointer(c))[:] }

// messageBytes returns the memory of a Message.
func messageBytes(m *Message) []byte { return (*[MessageSize]byte)(unsafe.Pointer(m))[:] }

// nameBytes returns the memory of a name field.
func nameBytes[T nameField](f *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(f)), unsafe.Sizeof(*f))
}

// DoorbellsAt returns the page of guest memory at p as doorbells.
func DoorbellsAt(p unsafe.Pointer) *Doorbells { return (*Doorbells)(p) }

// ring is where a ring is in this process; nil where it is not one piece of
// mapped memory.
type ring = unsafe.Pointer

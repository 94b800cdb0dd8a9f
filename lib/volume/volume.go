// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package volume is the contract between what uses blocks (controllers) and
// what provides them: kinds of volumes, each in a folder of its own below this
// one, and services stacked on volumes.
//
// A Volume is shared; each poller opens a Queue of its own on it. A Request is
// submitted on the poller of its queue and ends there in exactly one
// Completed call. Segments belong to the submitter until then; the volume
// changes nothing in a request but its Status and its own Scratch.
package volume

import (
	"github.com/leapio/leapio/lib/dma"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
)

// Op is what a request does.
type Op uint8

// Operations. Offset and Length are multiples of Info.Block and lie within
// Info.Size: submitters check, volumes rely on it.
const (
	Read        Op = iota // fill Segments from the volume
	Write                 // store Segments to the volume
	Flush                 // what has completed survives power loss; no range
	WriteZeroes           // the range reads zero afterwards
	Discard               // a hint: the range's content may be given up; it then reads zero or as before
)

// String names the operation.
func (o Op) String() string {
	switch o {
	case Read:
		return "read"
	case Write:
		return "write"
	case Flush:
		return "flush"
	case WriteZeroes:
		return "write-zeroes"
	case Discard:
		return "discard"
	}
	return "invalid"
}

// Flags of a request.
type Flags uint8

const (
	// FUA: the write survives power loss when it completes (NVMe Force Unit Access).
	FUA Flags = 1 << iota
	// Deallocate: WriteZeroes may give up the blocks (NVMe DEAC).
	Deallocate
)

// Request is one operation on a volume. Its memory is the submitter's, who
// reuses it; nothing is allocated per request.
type Request struct {
	Op       Op
	Flags    Flags
	Offset   uint64 // bytes
	Length   uint64 // bytes; the sum of Segments for Read and Write
	Segments []dma.Segment
	Owner    Owner // told the end

	// Status is the result, in NVMe's terms so that a status from a remote
	// drive passes through unchanged.
	Status nvme.Status

	// Scratch is the volume's own, from Submit to Complete.
	Scratch [2]uint64

	share *poller.Share // on whose behalf it is
}

// Owner is told the end of its requests.
type Owner interface {
	// Completed is called once per Submit, on the poller, from its loop: never
	// from within Submit. The request may be reused from then on.
	Completed(*Request)
}

// Begin is called by a queue at the head of Submit: the request will end on p.
func (r *Request) Begin(p *poller.Poller) { r.share = p.Current() }

// Enter begins work on behalf of whom the request is for, outside of his turns;
// see poller.Share.Enter.
func (r *Request) Enter() poller.Visit { return r.share.Enter() }

// Complete ends the request with st: a queue calls it exactly once per Submit,
// on the request's poller, also from within Submit.
func (r *Request) Complete(st nvme.Status) {
	r.Status = st
	r.share.Defer(r)
}

// Run implements poller.Runnable.
func (r *Request) Run() { r.Owner.Completed(r) }

// Faulted implements poller.Toucher: the copy from or to guest memory that the
// queue was doing for this request has hit memory the guest took away.
func (r *Request) Faulted() { r.Complete(nvme.StatusDataTransferError) }

// Info is what a volume is: an immutable snapshot. A Reshaper or a Reporter replaces it.
type Info struct {
	Size     uint64 // bytes, a multiple of Block
	Block    uint32 // logical block: 512 or 4096 bytes
	ReadOnly bool
	// VolatileCache: completed writes survive power loss only after Flush.
	VolatileCache bool
	// Granularity is the preferred unit of writes in bytes, and what Discard
	// can give up; multiples of Block.
	WriteGranularity   uint32
	DiscardGranularity uint32
	// AtomicUnit is the largest write in bytes that is never torn; at least Block.
	AtomicUnit uint32
	// Stable: the data must not change while a write is in flight; whoever
	// submits copies guest memory first.
	Stable bool
}

// Volume provides blocks. All methods may be called from any goroutine.
type Volume interface {
	Info() *Info
	// Open returns a queue for one poller. It is called on that poller.
	Open(*poller.Poller) (Queue, error)
	// Close gives the volume up; its queues have been closed.
	Close() error
}

// Shape is what of a volume can change while it is in use.
type Shape struct {
	Size  uint64 // bytes, a multiple of Block
	Block uint32 // 512 or 4096 bytes
}

// Shape returns the volume's shape.
func (i *Info) Shape() Shape { return Shape{i.Size, i.Block} }

// Reshaper is a volume whose shape can change while it is open and requests are
// in flight. Changes are made one at a time; the methods may block.
//
// Growing is Extend, then Reshape; shrinking is Reshape, then Trim. What is
// kept of the volume's size in between is for who changes it: Make opens a
// volume whose medium holds more than its Spec says, as it is after a crash in
// between, with the size of the Spec.
type Reshaper interface {
	Volume
	// Extend has the medium hold size bytes or more, and survive power loss
	// so. Info stays as it was, also after an error.
	Extend(size uint64) error
	// Reshape makes Info a snapshot of this shape; the medium holds that much.
	// Requests in flight are not affected, but where the block changes there
	// are none. After an error Info stays as it was.
	Reshape(Shape) error
	// Trim gives up what the medium holds beyond Info.Size, where no request
	// is in flight.
	Trim() error
}

// Reporter is a volume whose medium is not its own: it can be lost and found
// again, and become larger or write protected by itself.
type Reporter interface {
	Volume
	// Err returns why there is no medium now; nil: there is one.
	Err() error
	// Found returns what Info would be if it followed the medium: of the same
	// block, and no smaller. Info stays as it is until Take, so that whoever
	// keeps the volume's size elsewhere can keep it before.
	Found() *Info
	// Take makes Info what Found has returned.
	Take(*Info)
	// Changes returns what receives after Err or Found may have changed, and is
	// closed by Close. It is for one receiver.
	Changes() <-chan struct{}
}

// Queue is one poller's way to a volume. All methods are called on that poller.
type Queue interface {
	// Submit starts r. It never blocks and r.Owner is told the end, once.
	Submit(r *Request)
	// Cancel wishes that r ends soon. It still ends by Completed, and not
	// before the kernel has let go of its segments.
	Cancel(r *Request)
	// Close ends the queue. No request is in flight.
	Close()
}

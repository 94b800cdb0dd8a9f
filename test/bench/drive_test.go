// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package bench_test

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/bench"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/uring"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// patience is how long a server has for an answer; a machine may have much to do.
const patience = time.Minute

// drive is a queue pair of a vfio-user port.
type drive struct {
	*clock
	sq   *vfiousertest.SQ
	cq   *vfiousertest.CQ
	sqes []nvme.SQE // by slot, which is the identifier of the command
	ios  []*bench.IO
	data []byte
	size uint64 // blocks
	nlb  uint16
	end  func(nvme.CQE)
	rung bool // nothing was pushed since
}

// enable enables the controller of a port, for one queue pair.
func enable(c *vfiousertest.Client) (*vfiousertest.NVMe, error) {
	n, err := vfiousertest.NewNVMe(c)
	if err == nil {
		err = n.Enable(32)
	}
	if err == nil {
		_, err = n.SetQueues(1)
	}
	return n, err
}

// openDrive connects to a port and makes a queue pair for a job.
func openDrive(c *clock, dir string, mem *vfiousertest.Memory, job *bench.Job) (*drive, error) {
	conn, err := vfiousertest.Dial(filepath.Join(dir, "cntrl"), mem, vfiousertest.Options{Timeout: patience})
	if err != nil {
		return nil, err
	}
	n, err := enable(conn)
	if err != nil {
		return nil, err
	}
	raw, err := n.Identify(nvme.CNSNamespace, 1)
	if err != nil {
		return nil, err
	}
	var id nvme.IdentifyNamespace
	copy(nvme.Bytes(&id), raw)
	entries := min(max(32, 2*job.Depth), int(n.CAP().MQES())+1)
	if job.Depth >= entries {
		return nil, fmt.Errorf("%s: queues have %d entries, %d commands asked for", dir, entries, job.Depth)
	}
	p, err := n.CreatePair(1, entries, vfiousertest.Polled)
	if err != nil {
		return nil, err
	}
	d := &drive{
		clock: c, sq: p.SQ, cq: p.CQ, size: id.NSZE,
		sqes: make([]nvme.SQE, job.Depth), ios: make([]*bench.IO, job.Depth), nlb: uint16(job.IOSize/block - 1), rung: true,
	}
	d.end = func(e nvme.CQE) { d.ios[e.CID].End(e.StatusField()) }
	return d, d.layOut(mem, int(job.IOSize))
}

// layOut gives each command its data, one behind the other, and a PRP list.
func (d *drive) layOut(mem *vfiousertest.Memory, size int) error {
	const page = vfiousertest.PageSize
	stride := (size + page - 1) / page * page
	at, data, err := mem.Alloc(len(d.sqes) * stride)
	if err != nil {
		return err
	}
	d.data = data
	for i := range d.sqes {
		e := &d.sqes[i]
		e.CID, e.NSID, e.PRP1 = uint16(i), 1, at+uint64(i*stride)
		switch pages := stride / page; {
		case pages == 2:
			e.PRP2 = e.PRP1 + page
		case pages > 2:
			list, b, err := mem.Alloc(page)
			if err != nil {
				return err
			}
			e.PRP2 = list
			for k := range pages - 1 {
				binary.LittleEndian.PutUint64(b[8*k:], e.PRP1+uint64((k+1)*page))
			}
		}
	}
	return nil
}

// Start implements bench.Queue.
func (d *drive) Start(io *bench.IO) bool {
	e := &d.sqes[io.Slot]
	e.Opcode = uint8(nvme.IORead)
	if io.Write {
		e.Opcode = uint8(nvme.IOWrite)
	}
	nvme.RW{SLBA: io.LBA, NLB: d.nlb}.Put(e)
	d.ios[io.Slot] = io
	d.rung = false
	return d.sq.Push(e)
}

func (d *drive) poll() error {
	if d.cq.Pending() {
		d.read()
		if _, err := d.cq.Poll(d.end); err != nil {
			return err
		}
	}
	if d.rung {
		return nil
	}
	d.rung = true
	return d.sq.Ring()
}

func (d *drive) memory() []byte { return d.data }
func (d *drive) blocks() uint64 { return d.size }

// file is a file, past the page cache, through an io_uring of the client's.
type file struct {
	*clock
	ring  *uring.Ring
	f     uring.File
	slots []slot
	data  []byte
	size  uint64 // blocks
}

// slot is an I/O of a file.
type slot struct {
	io  *bench.IO
	iov []unix.Iovec
}

// openFile opens a file for a job.
func openFile(c *clock, path string, job *bench.Job) (*file, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	ring, err := uring.New(uring.Config{Entries: uint32(job.Depth), FixedFiles: 1})
	if err != nil {
		return nil, err
	}
	fixed, err := ring.RegisterFile(fd)
	if err != nil {
		return nil, err
	}
	size := int(job.IOSize)
	data, err := unix.Mmap(-1, 0, job.Depth*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	f := &file{clock: c, ring: ring, f: uring.Fixed(fixed), slots: make([]slot, job.Depth), data: data, size: uint64(st.Size / block)}
	for i := range f.slots {
		iov := unix.Iovec{Base: &data[i*size]}
		iov.SetLen(size)
		f.slots[i].iov = []unix.Iovec{iov}
	}
	return f, nil
}

// Start implements bench.Queue.
func (f *file) Start(io *bench.IO) bool {
	s := &f.slots[io.Slot]
	s.io = io
	at := int64(io.LBA * block)
	var err error
	if io.Write {
		_, err = f.ring.Write(f.f, s.iov, at, 0, s)
	} else {
		_, err = f.ring.Read(f.f, s.iov, at, 0, s)
	}
	return err == nil
}

// Done implements uring.Completion.
func (s *slot) Done(n int32, _ uint32) {
	st := nvme.StatusSuccess
	if int(n) != len(s.io.Data) {
		st = nvme.StatusDataTransferError
	}
	s.io.End(st)
}

func (f *file) poll() error {
	if _, err := f.ring.Submit(); err != nil {
		return err
	}
	f.read()
	_, err := f.ring.Reap(len(f.slots))
	return err
}

func (f *file) memory() []byte { return f.data }
func (f *file) blocks() uint64 { return f.size }

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// What hosts that are not free to look into do from enable to the first I/O,
// over the whole path. The sequences are put together from what is public: the
// tables of commands in Microsoft's StorNVMe documentation, and reports of users
// of ESXi with other targets. The order within them is a guess. They are no
// proof that these hosts attach, but that nothing they are known to need is
// missing. lib/controller has Linux and SPDK, whose sources are public.

// askStep is an admin command of a host, and what must come of it.
type askStep struct {
	name   string
	fields interface{ Put(*nvme.SQE) }
	nsid   uint32
	size   int // of the data it gets
	want   nvme.Status
	check  func(dw0 uint32, b []byte) bool
}

// ask executes the steps in order.
func ask(t *testing.T, n *vfiousertest.NVMe, steps []askStep) {
	t.Helper()
	for _, s := range steps {
		e := nvme.SQE{NSID: s.nsid}
		s.fields.Put(&e)
		buf, err := n.Client().Memory().NewBuffer(max(s.size, 1), vfiousertest.Shape{})
		if err != nil {
			t.Fatal(err)
		}
		buf.Set(&e)
		c, err := n.AdminCommand(e)
		b := make([]byte, s.size)
		buf.Read(b)
		buf.Free()
		var status *vfiousertest.StatusError
		if err != nil && !errors.As(err, &status) {
			t.Fatalf("%s: %v", s.name, err)
		}
		if st := c.StatusField().Code(); st != s.want {
			t.Errorf("%s: %v, want %v", s.name, st, s.want)
		} else if s.check != nil && !s.check(c.DW0, b) {
			t.Errorf("%s: DW0 %#x, % x...", s.name, c.DW0, b[:min(len(b), 128)])
		}
	}
}

// attachments calls f with a drive of each kind of doorbell and interrupt.
func attachments(t *testing.T, f func(t *testing.T, n *vfiousertest.NVMe, vector int)) {
	for _, doorbells := range []string{api.DoorbellsTrap, api.DoorbellsMap} {
		for _, irq := range []string{"msix", "intx"} {
			t.Run(doorbells+"/"+irq, func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				r.volume("d1", "file", "size", "32M")
				r.wire("vm1", doorbells, "d1")
				n := r.guest("vm1", small)
				use, vector := n.UseMSIX, 1
				if irq == "intx" {
					use, vector = n.UseINTx, 0
				}
				if err := errors.Join(use(), n.Enable(64)); err != nil {
					t.Fatal(err)
				}
				f(t, n, vector)
			})
		}
	}
}

// isDrive checks what all hosts look at in Identify Controller.
func isDrive(_ uint32, b []byte) bool {
	var id nvme.IdentifyController
	copy(nvme.Bytes(&id), b)
	return id.SQES == 0x66 && id.CQES == 0x44 && id.NN > 0 && id.CNTRLTYPE == nvme.ControllerTypeIO && id.AERL >= 2 && id.SN[0] > ' ' && id.MN[0] > ' '
}

// namespace1 checks what hosts need of a namespace, and gives it to look.
func namespace1(look func(id *nvme.IdentifyNamespace) bool) func(uint32, []byte) bool {
	return func(_ uint32, b []byte) bool {
		var id nvme.IdentifyNamespace
		copy(nvme.Bytes(&id), b)
		f := id.LBAF[id.FLBAS&0xf]
		return id.NSZE<<f.LBADS == 32<<20 && id.NCAP == id.NSZE && f.MS == 0 && id.DPS == 0 && look(&id)
	}
}

// supports checks the effects log for commands.
func supports(admin, io []uint8) func(uint32, []byte) bool {
	return func(_ uint32, b []byte) bool {
		var l nvme.CommandEffectsLog
		copy(nvme.Bytes(&l), b)
		missing := func(of *[256]uint32, op uint8) bool { return of[op]&nvme.EffectSupported == 0 }
		return !slices.ContainsFunc(admin, func(op uint8) bool { return missing(&l.Admin, op) }) &&
			!slices.ContainsFunc(io, func(op uint8) bool { return missing(&l.IO, op) })
	}
}

// granted checks Number of Queues.
func granted(n uint16) func(uint32, []byte) bool {
	return func(dw0 uint32, _ []byte) bool { return nvme.NumberOfQueues(dw0) == nvme.MakeNumberOfQueues(n-1, n-1) }
}

// TestAttachWindows is StorNVMe: no Abort, no Keep Alive, no Doorbell Buffer
// Config, no metadata. Microsoft documents that it uses Identify, Get Log Page,
// features, event requests, TRIM by Dataset Management, since Windows 11 the hints
// NPWG to NOWS, and that a pass-through command must be in the effects log.
func TestAttachWindows(t *testing.T) {
	attachments(t, func(t *testing.T, n *vfiousertest.NVMe, vector int) {
		smart := func(_ uint32, b []byte) bool {
			var l nvme.SMARTLog
			copy(nvme.Bytes(&l), b)
			return l.CriticalWarning == 0 && l.AvailableSpare > l.AvailableSpareThreshold
		}
		ask(t, n, []askStep{
			{"controller", nvme.Identify{CNS: nvme.CNSController}, 0, 4096, 0, isDrive},
			{"effects", nvme.GetLogPage{LID: nvme.LogCommandEffects, NUMD: 1023}, nvme.NSIDBroadcast, 4096, 0,
				supports([]uint8{0, 1, 2, 4, 5, 6, 9, 0xa, 0xc, 0x80}, []uint8{0, 1, 2, 5, 9})},
			{"firmware", nvme.GetLogPage{LID: nvme.LogFirmwareSlot, NUMD: 127}, nvme.NSIDBroadcast, 512, 0,
				func(_ uint32, b []byte) bool { return b[0]&7 == 1 && b[8] > ' ' }},
			{"health", nvme.GetLogPage{LID: nvme.LogSMART, NUMD: 127}, nvme.NSIDBroadcast, 512, 0, smart},
			{"health of a namespace", nvme.GetLogPage{LID: nvme.LogSMART, NUMD: 127}, 1, 512, nvme.StatusInvalidField, nil}, // LPA bit 0 is 0
			{"errors", nvme.GetLogPage{LID: nvme.LogErrorInformation, NUMD: 15}, nvme.NSIDBroadcast, 64, 0, nil},
			{"queues", nvme.SetFeatures{FID: nvme.FeatNumberOfQueues, Value: 3<<16 | 3}, 0, 0, 0, granted(4)},
			{"coalescing", nvme.SetFeatures{FID: nvme.FeatInterruptCoalescing, Value: 0x0103}, 0, 0, 0, nil},
			{"write cache", nvme.GetFeatures{FID: nvme.FeatVolatileWriteCache}, 0, 0, 0, func(v uint32, _ []byte) bool { return v == 1 }},
			{"arbitration", nvme.GetFeatures{FID: nvme.FeatArbitration}, 0, 0, 0, nil},
			{"power", nvme.GetFeatures{FID: nvme.FeatPowerManagement}, 0, 0, 0, func(v uint32, _ []byte) bool { return v == 0 }},
			{"temperature", nvme.GetFeatures{FID: nvme.FeatTemperatureThreshold}, 0, 0, 0, nil},
			{"error recovery", nvme.GetFeatures{FID: nvme.FeatErrorRecovery}, 1, 0, 0, nil},
			{"atomicity", nvme.GetFeatures{FID: nvme.FeatWriteAtomicity}, 0, 0, 0, nil},
			{"autonomous power states", nvme.GetFeatures{FID: nvme.FeatAutonomousPower}, 0, 256, nvme.StatusInvalidField, nil},
			{"host memory buffer", nvme.GetFeatures{FID: nvme.FeatHostMemoryBuffer}, 0, 4096, nvme.StatusInvalidField, nil},
			{"timestamp", nvme.GetFeatures{FID: nvme.FeatTimestamp}, 0, 8, 0, nil},
			{"events", nvme.SetFeatures{FID: nvme.FeatAsyncEventConfig, Value: 0x11f}, 0, 0, 0, nil},
			{"namespaces", nvme.Identify{CNS: nvme.CNSActiveNamespaces}, 0, 4096, 0,
				func(_ uint32, b []byte) bool { return binary.LittleEndian.Uint64(b) == 1 }},
			{"namespace", nvme.Identify{CNS: nvme.CNSNamespace}, 1, 4096, 0, namespace1(func(id *nvme.IdentifyNamespace) bool {
				return id.NSFEAT&nvme.NSFEATOptimal != 0 && id.NPDG >= id.NPWG && id.NOWS >= id.NPWG && id.FLBAS&0x10 == 0
			})},
			{"identifiers", nvme.Identify{CNS: nvme.CNSNamespaceDescriptors}, 1, 4096, 0, hasNGUID},
			{"command set", nvme.Identify{CNS: nvme.CNSIOCSController}, 0, 4096, 0, nil},
		})
		event := make([]nvme.CQE, 0, 1)
		if err := n.Admin().Submit(nvme.SQE{Opcode: uint8(nvme.AdminAsyncEventRequest)}, func(e nvme.CQE) { event = append(event, e) }); err != nil {
			t.Fatal(err)
		}
		var pairs []*vfiousertest.Pair
		for i := range 4 {
			q, err := n.CreatePair(uint16(i+1), 256, vector*(i+1))
			if err != nil {
				t.Fatal(err)
			}
			pairs = append(pairs, q)
		}
		for i, q := range pairs {
			data, got := pattern(128<<10, uint64(i)), make([]byte, 128<<10)
			if err := errors.Join(q.Write(1, uint64(i)*4096, data, 512), q.Flush(1), q.Read(1, uint64(i)*4096, got, 512)); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("queue %d: %v, equal %t", i+1, err, bytes.Equal(got, data))
			}
		}
		trim(t, n, pairs[0])
		ask(t, n, []askStep{
			{"format", nvme.FormatNVM{}, 1, 0, 0, nil},
			{"format, all data erased", nvme.FormatNVM{SES: nvme.SESUserData}, 1, 0, 0, nil},
			{"health again", nvme.GetLogPage{LID: nvme.LogSMART, NUMD: 127}, nvme.NSIDBroadcast, 512, 0, smart},
		})
		got := make([]byte, 128<<10)
		if err := pairs[3].Read(1, 3*4096, got, 512); err != nil || !bytes.Equal(got, make([]byte, len(got))) {
			t.Errorf("after a format: %v, zeroes %t", err, bytes.Equal(got, make([]byte, len(got))))
		}
		for _, q := range pairs {
			if err := n.DeletePair(q); err != nil {
				t.Error(err)
			}
		}
		if err := n.Shutdown(); err != nil || len(event) != 0 {
			t.Errorf("shutdown: %v, events %v", err, event)
		}
	})
}

// hasNGUID checks for a descriptor with an NGUID: ESXi refuses a namespace that
// has neither that nor an EUI64.
func hasNGUID(_ uint32, b []byte) bool {
	for len(b) > 4 && b[1] > 0 {
		if nvme.NIDT(b[0]) == nvme.NIDTNGUID && b[1] == 16 && !bytes.Equal(b[4:20], make([]byte, 16)) {
			return true
		}
		b = b[4+int(b[1]):]
	}
	return false
}

// trim deallocates what was written, as a file system does: in many ranges. It
// reads as zeroes or as before, and the same again.
func trim(t *testing.T, n *vfiousertest.NVMe, q *vfiousertest.Pair) {
	t.Helper()
	data, first, again := pattern(128<<10, 77), make([]byte, 128<<10), make([]byte, 128<<10)
	if err := q.Write(1, 20000, data, 512); err != nil {
		t.Fatal(err)
	}
	ranges := make([]nvme.DSMRange, 16)
	for i := range ranges {
		ranges[i] = nvme.DSMRange{SLBA: 20000 + uint64(i)*16, NLB: 16}
	}
	list := nvme.SliceBytes(ranges)
	buf, err := n.Client().Memory().NewBuffer(len(list), vfiousertest.Shape{})
	if err != nil {
		t.Fatal(err)
	}
	defer buf.Free()
	buf.Write(list)
	var e nvme.SQE
	nvme.DatasetManagement{NR: uint8(len(ranges) - 1), AD: true}.Put(&e)
	e.NSID = 1
	buf.Set(&e)
	if _, err := q.Do(e); err != nil {
		t.Fatal("trim:", err)
	}
	if err := errors.Join(q.Read(1, 20000, first, 512), q.Read(1, 20000, again, 512)); err != nil || !bytes.Equal(first, again) {
		t.Errorf("after a trim: %v, equal %t", err, bytes.Equal(first, again))
	}
	for i := 0; i < len(data); i += 512 {
		if b := first[i : i+512]; !bytes.Equal(b, data[i:i+512]) && !bytes.Equal(b, make([]byte, 512)) {
			t.Fatalf("block %d is neither as before nor zeroes", i/512)
		}
	}
}

// TestAttachESXi is ESXi's own driver: event configuration 0x100, namespaces
// with an NGUID, blocks of 512 bytes, Compare and Write as a pair for the locks
// of VMFS, deallocation.
func TestAttachESXi(t *testing.T) {
	attachments(t, func(t *testing.T, n *vfiousertest.NVMe, vector int) {
		ask(t, n, []askStep{
			{"controller", nvme.Identify{CNS: nvme.CNSController}, 0, 4096, 0, func(dw0 uint32, b []byte) bool {
				var id nvme.IdentifyController
				copy(nvme.Bytes(&id), b)
				return isDrive(dw0, b) && id.FUSES&nvme.FUSESCompareAndWrite != 0 && id.ONCS&nvme.ONCSCompare != 0 && id.ONCS&nvme.ONCSDatasetManagement != 0
			}},
			{"queues", nvme.SetFeatures{FID: nvme.FeatNumberOfQueues, Value: 7<<16 | 7}, 0, 0, 0, granted(8)},
			{"events", nvme.SetFeatures{FID: nvme.FeatAsyncEventConfig, Value: 0x100}, 0, 0, 0, nil},
			{"events are set", nvme.GetFeatures{FID: nvme.FeatAsyncEventConfig}, 0, 0, 0, func(v uint32, _ []byte) bool { return v == 0x100 }},
			{"namespaces", nvme.Identify{CNS: nvme.CNSActiveNamespaces}, 0, 4096, 0,
				func(_ uint32, b []byte) bool { return binary.LittleEndian.Uint64(b) == 1 }},
			{"namespace", nvme.Identify{CNS: nvme.CNSNamespace}, 1, 4096, 0, namespace1(func(id *nvme.IdentifyNamespace) bool {
				return id.LBAF[id.FLBAS&0xf].LBADS == 9 && id.NGUID != [16]byte{}
			})},
			{"identifiers", nvme.Identify{CNS: nvme.CNSNamespaceDescriptors}, 1, 4096, 0, hasNGUID},
			{"health", nvme.GetLogPage{LID: nvme.LogSMART, NUMD: 127}, nvme.NSIDBroadcast, 512, 0, nil},
			{"ANA, which no controller has here", nvme.GetLogPage{LID: nvme.LogANA, NUMD: 1023}, nvme.NSIDBroadcast, 4096, nvme.StatusInvalidLogPage, nil},
		})
		var sqs []*vfiousertest.SQ
		for i := range uint16(4) {
			if _, err := n.CreateCQ(i+1, 128, vector*int(i+1)); err != nil {
				t.Fatal(err)
			}
			sq, err := n.CreateSQ(i+1, 128, i+1)
			if err != nil {
				t.Fatal(err)
			}
			sqs = append(sqs, sq)
		}
		locks(t, n, sqs)
		q, err := n.CreatePair(7, 64, vector*7)
		if err != nil {
			t.Fatal(err)
		}
		trim(t, n, q)
	})
}

// contender takes a lock on disk as VMFS does: it reads the block, and replaces
// it by a fused pair if it is still what it was.
type contender struct {
	sq           *vfiousertest.SQ
	cid          uint16
	have, wanted *vfiousertest.Buffer
	block        [512]byte
	fua          bool // the writes take their time
	taken        int
	missed       int // somebody else was faster
}

// ends waits for n completions and returns their statuses by identifier.
func (c *contender) ends(n int) (map[uint16]nvme.Status, error) {
	got := make(map[uint16]nvme.Status)
	for start := time.Now(); n > 0; {
		k, err := c.sq.CQ().Poll(func(e nvme.CQE) { got[e.CID] = e.StatusField().Code() })
		if n -= k; err != nil || time.Since(start) > 20*time.Second {
			return nil, fmt.Errorf("%d completions are missing: %w", n, err)
		}
		if k == 0 {
			time.Sleep(10 * time.Microsecond)
		}
	}
	return got, nil
}

// send sends commands at once and returns their statuses in order.
func (c *contender) send(commands ...nvme.SQE) ([]nvme.Status, error) {
	for i := range commands {
		commands[i].CID = c.cid + uint16(i)
		if !c.sq.Push(&commands[i]) {
			return nil, errors.New("submission queue is full")
		}
	}
	if err := c.sq.Ring(); err != nil {
		return nil, err
	}
	got, err := c.ends(len(commands))
	var all []nvme.Status
	for i := range commands {
		all = append(all, got[c.cid+uint16(i)])
	}
	c.cid = (c.cid + 2) % 1000
	return all, err
}

// take takes the lock at a block so many times: each time it adds one to what
// the block counts.
func (c *contender) take(lba uint64, times int) error {
	for c.taken < times {
		read := rw(nvme.IORead, 0, lba, 1, 0, 0)
		c.have.Set(&read)
		if st, err := c.send(read); err != nil || st[0] != nvme.StatusSuccess {
			return fmt.Errorf("reading the lock: %v, %w", st, err)
		}
		c.have.Read(c.block[:])
		binary.LittleEndian.PutUint64(c.block[:], binary.LittleEndian.Uint64(c.block[:])+1)
		c.wanted.Write(c.block[:])
		compare, write := rw(nvme.IOCompare, 0, lba, 1, 0, 0), rw(nvme.IOWrite, 0, lba, 1, 0, 0)
		compare.SetFuse(nvme.FuseFirst)
		write.SetFuse(nvme.FuseSecond)
		if c.fua {
			write.CDW12 |= 1 << 30
		}
		c.have.Set(&compare)
		c.wanted.Set(&write)
		st, err := c.send(compare, write)
		switch {
		case err != nil:
			return err
		case st[0] == nvme.StatusSuccess && st[1] == nvme.StatusSuccess:
			c.taken++
		case st[0] == nvme.StatusCompareFailure && st[1] == nvme.StatusAbortedFailedFused:
			c.missed++
		default:
			return fmt.Errorf("a pair ended with %v", st)
		}
	}
	return nil
}

// locks has queues contend for a lock: each pair that succeeds has found what it
// had read, so that none is lost.
func locks(t *testing.T, n *vfiousertest.NVMe, sqs []*vfiousertest.SQ) {
	t.Helper()
	const times = 50
	results := make(chan error, len(sqs))
	mem := n.Client().Memory()
	for _, sq := range sqs {
		c := &contender{sq: sq}
		var err error
		if c.have, err = mem.NewBuffer(512, vfiousertest.Shape{}); err != nil {
			t.Fatal(err)
		}
		if c.wanted, err = mem.NewBuffer(512, vfiousertest.Shape{Offset: 512}); err != nil {
			t.Fatal(err)
		}
		go func() { results <- c.take(4096, times) }()
	}
	for range sqs {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	q, err := n.CreatePair(6, 16, vfiousertest.Polled)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 512)
	if err := q.Read(1, 4096, b, 512); err != nil || binary.LittleEndian.Uint64(b) != uint64(len(sqs)*times) {
		t.Errorf("the lock was taken %d times, %v; want %d", binary.LittleEndian.Uint64(b), err, len(sqs)*times)
	}
}

// TestKilledLocks takes a lock again and again while leap-soc is killed: a pair
// that has written, but whose completion nobody has seen, is executed again and
// has succeeded.
func TestKilledLocks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.stopSoc()
	r.child = true
	r.startSoc()
	r.volume("d1", "file", "size", "32M")
	n := r.drive("vm1", api.DoorbellsTrap, small, "d1")
	cq, err := n.CreateCQ(1, 64, vfiousertest.Polled)
	if err != nil {
		t.Fatal(err)
	}
	sq, err := n.CreateSQ(1, 64, cq.ID)
	if err != nil {
		t.Fatal(err)
	}
	mem := n.Client().Memory()
	c := &contender{sq: sq, fua: true}
	if c.have, err = mem.NewBuffer(512, vfiousertest.Shape{}); err != nil {
		t.Fatal(err)
	}
	if c.wanted, err = mem.NewBuffer(512, vfiousertest.Shape{}); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for times := 1; ; times++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := c.take(100, times); err != nil {
				done <- err
				return
			}
		}
	}()
	for i := range 15 {
		time.Sleep(time.Duration(i*7%31) * time.Millisecond)
		r.killSoc()
		r.startSoc()
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if c.missed > 0 {
		t.Errorf("%d of %d pairs found something else, though nobody else writes", c.missed, c.missed+c.taken)
	}
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiousertest

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser"
)

// server is a small vfio-user server with an NVMe controller behind it, enough
// to see that the client does what it says.
type server struct {
	t    *testing.T
	path string
	opts serverOptions

	wg   sync.WaitGroup
	conn *vfiouser.Conn
	ctrl *controller

	mu       sync.Mutex
	log      []string // every command, in order
	maps     []region
	config   [4096]byte
	regs     [0x1000]byte // BAR0 up to the doorbells
	irqs     map[vfiouser.IRQ]map[uint32]int
	unmasked int // INTx UNMASK seen

	bells   []byte // doorbell page
	bellsFD int

	id      uint16
	answers map[uint16]chan vfiouser.Message // to DMA commands
}

type serverOptions struct {
	mmap     bool // offer the doorbell page
	noResize bool // MSI-X vectors come as a set
	minor    uint16
	silent   bool // never answer DEVICE_RESET
}

// region is a DMA region, mapped here if it came with a file descriptor.
type region struct {
	vfiouser.DMAMap
	b []byte
}

const msixAt = 0x40 // of the capability in configuration space

func newServer(t *testing.T, opts serverOptions) *server {
	t.Helper()
	s := &server{
		t: t, opts: opts, path: filepath.Join(t.TempDir(), "cntrl"),
		irqs: make(map[vfiouser.IRQ]map[uint32]int), answers: make(map[uint16]chan vfiouser.Message),
	}
	le.PutUint32(s.config[pciVendor:], 0x00011b36)
	le.PutUint16(s.config[pciStatus:], pciStatusCapList)
	le.PutUint32(s.config[pciRevision:], 0x01080200)
	s.config[pciBAR0] = 4
	s.config[pciCapabilities] = msixAt
	s.config[pciInterruptPin] = 1
	s.config[msixAt] = pciCapMSIX
	le.PutUint16(s.config[msixAt+msixControl:], 15)
	le.PutUint64(s.regs[nvme.RegCAP:], uint64(nvme.CAP(0).WithMQES(1023).WithCQR(true).WithTO(20).WithCSS(nvme.CSSNVM)))
	le.PutUint32(s.regs[nvme.RegVS:], uint32(nvme.MakeVS(2, 0, 0)))

	fd, err := unix.MemfdCreate("doorbells", unix.MFD_CLOEXEC)
	if err == nil {
		err = unix.Ftruncate(fd, nvme.RegDoorbells+PageSize)
	}
	if err == nil {
		s.bells, err = unix.Mmap(fd, nvme.RegDoorbells, PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.bellsFD = fd
	s.ctrl = newController(s)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	s.wg.Go(func() {
		socket, err := listener.AcceptUnix()
		listener.Close()
		if err != nil {
			return
		}
		s.serve(vfiouser.NewConn(socket, vfiouser.Limits{}))
	})
	t.Cleanup(func() {
		listener.Close()
		s.wg.Wait()
		s.ctrl.close()
		unix.Munmap(s.bells)
		unix.Close(s.bellsFD)
	})
	return s
}

func (s *server) serve(c *vfiouser.Conn) {
	s.mu.Lock()
	s.conn = c
	s.mu.Unlock()
	for {
		m, err := c.ReadMessage()
		if err != nil {
			break
		}
		if m.Header.IsReply() {
			s.mu.Lock()
			answer := s.answers[m.Header.ID]
			delete(s.answers, m.Header.ID)
			s.mu.Unlock()
			answer <- vfiouser.Message{Header: m.Header, Payload: append([]byte(nil), m.Payload...)}
			continue
		}
		if err := s.command(c, m); err != nil {
			c.ReplyError(m.Header, err)
		}
	}
	s.mu.Lock()
	for _, answer := range s.answers {
		close(answer)
	}
	s.answers = nil
	s.mu.Unlock()
	s.ctrl.close()
	c.Close()
	for _, r := range s.maps {
		if r.b != nil {
			unix.Munmap(r.b)
		}
	}
	for _, fds := range s.irqs {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}

func (s *server) logf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, fmt.Sprintf(format, args...))
}

func (s *server) command(c *vfiouser.Conn, m *vfiouser.Message) error {
	h := m.Header
	switch h.Command {
	case vfiouser.CmdVersion:
		v, err := vfiouser.ParseVersion(m.Payload)
		if err != nil {
			return err
		}
		s.logf("VERSION %d.%d", v.Major, v.Minor)
		own := vfiouser.Version{Minor: s.opts.minor, Capabilities: vfiouser.DefaultCapabilities()}
		own.Capabilities.MaxMsgFDs = 8
		return c.Reply(h, own.Append(nil))
	case vfiouser.CmdDMAMap:
		return s.dmaMap(c, m)
	case vfiouser.CmdDMAUnmap:
		return s.dmaUnmap(c, m)
	case vfiouser.CmdDeviceGetInfo:
		info := vfiouser.DeviceInfo{ArgSize: vfiouser.DeviceInfoSize, Flags: vfiouser.DevicePCI | vfiouser.DeviceReset, Regions: vfiouser.NumPCIRegions, IRQs: vfiouser.NumPCIIRQs}
		s.logf("DEVICE_GET_INFO")
		return c.Reply(h, put(&info, vfiouser.DeviceInfoSize))
	case vfiouser.CmdDeviceGetRegionInfo:
		return s.regionInfo(c, m)
	case vfiouser.CmdDeviceGetIRQInfo:
		info, err := vfiouser.ParseIRQInfo(m.Payload)
		if err != nil {
			return err
		}
		s.logf("DEVICE_GET_IRQ_INFO %v", info.Index)
		if info.Index == vfiouser.IRQMSIX {
			info.Flags, info.Count = vfiouser.IRQEventFD, 16
			if s.opts.noResize {
				info.Flags |= vfiouser.IRQNoResize
			}
		}
		return c.Reply(h, put(&info, vfiouser.IRQInfoSize))
	case vfiouser.CmdDeviceSetIRQs:
		return s.setIRQs(c, m)
	case vfiouser.CmdRegionRead:
		return s.regionRead(c, m)
	case vfiouser.CmdRegionWrite:
		return s.regionWrite(c, m)
	case vfiouser.CmdDeviceReset:
		s.logf("DEVICE_RESET")
		if s.opts.silent {
			return nil
		}
		s.ctrl.reset()
		return c.Reply(h)
	}
	return syscall.ENOTSUP
}

type putter interface{ Put([]byte) }

func put(p putter, size int) []byte {
	b := make([]byte, size)
	p.Put(b)
	return b
}

func (s *server) dmaMap(c *vfiouser.Conn, m *vfiouser.Message) error {
	d, err := vfiouser.ParseDMAMap(m.Payload)
	if err != nil {
		return err
	}
	s.logf("DMA_MAP %#x+%#x off=%#x %v fds=%d", d.Address, d.Size, d.Offset, d.Flags, m.NumFDs())
	r := region{DMAMap: d}
	if fd := m.TakeFD(0); fd >= 0 {
		prot := unix.PROT_READ
		if d.Flags&vfiouser.DMAWrite != 0 {
			prot |= unix.PROT_WRITE
		}
		r.b, err = unix.Mmap(fd, int64(d.Offset), int(d.Size), prot, unix.MAP_SHARED)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	s.mu.Lock()
	for _, old := range s.maps {
		if d.Address < old.Address+old.Size && old.Address < d.Address+d.Size {
			err = syscall.EEXIST
		}
	}
	if err == nil {
		s.maps = append(s.maps, r)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return c.Reply(m.Header)
}

func (s *server) dmaUnmap(c *vfiouser.Conn, m *vfiouser.Message) error {
	d, err := vfiouser.ParseDMAUnmap(m.Payload)
	if err != nil {
		return err
	}
	s.logf("DMA_UNMAP %#x+%#x", d.Address, d.Size)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, r := range s.maps {
		if r.Address == d.Address && r.Size == d.Size {
			s.maps = append(s.maps[:i], s.maps[i+1:]...)
			// The mapping stays: the controller of this test may be in it.
			if r.b != nil {
				s.t.Cleanup(func() { unix.Munmap(r.b) })
			}
			return c.Reply(m.Header, put(&d, vfiouser.DMAUnmapSize))
		}
	}
	return syscall.ENOENT
}

func (s *server) regionInfo(c *vfiouser.Conn, m *vfiouser.Message) error {
	info, err := vfiouser.ParseRegionInfo(m.Payload)
	if err != nil {
		return err
	}
	s.logf("DEVICE_GET_REGION_INFO %v argsz=%d", info.Index, info.ArgSize)
	room := info.ArgSize
	var areas []vfiouser.SparseArea
	switch info.Index {
	case vfiouser.RegionBAR0:
		info.Size, info.Flags = 0x4000, vfiouser.RegionRead|vfiouser.RegionWrite
		if s.opts.mmap {
			info.Flags |= vfiouser.RegionMmap
			areas = []vfiouser.SparseArea{{Offset: nvme.RegDoorbells, Size: PageSize}}
		}
	case vfiouser.RegionConfig:
		info.Size, info.Flags = pciConfigSize, vfiouser.RegionRead|vfiouser.RegionWrite
	}
	payload, mappable := vfiouser.RegionInfoReply(info, areas, room)
	if !mappable {
		return c.Reply(m.Header, payload)
	}
	return c.ReplyFDs(m.Header, []int{s.bellsFD}, payload)
}

func (s *server) setIRQs(c *vfiouser.Conn, m *vfiouser.Message) error {
	set, _, err := vfiouser.ParseIRQSet(m.Payload)
	if err != nil {
		return err
	}
	s.logf("DEVICE_SET_IRQS %v %v start=%d count=%d fds=%d", set.Index, set.Flags, set.Start, set.Count, m.NumFDs())
	s.mu.Lock()
	defer s.mu.Unlock()
	fds := s.irqs[set.Index]
	switch set.Flags {
	case vfiouser.IRQDataNone | vfiouser.IRQActionTrigger:
		for _, fd := range fds {
			unix.Close(fd)
		}
		delete(s.irqs, set.Index)
	case vfiouser.IRQDataNone | vfiouser.IRQActionUnmask:
		s.unmasked++
	case irqEventFD:
		if fds == nil {
			fds = make(map[uint32]int)
			s.irqs[set.Index] = fds
		}
		if n := m.NumFDs(); n != 0 && n != int(set.Count) {
			return syscall.EINVAL
		}
		for i := range m.NumFDs() {
			if old, ok := fds[set.Start+uint32(i)]; ok {
				unix.Close(old)
			}
			fds[set.Start+uint32(i)] = m.TakeFD(i)
		}
	default:
		return syscall.EINVAL
	}
	return c.Reply(m.Header)
}

// interrupt fires a vector, or INTx if MSI-X is off.
func (s *server) interrupt(vector uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fd, ok := s.irqs[vfiouser.IRQMSIX][vector]
	if !ok {
		fd, ok = s.irqs[vfiouser.IRQINTx][0]
	}
	if ok {
		unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

func (s *server) regionRead(c *vfiouser.Conn, m *vfiouser.Message) error {
	a, err := vfiouser.ParseRegionAccess(m.Payload)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	from := s.config[:]
	if a.Region == vfiouser.RegionBAR0 {
		from = s.regs[:]
	} else {
		s.log = append(s.log, fmt.Sprintf("REGION_READ %v+%#x n=%d", a.Region, a.Offset, a.Count))
	}
	if a.Offset+uint64(a.Count) > uint64(len(from)) {
		return syscall.EINVAL
	}
	return c.Reply(m.Header, m.Payload[:vfiouser.RegionAccessSize], from[a.Offset:][:a.Count])
}

func (s *server) regionWrite(c *vfiouser.Conn, m *vfiouser.Message) error {
	a, data, err := vfiouser.ParseRegionWrite(m.Payload)
	if err != nil {
		return err
	}
	if a.Region == vfiouser.RegionConfig {
		s.logf("REGION_WRITE %v+%#x n=%d", a.Region, a.Offset, a.Count)
		s.mu.Lock()
		copy(s.config[a.Offset:], data)
		s.mu.Unlock()
		return c.Reply(m.Header, m.Payload[:vfiouser.RegionAccessSize])
	}
	if m.Header.WantsReply() {
		return errors.New("QEMU posts writes to BARs")
	}
	s.ctrl.write(a.Offset, le.Uint32(data))
	return nil
}

// find returns memory of the guest, and whether it is in this process.
func (s *server) find(address, n uint64) (b []byte, shared bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.maps {
		if r.b != nil && address >= r.Address && address+n <= r.Address+r.Size {
			return r.b[address-r.Address:][:n], true
		}
	}
	return nil, false
}

// dma reads or writes guest memory, by messages where it is not shared.
func (s *server) dma(cmd vfiouser.Command, address uint64, data []byte) error {
	if b, ok := s.find(address, uint64(len(data))); ok {
		if cmd == vfiouser.CmdDMARead {
			copy(data, b)
		} else {
			copy(b, data)
		}
		return nil
	}
	access := vfiouser.DMAAccess{Address: address, Count: uint64(len(data))}
	payload := put(&access, vfiouser.DMAAccessSize)
	if cmd == vfiouser.CmdDMAWrite {
		payload = append(payload, data...)
	}
	s.mu.Lock()
	if s.answers == nil {
		s.mu.Unlock()
		return net.ErrClosed
	}
	s.id++
	id, answer, conn := s.id, make(chan vfiouser.Message, 1), s.conn
	s.answers[id] = answer
	s.mu.Unlock()
	if err := conn.Send(vfiouser.Header{ID: id, Command: cmd}, payload); err != nil {
		return err
	}
	select {
	case m, ok := <-answer:
		if !ok {
			return net.ErrClosed
		}
		if err := m.Header.Err(); err != nil {
			return err
		}
		if got, err := vfiouser.ParseDMAAccess(m.Payload); err != nil || got != access {
			return fmt.Errorf("reply %+v, %v to %+v", got, err, access)
		}
		if cmd == vfiouser.CmdDMARead {
			copy(data, m.Payload[vfiouser.DMAAccessSize:])
		}
		return nil
	case <-time.After(10 * time.Second):
		return errors.New("no answer to DMA")
	}
}

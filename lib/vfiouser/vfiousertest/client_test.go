// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiousertest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser"
)

const testLow, testHigh = 16 << 20, 8 << 20

func newMemory(t testing.TB, o MemoryOptions) *Memory {
	t.Helper()
	if o.Low == 0 {
		o.Low, o.High = testLow, testHigh
	}
	m, err := NewMemory(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// dial starts a server and a client on it.
func dial(t *testing.T, so serverOptions, mo MemoryOptions, co Options) (*server, *Client) {
	t.Helper()
	m := newMemory(t, mo)
	s := newServer(t, so)
	c, err := Dial(s.path, m, co)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return s, c
}

func (s *server) takeLog() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := s.log
	s.log = nil
	return log
}

func openFDs(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// startLog is what a server sees of QEMU 11.1 and the firmware, as recorded,
// with the memory of these tests.
const startLog = `VERSION 0.0
DMA_MAP 0x0+0x1000000 off=0x0 read|write fds=1
DMA_MAP 0xfffc0000+0x40000 off=0x0 read fds=0
DMA_MAP 0x100000000+0x800000 off=0x1000000 read|write fds=1
DEVICE_GET_INFO
DEVICE_GET_REGION_INFO BAR0 argsz=32
DEVICE_GET_REGION_INFO BAR0 argsz=64
DEVICE_GET_REGION_INFO BAR1 argsz=32
DEVICE_GET_REGION_INFO BAR2 argsz=32
DEVICE_GET_REGION_INFO BAR3 argsz=32
DEVICE_GET_REGION_INFO BAR4 argsz=32
DEVICE_GET_REGION_INFO BAR5 argsz=32
DEVICE_GET_REGION_INFO CONFIG argsz=32
DEVICE_GET_IRQ_INFO ERR
REGION_READ CONFIG+0x0 n=4096
REGION_READ CONFIG+0x30 n=4
REGION_WRITE CONFIG+0x30 n=4
REGION_READ CONFIG+0x30 n=4
REGION_WRITE CONFIG+0x30 n=4
REGION_READ CONFIG+0x10 n=4
REGION_READ CONFIG+0x20 n=4
REGION_READ CONFIG+0x42 n=2
REGION_READ CONFIG+0x44 n=4
REGION_READ CONFIG+0x48 n=4
DEVICE_GET_IRQ_INFO MSIX
REGION_READ CONFIG+0x3d n=1
DEVICE_SET_IRQS INTX eventfd|trigger start=0 count=1 fds=1
DEVICE_SET_IRQS INTX none|trigger start=0 count=0 fds=0
REGION_READ CONFIG+0x4 n=2
REGION_WRITE CONFIG+0x4 n=2
DEVICE_RESET
DEVICE_SET_IRQS INTX eventfd|trigger start=0 count=1 fds=1
REGION_WRITE CONFIG+0x10 n=4
REGION_WRITE CONFIG+0x14 n=4`

func TestStartIsQEMUs(t *testing.T) {
	s, c := dial(t, serverOptions{mmap: true}, MemoryOptions{}, Options{})
	log := s.takeLog()
	want := strings.Split(startLog, "\n")
	if diff := cmp.Diff(want, log[:min(len(log), len(want))]); diff != "" {
		t.Error(diff)
	}
	// Enabling memory access maps the page of mapped doorbells.
	if got, want := log[len(log)-1], "DMA_MAP 0xc000001000+0x1000 off=0x0 read|write fds=0"; got != want {
		t.Errorf("last message %q, want %q", got, want)
	}
	if got := c.Server().Capabilities.MaxMsgFDs; got != 8 {
		t.Errorf("server takes %d fds, want 8", got)
	}
}

func TestVersions(t *testing.T) {
	for _, test := range []struct {
		client, server uint16
		ok             bool
	}{{0, 0, true}, {1, 0, true}, {1, 1, true}, {0, 1, false}} {
		s := newServer(t, serverOptions{minor: test.server})
		c, err := Connect(s.path, newMemory(t, MemoryOptions{}), Options{Minor: test.client})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Negotiate(); (err == nil) != test.ok {
			t.Errorf("client 0.%d, server 0.%d: got %v", test.client, test.server, err)
		}
		c.Close()
	}
}

func TestPAM(t *testing.T) {
	s, c := dial(t, serverOptions{}, MemoryOptions{}, Options{})
	s.takeLog()
	if err := c.SetPAM(1); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"DMA_UNMAP 0x0+0x1000000",
		"DMA_MAP 0x0+0xc0000 off=0x0 read|write fds=1",
		"DMA_MAP 0xc0000+0x20000 off=0x0 read fds=0",
		"DMA_MAP 0xe0000+0x20000 off=0x0 read fds=0",
		"DMA_MAP 0x100000+0xf00000 off=0x100000 read|write fds=1",
	}
	if diff := cmp.Diff(want, s.takeLog()); diff != "" {
		t.Error(diff)
	}
	if err := c.ChurnPAM(); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.maps) != 3 {
		t.Errorf("%d regions after the churn, want 3: %+v", len(s.maps), s.maps)
	}
}

func TestErrorReplies(t *testing.T) {
	_, c := dial(t, serverOptions{}, MemoryOptions{}, Options{})
	if err := c.Map(Mapping{Address: 0x1000, Size: 0x1000, FD: -1}); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("overlapping map: got %v, want EEXIST", err)
	}
	if err := c.Unmap(0x1000, 0x1000); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("unmapping what is not mapped: got %v, want ENOENT", err)
	}
	if _, err := c.Call(vfiouser.CmdMigDataRead, nil); !errors.Is(err, syscall.ENOTSUP) {
		t.Errorf("unknown command: got %v, want ENOTSUP", err)
	}
	raw := Message(vfiouser.Header{ID: 0xfff0, Command: vfiouser.CmdDMAMap}, []byte{1, 2, 3})
	if _, err := c.CallRaw(raw); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("short DMA_MAP: got %v, want EINVAL", err)
	}
	if _, err := c.CallRaw(raw[:4]); err == nil {
		t.Error("CallRaw without a header: want an error")
	}
}

func TestServerThatDoesNotAnswer(t *testing.T) {
	s := newServer(t, serverOptions{silent: true})
	c, err := Connect(s.path, newMemory(t, MemoryOptions{}), Options{Timeout: 30 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Reset(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want a timeout", err)
	}
}

// The server closes on broken framing, and waiting callers learn of it.
func TestBrokenFraming(t *testing.T) {
	_, c := dial(t, serverOptions{}, MemoryOptions{}, Options{})
	bad := Message(vfiouser.Header{Flags: 5})
	if err := c.SendRaw(bad[:7]); err != nil {
		t.Fatal(err)
	}
	if err := c.SendRaw(bad[7:], c.Memory().FD()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("server did not close")
	}
	if err := c.Err(); err != io.EOF {
		t.Errorf("got %v, want EOF", err)
	}
	if err := c.Reset(); !errors.Is(err, io.EOF) {
		t.Errorf("calling after the end: got %v, want EOF", err)
	}
}

// A client may go at any moment; nothing of it stays.
func TestDisconnectLeavesNothing(t *testing.T) {
	before := openFDs(t)
	for _, cut := range []int{0, 5, 16, 20, 48} {
		m, err := NewMemory(MemoryOptions{Low: 4 << 20})
		if err != nil {
			t.Fatal(err)
		}
		s := newServer(t, serverOptions{mmap: true})
		c, err := Dial(s.path, m, Options{})
		if err != nil {
			t.Fatal(err)
		}
		request := vfiouser.DMAMap{ArgSize: vfiouser.DMAMapSize, Address: 1 << 40, Size: 4096}
		if cut > 0 {
			c.SendRaw(Message(vfiouser.Header{Command: vfiouser.CmdDMAMap, Flags: vfiouser.FlagNoAck}, put(&request, vfiouser.DMAMapSize))[:cut], m.FD())
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("closing again: %v", err)
		}
		s.wg.Wait()
		unix.Close(s.bellsFD)
		s.bellsFD = -1
		m.Close()
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func TestMSIX(t *testing.T) {
	for _, noResize := range []bool{false, true} {
		s, c := dial(t, serverOptions{noResize: noResize}, MemoryOptions{}, Options{})
		s.takeLog()
		if err := c.EnableMSIX(); err != nil {
			t.Fatal(err)
		}
		want := []string{
			"REGION_WRITE CONFIG+0x42 n=2",
			"DEVICE_SET_IRQS INTX none|trigger start=0 count=0 fds=0",
			"DEVICE_SET_IRQS MSIX eventfd|trigger start=0 count=1 fds=0",
			"REGION_WRITE CONFIG+0x42 n=2",
		}
		if diff := cmp.Diff(want, s.takeLog()); diff != "" {
			t.Error(diff)
		}
		if _, err := c.Vector(0); err != nil {
			t.Fatal(err)
		}
		v, err := c.Vector(9)
		if err != nil {
			t.Fatal(err)
		}
		want = []string{
			"DEVICE_SET_IRQS MSIX eventfd|trigger start=0 count=1 fds=1",
			"DEVICE_SET_IRQS MSIX eventfd|trigger start=9 count=1 fds=1",
		}
		if noResize {
			want = []string{
				"DEVICE_SET_IRQS MSIX none|trigger start=0 count=0 fds=0",
				"DEVICE_SET_IRQS MSIX eventfd|trigger start=0 count=1 fds=1",
				"DEVICE_SET_IRQS MSIX none|trigger start=0 count=0 fds=0",
				"DEVICE_SET_IRQS MSIX eventfd|trigger start=0 count=8 fds=8", // as many as the server takes
				"DEVICE_SET_IRQS MSIX eventfd|trigger start=8 count=2 fds=2",
			}
		}
		if diff := cmp.Diff(want, s.takeLog()); diff != "" {
			t.Errorf("noresize %v: %s", noResize, diff)
		}
		if _, err := v.Wait(time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("quiet vector: got %v, want a timeout", err)
		}
		s.interrupt(9)
		s.interrupt(9)
		if n, err := v.Wait(time.Second); n != 2 || err != nil {
			t.Errorf("got %d interrupts, %v, want 2", n, err)
		}
		if again, err := c.Vector(9); again != v || err != nil {
			t.Errorf("asking again: got another vector, %v", err)
		}
		if _, err := c.Vector(16); err == nil {
			t.Error("vector 16 of 16: want an error")
		}
		if err := c.DisableMSIX(); err != nil {
			t.Fatal(err)
		}
		s.interrupt(3)
		if _, err := c.INTx().Wait(time.Second); err != nil {
			t.Errorf("INTx after MSI-X: %v", err)
		}
	}
}

func TestMemory(t *testing.T) {
	m := newMemory(t, MemoryOptions{Sealed: true})
	if err := m.Shrink(4096); !errors.Is(err, unix.EPERM) {
		t.Errorf("shrinking sealed memory: got %v, want EPERM", err)
	}
	low, b, err := m.Alloc(3*PageSize + 1)
	if err != nil || low < 1<<20 || low%PageSize != 0 || len(b) != 3*PageSize+1 {
		t.Fatalf("got %#x, %d bytes, %v", low, len(b), err)
	}
	high, h, err := m.AllocHigh(PageSize)
	if err != nil || high < 1<<32 {
		t.Fatalf("got %#x, %v", high, err)
	}
	copy(b, "low")
	copy(h, "high")
	// The server's view: the file at the offsets of the mappings.
	for _, want := range []struct {
		address uint64
		text    string
	}{{low, "low"}, {high, "high"}} {
		for _, mapping := range m.Mappings() {
			if want.address < mapping.Address || want.address >= mapping.Address+mapping.Size {
				continue
			}
			got := make([]byte, len(want.text))
			unix.Pread(mapping.FD, got, int64(want.address-mapping.Address+mapping.Offset))
			if string(got) != want.text {
				t.Errorf("%#x: got %q, want %q", want.address, got, want.text)
			}
		}
	}
	m.Free(low, 3*PageSize+1)
	again, b, err := m.Alloc(4 * PageSize)
	if err != nil || again != low || bytes.IndexByte(b, 'l') >= 0 {
		t.Errorf("after Free: got %#x, %v, want %#x, zeroed", again, err, low)
	}
	for _, n := range []int{0, -1, testLow} {
		if _, _, err := m.Alloc(n); err == nil {
			t.Errorf("allocating %d bytes: want an error", n)
		}
	}
	for _, r := range [][2]uint64{{testLow - 1, 2}, {1<<32 - 1, 1}, {1<<32 + testHigh, 1}, {0, 1 << 63}, {^uint64(0), 2}} {
		if _, err := m.Bytes(r[0], r[1]); err == nil {
			t.Errorf("memory at %#x+%#x: want an error", r[0], r[1])
		}
	}
	if _, err := NewMemory(MemoryOptions{Low: 5000}); err == nil {
		t.Error("5000 bytes of memory: want an error")
	}
}

func TestShrink(t *testing.T) {
	m := newMemory(t, MemoryOptions{})
	if err := m.Shrink(PageSize); err != nil {
		t.Error(err)
	}
	private := newMemory(t, MemoryOptions{Low: 4 << 20, Private: true})
	if err := private.Shrink(PageSize); err == nil {
		t.Error("shrinking private memory: want an error")
	}
}

// Shapes of buffers: what a controller finds by walking the entries is the data.
func TestPRPShapes(t *testing.T) {
	m := newMemory(t, MemoryOptions{})
	for _, test := range []struct {
		n            int
		shape        Shape
		pages, lists int
	}{
		{512, Shape{}, 1, 0},
		{512, Shape{Offset: 3584}, 1, 0},
		{512, Shape{Offset: 3588}, 2, 0},
		{8192, Shape{}, 2, 0},
		{8192, Shape{Offset: 4}, 3, 1},
		{20480, Shape{Scatter: true}, 5, 1},
		{20480, Shape{Split: true, ListOffset: 4072}, 5, 2}, // two entries and a pointer, then two
		{20480, Shape{ListOffset: 4088}, 5, 2},              // a pointer alone, then four
		{8200, Shape{ListOffset: 4080}, 3, 1},               // two entries to the very end
		{513 * PageSize, Shape{}, 513, 1},                   // 512 entries fill a page
		{514 * PageSize, Shape{High: true}, 514, 2},
	} {
		b, err := m.NewBuffer(test.n, test.shape)
		if err != nil {
			t.Fatalf("%d bytes %+v: %v", test.n, test.shape, err)
		}
		if len(b.Pages) != test.pages || len(b.Lists) != test.lists {
			t.Errorf("%d bytes %+v: %d pages and %d list pages, want %d and %d", test.n, test.shape, len(b.Pages), len(b.Lists), test.pages, test.lists)
		}
		if int(b.PRP1%PageSize) != test.shape.Offset {
			t.Errorf("%+v: PRP1 is %#x", test.shape, b.PRP1)
		}
		data := make([]byte, test.n)
		for i := range data {
			data[i] = byte(i * 7)
		}
		b.Write(data)
		got := make([]byte, test.n)
		b.Read(got)
		if !bytes.Equal(got, data) {
			t.Errorf("%+v: Read does not give what Write took", test.shape)
		}
		if test.shape.Scatter {
			for i := 1; i < len(b.Pages); i++ {
				if b.Pages[i] == b.Pages[i-1]+PageSize {
					t.Errorf("%+v: pages %d and %d follow one another", test.shape, i-1, i)
				}
			}
		}
		b.Free()
	}
	if slices.Contains(m.used[1<<20/PageSize:], true) {
		t.Error("pages in use after Free")
	}
	for _, bad := range []Shape{{Offset: 4096}, {Offset: 2}, {Offset: -4}, {ListOffset: 4}, {ListOffset: 4096}} {
		if _, err := m.NewBuffer(512, bad); err == nil {
			t.Errorf("%+v: want an error", bad)
		}
	}
	if _, err := m.NewBuffer(testHigh+PageSize, Shape{High: true, Scatter: true}); err == nil || slices.Contains(m.used[1<<20/PageSize:], true) {
		t.Errorf("buffer larger than memory: got %v; pages must be given back", err)
	}
}

func TestDialErrors(t *testing.T) {
	m := newMemory(t, MemoryOptions{})
	if _, err := Dial(filepath.Join(t.TempDir(), "none"), m, Options{}); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("no socket: got %v", err)
	}
}

// While a caller waits for its reply, the client serves no command of the
// server: one that needs DMA before it replies waits in vain, as with QEMU.
func TestNoDMAWhileACallerWaits(t *testing.T) {
	m := newMemory(t, MemoryOptions{})
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "cntrl"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	c, err := Connect(listener.Addr().String(), m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	socket, err := listener.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	s := vfiouser.NewConn(socket, vfiouser.Limits{})
	defer s.Close()
	reset := make(chan error, 1)
	go func() { reset <- c.Reset() }()
	read, err := s.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	command := read.Header
	access := vfiouser.DMAAccess{Address: 0x200000, Count: 8}
	if err := s.Send(vfiouser.Header{ID: 99, Command: vfiouser.CmdDMARead}, put(&access, vfiouser.DMAAccessSize)); err != nil {
		t.Fatal(err)
	}
	s.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if m, err := s.ReadMessage(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("DMA was answered: %+v, %v", m, err)
	}
	s.SetReadDeadline(time.Time{})
	if err := s.Reply(command); err != nil {
		t.Fatal(err)
	}
	if err := <-reset; err != nil {
		t.Error(err)
	}
	answer, err := s.ReadMessage()
	if err != nil || answer.Header.ID != 99 || !errors.Is(answer.Header.Err(), syscall.ENODEV) {
		t.Errorf("DMA afterwards: got %+v, %v, want ENODEV since nothing is mapped", answer, err)
	}
	// A reply to nothing ends the connection.
	if err := s.Send(vfiouser.Header{ID: 1234, Flags: vfiouser.FlagReply}); err != nil {
		t.Fatal(err)
	}
	<-c.Done()
	if err := c.Err(); err == nil || !strings.Contains(err.Error(), "reply 0x4d2 to no command") {
		t.Errorf("got %v", err)
	}
}

// Buffers that SGLs describe: walking the segments gives the pieces, in order.
func TestSGLShapes(t *testing.T) {
	m := newMemory(t, MemoryOptions{})
	for _, test := range []struct {
		n        int
		shape    Shape
		segments int
	}{
		{512, Shape{SGL: 2, Offset: 5}, 0},
		{8192, Shape{SGL: 2}, 1},
		{12288, Shape{SGL: 2, Offset: 1}, 3}, // a block and a pointer, twice, then two blocks
		{20480, Shape{SGL: 256, Scatter: true}, 1},
		{20480, Shape{SGL: 3, ListOffset: 4048}, 2},
	} {
		b, err := m.NewBuffer(test.n, test.shape)
		if err != nil {
			t.Fatalf("%d bytes %+v: %v", test.n, test.shape, err)
		}
		if len(b.Lists) != test.segments {
			t.Errorf("%d bytes %+v: %d segments, want %d", test.n, test.shape, len(b.Lists), test.segments)
		}
		var e nvme.SQE
		b.Set(&e)
		var pages []uint64
		size := 0
		for at := e.SGL1(); ; {
			if at.Type() == nvme.SGLDataBlock {
				pages, size = append(pages, at.Address), size+int(at.Length)
				break
			}
			list, err := m.Bytes(at.Address, uint64(at.Length))
			if err != nil {
				t.Fatal(err)
			}
			descriptors := make([]nvme.SGLDescriptor, len(list)/nvme.SGLDescriptorSize)
			copy(nvme.SliceBytes(descriptors), list)
			last := len(descriptors) - 1
			for _, d := range descriptors[:last] {
				pages, size = append(pages, d.Address), size+int(d.Length)
			}
			if isLast := at.Type() == nvme.SGLLastSegment; isLast != (descriptors[last].Type() == nvme.SGLDataBlock) {
				t.Errorf("%+v: a segment of type %d ends with type %d", test.shape, at.Type(), descriptors[last].Type())
			}
			at = descriptors[last]
		}
		if !slices.Equal(pages, b.Pages) || size != test.n || e.PSDT() != nvme.PSDTSGL {
			t.Errorf("%+v: %d bytes at %#x, want %d at %#x", test.shape, size, pages, test.n, b.Pages)
		}
		b.Free()
	}
	if _, err := m.NewBuffer(512, Shape{SGL: 1}); err == nil {
		t.Error("segments of one descriptor cannot lead on")
	}
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package remote

import (
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

// reshape gives the server's volume another size and tells hosts.
func (s *server) reshape(size uint64) {
	s.t.Helper()
	re := s.volume.(volume.Reshaper)
	to := volume.Shape{Size: size, Block: s.volume.Info().Block}
	grows := size > s.volume.Info().Size
	if grows {
		if err := re.Extend(size); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := re.Reshape(to); err != nil {
		s.t.Fatal(err)
	}
	s.follow()
}

// follow tells hosts of what namespace 1 is, and waits until all go by it.
func (s *server) follow() {
	done := make(chan struct{})
	if s.sub.Follow(1, func() { close(done) }) {
		<-done
	}
}

// replace has namespace 1 be another one, or with nil none.
func (s *server) replace(ns *controller.Namespace) {
	s.t.Helper()
	done := make(chan struct{})
	if s.sub.Remove(1, func() { close(done) }) {
		<-done
	}
	if ns != nil {
		if err := s.sub.Add(ns); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *server) namespace() *controller.Namespace {
	return &controller.Namespace{NSID: 1, Volume: s.volume, Name: "m", UUID: s.uuid}
}

// TestGrowth: a namespace that grows has the volume offer to, again and again,
// under I/O, which goes on; what has come can be used when the offer is taken.
func TestGrowth(t *testing.T) {
	s := newServer(t, shape)
	r := open(t, patientSpec(s.addr))
	c := volumetest.Connect(t, r, cfg)
	wait := load(t, []*volumetest.Client{c}, 10, 40)
	for i := range uint64(5) {
		size := shape.Size + (i+1)<<20
		s.reshape(size)
		fabricstest.WaitFor(t, "the offer", func() bool { return r.Found().Size == size })
		if got := r.Info().Size; got != size-1<<20 {
			t.Fatalf("the volume has %d bytes before the offer is taken", got)
		}
		r.Take(r.Found())
		mem := volumetest.NewMemory(t, 4096)
		req := volume.Request{Op: volume.Write, Offset: size - 4096, Length: 4096, Segments: mem.Segments(0, 4096)}
		if st := c.Do(t.Context(), &req); st != nvme.StatusSuccess {
			t.Errorf("writing the end of %d bytes: %v", size, st)
		}
	}
	if r.Err() != nil {
		t.Error(r.Err())
	}
	wait()

	// It is write protected, and is not any more.
	ns := s.sub.Namespace(1)
	for _, on := range []bool{true, false} {
		ns.SetProtected(on)
		s.follow()
		fabricstest.WaitFor(t, "the offer", func() bool { return r.Found().ReadOnly == on })
	}
	if r.Err() != nil {
		t.Error(r.Err())
	}
}

// TestOther: a namespace that has shrunk, has gone, or is another one, is not
// used: the volume fails and says why; and it is ready when the namespace is
// what it was.
func TestOther(t *testing.T) {
	s := newServer(t, shape)
	r := open(t, patientSpec(s.addr, "fast-io-fail", "0s", "reconnect-delay", "20ms"))
	c := volumetest.Connect(t, r, cfg)
	flush := func() nvme.Status {
		req := volume.Request{Op: volume.Flush}
		return c.Do(t.Context(), &req)
	}
	other := s.namespace()
	other.UUID = nvme.NewUUID()
	for _, tt := range []struct {
		name, want string
		do, undo   func()
	}{
		{"shrunk", "has shrunk from 16777216 to 8388608 bytes", func() { s.reshape(8 << 20) }, func() { s.reshape(16 << 20) }},
		{"gone", "amespace", func() { s.replace(nil) }, func() { s.replace(s.namespace()) }},
		{"another one", "the namespace is another one", func() { s.replace(other) }, func() { s.replace(s.namespace()) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.do()
			fabricstest.WaitFor(t, "the volume to fail", func() bool { return r.Err() != nil && strings.Contains(r.Err().Error(), tt.want) })
			if strings.Contains(r.Err().Error(), "connection was lost") {
				t.Errorf("the reason: %v", r.Err())
			}
			if st := flush(); st != nvme.StatusHostPathingError {
				t.Errorf("I/O ends with %v", st)
			}
			tt.undo()
			fabricstest.WaitFor(t, "the volume to be ready", func() bool { return r.Err() == nil })
			if st := flush(); st != nvme.StatusSuccess {
				t.Errorf("I/O ends with %v afterwards", st)
			}
			if got := r.Info().Size; got != shape.Size {
				t.Errorf("it has %d bytes", got)
			}
		})
	}
}

// TestIdentifiers: which namespaces are the one that was noted.
func TestIdentifiers(t *testing.T) {
	const nguid, eui64, uuid = "000102030405060708090a0b0c0d0e0f", "0001020304050607", "00010203-0405-0607-0809-0a0b0c0d0e0f"
	for _, tt := range []struct {
		ids   identifiers
		note  string
		noted []string
		not   []string
	}{
		{identifiers{}, noID, []string{noID}, []string{nguid, eui64, uuid}},
		{identifiers{nguid: nguid, eui64: eui64, uuid: uuid}, nguid, []string{nguid, eui64, uuid}, []string{noID}},
		{identifiers{eui64: eui64, uuid: uuid}, eui64, []string{eui64, uuid}, []string{noID, nguid}},
		{identifiers{uuid: uuid}, uuid, []string{uuid, noID}, []string{nguid, eui64}}, // noted when UUIDs were not looked at
	} {
		if got := tt.ids.String(); got != tt.note {
			t.Errorf("%+v: noted %s, want %s", tt.ids, got, tt.note)
		}
		for _, id := range tt.noted {
			if !tt.ids.are(id) {
				t.Errorf("%+v are not %s", tt.ids, id)
			}
		}
		for _, id := range tt.not {
			if tt.ids.are(id) {
				t.Errorf("%+v are %s", tt.ids, id)
			}
		}
	}
	id := []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	var n namespace
	list := nvme.AppendIDDescriptor(nil, nvme.NIDTEUI64, id[:8])
	list = nvme.AppendIDDescriptor(list, nvme.NIDTNGUID, make([]byte, 16))
	list = nvme.AppendIDDescriptor(list, nvme.NIDTUUID, id)
	list = nvme.AppendIDDescriptor(list, nvme.NIDTCSI, []byte{0})
	if err := n.describeMore(1, append(list, 0, 0, 0, 0)); err != nil || n.ids != (identifiers{eui64: eui64, uuid: uuid}) {
		t.Errorf("%+v, %v", n.ids, err)
	}
	if err := n.describeMore(1, nvme.AppendIDDescriptor(nil, nvme.NIDTCSI, []byte{2})); err == nil || !strings.Contains(err.Error(), "command set") {
		t.Errorf("a zoned namespace: %v", err)
	}
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package target

import (
	"bytes"
	"testing"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/fabricstest"
	"github.com/leapio/leapio/lib/nvme"
)

// discover connects to the discovery controller and enables it.
func (f *fixture) discover(t testing.TB, kato uint32) *fabricstest.Queue {
	t.Helper()
	return f.discoverBy(t, fabrics.DiscoveryNQN, kato)
}

// discoverBy is discover by a name of the discovery subsystem.
func (f *fixture) discoverBy(t testing.TB, nqn string, kato uint32) *fabricstest.Queue {
	t.Helper()
	cmd := fabrics.ConnectCommand{SQSIZE: 31, KATO: kato}
	q := fabricstest.Join(t, f.addr, fabricstest.Options{}, cmd, fabricstest.ConnectData(otherNQN, nqn, fabrics.CNTLIDDynamic))
	q.Enable()
	return q
}

// log reads part of a log page.
func readLog(q *fabricstest.Queue, get nvme.GetLogPage, n int) ([]byte, nvme.Status) {
	r := fabricstest.Request{From: make([]byte, n)}
	get.NUMD = uint32(n/4 - 1)
	get.Put(&r.SQE)
	st := q.Do(&r)
	return r.From, st
}

func TestDiscovery(t *testing.T) {
	f := start(t, Limits{})
	q := f.discover(t, 0)
	var id nvme.IdentifyController
	r := fabricstest.Request{From: nvme.Bytes(&id)}
	nvme.Identify{CNS: nvme.CNSController}.Put(&r.SQE)
	if st := q.Do(&r); st != 0 || id.CNTRLTYPE != nvme.ControllerTypeDiscovery || id.CNTLID != q.CNTLID || id.MAXCMD == 0 || id.IOCCSZ == 0 ||
		!bytes.HasPrefix(id.SUBNQN[:], []byte(discoveryNQN+"\x00")) || id.OAES != nvme.NoticeDiscoveryLog {
		t.Errorf("Identify: %v, %+v", st, id)
	}
	whole, st := readLog(q, nvme.GetLogPage{LID: nvme.LogDiscovery}, 4096)
	if st != 0 {
		t.Fatal(st)
	}
	var h fabrics.DiscoveryHeader
	var e fabrics.DiscoveryEntry
	copy(fabrics.Bytes(&h), whole)
	copy(fabrics.Bytes(&e), whole[2048:])
	if h.GENCTR != 7 || h.NUMREC != 2 || e.Subsystem() != testNQN || e.PORTID != 5 || !bytes.Equal(whole[3072:], make([]byte, 1024)) {
		t.Errorf("log: %+v, %+v", h, e)
	}
	part, st := readLog(q, nvme.GetLogPage{LID: nvme.LogDiscovery, LPO: 1020}, 1028)
	if st != 0 || !bytes.Equal(part, whole[1020:2048]) {
		t.Errorf("part of the log: %v, % x", st, part[:16])
	}
	if associations := f.listener.Associations(); len(associations) != 1 || associations[0].SubsystemNQN != fabrics.DiscoveryNQN || associations[0].HostNQN != otherNQN {
		t.Errorf("associations: %+v", associations)
	}
	refused := map[string]struct {
		f    interface{ Put(*nvme.SQE) }
		want nvme.Status
	}{
		"Identify namespace": {nvme.Identify{CNS: nvme.CNSNamespace}, nvme.StatusInvalidField},
		"SMART log":          {nvme.GetLogPage{LID: nvme.LogSMART}, nvme.StatusInvalidLogPage},
		"log beyond its end": {nvme.GetLogPage{LID: nvme.LogDiscovery, LPO: 3076}, nvme.StatusInvalidField},
		"log, odd offset":    {nvme.GetLogPage{LID: nvme.LogDiscovery, LPO: 2}, nvme.StatusInvalidField},
		"log, too much":      {nvme.GetLogPage{LID: nvme.LogDiscovery, NUMD: 0xffffffff}, nvme.StatusInvalidField},
		"Number of Queues":   {nvme.SetFeatures{FID: nvme.FeatNumberOfQueues}, nvme.StatusInvalidField},
		"saved feature":      {nvme.SetFeatures{FID: nvme.FeatKeepAliveTimer, SV: true}, nvme.StatusFeatureNotSaveable},
		"default feature":    {nvme.GetFeatures{FID: nvme.FeatKeepAliveTimer, SEL: nvme.SelectDefault}, nvme.StatusInvalidField},
		"Get Features":       {nvme.GetFeatures{FID: nvme.FeatNumberOfQueues}, nvme.StatusInvalidField},
		"Abort":              {nvme.Abort{}, nvme.StatusInvalidOpcode},
	}
	for name, tt := range refused {
		r := fabricstest.Request{From: make([]byte, 512)}
		tt.f.Put(&r.SQE)
		if st := q.Do(&r); st != tt.want|nvme.StatusDNR {
			t.Errorf("%s: %v, want %v", name, st, tt.want)
		}
	}
	q.Configure(0)
	q.WaitStatus(func(c nvme.CSTS) bool { return c == 0 })
}

// TestDiscoveryEvent: a host that wants to know is told of changes, once until it has read the log.
func TestDiscoveryEvent(t *testing.T) {
	f := start(t, Limits{})
	q := f.discover(t, 30000)
	feature := func(fields interface{ Put(*nvme.SQE) }) uint32 {
		t.Helper()
		var r fabricstest.Request
		fields.Put(&r.SQE)
		if st := q.Do(&r); st != 0 {
			t.Fatal(st)
		}
		return r.CQE.DW0
	}
	if got := feature(nvme.GetFeatures{FID: nvme.FeatKeepAliveTimer}); got != 30000 {
		t.Errorf("keep alive timeout %d", got)
	}
	feature(nvme.SetFeatures{FID: nvme.FeatAsyncEventConfig, Value: 0xffffffff})
	if got := feature(nvme.GetFeatures{FID: nvme.FeatAsyncEventConfig}); got != nvme.NoticeDiscoveryLog {
		t.Errorf("events %#x", got)
	}
	events := make([]fabricstest.Request, 5)
	for i := range events {
		events[i].SQE.Opcode = uint8(nvme.AdminAsyncEventRequest)
		q.Start(&events[i])
	}
	if r, err := q.Next(); r != &events[4] || r.CQE.StatusField() != nvme.StatusAsyncEventLimitExceeded {
		t.Fatalf("one event request too many: %+v, %v", r, err)
	}
	// What changes for others does not count.
	f.changes.Add(1)
	f.target.DiscoveryChanged()
	header := func(get nvme.GetLogPage) (h fabrics.DiscoveryHeader) {
		t.Helper()
		get.LID = nvme.LogDiscovery
		p, st := readLog(q, get, 1024)
		if st != 0 {
			t.Fatal(st)
		}
		copy(fabrics.Bytes(&h), p)
		return h
	}
	if h := header(nvme.GetLogPage{}); h.GENCTR != 7 || h.NUMREC != 2 {
		t.Errorf("after a change for others: %+v", h)
	}
	f.more.Store(true)
	f.target.DiscoveryChanged()
	if r, err := q.Next(); r != &events[0] || nvme.AsyncEvent(r.CQE.DW0) != nvme.EventDiscoveryLog {
		t.Fatalf("the event: %+v, %v", r, err)
	}
	f.more.Store(false)
	f.changes.Add(1)
	f.target.DiscoveryChanged()
	f.turn(t) // who reads first need not be told
	// Do fails if anything else ends first.
	if h := header(nvme.GetLogPage{RAE: true}); h.GENCTR != 9 || h.NUMREC != 2 {
		t.Errorf("after the changes: %+v", h)
	}
	header(nvme.GetLogPage{})
	if r, err := q.Next(); r != &events[1] || nvme.AsyncEvent(r.CQE.DW0) != nvme.EventDiscoveryLog {
		t.Fatalf("the event after the log was read: %+v, %v", r, err)
	}
	feature(nvme.GetFeatures{FID: nvme.FeatAsyncEventConfig})
	// A change while nobody wants to know is told when somebody does.
	header(nvme.GetLogPage{})
	feature(nvme.SetFeatures{FID: nvme.FeatAsyncEventConfig})
	f.more.Store(true)
	f.changes.Add(1)
	f.target.DiscoveryChanged()
	f.turn(t)
	feature(nvme.GetFeatures{FID: nvme.FeatAsyncEventConfig})
	var on fabricstest.Request
	nvme.SetFeatures{FID: nvme.FeatAsyncEventConfig, Value: nvme.NoticeDiscoveryLog}.Put(&on.SQE)
	q.Start(&on)
	for _, want := range []*fabricstest.Request{&on, &events[2]} {
		if r, err := q.Next(); r != want || r.CQE.StatusField() != 0 {
			t.Fatalf("%+v, %v", r, err)
		}
	}
}

// turn waits until the pollers have done what was posted.
func (f *fixture) turn(t *testing.T) {
	t.Helper()
	for _, s := range f.target.shards {
		if err := s.p.Do(func() {}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDiscoveryNames: hosts reach the discovery subsystem by both of its names, and no identifier is given twice.
func TestDiscoveryNames(t *testing.T) {
	f := start(t, Limits{})
	seen := make(map[uint16]bool)
	for i := range 8 {
		q := f.discoverBy(t, []string{fabrics.DiscoveryNQN, discoveryNQN}[i%2], 0)
		if seen[q.CNTLID] {
			t.Errorf("controller identifier %d twice", q.CNTLID)
		}
		seen[q.CNTLID] = true
		if _, st := readLog(q, nvme.GetLogPage{LID: nvme.LogDiscovery}, 1024); st != 0 {
			t.Error(st)
		}
		f.target.mu.Lock()
		f.target.lastCNTLID = uint16(i) / 2 // as if they had all been given
		f.target.mu.Unlock()
	}
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/metrics/metricstest"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser"
)

// TestMetrics: what clients and runtimes do is on the page, which is what
// Prometheus wants.
func TestMetrics(t *testing.T) {
	r := newRelayRig(t)
	addPort(t, r.b, api.PortSpec{Name: "vm2"})
	enable(t, r.c)
	kept, err := unix.MemfdCreate("kept", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(kept)
	if err := unix.Ftruncate(kept, 12345); err != nil {
		t.Fatal(err)
	}
	m := qpair.Message{Kind: qpair.MsgKeep}
	if err := qpair.SetName(&m.Name, "d1"); err != nil {
		t.Fatal(err)
	}
	if a := r.rt.answer(t, r.rt.send(t, m, nil, kept)); a.status != 0 {
		t.Fatalf("keep: status %v", unix.Errno(a.status))
	}
	look := func() metricstest.Page {
		t.Helper()
		page, err := r.b.paths.Wpt().GetText(t.Context(), "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		return metricstest.Read(t, page)
	}
	before := look()
	addr, _, err := r.mem.Alloc(4096)
	if err != nil {
		t.Fatal(err)
	}
	const reads = 3
	for range reads {
		if a := r.read(t, addr, 16); a.status != 0 {
			t.Fatalf("read: status %v", unix.Errno(a.status))
		}
	}
	if a := r.write(t, addr, []byte{1}); a.status != 0 {
		t.Fatalf("write: status %v", unix.Errno(a.status))
	}
	if _, err := r.c.Call(vfiouser.Command(1000), nil); err == nil {
		t.Fatal("an unknown command is carried out")
	}
	// The reset waits for the runtime, which is asked and says nothing.
	r.rt.holdResets.Store(true)
	setCC(t, r.c, 0)
	eventually(t, "a ping", func() bool { return r.b.counts.pings.Load() > 0 })
	after := look()
	for _, tt := range []struct {
		want   float64
		family string
		labels string
	}{
		{1, "leapio_wpt_build_info", "version " + r.b.version},
		{0, "leapio_wpt_upgrade_pause_seconds", ""},
		{1, "leapio_wpt_ports", "state " + r.p.show().State},
		{1, "leapio_wpt_ports", "state waiting"},
		{0, "leapio_wpt_ports", "state frozen"},
		{MaxPorts, "leapio_wpt_ports_limit", ""},
		{1, "leapio_wpt_port_client", "port vm1"},
		{0, "leapio_wpt_port_client", "port vm2"},
		{float64(r.p.show().Regions), "leapio_wpt_port_regions", "port vm1"},
		{float64(r.p.show().Memory), "leapio_wpt_port_memory_bytes", "port vm1"},
		{reads, "leapio_wpt_port_relays_total", "port vm1 op read"},
		{1, "leapio_wpt_port_relays_total", "port vm1 op write"},
		{0, "leapio_wpt_port_relays_total", "port vm2 op write"},
		{1, "leapio_wpt_port_messages_refused_total", "port vm1"},
		{1, "leapio_wpt_epoch", ""},
		{1, "leapio_wpt_runtime_epoch", "runtime soc"},
		{1, "leapio_wpt_runtime_ports", "runtime soc"},
		{1, "leapio_wpt_kept_files", "runtime soc"},
		{12345, "leapio_wpt_kept_bytes", "runtime soc"},
		{0, "leapio_wpt_pings_late_total", ""},
	} {
		if got := after.Value(tt.family, strings.Fields(tt.labels)...); got != tt.want {
			t.Errorf("%s{%s} is %v, want %v", tt.family, tt.labels, got, tt.want)
		}
	}
	for _, tt := range []struct {
		family, labels string
		by             float64 // at least
	}{
		{"leapio_wpt_port_resets_total", "port vm1", 1},
		{"leapio_wpt_port_messages_total", "port vm1", 2}, // the unknown command, and the register
		{"leapio_wpt_pings_total", "", 1},
	} {
		labels := strings.Fields(tt.labels)
		if by := after.Value(tt.family, labels...) - before.Value(tt.family, labels...); by < tt.by {
			t.Errorf("%s{%s} has risen by %v, want %v", tt.family, tt.labels, by, tt.by)
		}
	}
	for _, family := range []string{"leapio_wpt_start_time_seconds", "leapio_wpt_runtime_attached_time_seconds", "process_cpu_seconds_total", "go_goroutines"} {
		if after.Value(family) <= 0 {
			t.Errorf("%s is %v", family, after.Value(family))
		}
	}
	for name := range after.Families {
		if strings.HasPrefix(name, "leapio_") && !strings.HasPrefix(name, "leapio_wpt_") {
			t.Errorf("%s could be a name of another daemon", name)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package rdma

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/fabrics"
)

// TestRDMADevices reads what the kernel says of RDMA devices, and says why there
// are none.
func TestRDMADevices(t *testing.T) {
	sys := t.TempDir()
	if all, err := rdmaDevices(sys); len(all) != 0 || err == nil || !strings.Contains(err.Error(), "no RDMA support") {
		t.Errorf("without support: %v, %v", all, err)
	}
	class := filepath.Join(sys, "class/infiniband")
	if err := os.MkdirAll(class, 0o755); err != nil {
		t.Fatal(err)
	}
	if all, err := rdmaDevices(sys); len(all) != 0 || err == nil || !strings.Contains(err.Error(), "no device") {
		t.Errorf("without a device: %v, %v", all, err)
	}
	for path, text := range map[string]string{
		"mlx5_0/ports/1/state": "4: ACTIVE\n", "mlx5_0/ports/1/rate": "100 Gb/sec (4X EDR)\n", "mlx5_0/ports/1/link_layer": "InfiniBand\n",
		"mlx5_0/ports/2/state": "1: DOWN\n", "mlx5_0/ports/2/rate": "2.5 Gb/sec (1X SDR)\n", "mlx5_0/ports/2/link_layer": "InfiniBand\n",
		"rxe0/ports/1/link_layer": "Ethernet\n", // and nothing else
	} {
		path = filepath.Join(class, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	all, err := rdmaDevices(sys)
	want := []device{
		{Name: "mlx5_0/1", Kind: kindRDMA, State: "active", Speed: 100e9, Detail: "InfiniBand"},
		{Name: "mlx5_0/2", Kind: kindRDMA, State: "down", Speed: 25e8, Detail: "InfiniBand"},
		{Name: "rxe0/1", Kind: kindRDMA, Detail: "Ethernet"},
	}
	if d := cmp.Diff(want, all); d != "" || err != nil {
		t.Error(err, d)
	}
}

// TestRecord: a record has a URL where its fields make one.
func TestRecord(t *testing.T) {
	for _, tt := range []struct {
		transport         fabrics.TransportType
		traddr, svc, want string
	}{
		{fabrics.TransportTCP, "192.0.2.1", "4420", "tcp://192.0.2.1:4420/nqn.2026-01.org.example:one"},
		{fabrics.TransportTCP, "2001:db8::1", "8009", "tcp://[2001:db8::1]:8009/nqn.2026-01.org.example:one"},
		{fabrics.TransportRDMA, "192.0.2.1", "4420", "rdma://192.0.2.1:4420/nqn.2026-01.org.example:one"},
		{fabrics.TransportFC, "nn-0x1:pn-0x2", "none", ""},
		{fabrics.TransportFC, "192.0.2.1", "4420", ""},
		{fabrics.TransportTCP, "a b", "4420", ""},
		{fabrics.TransportTCP, "192.0.2.1", "", ""},
		{fabrics.TransportTCP, "192.0.2.1/x", "4420", ""},
	} {
		e := fabrics.DiscoveryEntry{TRTYPE: tt.transport, SUBTYPE: fabrics.SubsystemNVM}
		e.Set("nqn.2026-01.org.example:one", tt.traddr, tt.svc)
		if got := newRecord(&e).URL; got != tt.want {
			t.Errorf("%v %q %q: got %q, want %q", tt.transport, tt.traddr, tt.svc, got, tt.want)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

const mib = 1 << 20

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// enable does what a driver does to enable the controller, and waits.
func enable(t testing.TB, c *vfiousertest.Client) {
	t.Helper()
	setCC(t, c, nvme.CC(0).WithEN(true).WithIOSQES(6).WithIOCQES(4))
	waitCSTS(t, c, nvme.CSTS(0).WithRDY(true))
}

func setCC(t testing.TB, c *vfiousertest.Client, cc nvme.CC) {
	t.Helper()
	if err := c.Write32(nvme.RegAQA, uint32(nvme.MakeAQA(31, 31))); err != nil {
		t.Fatal(err)
	}
	if err := c.Write64(nvme.RegASQ, 0x100000); err != nil {
		t.Fatal(err)
	}
	if err := c.Write64(nvme.RegACQ, 0x101000); err != nil {
		t.Fatal(err)
	}
	if err := c.Write32(nvme.RegCC, uint32(cc)); err != nil {
		t.Fatal(err)
	}
}

func csts(t testing.TB, c *vfiousertest.Client) nvme.CSTS {
	t.Helper()
	v, err := c.Read32(nvme.RegCSTS)
	if err != nil {
		t.Fatal(err)
	}
	return nvme.CSTS(v)
}

func waitCSTS(t testing.TB, c *vfiousertest.Client, want nvme.CSTS) {
	t.Helper()
	eventually(t, "CSTS", func() bool { return csts(t, c) == want })
}

func TestStart(t *testing.T) {
	for _, doorbells := range []string{api.DoorbellsTrap, api.DoorbellsMap} {
		t.Run(doorbells, func(t *testing.T) {
			b := startBroker(t, testPaths(t), defaultLimits)
			p := addPort(t, b, api.PortSpec{Name: "vm1", Doorbells: doorbells, Subsystem: "nqn.2014-08.org.nvmexpress:uuid:a2b11d0e-4a8c-4b52-a3b0-0f2d2b1a4a11"})
			if got := fact(b, "vm1", "state"); got != api.PortWaiting {
				t.Errorf("state is %q, want waiting", got)
			}
			rt := startRuntime(t, b, api.DefaultRuntime)
			mem := newMemory(t, vfiousertest.MemoryOptions{Low: 64 * mib, High: 16 * mib})
			c := dial(t, p, mem, vfiousertest.Options{})
			if got := fact(b, "vm1", "state"); got != api.PortAttached {
				t.Errorf("state is %q, want attached", got)
			}
			f := rt.caughtUp(t, p)
			if f.subsystem != p.record.Subsystem || f.mapped != (doorbells == api.DoorbellsMap) {
				t.Errorf("attached as %q, mapped %v", f.subsystem, f.mapped)
			}
			own, private := 0, 0
			for _, r := range f.regions {
				switch {
				case r.Flags&qpair.RegionOwn != 0:
					own++
				case r.Flags&qpair.RegionWrite == 0:
					private++
				}
			}
			wantOwn := 0
			if doorbells == api.DoorbellsMap {
				wantOwn = 1
			}
			if f.shared != 2 || private != 1 || own != wantOwn || len(f.regions) != 3+wantOwn {
				t.Errorf("%d regions, %d shared, %d read-only, %d own; want %d, 2, 1, %d", len(f.regions), f.shared, private, own, 3+wantOwn, wantOwn)
			}
			if err := c.EnableMSIX(); err != nil {
				t.Fatal(err)
			}
			enable(t, c)
			eventually(t, "state enabled", func() bool { return fact(b, "vm1", "state") == api.PortEnabled })
			v, err := c.Vector(3)
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "vector", func() bool { return rt.port("vm1").vectors[[2]uint32{uint32(vfiouser.IRQMSIX), 3}] != 0 })
			raise(rt.port("vm1").vectors[[2]uint32{uint32(vfiouser.IRQMSIX), 3}])
			if _, err := v.Wait(patience); err != nil {
				t.Error(err)
			}
			if err := c.ChurnPAM(); err != nil {
				t.Fatal(err)
			}
			if f := rt.caughtUp(t, p); len(f.regions) != 3+wantOwn {
				t.Errorf("%d regions after churn, want %d", len(f.regions), 3+wantOwn)
			}
			shown := p.show()
			if shown.State != api.PortEnabled || shown.Epoch != rt.epoch || shown.ClientPID == 0 || shown.Memory < 80*mib {
				t.Errorf("shown as %+v", shown)
			}
			c.Close()
			eventually(t, "state waiting", func() bool { return fact(b, "vm1", "state") == api.PortWaiting })
			eventually(t, "no region and no vector after the client has left", func() bool {
				f := rt.attached(t, "vm1")
				return len(f.regions) == 0 && len(f.vectors) == 0
			})
		})
	}
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fabrics/target"
	"github.com/leapio/leapio/lib/guest"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/file"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

// gateway is how a guest with -netdev user reaches this machine's loopback.
const gateway = "10.0.2.2"

// A stock kernel discovers a subsystem over NVMe/TCP, connects without and with digests and flow control, puts a file system on it, and lets go.
func TestFabrics(t *testing.T) {
	kernels := []guest.Kernel{guest.KernelCloud}
	if all {
		kernels = append(kernels, guest.KernelBackports)
	}
	for _, kernel := range kernels {
		t.Run(string(kernel), func(t *testing.T) { testFabrics(t, kernel) })
	}
}

func testFabrics(t *testing.T, kernel guest.Kernel) {
	uuid := nvme.NewUUID()
	spec := &volume.Spec{Name: "d1", Options: map[string]string{"size": "64M", "path": filepath.Join(t.TempDir(), "d1.img")}}
	v, err := file.Kind.Make(t.Context(), volumetest.NewEnv(t, t.TempDir()), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	sub := controller.NewSubsystem(uuid.NQN(), "0123456789abcdef0123")
	if err := sub.Add(&controller.Namespace{NSID: 1, Volume: v, Name: "d1", UUID: uuid}); err != nil {
		t.Fatal(err)
	}
	var pollers []*poller.Poller
	for i := range 2 {
		p, err := poller.Start(poller.Config{Name: fmt.Sprint(i), CPU: -1, Fence: -1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Stop)
		pollers = append(pollers, p)
	}
	var log lockedBuffer
	var port string
	tgt := target.New(target.Config{
		Pollers: pollers, Log: slog.New(slog.NewTextHandler(&log, nil)),
		Subsystem: func(_ int, subNQN, _ string) (*controller.Subsystem, error) {
			if subNQN != sub.NQN {
				return nil, target.ErrNoSubsystem
			}
			return sub, nil
		},
		Discovery: func(int, string, netip.AddrPort) ([]fabrics.DiscoveryEntry, uint64) {
			e := fabrics.DiscoveryEntry{
				TRTYPE: fabrics.TransportTCP, ADRFAM: fabrics.FamilyIPv4, SUBTYPE: fabrics.SubsystemNVM,
				TREQ: fabrics.TREQSecureNotRequired | fabrics.TREQNoFlowControl, PORTID: 1, CNTLID: fabrics.CNTLIDDynamic, ASQSZ: fabrics.MinAdminQueue,
			}
			e.Set(sub.NQN, gateway, port)
			return []fabrics.DiscoveryEntry{e}, 1
		},
	})
	t.Cleanup(tgt.Close)
	listener, err := tgt.Listen(1, netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	port = fmt.Sprint(listener.Addr().Port())
	result, err := guest.Run(t.Context(), guest.Config{
		Kernel:   kernel,
		QEMUArgs: []string{"-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile="},
		Job: functions + fmt.Sprintf(`
nqn=%s
at="-t tcp -a %s -s %s"
modprobe virtio_net
modprobe nvme-tcp
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
me="--hostnqn nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555 --hostid 11111111-2222-3333-4444-555555555555"
nvme discover $at $me >/tmp/log
cat /tmp/log
grep -q "subnqn: *$nqn" /tmp/log
grep -q "trsvcid: *%[3]s" /tmp/log
for how in "" "--hdr-digest --data-digest --disable-sqflow"; do
	nvme connect $at $me -n $nqn -i 2 -k 5 $how
	drives 1
	device=$(drive $nqn 1)
	want 67108864 blockdev --getsize64 $device
	mkfs.ext4 -q $device
	mount -t ext4 $device /mnt
	storm /mnt/file 16M 4k
	umount /mnt
	e2fsck -f -n $device
	nvme id-ctrl $device | grep -E '^(cntlid|ioccsz|iorcsz|kas|maxcmd|sgls)'
	[ -n "$how" ] || sleep 6 # more than the keep alive timeout
	nvme disconnect -n $nqn
	[ ! -e $device ]
done
healthy 'Removing ctrl'
`, sub.NQN, gateway, port),
	})
	if err != nil || result.ExitCode != 0 {
		t.Errorf("guest: %v\n%s\n%s", err, tail(result.Console), log.String())
	}
	listener.Close() // the guest has disconnected: nothing of it is to be ended
	if err == nil && log.String() != "" {
		t.Errorf("the target logged:\n%s", log.String())
	}
	t.Logf("guest: %.1f s", result.Elapsed.Seconds())
}

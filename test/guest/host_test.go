// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/guest"
)

// network is a network interface through which a guest reaches this machine's
// loopback interface, as 10.0.2.2.
var network = []string{"-nic", "user,model=virtio-net-pci"}

// The host of the guest below.
const (
	hostID  = "2c5e1b4a-77e3-4a3f-9f1b-0e7d8a6c9b10"
	hostNQN = "nqn.2014-08.org.nvmexpress:uuid:" + hostID
)

// networkJob begins the job of a guest that is a host of NVMe/TCP.
const networkJob = `
modprobe virtio_net
modprobe nvme-tcp
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
fabric="-t tcp -a 10.0.2.2 --hostnqn ` + hostNQN + ` --hostid ` + hostID + `"
`

// A stock kernel as a host: it discovers a listener, connects, with digests and
// without, writes, and goes on when the runtime is killed meanwhile.
func TestHostTCP(t *testing.T) {
	r := newRig(t)
	r.leap("leap-soc volume create d1 file size=8M")
	r.leap("leap-soc volume create d2 file size=8M block=4096")
	url := strings.TrimSpace(r.leap("leap-rdma listen tcp://127.0.0.1:0 d1 d2 --advertise 10.0.2.2 --allow " + hostNQN))
	address, nqn, _ := strings.Cut(strings.TrimPrefix(url, "tcp://127.0.0.1:"), "/")
	vm := r.start(machine{Config: guest.Config{QEMUArgs: network, Job: networkJob + fmt.Sprintf(`
port=%s nqn=%s
nvme discover $fabric -s $port >/tmp/log
cat /tmp/log
grep -qx "subnqn: *$nqn" /tmp/log
grep -qx 'traddr: *10.0.2.2' /tmp/log
nvme discover -t tcp -a 10.0.2.2 -s $port --hostnqn nqn.2026-01.org.example:other --hostid 0d5bd8a7-54be-4dd4-a37b-aee7d3b6a2f5 >/tmp/log
if grep -q "$nqn" /tmp/log; then echo 'another host sees it'; exit 1; fi

for digests in '' '--hdr-digest --data-digest'; do
	nvme connect $fabric -s $port -n $nqn --nr-io-queues 2 --reconnect-delay 1 $digests
	drives 2
	a=$(drive $nqn 1)
	b=$(drive $nqn 2)
	want 8388608 blockdev --getsize64 $a
	want 4096 blockdev --getss $b
	storm $a 4M 512
	storm $b 4M 4k
	[ -z "$digests" ] || break
	nvme disconnect -n $nqn
	while ls /dev/nvme*n* 2>/dev/null; do sleep 0.1; done
done
healthy 'Removing ctrl'
notify connected
await killed
fill $a 'after the kill'
fill $b 'after the kill'
filled $a 'after the kill'
notify "written"
await go
nvme disconnect -n $nqn
`, address, nqn)}})
	r.line(vm, "^connected$")
	var l api.Listener
	r.leapJSON(&l, "leap-rdma show 1")
	if len(l.Associations) != 1 || l.Associations[0].Host != hostNQN || l.Associations[0].Queues != 3 {
		t.Errorf("associations %+v", l.Associations)
	}
	if got := r.fact("listener/1/hosts"); got != hostNQN {
		t.Errorf("fact hosts: %q", got)
	}
	r.soc.kill()
	r.soc.start()
	r.send(vm, "killed")
	r.line(vm, "^written$")
	r.send(vm, "go")
	r.wait(vm, 1)
	for _, volume := range []string{"d1", "d2"} {
		r.checkPattern(volume, "after the kill")
	}
}

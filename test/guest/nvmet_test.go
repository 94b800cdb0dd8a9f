// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/guest"
)

// nvmetNQN is the subsystem of the target below; nvmetHost may use it.
const (
	nvmetNQN  = "nqn.2026-01.org.example:nvmet"
	nvmetHost = "nqn.2014-08.org.nvmexpress:uuid:8a3c5d1e-90b4-4c58-8b7e-3f2a61c40d17"
)

// nvmetJob is a target of the Linux kernel's: namespace 1 has blocks of 512
// bytes, namespace 2 of 4096. Port 2 has short queues, and takes only the
// data of Connect in a capsule, no block. What it has acknowledged is in the files that the
// host has for it, whatever becomes of the guest. Then it does what it is told.
const nvmetJob = `
modprobe virtio_net
modprobe virtio_blk
modprobe nvmet-tcp
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
mount -t configfs configfs /sys/kernel/config
cd /sys/kernel/config/nvmet
sub=$PWD/subsystems/` + nvmetNQN + `
mkdir $sub hosts/` + nvmetHost + `
[ -z "$queues" ] || echo $queues >$sub/attr_qid_max
ln -s $PWD/hosts/` + nvmetHost + ` $sub/allowed_hosts/` + nvmetHost + `
i=0
for disk in /dev/vda /dev/vdb; do
	i=$((i + 1))
	mkdir $sub/namespaces/$i
	echo $disk >$sub/namespaces/$i/device_path
	echo 5f1d2c3b-4a59-4687-9786-a5b4c3d2e1f$i >$sub/namespaces/$i/device_uuid
	echo 5f1d2c3b-4a59-4687-9786-a5b4c3d2e1f$i >$sub/namespaces/$i/device_nguid
	echo 1 >$sub/namespaces/$i/enable
done
mkdir ports/1 ports/2
echo 1024 >ports/2/param_inline_data_size
echo 16 >ports/2/param_max_queue_size
for i in 1 2; do
	echo tcp >ports/$i/addr_trtype
	echo ipv4 >ports/$i/addr_adrfam
	echo 0.0.0.0 >ports/$i/addr_traddr
	echo $((4419 + i)) >ports/$i/addr_trsvcid
done
show() { for i in 1 2; do ln -s $sub ports/$i/subsystems/; done; }
show
notify serving
while line=$(await); do
	case $line in
	hide) rm ports/*/subsystems/* ;; # which ends its associations
	show) show ;;
	access*) for i in 1 2; do echo ${line#access } >ports/$i/ana_groups/1/ana_state; done ;;
	reboot) reboot -f ;;
	grown) echo 1 >$sub/namespaces/1/revalidate_size ;;
	end) exit 0 ;;
	esac
done
`

// nvmet is a guest that is a target.
type nvmet struct {
	r      *rig
	cfg    guest.Config
	ports  [2]int
	images [2]string // of its namespaces
	vm     *guest.VM
	qemu   *qmp
}

// newNvmet makes the files of a target with that kernel and starts it. It grants
// that many I/O queues, or if that is empty as many as it does by itself.
func (r *rig) newNvmet(kernel guest.Kernel, queues string, size int64) *nvmet {
	r.t.Helper()
	n := &nvmet{r: r, ports: [2]int{freePort(r.t), freePort(r.t)}}
	dir := filepath.Dir(r.paths.Run)
	args := []string{"-nic", fmt.Sprintf("user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:%d-:4420,hostfwd=tcp:127.0.0.1:%d-:4421", n.ports[0], n.ports[1]),
		"-qmp", "unix:" + filepath.Join(dir, "nvmet.qmp") + ",server=on,wait=off"}
	for i := range n.images {
		n.images[i] = filepath.Join(dir, fmt.Sprintf("nvmet%d.img", i+1))
		if err := os.WriteFile(n.images[i], nil, 0o600); err != nil {
			r.t.Fatal(err)
		}
		if err := os.Truncate(n.images[i], size); err != nil {
			r.t.Fatal(err)
		}
		block := []int{512, 4096}[i]
		args = append(args, "-drive", fmt.Sprintf("if=none,format=raw,discard=unmap,id=disk%d,file=%s", i, n.images[i]),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d,logical_block_size=%d,physical_block_size=4096", i, block))
	}
	n.cfg = guest.Config{Kernel: kernel, QEMUArgs: args, Reboot: true, Timeout: 5 * time.Minute, Job: "queues=" + queues + nvmetJob}
	n.start()
	return n
}

// start boots the target, and returns when it serves.
func (n *nvmet) start() {
	n.r.t.Helper()
	n.vm = n.r.start(machine{Config: n.cfg})
	n.r.line(n.vm, "^serving$")
	n.qemu = dialQMP(n.r.t, filepath.Join(filepath.Dir(n.r.paths.Run), "nvmet.qmp"))
}

// grow makes namespace 1 larger: first the disk, then what hosts are told of it.
func (n *nvmet) grow(size int64) {
	n.r.t.Helper()
	n.qemu.execute("block_resize", map[string]any{"device": "disk0", "size": size})
	n.r.send(n.vm, "grown")
}

// url is the address of a namespace, at the port of that number.
func (n *nvmet) url(nsid int) string {
	return fmt.Sprintf("tcp://127.0.0.1:%d/%s?nsid=%d", n.ports[nsid-1], nvmetNQN, nsid)
}

// freePort returns a TCP port of the loopback interface that was free a moment ago.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// A machine's drive has its blocks with a target that is not ours, that of the
// Linux kernel. It is looked at, ends its associations, reboots, and loses its
// power, while fio checks all that it reads.
func TestNvmet(t *testing.T) {
	for _, test := range []struct {
		name   string
		kernel guest.Kernel
		queues string // I/O queues that the target grants; empty: as it does by itself
		all    bool   // among all only
	}{
		{"backports", guest.KernelBackports, "", false},
		{"cloud", guest.KernelCloud, "", true},
		{"one queue", guest.KernelBackports, "1", true}, // for two pollers
	} {
		if all || !test.all {
			t.Run(test.name, func(t *testing.T) { testNvmet(t, test.kernel, test.queues) })
		}
	}
}

func testNvmet(t *testing.T, kernel guest.Kernel, queues string) {
	r := newRig(t, twoPollers()...)
	const size = 64 << 20
	n := r.newNvmet(kernel, queues, size)
	r.lookAtNvmet(n)
	create := "leap-soc volume create far%d remote keep-alive=2s reconnect-delay=500ms host-nqn=" + nvmetHost + " %s addr=%s"
	r.leap(fmt.Sprintf(create, 1, "hdr-digest=on data-digest=on", n.url(1)))
	r.leap(fmt.Sprintf(create, 2, "", n.url(2)))
	r.leap("leap-qmap map vm1 far1 far2")
	end := int64(size)
	end += 32 << 20
	// The guest waits longer than a target needs to boot on a busy machine.
	vm := r.start(machine{ports: []string{"vm1"}, Config: guest.Config{Append: "nvme_core.io_timeout=120", Timeout: 5 * time.Minute, Job: fmt.Sprintf("end=%d", end) + `
drives 2
nqn=$(cat /sys/class/nvme/nvme0/subsysnqn)
a=$(drive $nqn 1)
b=$(drive $nqn 2)
want 67108864 blockdev --getsize64 $a
notify small
eventually size $a $end
want 512 blockdev --getss $a
want 4096 blockdev --getss $b
fill $b 'to be zeroed'
nvme write-zeroes $b --start-block=256 --block-count=511
dd if=$b of=/tmp/read bs=1M count=4 iflag=direct 2>/tmp/dd
for part in /tmp/pattern /dev/zero /dev/zero /tmp/pattern; do head -c 1048576 $part; done >/tmp/wanted
alike /tmp/read /tmp/wanted
blkdiscard $b
mkfs.ext4 -q $a
mount -t ext4 $a /mnt
(await stop && touch /stop) &
notify busy
runs=0
until [ -e /stop ]; do
	storm /mnt/file 12M 512
	storm $b 12M 4k
	runs=$((runs + 1))
done
notify runs $runs
echo 'with another kernel' >/mnt/note
umount /mnt
e2fsck -f -n $a
fill $b 'all is well'
filled $b 'all is well'
healthy 'ommand line' # which names a timeout
`}})
	r.line(vm, "^small$")
	n.grow(end)
	r.line(vm, "^busy$")
	time.Sleep(2 * time.Second)
	r.send(n.vm, "access change")
	time.Sleep(2 * time.Second)
	r.send(n.vm, "access optimized")
	r.send(n.vm, "hide")
	r.waitRemotes("failed")
	time.Sleep(time.Second)
	r.send(n.vm, "show")
	r.waitRemotes("ready")
	time.Sleep(2 * time.Second)
	r.send(n.vm, "reboot")
	r.waitRemotes("failed")
	r.line(n.vm, "^serving$")
	r.waitRemotes("ready")
	time.Sleep(2 * time.Second)
	// What it is sent from now on is lost, and not only what it is about to do.
	n.qemu.execute("stop", map[string]any{})
	time.Sleep(500 * time.Millisecond)
	n.vm.Kill()
	if _, err := n.vm.Wait(); err == nil {
		t.Error("the target has ended by itself")
	}
	r.waitRemotes("failed")
	n.start()
	r.waitRemotes("ready")
	time.Sleep(2 * time.Second)
	r.send(vm, "stop")
	r.line(vm, `^runs [1-9]\d*$`)
	r.wait(vm, 1)
	r.waitPort("vm1", api.PortWaiting)
	r.send(n.vm, "end")
	r.wait(n.vm, 1)
	r.tool("e2fsck", "-f", "-n", n.images[0])
	r.checkImage(n.images[1], "all is well")
}

// lookAtNvmet has leap-rdma look at the target.
func (r *rig) lookAtNvmet(n *nvmet) {
	r.t.Helper()
	at := fmt.Sprintf("tcp://127.0.0.1:%d", n.ports[0])
	discover := func(host string) (nqns []string) {
		var list []struct{ SubNQN, TRType, TRAddr, TRSvcID string }
		r.leapJSON(&list, "leap-rdma discover "+at+" --hostnqn "+host)
		for _, e := range list {
			if e.TRType != "tcp" || e.TRAddr != "10.0.2.15" || e.TRSvcID != "4420" {
				r.t.Errorf("discover: %+v", e)
			}
			nqns = append(nqns, e.SubNQN)
		}
		slices.Sort(nqns)
		return nqns
	}
	const discovery = "nqn.2014-08.org.nvmexpress.discovery"
	if got, want := discover(nvmetHost), []string{discovery, nvmetNQN}; !slices.Equal(got, want) {
		r.t.Errorf("discover: %q, want %q", got, want)
	}
	if got, want := discover(otherNQN), []string{discovery}; !slices.Equal(got, want) {
		r.t.Errorf("another host discovers %q, want %q", got, want)
	}
	const ping = "leap-rdma ping --count 2 --interval 10ms --hostnqn "
	for _, url := range []string{at, n.url(1), n.url(2)} {
		for _, digests := range []string{"", " --header-digest", " --data-digest --header-digest"} {
			said := r.leap(ping + nvmetHost + " " + url + digests + " -o tsv")
			if got, want := strings.Count(said, "-digest=true"), strings.Count(digests, "-digest"); got != want*2 || strings.Count(said, "keep-alive") != 2 {
				r.t.Errorf("ping %s%s: %d digests in two round trips:\n%s", url, digests, got, said)
			}
		}
	}
	r.refused(7, "does not allow", ping+otherNQN+" "+n.url(1))
	r.refused(4, "there is no", ping+nvmetHost+" "+at+"/"+nvmetNQN+"-not")
}

// waitRemotes waits until both volumes are in a state.
func (r *rig) waitRemotes(state string) {
	r.t.Helper()
	for _, volume := range []string{"far1", "far2"} {
		r.leap("leap-soc wait volume " + volume + " " + state + " --timeout 55s")
	}
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/guest"
)

// network is a network interface through which a guest reaches this machine's
// loopback interface, as 10.0.2.2.
var network = []string{"-nic", "user,model=virtio-net-pci"}

// The host of the guests below, and the subsystems that they connect to: own is
// for one controller at a time, shared is not.
const (
	hostID   = "2c5e1b4a-77e3-4a3f-9f1b-0e7d8a6c9b10"
	hostNQN  = "nqn.2014-08.org.nvmexpress:uuid:" + hostID
	otherID  = "0d5bd8a7-54be-4dd4-a37b-aee7d3b6a2f5"
	otherNQN = "nqn.2014-08.org.nvmexpress:uuid:" + otherID

	ownNQN    = "nqn.2026-01.org.example:own"
	sharedNQN = "nqn.2026-01.org.example:shared"
)

// hostJob begins the job of a guest that is a host of NVMe/TCP. It needs $port.
const hostJob = `
modprobe virtio_net
modprobe nvme-tcp
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
own=` + ownNQN + ` shared=` + sharedNQN + `
target="-t tcp -a 10.0.2.2 -s $port"
me="--hostnqn ` + hostNQN + ` --hostid ` + hostID + `"
other="--hostnqn ` + otherNQN + ` --hostid ` + otherID + `"

# connect NQN ARGUMENT...: connects, and waits for the namespaces. On a busy machine
# guests do not keep short promises to be alive.
connect() {
	nvme connect $target $me -k 60 -n "$@" || { dmesg | tail -n 20; return 1; }
	found $1
}

# found NQN: waits for the namespaces of a subsystem that is connected.
found() {
	if [ $1 = $own ]; then
		eventually drive $own 1
		eventually drive $own 2
		a=$(drive $own 1)
		b=$(drive $own 2)
		d=/dev/$(controllers $own)
	else
		eventually drive $shared 1
		s=$(drive $shared 1)
	fi
}

# well [EXPECTED]: fails if the kernel has complained since the last time, beside
# what it says when it disconnects, also of a Keep Alive that is under way then.
well() {
	healthy "Removing ctrl|nvme_keep_alive_end_io${1:+|$1}"
	dmesg -c >/dev/null
}

# disconnect NQN: disconnects, and waits until the controllers are gone.
disconnect() {
	nvme disconnect -n $1
	eventually gone $1
}
`

// newHostRig is a rig with both subsystems, and the port at which they are. The
// namespaces of own are d1, with blocks of 512 bytes, and d2, with 4096; that of
// shared is d3.
func newHostRig(t *testing.T, args ...string) (r *rig, port string) {
	t.Helper()
	r = newRig(t, args...)
	for _, line := range []string{
		"volume create d1 file size=32M", "volume create d2 file size=8M block=4096", "volume create d3 file size=16M",
		"subsystem create own --nqn " + ownNQN, "namespace add own d1", "namespace add own d2", "host allow own " + hostNQN,
		"subsystem create shared --nqn " + sharedNQN, "namespace add shared d3 --shared", "host allow shared " + hostNQN,
	} {
		r.leap("leap-soc " + line)
	}
	r.leap("leap-rdma listen tcp://127.0.0.1:0 --advertise 10.0.2.2")
	url := r.fact("listener/1/url")
	return r, url[strings.LastIndex(url, ":")+1:]
}

// associations are those of the listener.
func (r *rig) associations() []api.Association {
	r.t.Helper()
	var l api.Listener
	r.leapJSON(&l, "leap-rdma show 1")
	return l.Associations
}

// waitAssociations waits until there are n of them.
func (r *rig) waitAssociations(n int) []api.Association {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		list := r.associations()
		if len(list) == n {
			return list
		}
		if time.Now().After(end) {
			r.t.Fatalf("associations after a minute: %+v, want %d", list, n)
		}
	}
}

// A stock kernel as a host: what it discovers, every way it connects, what
// nvme-cli says of what it is connected to, resets, several paths, and all that
// changes while it is connected.
func TestHost(t *testing.T) {
	kernels := []guest.Kernel{guest.KernelCloud}
	if all {
		kernels = append(kernels, guest.KernelBackports)
	}
	for _, kernel := range kernels {
		t.Run(string(kernel), func(t *testing.T) {
			r, port := newHostRig(t, twoPollers()...)
			vm := r.start(machine{Config: guest.Config{Kernel: kernel, QEMUArgs: network, Timeout: 20 * time.Minute, Job: "port=" + port + strings.Join([]string{
				hostJob, discoverJob, connectJob(), lookJob, hostResetJob, pathsJob, changesJob, eventsJob, lastJob,
			}, "\n")}})
			r.checkDiscovery(vm, port)
			r.checkConnects(vm)
			r.checkLook(vm, port)
			r.checkReset(vm)
			r.checkPaths(vm, port)
			r.makeChanges(vm)
			r.makeEvents(vm)
			r.line(vm, "^disconnected$")
			r.waitAssociations(0)
			r.wait(vm, 1)
			r.fsck("d1")
			if got := r.readFile("d1", "/note"); got != "over the network\n" {
				t.Errorf("/note from outside: %q", got)
			}
			r.checkPattern("d2", "from the host")
			r.checkPattern("d3", "by two paths")
		})
	}
}

const discoverJob = `
json discover nvme discover $target $me
json discover-other nvme discover $target $other
refused 'could not add new controller|failed to write' nvme connect $target $other -n $own
refused 'could not add new controller|failed to write' nvme connect $target $me -n $own-not
dmesg | grep -q "not allowed.*` + otherNQN + `"
dmesg -c >/dev/null
`

// discovered is what nvme discover prints.
type discovered struct {
	Records []struct{ Trtype, Adrfam, Subtype, Trsvcid, Subnqn, Traddr string }
}

// subsystems are the NQNs of those in it, without discovery.
func (d *discovered) subsystems() []string {
	var nqns []string
	for _, r := range d.Records {
		if r.Subtype == "nvme subsystem" {
			nqns = append(nqns, r.Subnqn)
		}
	}
	slices.Sort(nqns)
	return nqns
}

func (r *rig) checkDiscovery(vm *guest.VM, port string) {
	r.t.Helper()
	var mine, others discovered
	r.json(vm, "discover", &mine)
	for _, e := range mine.Records {
		if e.Trtype != "tcp" || e.Adrfam != "ipv4" || e.Subtype == "nvme subsystem" && (e.Traddr != "10.0.2.2" || e.Trsvcid != port) {
			r.t.Errorf("discover: %+v", e)
		}
	}
	if got, want := mine.subsystems(), []string{ownNQN, sharedNQN}; !slices.Equal(got, want) {
		r.t.Errorf("discover: %q, want %q", got, want)
	}
	r.json(vm, "discover-other", &others)
	if got := others.subsystems(); len(got) != 0 {
		r.t.Errorf("another host discovers %q", got)
	}
}

// way is a way to connect, and how many queues that makes, that of administration
// among them. The guest has two processors.
type way struct {
	queues int
	args   string
}

// ways are all combinations if they are asked for, else some that have each value
// of each.
func ways() []way {
	queues := []way{{2, "-i 1"}, {3, "-i 2"}, {3, "-i 16"}, {6, "-i 2 -W 2 -P 1"}}
	digests := []string{"", " --hdr-digest", " --data-digest", " --hdr-digest --data-digest"}
	others := []string{"", " --disable-sqflow", " -Q 16", " -k 0"}
	var list []way
	for i, q := range queues {
		for j, d := range digests {
			for k, o := range others {
				if all || i == j && j == k {
					list = append(list, way{q.queues, q.args + d + o})
				}
			}
		}
	}
	return list
}

// connectJob connects in each of the ways, and uses what it has connected to.
func connectJob() string {
	var job strings.Builder
	for _, w := range ways() {
		fmt.Fprintf(&job, "use %d %s\n", w.queues, w.args)
	}
	return `
use() {
	queues=$1
	shift
	connect $own "$@"
	want $queues cat /sys/class/nvme/${d#/dev/}/queue_count
	want 512 blockdev --getss $a
	want 4096 blockdev --getss $b
	storm $a 2M 512
	storm $b 2M 4k
	notify "connected $(cat /sys/class/nvme/${d#/dev/}/cntlid)"
	await checked >/tmp/said
	disconnect $own
}
` + job.String() + `
well
`
}

func (r *rig) checkConnects(vm *guest.VM) {
	r.t.Helper()
	seen := map[uint16]bool{}
	for _, w := range ways() {
		cntlid := r.line(vm, `^connected (\d+)$`)[1]
		list := r.associations()
		if len(list) != 1 || list[0].Host != hostNQN || list[0].Subsystem != ownNQN || list[0].Queues != w.queues || fmt.Sprint(list[0].CNTLID) != cntlid {
			r.t.Errorf("connected with %s: associations %+v, want one of %d queues, controller %s", w.args, list, w.queues, cntlid)
		}
		// One that is used again at once might get what is still on its way to its predecessor.
		if len(list) == 1 && seen[list[0].CNTLID] {
			r.t.Errorf("controller identifier %d is used again", list[0].CNTLID)
		} else if len(list) == 1 {
			seen[list[0].CNTLID] = true
		}
		if got := r.fact("listener/1/hosts"); got != hostNQN {
			r.t.Errorf("fact hosts: %q", got)
		}
		r.send(vm, "checked")
	}
}

// lookJob has nvme-cli say what it is connected to. d1 gets a file system.
const lookJob = `
nvme connect-all $target $me -k 60 --hdr-digest --data-digest
found $own
found $shared
json id-ctrl nvme id-ctrl $d
json id-ns1 nvme id-ns $a
json id-ns2 nvme id-ns $b
json id-ns3 nvme id-ns $s
json ns-descs nvme ns-descs $a
json list-ctrl nvme list-ctrl $d
json list nvme list -v
json list-subsys nvme list-subsys
json smart-before nvme smart-log $d
dd if=/dev/zero of=$a bs=64k count=64 oflag=direct 2>/tmp/dd
json smart-after nvme smart-log $d
refused 'could not add new controller|failed to write' nvme connect $target $me -n $own --duplicate-connect
dmesg -c >/dev/null
mkfs.ext4 -q $a
mount -t ext4 $a /mnt
storm /mnt/file 8M 4k
echo 'over the network' >/mnt/note
umount /mnt
e2fsck -f -n $a
`

// listed is what nvme list -v and nvme list-subsys print.
type listed struct {
	HostNQN    string
	Subsystems []struct {
		NQN, SubsystemNQN string
		Paths             []struct{ Name, Transport, Address, State string }
		Controllers       []struct {
			Controller, Cntlid, SerialNumber, ModelNumber, Transport string
			Namespaces                                               []listedNamespace
			Paths                                                    []struct{ ANAState string }
		}
		Namespaces []listedNamespace
	}
}

type listedNamespace struct{ NSID, PhysicalSize, SectorSize int }

func (r *rig) checkLook(vm *guest.VM, port string) {
	r.t.Helper()
	serial := r.fact("subsystem/own/serial")
	ctrl := r.object(vm, "id-ctrl")
	r.has("id-ctrl", ctrl, map[string]string{
		"mn": "LeapIO Virtual NVMe Drive", "fr": "1.0", "sn": serial, "subnqn": ownNQN, "cntrltype": "1", "ver": strconv.Itoa(0x20000),
		"mdts": "8", "nn": "1024", "aerl": "3", "kas": "10", "sqes": strconv.Itoa(0x66), "cqes": strconv.Itoa(0x44),
		"iorcsz": "1", "msdbd": "1", "ofcs": "1", "icdoff": "0", "fcatt": "0", "oaes": strconv.Itoa(1 << 8),
	})
	for i, want := range []map[string]string{
		{"nsze": strconv.Itoa(32 << 20 / 512), "nmic": "0"},
		{"nsze": strconv.Itoa(8 << 20 / 4096), "nmic": "0"},
		{"nsze": strconv.Itoa(16 << 20 / 512), "nmic": "1"},
	} {
		word := fmt.Sprintf("id-ns%d", i+1)
		r.has(word, r.object(vm, word), want)
	}
	if got, want := fmt.Sprint(r.object(vm, "ns-descs")["ns-descs"]), r.fact("volume/d1/uuid"); !strings.Contains(got, "uuid:"+want) {
		r.t.Errorf("ns-descs: got %s, want UUID %s", got, want)
	}
	cntlid := fmt.Sprint(ctrl["cntlid"])
	r.has("list-ctrl", r.object(vm, "list-ctrl"), map[string]string{"ctrl_list": "[map[ctrl_id:" + cntlid + "]]"})
	var list struct{ Devices []listed }
	r.json(vm, "list", &list)
	r.checkList(list.Devices, serial, cntlid)
	var subsystems []listed
	r.json(vm, "list-subsys", &subsystems)
	r.checkPathStates(subsystems, port, map[string]int{ownNQN: 1, sharedNQN: 1})
	before, after := r.object(vm, "smart-before"), r.object(vm, "smart-after")
	if x, y := r.number(before, "host_write_commands"), r.number(after, "host_write_commands"); y != x+64 {
		r.t.Errorf("smart-log: write commands went from %d to %d, want 64 more", x, y)
	}
	if x, y := r.number(before, "data_units_written"), r.number(after, "data_units_written"); y-x < 8 || y-x > 9 { // of 512,000 bytes; rounded up
		r.t.Errorf("smart-log: data units written went from %d to %d, want 4 MiB more", x, y)
	}
	r.has("smart-log", after, map[string]string{"critical_warning": "0", "avail_spare": "100", "percent_used": "0", "media_errors": "0"})
}

// checkList holds nvme list -v against what there is.
func (r *rig) checkList(hosts []listed, serial, cntlid string) {
	r.t.Helper()
	if len(hosts) != 1 || hosts[0].HostNQN != hostNQN || len(hosts[0].Subsystems) != 2 {
		r.t.Fatalf("list: %+v, want one host with two subsystems", hosts)
	}
	for _, s := range hosts[0].Subsystems {
		if len(s.Controllers) != 1 {
			r.t.Errorf("list: %+v, want one controller", s)
			continue
		}
		c, want := s.Controllers[0], []listedNamespace{{1, 16 << 20, 512}}
		have := s.Namespaces // of a subsystem that several controllers may show
		if s.SubsystemNQN == ownNQN {
			want = []listedNamespace{{1, 32 << 20, 512}, {2, 8 << 20, 4096}}
			have = c.Namespaces
			if c.SerialNumber != serial || c.Cntlid != cntlid {
				r.t.Errorf("list: %+v, want serial number %s, controller %s", c, serial, cntlid)
			}
		} else if len(c.Paths) != 1 || c.Paths[0].ANAState != "optimized" {
			r.t.Errorf("list: %+v, want one path, optimized", c)
		}
		slices.SortFunc(have, func(a, b listedNamespace) int { return a.NSID - b.NSID })
		if !slices.Equal(have, want) || c.Transport != "tcp" {
			r.t.Errorf("list: %s has %+v over %s, want %+v over tcp", s.SubsystemNQN, have, c.Transport, want)
		}
	}
}

// checkPathStates holds nvme list-subsys against how many paths there are to each
// subsystem. All are to be live.
func (r *rig) checkPathStates(hosts []listed, port string, want map[string]int) {
	r.t.Helper()
	if len(hosts) != 1 || hosts[0].HostNQN != hostNQN || len(hosts[0].Subsystems) != len(want) {
		r.t.Fatalf("list-subsys: %+v, want one host with %d subsystems", hosts, len(want))
	}
	for _, s := range hosts[0].Subsystems {
		if len(s.Paths) != want[s.NQN] {
			r.t.Errorf("list-subsys: %s has paths %+v, want %d", s.NQN, s.Paths, want[s.NQN])
		}
		for _, p := range s.Paths {
			if p.Transport != "tcp" || p.State != "live" || !strings.HasPrefix(p.Address, "traddr=10.0.2.2,trsvcid="+port) {
				r.t.Errorf("list-subsys: path %+v, want a live one to port %s", p, port)
			}
		}
	}
}

// hostResetJob resets the controller under load.
const hostResetJob = `
storm $b 8M 4096 &
for i in 1 2 3; do
	sleep 0.3
	nvme reset $d
	want live cat /sys/class/nvme/${d#/dev/}/state
done
wait $!
fill $b 'from the host'
filled $b 'from the host'
notify reset
await checked >/tmp/said
disconnect $own
well 'resetting controller'
`

func (r *rig) checkReset(vm *guest.VM) {
	r.t.Helper()
	r.line(vm, "^reset$")
	if list := r.associations(); len(list) != 2 {
		r.t.Errorf("after resets: associations %+v, want 2", list)
	}
	r.send(vm, "checked")
}

// pathsJob connects once more to the shared subsystem, has both connections used,
// and gives up the first under load.
const pathsJob = `
connect $shared --duplicate-connect --data-digest
json two-paths nvme list-subsys
want 1 sh -c "ls /dev/nvme*n1 | wc -l"
echo round-robin >$(echo /sys/class/nvme-subsystem/*/iopolicy)
storm $s 8M 512
for path in /sys/block/nvme*c*n1; do
	[ "$(awk '{ print $5 }' $path/stat)" -gt 10 ] || { echo "$path: no writes"; exit 1; }
done
storm $s 8M 512 &
first=$(controllers $shared | head -n 1)
sleep 0.5
nvme disconnect -d $first
wait $!
json one-path nvme list-subsys
fill $s 'by two paths'
filled $s 'by two paths'
well
disconnect $shared
`

func (r *rig) checkPaths(vm *guest.VM, port string) {
	r.t.Helper()
	for _, test := range []struct {
		word  string
		paths int
	}{{"two-paths", 2}, {"one-path", 1}} {
		var list []listed
		r.json(vm, test.word, &list)
		r.checkPathStates(list, port, map[string]int{sharedNQN: test.paths})
	}
}

// changesJob has namespaces come, grow and go; at last without events.
const changesJob = `
connect $own
notify add
eventually drive $own 3
c=$(drive $own 3)
fill $c 'hot'
filled $c 'hot'
notify grow
eventually size $c 16777216
fill $c 'grown'
filled $c 'grown'
notify remove
eventually [ ! -e $c ]
well
nvme set-feature $d -f 0x0b -V 0
notify silent
await added >/tmp/said
sleep 2
if drive $own 3 2>/tmp/said; then echo 'a namespace came without an event'; exit 1; fi
nvme ns-rescan $d
eventually drive $own 3
disconnect $own
dmesg -c >/dev/null
`

func (r *rig) makeChanges(vm *guest.VM) {
	r.t.Helper()
	r.line(vm, "^add$")
	r.leap("leap-soc volume create d4 mem size=8M")
	r.leap("leap-soc namespace add own d4")
	r.line(vm, "^grow$")
	r.leap("leap-soc volume resize d4 16M")
	r.line(vm, "^remove$")
	r.leap("leap-soc namespace remove own 3")
	r.line(vm, "^silent$")
	r.leap("leap-soc namespace add own d4")
	r.send(vm, "added")
}

// eventsJob keeps a discovery controller and is told of changes.
const eventsJob = `
notify where
target="-t tcp -a 10.0.2.2 -s $(await)"
uevent sh -c 'echo $NVME_AEN $DEVPATH' >/tmp/events &
events=$!
changes() { [ "$(grep -c '^0x70f002 .*nvme' /tmp/events)" = $1 ]; }
nvme discover $target $me --persistent >/tmp/said
c=$(dirname $(grep -l discovery /sys/class/nvme/nvme*/cntrltype))
c=${c##*/}
n=0
for what in appear change disappear; do
	notify $what
	n=$((n + 1))
	eventually changes $n
	json discover nvme discover -d $c
done
sleep 1
changes $n
kill $events
`

func (r *rig) makeEvents(vm *guest.VM) {
	r.t.Helper()
	r.leap("leap-rdma listen tcp://127.0.0.1:0/" + fabrics.DiscoveryNQN + " --advertise 10.0.2.2")
	at := regexp.MustCompile(`:([0-9]+)$`).FindStringSubmatch(r.fact("listener/2/url"))
	if at == nil {
		r.t.Fatalf("the listener for discovery has the URL %q", r.fact("listener/2/url"))
	}
	r.line(vm, "^where$")
	r.send(vm, at[1])
	const nqn = "nqn.2026-01.org.example:new"
	for _, test := range []struct {
		word, line string
		want       []string
	}{
		{"appear", "subsystem create new --allow-any --nqn " + nqn, []string{nqn, ownNQN, sharedNQN}},
		{"change", "host deny shared " + hostNQN, []string{nqn, ownNQN}},
		{"disappear", "subsystem delete new", []string{ownNQN}},
	} {
		r.line(vm, "^"+test.word+"$")
		r.leap("leap-soc " + test.line)
		var d discovered
		r.json(vm, "discover", &d)
		if got := d.subsystems(); !slices.Equal(got, test.want) {
			r.t.Errorf("%s: discovered %q, want %q", test.word, got, test.want)
		}
	}
}

const lastJob = `
nvme connect-all $target $me -k 60
found $own
gone $shared
nvme disconnect-all
eventually [ ! -e /sys/class/nvme/$c ]
gone $own
notify disconnected
well
`

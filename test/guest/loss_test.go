// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/guest"
)

// A host connects 64 times in a row, is frozen for longer than its Keep Alive
// Timeout, has the runtime killed under it, and then loses it for longer than it
// is willing to wait. It never loses data, and the runtime keeps nothing of it.
func TestHostLosses(t *testing.T) {
	r, port := newHostRig(t)
	monitor := filepath.Join(filepath.Dir(r.paths.Run), "qmp")
	vm := r.start(machine{Config: guest.Config{
		QEMUArgs: append([]string{"-qmp", "unix:" + monitor + ",server=on,wait=off"}, network...), Timeout: 10 * time.Minute,
		Job: "port=" + port + strings.Join([]string{hostJob, againJob, freezeJob, killJob, awayJob}, "\n"),
	}})
	before := r.connectAgain(vm)
	r.freeze(vm, dialQMP(t, monitor), before)
	r.killUnder(vm)
	r.stayAway(vm)
	r.wait(vm, 1)
	r.checkPattern("d1", "before it was away")
	r.checkPattern("d2", "after it was away")
}

// againJob connects and disconnects, in each of four ways once, and then 16 times:
// half of them while the kernel still looks for namespaces.
const againJob = `
again() {
	for how in '-i 1' '--hdr-digest --data-digest' '-W 2 -P 1 --disable-sqflow' '--data-digest'; do
		if [ $(($1 % 2)) = 1 ]; then
			connect $own $how
			dd if=$a of=/dev/null bs=64k count=16 iflag=direct 2>/tmp/dd
		else
			nvme connect $target $me -n $own $how
		fi
		disconnect $own
	done >/tmp/said
}
again 1
notify once
await looked >/tmp/said
for i in $(seq 16); do again $i; done
notify again
await looked >/tmp/said
connect $own
json list-ctrl nvme list-ctrl $d
disconnect $own
well
`

// usage is what the runtime has in use.
type usage struct {
	files   []string
	threads int
	memory  int64 // RSS, bytes
}

func (r *rig) usage() (u usage) {
	r.t.Helper()
	u.files = r.openFiles()
	for i, name := range u.files { // each socket has a number of its own
		if strings.Contains(name, "socket:") {
			u.files[i] = strings.TrimRight(name, "0123456789]")
		}
	}
	slices.Sort(u.files)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.soc.process.Pid))
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch key {
		case "Threads":
			u.threads = int(n)
		case "VmRSS":
			u.memory = n << 10
		}
	}
	return u
}

// What the runtime may have more than before, once hosts have gone: the Go
// runtime makes threads when it needs them and keeps them, and what garbage
// collection has freed goes back to the system by and by.
const (
	moreThreads = 4
	moreMemory  = 8 << 20
)

// sameUsage waits until the runtime has no more in use than before.
func (r *rig) sameUsage(when string, before usage) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		now := r.usage()
		if slices.Equal(now.files, before.files) && now.threads <= before.threads+moreThreads && now.memory <= before.memory+moreMemory {
			r.t.Logf("%s: %d files, %d threads, %d KiB; before: %d, %d, %d", when, len(now.files), now.threads, now.memory>>10,
				len(before.files), before.threads, before.memory>>10)
			return
		}
		if time.Now().After(end) {
			r.t.Errorf("%s: the runtime has %+v, before it had %+v", when, now, before)
			return
		}
	}
}

// connectAgain returns what the runtime has in use without a host.
func (r *rig) connectAgain(vm *guest.VM) (before usage) {
	r.t.Helper()
	r.line(vm, "^once$")
	r.waitAssociations(0)
	before = r.usage()
	r.send(vm, "looked")
	r.line(vm, "^again$")
	r.waitAssociations(0)
	r.sameUsage("after 64 connections", before)
	r.send(vm, "looked")
	if list, _ := r.object(vm, "list-ctrl")["ctrl_list"].([]any); len(list) != 1 {
		r.t.Errorf("after 64 connections: the subsystem has controllers %v, want one", list)
	}
	return before
}

// freezeJob has I/O under way when the guest is frozen.
const freezeJob = `
connect $own -k 8 --reconnect-delay 1 --ctrl-loss-tmo 600
fill $a 'before it froze'
(storm $b 8M 4k && storm $b 8M 4k && touch /stormed) &
storm=$!
notify freeze
await thawed
wait $storm
[ -e /stormed ]
eventually [ "$(cat /sys/class/nvme/${d#/dev/}/state)" = live ]
filled $a 'before it froze'
notify alive
await looked >/tmp/said
disconnect $own
if dmesg | grep -q 'I/O error'; then dmesg; exit 1; fi
dmesg -c >/dev/null
`

// freeze stops the guest as a host that hangs.
func (r *rig) freeze(vm *guest.VM, monitor *qmp, before usage) {
	r.t.Helper()
	r.leap("leap-soc host allow own " + otherNQN)
	r.line(vm, "^freeze$")
	first := r.waitAssociations(1)[0]
	url := fmt.Sprintf("%s/%s", r.fact("listener/1/url"), ownNQN)
	ping := "leap-rdma ping " + url + " --count 1 --hostnqn " + otherNQN
	r.refused(5, "busy", ping)
	monitor.execute("stop", map[string]any{})
	r.waitAssociations(0)
	r.sameUsage("with a frozen host", before)
	r.leap(ping)
	monitor.execute("cont", map[string]any{})
	r.send(vm, "thawed")
	r.line(vm, "^alive$")
	second := r.waitAssociations(1)[0]
	if second.Host != hostNQN || second.CNTLID == first.CNTLID {
		r.t.Errorf("after the thaw: association %+v; before: %+v", second, first)
	}
	r.send(vm, "looked")
	r.leap("leap-soc host deny own " + otherNQN)
}

// killJob has a file system on the shared subsystem, and a drive of the other
// one, in use while the runtime is killed. On a connection that the target has
// just closed, Linux (6.12) sends SIGPIPE to who submits I/O, which fio is to
// survive; and until it has noticed, it sends a command again and again, as often
// as max_retries says, unless the subsystem may have other paths.
const killJob = `
connect $own --reconnect-delay 1 --ctrl-loss-tmo 600 --hdr-digest --data-digest
connect $shared --reconnect-delay 1 --ctrl-loss-tmo 600
echo 255 >/sys/module/nvme_core/parameters/max_retries
mkfs.ext4 -q $s
mount -t ext4 $s /mnt
(await stop >/tmp/stop; touch /stopped) &
trap '' PIPE
notify busy
runs=0
until [ -e /stopped ]; do
	storm /mnt/file 4M 512 &
	storm $b 4M 4k 4
	wait $!
	runs=$((runs + 1))
done
trap - PIPE
notify runs $runs
umount /mnt
e2fsck -f -n $s
if dmesg | grep -E 'I/O error|I/O Error|EXT4-fs.*(error|warning)'; then exit 1; fi
echo 5 >/sys/module/nvme_core/parameters/max_retries
disconnect $shared
disconnect $own
dmesg -c >/dev/null
`

func (r *rig) killUnder(vm *guest.VM) {
	r.t.Helper()
	r.line(vm, "^busy$")
	for range 4 {
		r.waitAssociations(2)
		time.Sleep(time.Second)
		r.soc.kill()
		r.soc.start()
	}
	r.waitAssociations(2)
	time.Sleep(time.Second)
	r.send(vm, "stop")
	r.line(vm, `^runs [1-9]\d*$`)
}

// awayJob waits no longer than 10 seconds for the runtime.
const awayJob = `
connect $own --reconnect-delay 2 --ctrl-loss-tmo 10
fill $a 'before it was away'
fill $b 'before it was away'
notify leave
eventually gone $own
eventually [ ! -e $a ]
notify lost
await back
connect $own
filled $a 'before it was away'
filled $b 'before it was away'
fill $b 'after it was away'
disconnect $own
`

func (r *rig) stayAway(vm *guest.VM) {
	r.t.Helper()
	r.line(vm, "^leave$")
	r.soc.kill()
	r.line(vm, "^lost$")
	r.soc.start()
	r.send(vm, "back")
}

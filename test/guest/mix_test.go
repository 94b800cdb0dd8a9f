// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/guest"
)

// mixJob has discards and flushes in the first half of a drive, and writes with
// FUA in the second half.
const mixJob = `
# said FILE: fails if fio met an error, of which it tells in the file.
said() { if ! grep -q 'err= 0' $1; then cat $1; return 1; fi; }

# mixed DEVICE HALF: HALF is the number of MiB. Each block is discarded and then
# written, so that a discard that comes late is found. In the end all are
# discarded, and read as zeros: they are blocks of the file that the drive is.
mixed() {
	fio --name=mixed --filename=$1 --size=$2M --rw=randtrimwrite --bs=16k --ioengine=libaio --iodepth=8 --direct=1 --fsync=24 \
		--verify=crc32c --verify_fatal=1 --eta=never --output=/tmp/mixed || { cat /tmp/mixed; return 1; }
	said /tmp/mixed
	fio --name=trim --filename=$1 --size=$2M --rw=randtrim --bs=64k --ioengine=libaio --direct=1 --eta=never --output=/tmp/trim || { cat /tmp/trim; return 1; }
	said /tmp/trim
	dd if=$1 bs=1M count=$2 iflag=direct of=/tmp/discarded 2>/tmp/dd || { cat /tmp/dd; return 1; }
	want 0 sh -c 'tr -d "\\000" </tmp/discarded | wc -c'
}

# through DEVICE HALF: direct writes with O_DSYNC have FUA where the drive can.
through() {
	fio --name=through --filename=$1 --offset=$2M --size=$2M --rw=randrw --bsrange=4k-64k --ioengine=libaio --iodepth=8 --direct=1 --sync=dsync \
		--verify=crc32c --verify_fatal=1 --verify_backlog=32 --eta=never --output=/tmp/through || { cat /tmp/through; return 1; }
	said /tmp/through
}

# mix DEVICE HALF: both at a time until /stop is there; then gives the number of
# rounds to the host, and fails unless there were discards and flushes.
mix() {
	want 1 cat /sys/block/${1##*/}/queue/fua
	rounds=0
	until [ -e /stop ]; do
		mixed $1 $2 &
		through $1 $2
		wait $!
		rounds=$((rounds + 1))
	done
	set -- $(cat /sys/block/${1##*/}/stat)
	if [ ${12} = 0 ] || [ ${16} = 0 ]; then
		echo "statistics: $*: no discards, or no flushes"
		return 1
	fi
	notify "rounds $rounds, ${12} discards, ${16} flushes"
}
`

// A step is what is done to a daemon.
type step struct {
	name string
	do   func(*rig)
}

// mixture is kills of the runtime, upgrades of it and upgrades of the broker, in
// random order.
func mixture(t *testing.T) (steps []step) {
	n, brokers := 3, 2
	if all {
		n, brokers = 20, 5
	}
	for range n {
		steps = append(steps, step{"kill", func(r *rig) { r.soc.kill(); r.soc.start() }}, step{"upgrade soc", func(r *rig) { r.soc.upgrade() }})
	}
	for range brokers {
		steps = append(steps, step{"upgrade wpt", func(r *rig) { r.wpt.upgrade() }})
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(steps), func(i, k int) { steps[i], steps[k] = steps[k], steps[i] })
	return steps
}

// take takes the steps, at random moments, and calls ready before each.
func (r *rig) take(steps []step, ready func()) {
	r.t.Helper()
	for _, s := range steps {
		ready()
		time.Sleep(300*time.Millisecond + time.Duration(rand.Int64N(int64(time.Second))))
		begin := time.Now()
		s.do(r)
		r.t.Logf("%s: %v", s.name, time.Since(begin).Round(time.Millisecond))
	}
}

// Both daemons are killed and replaced in random order under a guest that
// discards, flushes and writes with FUA, and verifies all of it.
func TestMix(t *testing.T) {
	r := newRig(t, twoPollers()...)
	r.leap("leap-soc volume create d1 file size=32M")
	r.leap("leap-qmap map vm1 d1")
	vm := r.start(machine{ports: []string{"vm1"}, Config: guest.Config{Timeout: 10 * time.Minute, Job: mixJob + `
drives 1
(await stop >/tmp/said; touch /stop) &
notify up
mix /dev/nvme0n1 16
healthy
`}})
	r.line(vm, "^up$")
	r.take(mixture(t), func() {})
	time.Sleep(time.Second)
	if got := r.port("vm1").ClientPID; got != vm.Pid() {
		t.Errorf("client of the port: got process %d, want QEMU's: %d", got, vm.Pid())
	}
	r.send(vm, "stop")
	t.Log(r.line(vm, `^rounds [1-9]\d*, .*$`)[0])
	r.wait(vm, 1)
}

// The same under a host over NVMe/TCP, which reconnects whenever the runtime has
// gone, and keeps its connection when the broker is replaced.
func TestHostMix(t *testing.T) {
	r, port := newHostRig(t, twoPollers()...)
	vm := r.start(machine{Config: guest.Config{QEMUArgs: network, Timeout: 10 * time.Minute, Job: "port=" + port + strings.Join([]string{hostJob, mixJob, `
connect $own --reconnect-delay 1 --ctrl-loss-tmo 600
echo 255 >/sys/module/nvme_core/parameters/max_retries
(await stop >/tmp/said; touch /stop) &
trap '' PIPE
notify up
mix $a 16
trap - PIPE
if dmesg | grep -E 'I/O error|I/O Error'; then exit 1; fi
disconnect $own
`}, "\n")}})
	r.line(vm, "^up$")
	r.take(mixture(t), func() { r.waitAssociations(1) })
	r.waitAssociations(1)
	time.Sleep(time.Second)
	r.send(vm, "stop")
	t.Log(r.line(vm, `^rounds [1-9]\d*, .*$`)[0])
	r.wait(vm, 1)
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/guest"
)

// ioTimeout is that of the guests here. Linux (6.12) aborts a command that is not
// answered in that time, and when that time has gone by once more it resets the
// controller: it deletes the queues, for which it waits adminTimeout, clears
// CC.EN, which leap-wpt acknowledges without a runtime, sets it, and waits CAP.TO
// for the controller to be ready.
const (
	ioTimeout    = 3 * time.Second
	adminTimeout = time.Minute
	waitWords    = "nvme_core.io_timeout=3"
)

// waitJob stays busy until the host says stop, and then says what it has seen.
const waitJob = `
drives 1
(await stop >/tmp/said; touch /stop) &
notify up
runs=0
until [ -e /stop ]; do
	storm /dev/nvme0n1 8M 512
	runs=$((runs + 1))
done
notify runs $runs
# counted REGEXP: how many lines of the kernel's match.
counted() { dmesg | grep -cE "$1" || true; }
notify "timeouts $(counted 'nvme nvme[0-9].*timeout'), resets $(counted 'nvme nvme[0-9].*reset controller'), errors $(counted 'I/O error|I/O Error|nvme nvme[0-9].*(remov|fail)')"
`

// Each row of the table of leapio(7), WAITING, with fio that verifies what it
// reads.
func TestWaiting(t *testing.T) {
	for _, test := range []struct {
		name  string
		away  time.Duration
		seen  string
		after string // of the job
		all   bool   // among all only
	}{
		{"pause", ioTimeout / 2, `^timeouts 0, resets 0, errors 0$`, "healthy 'ommand line:'", false},
		// The guest deletes the queues when the runtime is back.
		{"reset", 4 * ioTimeout, `^timeouts [1-9]\d*, resets [1-9]\d*, errors 0$`, "", false},
		// It waits for the controller to be ready.
		{"enable", 2*ioTimeout + adminTimeout + 30*time.Second, `^timeouts [1-9]\d*, resets [1-9]\d*, errors 0$`, "", true},
	} {
		if test.all && !all {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t)
			r.leap("leap-soc volume create d1 file size=16M")
			r.leap("leap-qmap map vm1 d1")
			vm := r.start(machine{ports: []string{"vm1"}, Config: guest.Config{Append: waitWords, Timeout: 4 * time.Minute, Job: waitJob + test.after}})
			r.line(vm, "^up$")
			time.Sleep(time.Second)
			r.soc.kill()
			time.Sleep(test.away)
			if got := r.port("vm1").State; got != api.PortFrozen {
				t.Errorf("port without a runtime: got %s, want %s", got, api.PortFrozen)
			}
			r.soc.start()
			r.waitPort("vm1", api.PortEnabled)
			time.Sleep(2 * time.Second)
			r.send(vm, "stop")
			r.line(vm, `^runs [1-9]\d*$`)
			t.Log(r.line(vm, test.seen)[0])
			r.wait(vm, 1)
		})
	}
}

// The last row: without a runtime for longer than a reset may take (CAP.TO), the
// drive is dead, what is under way fails, and it stays dead when a runtime is
// there again. A machine that starts anew finds what was completed.
func TestDropped(t *testing.T) {
	if !all {
		t.Skip("takes four minutes: LEAP_GUEST_ALL=1")
	}
	r := newRig(t)
	r.leap("leap-soc volume create d1 file size=16M")
	r.leap("leap-qmap map vm1 d1")
	vm := r.start(machine{ports: []string{"vm1"}, Config: guest.Config{Append: waitWords, Timeout: 8 * time.Minute, Job: `
drives 1
fill /dev/nvme0n1 'before it was dropped'
notify up
await away >/tmp/said
if dd if=/dev/nvme0n1 of=/dev/null bs=4k count=1 iflag=direct 2>/tmp/dd; then
	echo 'a read has succeeded without a runtime'
	exit 1
fi
notify failed
dead() { [ "$(cat /sys/class/nvme/nvme0/state)" = dead ]; }
eventually dead
want 0 blockdev --getsize64 /dev/nvme0n1
notify dropped
await back >/tmp/said
dead
`}})
	r.line(vm, "^up$")
	r.soc.kill()
	begin := time.Now()
	r.send(vm, "away")
	r.line(vm, "^failed$")
	// CAP.TO is what the controller asks for; no guest may give up before.
	if d := time.Since(begin); d < ioTimeout+127*time.Second {
		t.Errorf("the guest gave up after %v", d)
	} else {
		t.Logf("the guest gave up after %v", d.Round(time.Second))
	}
	r.line(vm, "^dropped$")
	r.soc.start()
	r.leap("leap-soc wait runtime soc attached --timeout 10s")
	r.send(vm, "back")
	r.wait(vm, 1)
	r.checkPattern("d1", "before it was dropped")
	r.boot(machine{ports: []string{"vm1"}, Config: guest.Config{Job: `
drives 1
filled /dev/nvme0n1 'before it was dropped'
healthy
`}})
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"bytes"
	"crypto/md5"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/guest"
)

// A drive is plugged into a machine that runs, used, and unplugged while it is
// read. Then the port waits, the daemons have given back all they had for it, and
// the next machine starts from the drive.
//
// What becomes of QEMU is not looked at: 11.1 aborts when such a device is
// unplugged.
func TestHotPlug(t *testing.T) {
	r := newRig(t)
	path, want := bootDisk(t)
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r.leap("leap-soc volume create d1 file path=" + path)
	r.leap("leap-qmap map vm1 d1")
	monitor := filepath.Join(filepath.Dir(r.paths.Run), "qmp")
	const written = 6 // MiB, where the boot sector writes nothing
	vm := r.start(machine{ports: []string{"vm1"}, unplugged: true, Config: guest.Config{
		QEMUArgs: []string{"-device", "pcie-root-port,id=port1,chassis=1", "-qmp", "unix:" + monitor + ",server=on,wait=off"},
		Job: fmt.Sprintf(`
notify up
drives 1
n=/dev/nvme0n1
notify sum $(dd if=$n bs=1M iflag=direct 2>/dev/null | md5sum)
pattern 'plugged'
dd if=/tmp/pattern of=$n bs=1M seek=%d oflag=direct 2>/dev/null
healthy
notify used
while dd if=$n of=/dev/null bs=64k iflag=direct 2>/dev/null; do :; done
await end
`, written)}})
	r.line(vm, "^up$")
	before := r.openFiles()
	q := dialQMP(t, monitor)
	q.execute("device_add", r.plug("vm1"))
	if got, want := r.line(vm, `^sum (\w+) `)[1], fmt.Sprintf("%x", md5.Sum(image)); got != want {
		t.Errorf("MD5 of the drive: got %s, want %s", got, want)
	}
	r.line(vm, "^used$")
	if err := unix.Prlimit(vm.Pid(), unix.RLIMIT_CORE, &unix.Rlimit{}, nil); err != nil {
		t.Error(err)
	}
	q.execute("device_del", map[string]any{"id": "drive"})
	r.waitPort("vm1", api.PortWaiting)
	vm.Kill()
	_, err = vm.Wait()
	end, _, _ := strings.Cut(fmt.Sprint(err), ";")
	t.Log("after the drive was unplugged:", end)
	copy(want[written<<20:], bytes.Repeat(fmt.Appendf(nil, "%-31s\n", "plugged"), 1<<15))
	// A vector that was used keeps a descriptor for the next guest: INTx, the admin
	// queue's and one for each processor.
	for range 1 + 1 + 2 {
		before = append(before, "leap-soc anon_inode:[eventfd]")
	}
	slices.Sort(before)
	deadline := time.Now().Add(10 * time.Second)
	for !slices.Equal(r.openFiles(), before) && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if after := r.openFiles(); !slices.Equal(after, before) {
		t.Errorf("open files of the daemons: got\n%s\nwant as before\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
	r.tool("qemu-system-x86_64", append(firmwareOnly, r.qemuArgs(machine{ports: []string{"vm1"}})...)...)
	checkDisk(t, path, want)
}

// openFiles lists what the daemons have open, by name and what it is.
func (r *rig) openFiles() []string {
	r.t.Helper()
	var files []string
	for _, d := range []*daemon{r.wpt, r.soc} {
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", d.process.Pid))
		if err != nil {
			r.t.Fatal(err)
		}
		for _, link := range links {
			target, err := os.Readlink(link)
			if err != nil {
				continue // closed meanwhile
			}
			files = append(files, d.name+" "+target)
		}
	}
	slices.Sort(files)
	return files
}

// plug is the argument of device_add for the device of a port, which leap-wpt
// prints for the command line.
func (r *rig) plug(port string) map[string]any {
	r.t.Helper()
	args := r.qemuArgs(machine{ports: []string{port}})
	var device map[string]any
	if err := json.Unmarshal([]byte(args[len(args)-1]), &device); err != nil {
		r.t.Fatalf("device %s: %v", args[len(args)-1], err)
	}
	device["bus"], device["id"] = "port1", "drive"
	return device
}

// qmp is a connection to a QEMU's monitor.
type qmp struct {
	t    *testing.T
	conn net.Conn
	in   *json.Decoder
}

// dialQMP connects to the monitor of a QEMU that runs.
func dialQMP(t *testing.T, path string) *qmp {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	q := &qmp{t: t, conn: conn, in: json.NewDecoder(conn)}
	q.execute("qmp_capabilities", map[string]any{})
	return q
}

// execute has a command executed, which must succeed.
func (q *qmp) execute(command string, arguments map[string]any) {
	q.t.Helper()
	text, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments})
	if err != nil {
		q.t.Fatal(err)
	}
	if _, err := q.conn.Write(text); err != nil {
		q.t.Fatalf("%s: %v", command, err)
	}
	for {
		// Greeting and events have neither.
		var answer struct{ Return, Error json.RawMessage }
		if err := q.in.Decode(&answer); err != nil {
			q.t.Fatalf("%s: %v", command, err)
		}
		if answer.Error != nil {
			q.t.Fatalf("%s: %s", command, answer.Error)
		}
		if answer.Return != nil {
			return
		}
	}
}

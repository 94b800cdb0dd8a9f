// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/guest"
)

// What nvme-cli has the kernel send, and what comes back: all that docs/nvme.md
// promises, asked for from inside. One guest, one drive of two namespaces: d1
// with blocks of 512 bytes, d2 with 4096; a third one comes and goes.
func TestCommands(t *testing.T) {
	kernels := []guest.Kernel{guest.KernelBackports}
	if all {
		kernels = append(kernels, guest.KernelCloud)
	}
	for _, kernel := range kernels {
		t.Run(string(kernel), func(t *testing.T) {
			r := newRig(t)
			r.leap("leap-soc volume create d1 file size=16M")
			r.leap("leap-soc volume create d2 file size=16M block=4096")
			r.leap("leap-qmap map vm1 d1 d2")
			doc := readNVMeDoc(t)
			vm := r.start(machine{ports: []string{"vm1"}, Config: guest.Config{Kernel: kernel, Job: strings.Join([]string{
				commandFunctions, identifyJob, logJob, featureJob(doc), setFeatureJob, dataJob, spaceJob, smartJob, hotAddJob, resetJob,
			}, "\n")}})
			r.checkIdentify(vm)
			r.checkLogs(vm, doc)
			r.checkFeatures(vm, doc)
			r.checkSpace(vm)
			r.checkSMART(vm)
			r.hotAdd(vm)
			running, reset := r.object(vm, "running"), r.object(vm, "reset")
			if x, y := r.number(running, "host_write_commands"), r.number(reset, "host_write_commands"); y < x {
				t.Errorf("smart-log: write commands went from %d to %d", x, y)
			}
			r.wait(vm, 1)
			r.checkPattern("d1", "after the reset")
		})
	}
}

// commandFunctions are for the jobs below.
const commandFunctions = `
drives 2
d=/dev/nvme0
a=$(drive "$(cat /sys/class/nvme/nvme0/subsysnqn)" 1)
b=$(drive "$(cat /sys/class/nvme/nvme0/subsysnqn)" 2)
`

// object is a JSON object of nvme-cli's.
type object map[string]any

// object waits for a line of the function json.
func (r *rig) object(vm *guest.VM, word string) (o object) {
	r.t.Helper()
	r.json(vm, word, &o)
	return o
}

// json is object for any shape.
func (r *rig) json(vm *guest.VM, word string, out any) {
	r.t.Helper()
	text := r.line(vm, "^"+regexp.QuoteMeta(word)+` ([\[{].*[\]}])$`)[1]
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(out); err != nil {
		r.t.Fatalf("%s: %v in %s", word, err, text)
	}
}

// has compares members of an object.
func (r *rig) has(what string, o object, want map[string]string) {
	r.t.Helper()
	for key, want := range want {
		if got := strings.TrimSpace(fmt.Sprint(o[key])); got != want {
			r.t.Errorf("%s: %s is %q, want %q", what, key, got, want)
		}
	}
}

const identifyJob = `
json id-ctrl nvme id-ctrl $d
json id-ns nvme id-ns $a
json id-ns4096 nvme id-ns $b
json ns-descs nvme ns-descs $a
json list-ns nvme list-ns $d
json list-ns-csi nvme list-ns $d --csi=0
json list-ns-all nvme list-ns $d --all
json list-ctrl nvme list-ctrl $d
json list-ctrl-ns nvme list-ctrl $d --namespace-id=1
json cmdset-ind-id-ns nvme cmdset-ind-id-ns $d --namespace-id=1
json nvm-id-ns nvme nvm-id-ns $d --namespace-id=1
json nvm-id-ctrl nvme nvm-id-ctrl $d
nvme id-iocs $d -v | grep 'NVM Command Set Selected'
refused 'Invalid Namespace' nvme id-ns $d --namespace-id=1025
refused 'Invalid Field' nvme list-ns $d --csi=2
`

// checkIdentify holds identifyJob's lines against the facts of the host.
func (r *rig) checkIdentify(vm *guest.VM) {
	r.t.Helper()
	ctrl := r.object(vm, "id-ctrl")
	r.has("id-ctrl", ctrl, map[string]string{
		"mn": "LeapIO Virtual NVMe Drive", "fr": "1.0", "sn": r.fact("subsystem/vm1/serial"), "subnqn": r.fact("subsystem/vm1/nqn"),
		"vid": strconv.Itoa(0x4c49), "ssvid": strconv.Itoa(0x4c49), "ver": strconv.Itoa(0x20000), "cntrltype": "1",
		"mdts": "8", "nn": "1024", "aerl": "3", "elpe": "63", "sqes": strconv.Itoa(0x66), "cqes": strconv.Itoa(0x44),
		"oaes": strconv.Itoa(1 << 8), "fuses": "1", "tnvmcap": strconv.Itoa(32 << 20), "awun": "0", "awupf": "0",
	})
	id := fmt.Sprint(ctrl["cntlid"])
	r.has("id-ns", r.object(vm, "id-ns"), map[string]string{
		"nsze": strconv.Itoa(16 << 20 / 512), "ncap": strconv.Itoa(16 << 20 / 512), "nvmcap": strconv.Itoa(16 << 20), "nmic": "0",
		"eui64": "0000000000000000", "mssrl": strconv.Itoa(1 << 20 / 512), "mcl": strconv.Itoa(16 << 20 / 512), "msrc": "255",
	})
	r.has("id-ns", r.object(vm, "id-ns4096"), map[string]string{"nsze": strconv.Itoa(16 << 20 / 4096)})
	if got, want := fmt.Sprint(r.object(vm, "ns-descs")["ns-descs"]), r.fact("volume/d1/uuid"); !strings.Contains(got, "uuid:"+want) {
		r.t.Errorf("ns-descs: got %s, want UUID %s", got, want)
	}
	for _, list := range []struct{ word, key, want string }{
		{"list-ns", "nsid_list", "[map[nsid:1] map[nsid:2]]"},
		{"list-ns-csi", "nsid_list", "[map[nsid:1] map[nsid:2]]"},
		{"list-ns-all", "nsid_list", "[map[nsid:1] map[nsid:2]]"},
		{"list-ctrl", "ctrl_list", "[map[ctrl_id:" + id + "]]"},
		{"list-ctrl-ns", "ctrl_list", "[map[ctrl_id:" + id + "]]"},
	} {
		r.has(list.word, r.object(vm, list.word), map[string]string{list.key: list.want})
	}
	r.has("cmdset-ind-id-ns", r.object(vm, "cmdset-ind-id-ns"), map[string]string{"nstat": "1", "nmic": "0"})
	r.object(vm, "nvm-id-ns")
	r.has("nvm-id-ctrl", r.object(vm, "nvm-id-ctrl"), map[string]string{"vsl": "11", "wzsl": "11"}) // 2^11 pages are 8 MiB
}

// The two commands refused above are the first errors
// of the log.
const logJob = `
json error-log nvme error-log $d --log-entries=2
json smart-log nvme smart-log $d
json fw-log nvme fw-log $d
json changed-ns-list-log nvme changed-ns-list-log $d
json supported-log-pages nvme supported-log-pages $d
json fid-support-effects-log nvme fid-support-effects-log $d
json mi-cmd-support-effects-log nvme mi-cmd-support-effects-log $d
notify "effects-log $(nvme effects-log $d --csi=0 -o json | tr -d '\n')"
refused 'Invalid Log Page' nvme get-log $d --log-id=6 --log-len=512
`

// checkLogs holds logJob's lines against docs/nvme.md.
func (r *rig) checkLogs(vm *guest.VM, doc nvmeDoc) {
	r.t.Helper()
	entries, _ := r.object(vm, "error-log")["errors"].([]any)
	for i, want := range []map[string]string{
		{"error_count": "2", "status_field": strconv.Itoa(0x4002), "nsid": "0", "sqid": "0"},
		{"error_count": "1", "status_field": strconv.Itoa(0x400b), "nsid": "1025", "sqid": "0"},
	} {
		if i >= len(entries) {
			r.t.Fatalf("error-log: got %v, want 2 entries", entries)
		}
		r.has("error-log", entries[i].(map[string]any), want)
	}
	r.has("smart-log", r.object(vm, "smart-log"), map[string]string{
		"critical_warning": "0", "avail_spare": "100", "percent_used": "0", "media_errors": "0", "num_err_log_entries": "2",
	})
	fw, _ := r.object(vm, "fw-log")["nvme0"].(map[string]any)
	r.has("fw-log", fw, map[string]string{"Active Firmware Slot (afi)": "1"})
	r.has("changed-ns-list-log", r.object(vm, "changed-ns-list-log"), map[string]string{"nvme0": "map[]"})
	same := func(word string, base int, id string, section string) {
		r.t.Helper()
		var got []int
		for _, m := range regexp.MustCompile(id).FindAllStringSubmatch(r.line(vm, "^"+word+" .*")[0], -1) {
			n, err := strconv.ParseInt(m[1], base, 16)
			if err != nil {
				r.t.Fatal(err)
			}
			got = append(got, int(n))
		}
		if want := doc.pci(section); !slices.Equal(got, want) {
			r.t.Errorf("%s: got %x, want %x as under %q in docs/nvme.md", word, got, want, section)
		}
	}
	same("supported-log-pages", 16, `"lid_0x([0-9a-f]+) *"`, "Log pages")
	same("fid-support-effects-log", 10, `"fid_(\d+)"`, "Features")
	r.has("mi-cmd-support-effects-log", r.object(vm, "mi-cmd-support-effects-log"), map[string]string{"mi_command_support": "[]"})
	line := r.line(vm, "^effects-log .*")[0]
	for _, set := range []struct{ id, section string }{{`"ACS_(\d+) `, "Admin commands"}, {`"IOCS_(\d+) `, "I/O commands"}} {
		var got []int
		for _, m := range regexp.MustCompile(set.id).FindAllStringSubmatch(line, -1) {
			n, _ := strconv.Atoi(m[1])
			got = append(got, n)
		}
		if want := doc.pci(set.section); !slices.Equal(got, want) {
			r.t.Errorf("effects-log: got %x, want %x as under %q in docs/nvme.md", got, want, set.section)
		}
	}
}

// featureJob asks for each feature in each way: its current value, the default,
// the saved one and its capabilities.
func featureJob(doc nvmeDoc) string {
	var fids []string
	for _, fid := range doc.pci("Features") {
		fids = append(fids, strconv.Itoa(fid))
	}
	return `
# value ARGUMENT...: prints the value of a feature, hexadecimal without zeros in
# front.
value() {
	said=$(nvme get-feature $d "$@") || return 1
	echo "$said" | sed -n '1s/.*value:0*x*0*\([0-9a-f]\)/\1/p'
}
for fid in ` + strings.Join(fids, " ") + `; do
	notify "feature $fid $(value -n 1 -f $fid -s 0) $(value -n 1 -f $fid -s 1) $(value -n 1 -f $fid -s 2) $(value -n 1 -f $fid -s 3)"
done
`
}

// set by the kernel when it starts the controller.
var setByKernel = map[int]string{
	0x07: "10001", // two I/O queues of each kind, for two processors
	0x0b: "100",   // Namespace Attribute Notices
}

// checkFeatures holds featureJob's lines against docs/nvme.md.
func (r *rig) checkFeatures(vm *guest.VM, doc nvmeDoc) {
	r.t.Helper()
	for _, row := range doc["Features"] {
		fid := row.number("FID")
		if row["Offered"] == "fabrics" {
			continue
		}
		got := r.line(vm, fmt.Sprintf(`^feature %d (\w+) (\w+) (\w+) (\w+)$`, fid))
		initial := strings.ToLower(strings.TrimSuffix(row["Default"], "h"))
		if strings.Contains(initial, "bytes") {
			initial = "0" // it is in the data
		}
		current := initial
		if v, ok := setByKernel[fid]; ok {
			current = v
		}
		capabilities := "4"
		if row["Scope"] == "namespace" {
			capabilities = "6"
		}
		if want := []string{current, initial, initial, capabilities}; !slices.Equal(got[1:], want) {
			r.t.Errorf("%s: got current, default, saved value and capabilities %v, want %v", row["Feature"], got[1:], want)
		}
	}
}

// Newer kernels keep programs from setting Number of Queues and Host Behavior
// Support, whose values they rely on.
const setFeatureJob = `
# set WANT GET... -- SET...: sets a feature and reads it back.
set_feature() {
	expected=$1 get=$2
	shift 2
	nvme set-feature $d $get "$@" >/tmp/set || { cat /tmp/set; return 1; }
	want "$expected" value $get
}
set_feature 1020303 '-f 1' -V 0x01020303
set_feature 0 '-f 2' -V 0
set_feature 150 '-f 4' -V 0x150
nvme set-feature $d -f 4 -V 0x100123
want 123 value -f 4 -c 0x100000
want 150 value -f 4
set_feature 7 '-f 5 -n 2' -V 7
want 0 value -f 5 -n 1
set_feature 0 '-f 6' -V 0
set_feature 1 '-f 6' -V 1
set_feature 305 '-f 8' -V 0x305
nvme set-feature $d -f 9 -V 0x10001
want 10001 value -f 9 -c 1
want 2 value -f 9 -c 2
set_feature 1 '-f 10' -V 1
set_feature 101 '-f 11' -V 0x101
set_feature 100 '-f 11' -V 0x100
printf '\000\000\000\000\000\001\000\000' >/tmp/stamp
nvme set-feature $d -f 14 -l 8 -d /tmp/stamp
nvme get-feature $d -f 14 -b >/tmp/now
want '01 02 00' sh -c "hexdump -v -e '1/1 \"%02x \"' /tmp/now | cut -d ' ' -f 6-8" # milliseconds; set by the host
refused 'Permission denied|Sequence' nvme set-feature $d -f 7 -V 1
refused 'Invalid Field' nvme set-feature $d -f 2 -V 1
refused 'Invalid Field' nvme set-feature $d -f 5 -n 1 -V 0x10000
refused 'Invalid Field' nvme set-feature $d -f 3 -V 1
refused 'Not Saveable' nvme set-feature $d -f 1 -V 1 -s
refused 'Invalid Field' nvme get-feature $d -f 3
`

const dataJob = `
# mebibyte N: reads the Nth mebibyte of d1 into /tmp/read.
mebibyte() { dd if=$a of=/tmp/read bs=1M skip=$1 count=1 iflag=direct 2>/dev/null; }

# zero N: fails unless that is zero.
zero() {
	mebibyte $1
	want 0 sh -c "tr -d '\\000' </tmp/read | wc -c"
}

# same N: fails unless it has the pattern.
same() {
	mebibyte $1
	alike /tmp/read /tmp/pattern
}

fill $a 'what was there'
nvme compare $a -s 2048 -c 2047 -z 1048576 -d /tmp/pattern
head -c 1048575 /tmp/pattern >/tmp/other
echo >>/tmp/other
printf x | dd of=/tmp/other bs=1 seek=1048575 conv=notrunc 2>/dev/null
refused 'Compare Failure' nvme compare $a -s 2048 -c 2047 -z 1048576 -d /tmp/other
nvme verify $a -s 0 -c 16383
refused 'Invalid Field' nvme verify $a -s 0 -c 16384
nvme write-zeroes $a -s 2048 -c 2047
same 0
zero 1
same 2
nvme copy $a --sdlba=2048 --slbs=0,4096 --blocks=1023,1023
same 1
nvme write-zeroes $a -s 2048 -c 2047 --deac
zero 1
nvme copy $a --sdlba=2048 --slbs=4096 --blocks=2047 --format=1
same 1
refused 'Overlap' nvme copy $a --sdlba=0 --slbs=1 --blocks=7
refused 'Command Size Limit' nvme copy $a --sdlba=8192 --slbs=0 --blocks=2048
nvme dsm $a --ad --slbs=4096 --blocks=2048
same 1
same 3
refused 'LBA Out of Range' nvme dsm $a --ad --slbs=32767 --blocks=2
nvme flush $a -n 1
refused 'LBA Out of Range' nvme read $a -s 32768 -c 0 -z 512
refused 'Invalid Command Opcode' nvme write-uncor $a -s 0 -c 0
fill $a 'to be erased'
refused 'Invalid Field' nvme format $a -f --ses=2
same 15
nvme format $a -f --ses=1
for i in $(mebibytes $a); do zero $i; done
refused 'not supported' nvme subsystem-reset $d
`

// spaceJob trims. What blkdiscard frees is looked at from outside, like what
// format has freed.
const spaceJob = `
fio --name=trims --filename=$b --size=8M --bs=4k --rw=randtrimwrite --ioengine=libaio --iodepth=16 --direct=1 \
	--verify=crc32c --verify_fatal=1 --eta=never --output=/tmp/fio || { cat /tmp/fio; exit 1; }
fill $b 'to be discarded'
notify full
await go
blkdiscard $b
notify discarded
await go
`

// checkSpace looks at the blocks that the files of volumes have on the host.
func (r *rig) checkSpace(vm *guest.VM) {
	r.t.Helper()
	// The file system may need some for its own bookkeeping.
	const few = 128 << 10
	r.line(vm, "^full$")
	if n := r.allocated("d1"); n > few {
		r.t.Errorf("volume d1: %d bytes of its file are allocated after nvme format, want none", n)
	}
	if n := r.allocated("d2"); n < 16<<20 {
		r.t.Errorf("volume d2: %d bytes of its file are allocated, want all", n)
	}
	r.send(vm, "go")
	r.line(vm, "^discarded$")
	if n := r.allocated("d2"); n > few {
		r.t.Errorf("volume d2: %d bytes of its file are allocated after blkdiscard, want none", n)
	}
	r.send(vm, "go")
}

// allocated is the space that the file of a volume takes, bytes.
func (r *rig) allocated(volume string) int64 {
	r.t.Helper()
	info, err := os.Stat(r.image(volume))
	if err != nil {
		r.t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// smartJob has fio do a known number of commands between two looks at the SMART
// log, and at what leap-soc has counted. Nothing else uses the drive.
const smartJob = `
# commands KIND N: N commands of 4096 bytes at random places, no two at the same.
commands() {
	fio --name=commands --filename=$b --rw=$1 --bs=4k --size=$(($2 * 4096)) --ioengine=psync --direct=1 --eta=never \
		--output-format=json --output=/tmp/fio || { cat /tmp/fio; return 1; }
}
json before nvme smart-log $d
await go
commands randwrite 500
commands randread 1000
json after nvme smart-log $d
notify median $(sed -n 's/.*"50.000000" : \([0-9]*\).*/\1/p' /tmp/fio | head -n 1)
await go
`

// checkSMART compares what the drive has counted with what fio did. Data units
// are of 512000 bytes, 125 blocks of 4096.
func (r *rig) checkSMART(vm *guest.VM) {
	r.t.Helper()
	var begin, end api.Stat
	before := r.object(vm, "before")
	r.leapJSON(&begin, "leap-soc stat --by namespace")
	r.send(vm, "go")
	after := r.object(vm, "after")
	median, err := strconv.ParseInt(r.line(vm, `^median (\d+)$`)[1], 10, 64)
	if err != nil {
		r.t.Fatal(err)
	}
	r.leapJSON(&end, "leap-soc stat --by namespace")
	r.send(vm, "go")
	things := end.Sub(begin).Things
	i := slices.IndexFunc(things, func(thing api.ThingStat) bool { return thing.Name == "vm1/2" })
	if i < 0 {
		r.t.Fatalf("leap-soc stat: no namespace vm1/2 in %+v", things)
	}
	for _, op := range []struct {
		name     string
		got      api.OpStat
		commands uint64
	}{{"reads", things[i].Read, 1000}, {"writes", things[i].Write, 500}} {
		if op.got.Commands != op.commands || op.got.Bytes != op.commands*4096 || op.got.Errors != 0 {
			r.t.Errorf("leap-soc stat: got %d %s, %d bytes, %d errors, want %d of 4096 bytes",
				op.got.Commands, op.name, op.got.Bytes, op.got.Errors, op.commands)
		}
	}
	// A bucket ends at most 1/16 later than what is in it. The guest's way to the
	// drive and back is in fio's time only.
	if got := things[i].Read.P50.Nanoseconds(); got <= 0 || got > median*17/16 {
		r.t.Errorf("leap-soc stat: half of the reads took up to %d ns, and %d as fio sees them", got, median)
	}
	for key, want := range map[string]int64{
		"host_read_commands": 1000, "host_write_commands": 500, "data_units_read": 8, "data_units_written": 4, "media_errors": 0,
	} {
		if r.number(after, key)-r.number(before, key) != want {
			r.t.Errorf("smart-log: %s went from %v to %v, want %d more", key, before[key], after[key], want)
		}
	}
}

// number is a member of an object.
func (r *rig) number(o object, key string) int64 {
	r.t.Helper()
	n, err := strconv.ParseInt(fmt.Sprint(o[key]), 10, 64)
	if err != nil {
		r.t.Errorf("%s: %v", key, err)
	}
	return n
}

// hotAddJob waits for a namespace that the kernel hears of by an event, and for
// its end.
const hotAddJob = `
notify two
drives 3
c=$(drive "$(cat /sys/class/nvme/nvme0/subsysnqn)" 3)
want 8388608 blockdev --getsize64 $c
fill $c 'hot'
filled $c 'hot'
json changed nvme changed-ns-list-log $d
healthy
notify three
tries=0
while [ -e $c ]; do
	tries=$((tries + 1))
	[ $tries -lt 600 ]
	sleep 0.1
done
`

// hotAdd gives the guest a third namespace and takes it away.
func (r *rig) hotAdd(vm *guest.VM) {
	r.t.Helper()
	r.line(vm, "^two$")
	r.leap("leap-soc volume create d3 mem size=8M")
	r.leap("leap-soc namespace add vm1 d3")
	// The kernel has read the log when it looked for namespaces.
	r.has("changed-ns-list-log", r.object(vm, "changed"), map[string]string{"nvme0": "map[]"})
	r.line(vm, "^three$")
	r.leap("leap-soc namespace remove vm1 3")
}

// resetJob resets the controller under load: the kernel sends again what was
// under way. Features have their defaults then, and counters go on.
const resetJob = `
json running nvme smart-log $d
storm $b 16M 4096 &
for i in 1 2 3; do
	sleep 0.3
	nvme reset $d
done
wait $!
want 7 value -f 1
want 0 value -f 8
want 100 value -f 11
json reset nvme smart-log $d
fill $a 'after the reset'
healthy 'resetting controller'
`

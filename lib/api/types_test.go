// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package api

import (
	"encoding/json"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/stats"
)

// noOps is the JSON of an OpStat without commands.
const noOps = `{"commands":0,"bytes":0,"errors":0,"p50":0,"p90":0,"p99":0,"p99_9":0,"max":0,"latency":[]}`

// Keys are what scripts rely on: a change here is one to the contract.
func TestKeys(t *testing.T) {
	for _, tt := range []struct {
		v    any
		want string // the JSON of the zero value
	}{
		{Info{}, `{"daemon":"","version":"","pid":0,"api":""}`},
		{Event{}, `{"time":"0001-01-01T00:00:00Z","kind":"","name":"","state":"","detail":""}`},
		{PortSpec{}, `{"name":"","owner":"","doorbells":"","subsystem":"","runtime":"","exist_ok":false}`},
		{Port{}, `{"name":"","state":"","since":"0001-01-01T00:00:00Z","socket":"","owner":"","doorbells":"","subsystem":"",` +
			`"runtime":"","poll":"","epoch":0,"client_pid":0,"client_name":"","queues":0,"regions":0,"memory":0,"reset_gen":0,"time_left":0}`},
		{PortRegions{Regions: List[Region]{{}}}, `{"client_pid":0,"generation":0,"regions":[{"addr":0,"size":0,"perms":"","device":0,"inode":0,"offset":0}]}`},
		{PortBinding{}, `{"subsystem":"","runtime":"","poll":""}`},
		{QueuePair{}, `{"port":"","qid":0,"cqid":0,"sq_entries":0,"cq_entries":0,"sq_addr":0,"cq_addr":0,"sq_head":0,"sq_tail":0,` +
			`"cq_head":0,"cq_tail":0,"vector":0,"interrupts":false,"outstanding":0,"shadow":false,"poller":"","since":"0001-01-01T00:00:00Z","completed":0}`},
		{Ring{}, `{"port":"","qid":0,"kind":"","addr":0,"head":0,"tail":0,"entries":[]}`},
		{Runtime{}, `{"name":"","pid":0,"epoch":0,"since":"0001-01-01T00:00:00Z","ports":[]}`},
		{WptShow{}, `{"version":"","pid":0,"since":"0001-01-01T00:00:00Z","ports":[],"runtimes":[],"kept":[],"pause":0,"upgrade_error":""}`},
		{Upgrade{}, `{"binary":""}`},
		{Program{Layouts: map[string]int{"link": 1}}, `{"daemon":"","version":"","layouts":{"link":1}}`},
		{Kept{}, `{"name":"","runtime":"","size":0}`},
		{VolumeSpec{}, `{"name":"","kind":"","uuid":"","on":[],"options":{},"exist_ok":false}`},
		{Volume{}, `{"name":"","kind":"","size":0,"block":0,"state":"","error":"","uuid":"","path":"","on":[],"options":{},"used_by":[]}`},
		{VolumeDelete{}, `{"data":false}`},
		{VolumeResize{}, `{"size":0,"add":false,"shrink":false}`},
		{KindInfo{}, `{"kind":"","summary":"","keys":[]}`},
		{Key{}, `{"name":"","type":"","default":"","summary":""}`},
		{SubsystemSpec{}, `{"name":"","nqn":"","uuid":"","allow_any":false,"exist_ok":false,"implicit":false,"volumes":[],"shared":false,"read_only":false}`},
		{Subsystem{}, `{"name":"","nqn":"","serial":"","uuid":"","implicit":false,"allow_any":false,"hosts":[],"namespaces":[],"ports":[],"listeners":[]}`},
		{ListenerSpec{}, `{"url":"","targets":[],"allow":[],"advertise":"","referrals":[],"shared":false,"read_only":false,"uuid":""}`},
		{Listener{}, `{"number":0,"url":"","targets":[],"advertise":"","referrals":[],"state":"","error":"","subsystems":[],"associations":[]}`},
		{Association{}, `{"host":"","subsystem":"","cntlid":0,"queues":0,"address":"","since":"0001-01-01T00:00:00Z"}`},
		{NamespaceSpec{}, `{"volume":"","nsid":0,"shared":false,"read_only":false,"exist_ok":false}`},
		{Namespace{}, `{"subsystem":"","nsid":0,"volume":"","uuid":"","size":0,"block":0,"shared":false,"read_only":false,"write_protected":false}`},
		{HostSpec{}, `{"host":""}`},
		{RuntimeInfo{}, `{"name":"","version":"","pid":0,"since":"0001-01-01T00:00:00Z","uptime":0,"epoch":0,"poll":"","io_uring":false,"pollers":[],"pause":0,"upgrade_error":"","state_dir":"","setup":""}`},
		{PollerInfo{}, `{"id":0,"cpu":0,"queues":0}`},
		{Stat{}, `{"runtime":"","time":"0001-01-01T00:00:00Z","since":"0001-01-01T00:00:00Z","uptime":0,"by":"",` +
			`"gc":{"cycles":0,"paused":0,"longest_pause":0},"pollers":[],"things":[]}`},
		{PollerStat{}, `{"name":"","cpu":0,"busy":0,"turns":0,"sleeps":0}`},
		{ThingStat{}, `{"name":"","volume":"","since":"0001-01-01T00:00:00Z","in_flight":0,"read":` + noOps + `,"write":` + noOps + `,"other":` + noOps + `}`},
		{NewOpStat(1, 2, stats.Distribution{{To: 3, N: 4}}), `{"commands":4,"bytes":1,"errors":2,"p50":3,"p90":3,"p99":3,"p99_9":3,"max":3,"latency":[{"to":3,"n":4}]}`},
		{None{}, `{}`},
		{List[string]{"a"}, `["a"]`},
		{Options{"b": "2", "a": "1"}, `{"a":"1","b":"2"}`},
	} {
		got := mustJSON(t, tt.v)
		if got != tt.want {
			t.Errorf("%T:\ngot  %s\nwant %s", tt.v, got, tt.want)
		}
		if strings.Contains(got, "null") {
			t.Errorf("%T has a null", tt.v)
		}
		for _, key := range regexp.MustCompile(`"([^"]*)":`).FindAllStringSubmatch(got, -1) {
			if !regexp.MustCompile(`^[a-z][a-z0-9_]*$`).MatchString(key[1]) {
				t.Errorf("%T: key %s is not snake_case", tt.v, key[1])
			}
		}
		back := reflect.New(reflect.TypeOf(tt.v))
		if err := decode([]byte(got), back.Interface()); err != nil {
			t.Errorf("%T: %v", tt.v, err)
		}
	}
}

func TestCheck(t *testing.T) {
	const nqn = "nqn.2014-08.org.nvmexpress:uuid:2a1f0a52-6ac5-4c6e-8f3b-0d6a4f6f2f3c"
	for _, tt := range []struct {
		in   checker
		want string // contained in the error; empty: none
	}{
		{PortSpec{Name: "vm1"}, ""},
		{PortSpec{Name: "vm1", Owner: "qemu:kvm", Doorbells: "map", Subsystem: nqn, Runtime: "b"}, ""},
		{PortSpec{Name: "vm1", Owner: "1000"}, ""},
		{PortSpec{}, "bad port name"},
		{PortSpec{Name: "vm1", Owner: ":kvm"}, "bad owner"},
		{PortSpec{Name: "vm1", Owner: "qemu:"}, "bad owner"},
		{PortSpec{Name: "vm1", Owner: "a b"}, "bad owner"},
		{PortSpec{Name: "vm1", Doorbells: "TRAP"}, "bad doorbells"},
		{PortSpec{Name: "vm1", Subsystem: "S"}, "bad subsystem name"},
		{PortSpec{Name: "vm1", Runtime: "link"}, "bad runtime name"},
		{PortBinding{}, ""},
		{PortBinding{Subsystem: nqn, Runtime: "b", Poll: "busy"}, ""},
		{PortBinding{Subsystem: "S"}, "bad subsystem name"},
		{PortBinding{Runtime: "wpt"}, "bad runtime name"},
		{PortBinding{Poll: "lazy"}, "bad poll mode"},
		{VolumeSpec{Name: "d1", Kind: "mirror", On: List[string]{"a", "b"}}, ""},
		{VolumeSpec{Name: "../d1", Kind: "mem"}, "bad volume name"},
		{VolumeSpec{Name: "d1"}, "bad kind name"},
		{VolumeSpec{Name: "d1", Kind: "mirror", On: List[string]{"A"}}, "bad volume name"},
		{VolumeSpec{Name: "d1", Kind: "mirror", On: List[string]{"d1"}}, "cannot be on itself"},
		{VolumeSpec{Name: "d1", Kind: "mem", UUID: "2A1F0A52-6AC5-4c6e-8f3b-0d6a4f6f2f3c"}, ""},
		{VolumeSpec{Name: "d1", Kind: "mem", UUID: "2a1f0a52"}, "not a UUID"},
		{VolumeSpec{Name: "d1", Kind: "mem", UUID: "00000000-0000-0000-0000-000000000000"}, "means none"},
		{SubsystemSpec{Name: "s1"}, ""},
		{SubsystemSpec{Name: "s1", UUID: "x"}, "not a UUID"},
		{ListenerSpec{URL: "tcp://h", UUID: "x"}, "not a UUID"},
		{SubsystemSpec{Name: "s1", NQN: nqn}, ""},
		{SubsystemSpec{Name: nqn}, ""},
		{SubsystemSpec{Name: nqn, NQN: nqn}, ""},
		{SubsystemSpec{Name: nqn, NQN: nqn + "x"}, "two different NQNs"},
		{SubsystemSpec{Name: "s1", NQN: "s1"}, "NQN"},
		{SubsystemSpec{Name: "nqn."}, "NQN"},
		{SubsystemSpec{Name: "nqn." + strings.Repeat("x", 220)}, "223"},
		{NamespaceSpec{Volume: "d1"}, ""},
		{NamespaceSpec{Volume: "d1", NSID: 1<<32 - 2}, ""},
		{NamespaceSpec{Volume: "d1", NSID: 1<<32 - 1}, "bad nsid"},
		{NamespaceSpec{}, "bad volume name"},
		{VolumeResize{Size: 1}, ""},
		{VolumeResize{Size: 1, Shrink: true}, ""},
		{VolumeResize{Add: true}, ""},
		{VolumeResize{Shrink: true}, "not empty"},
		{VolumeResize{Size: 1, Add: true, Shrink: true}, "does not shrink"},
		{HostSpec{Host: "any"}, ""},
		{HostSpec{Host: nqn}, ""},
		{HostSpec{}, "NQN"},
	} {
		err := tt.in.Check()
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%+v: %v", tt.in, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || fault.KindOf(err) != fault.Usage):
			t.Errorf("%+v: %v (%v), want a usage fault with %q", tt.in, err, fault.KindOf(err), tt.want)
		}
	}
}

// Whatever a caller sends: an error, or a request that reads back as itself.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"name":"d1","kind":"mirror","on":["a","b"],"options":{"x":"1"}}`))
	f.Add([]byte(`{"on":null,"options":null}`))
	f.Add([]byte(`{} {}`))
	f.Add([]byte(`{"name":"\ud800"}`))
	f.Add([]byte("{\"name\":\"\xff\"}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var in VolumeSpec
		if err := decode(b, &in); err != nil {
			if err.Error() == "" {
				t.Error("an error without words")
			}
			return
		}
		if !json.Valid(b) {
			t.Errorf("%q was read, but is no JSON", b)
		}
		_ = in.Check() // any request may be asked
		text := mustJSON(t, in)
		var again VolumeSpec
		if err := decode([]byte(text), &again); err != nil || mustJSON(t, again) != text {
			t.Errorf("%q became %s, and then %s, %v", b, text, mustJSON(t, again), err)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/soc"
)

// stateV1 is a state file as version 1 was written.
const stateV1 = `{
	"version": 1,
	"state": {
		"volumes": [
			{
				"name": "d1",
				"kind": "null",
				"uuid": "0d5bd8a7-54be-4dd4-a37b-aee7d3b6a2f5",
				"options": {
					"block": "512",
					"size": "1048576"
				},
				"made": false
			}
		],
		"subsystems": [
			{
				"name": "s1",
				"nqn": "nqn.2026-01.org.example:one",
				"uuid": "2c5e1b4a-77e3-4a3f-9f1b-0e7d8a6c9b10",
				"implicit": false,
				"allow_any": true,
				"hosts": null,
				"namespaces": [
					{
						"nsid": 7,
						"volume": "d1",
						"shared": true
					}
				]
			}
		]
	}
}
`

// TestStateVersion1: what version 1 kept is there, writable; its file is kept,
// too.
func TestStateVersion1(t *testing.T) {
	r := newRig(t)
	r.stopSoc()
	path := r.paths.StateFile(api.DefaultRuntime)
	if err := os.MkdirAll(r.paths.State, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(stateV1), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []api.Subsystem{{
		Name: "s1", NQN: "nqn.2026-01.org.example:one", Serial: "2c5e1b4a77e34a3f9f1b", UUID: "2c5e1b4a-77e3-4a3f-9f1b-0e7d8a6c9b10",
		AllowAny: true, Hosts: []string{}, Ports: []string{}, Listeners: []int{},
		Namespaces: []api.Namespace{
			{Subsystem: "s1", NSID: 7, Volume: "d1", UUID: "0d5bd8a7-54be-4dd4-a37b-aee7d3b6a2f5", Size: 1 << 20, Block: 512, Shared: true},
		},
	}}
	for range 2 { // migrated, then as it was saved
		r.startSoc()
		if d := cmp.Diff(want, call[[]api.Subsystem](r, r.client(), "GET", "/v1/subsystems", nil)); d != "" {
			t.Error(d)
		}
		r.stopSoc()
	}
	if b, err := os.ReadFile(path + ".v1"); err != nil || string(b) != stateV1 {
		t.Errorf("the copy: %v, %s", err, b)
	}
	if b, err := os.ReadFile(path); err != nil || !strings.Contains(string(b), `"version": 6`) || !strings.Contains(string(b), `"read_only": false`) {
		t.Errorf("the new file: %v, %s", err, b)
	}
}

// TestStateVersion1Damaged: a key that version 1 did not have is not dropped.
func TestStateVersion1Damaged(t *testing.T) {
	r := newRig(t)
	r.stopSoc()
	path := r.paths.StateFile(api.DefaultRuntime)
	bad := strings.Replace(stateV1, `"shared": true`, `"shared": true, "colour": 1`, 1)
	if err := os.MkdirAll(r.paths.State, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // should it be taken, Run serves
	defer cancel()
	err := soc.Run(ctx, soc.Config{Paths: r.paths, Log: r.log})
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), `"colour"`) {
		t.Errorf("got %v, want an error with the file and the key", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != bad {
		t.Errorf("the file was changed: %v, %s", err, b)
	}
}

// TestStateVersion2: what version 2 kept is there, and no host had protected
// anything.
func TestStateVersion2(t *testing.T) {
	r := newRig(t)
	r.stopSoc()
	path := r.paths.StateFile(api.DefaultRuntime)
	if err := os.MkdirAll(r.paths.State, 0o700); err != nil {
		t.Fatal(err)
	}
	v2 := strings.Replace(stateV1, `"version": 1`, `"version": 2`, 1)
	v2 = strings.Replace(v2, `"shared": true`, `"shared": true, "read_only": true`, 1)
	if err := os.WriteFile(path, []byte(v2), 0o600); err != nil {
		t.Fatal(err)
	}
	r.startSoc()
	ns := call[api.Subsystem](r, r.client(), "GET", "/v1/subsystems/s1", nil).Namespaces
	if len(ns) != 1 || !ns[0].ReadOnly || ns[0].WriteProtected || ns[0].NSID != 7 {
		t.Errorf("namespaces %+v", ns)
	}
	if b, err := os.ReadFile(path + ".v2"); err != nil || string(b) != v2 {
		t.Errorf("the copy: %v, %s", err, b)
	}
}

// TestStateVersion3: what version 3 kept is there, and no listener.
func TestStateVersion3(t *testing.T) {
	r := newRig(t)
	r.stopSoc()
	path := r.paths.StateFile(api.DefaultRuntime)
	if err := os.MkdirAll(r.paths.State, 0o700); err != nil {
		t.Fatal(err)
	}
	v3 := strings.Replace(stateV1, `"version": 1`, `"version": 3`, 1)
	v3 = strings.Replace(v3, `"shared": true`, `"shared": true, "read_only": true, "write_protected": true`, 1)
	if err := os.WriteFile(path, []byte(v3), 0o600); err != nil {
		t.Fatal(err)
	}
	r.startSoc()
	ns := call[api.Subsystem](r, r.client(), "GET", "/v1/subsystems/s1", nil).Namespaces
	if len(ns) != 1 || !ns[0].ReadOnly || !ns[0].WriteProtected || ns[0].NSID != 7 {
		t.Errorf("namespaces %+v", ns)
	}
	if all := call[[]api.Listener](r, r.client(), "GET", "/v1/listeners", nil); len(all) != 0 {
		t.Errorf("listeners %+v", all)
	}
	if b, err := os.ReadFile(path + ".v3"); err != nil || string(b) != v3 {
		t.Errorf("the copy: %v, %s", err, b)
	}
}

// TestStateVersion4: what version 4 kept is there, and the discovery subsystem
// gets a name, for good.
func TestStateVersion4(t *testing.T) {
	r := newRig(t)
	r.stopSoc()
	path := r.paths.StateFile(api.DefaultRuntime)
	if err := os.MkdirAll(r.paths.State, 0o700); err != nil {
		t.Fatal(err)
	}
	v4 := strings.Replace(stateV1, `"version": 1`, `"version": 4`, 1)
	v4 = strings.Replace(v4, `"shared": true`, `"shared": true, "read_only": true, "write_protected": true`, 1)
	v4 = strings.Replace(v4, "\t\t]\n\t}\n}", `], "listeners": [{"number": 3, "url": "tcp://127.0.0.9:1", "advertise": "192.0.2.1", "targets": ["s1"]}], "generation": 9}}`, 1)
	if err := os.WriteFile(path, []byte(v4), 0o600); err != nil {
		t.Fatal(err)
	}
	var names []string
	for range 2 {
		r.startSoc()
		all := call[[]api.Listener](r, r.client(), "GET", "/v1/listeners", nil)
		if len(all) != 1 || all[0].Number != 3 || all[0].Advertise != "192.0.2.1" || len(all[0].Targets) != 1 || len(all[0].Referrals) != 0 {
			t.Errorf("listeners %+v", all)
		}
		r.stopSoc()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var file struct {
			Version int
			State   struct{ Discovery string }
		}
		if err := json.Unmarshal(b, &file); err != nil || file.Version != 6 || file.State.Discovery == "" {
			t.Errorf("the new file: %v, %s", err, b)
		}
		names = append(names, file.State.Discovery)
	}
	if names[0] != names[1] {
		t.Errorf("the name has changed: %q", names)
	}
	if b, err := os.ReadFile(path + ".v4"); err != nil || string(b) != v4 {
		t.Errorf("the copy: %v, %s", err, b)
	}
}

// TestStateVersion5: what version 5 kept is there, and nothing was being deleted.
func TestStateVersion5(t *testing.T) {
	r := newRig(t)
	r.stopSoc()
	path := r.paths.StateFile(api.DefaultRuntime)
	if err := os.MkdirAll(r.paths.State, 0o700); err != nil {
		t.Fatal(err)
	}
	const discovery = "11111111-2222-3333-4444-555555555555"
	v5 := strings.Replace(stateV1, `"version": 1`, `"version": 5`, 1)
	v5 = strings.Replace(v5, "\t\t]\n\t}\n}", `], "listeners": null, "generation": 9, "discovery": "`+discovery+`"}}`, 1)
	if err := os.WriteFile(path, []byte(v5), 0o600); err != nil {
		t.Fatal(err)
	}
	r.startSoc()
	if all := call[[]api.Volume](r, r.client(), "GET", "/v1/volumes", nil); len(all) != 1 || all[0].Name != "d1" {
		t.Errorf("volumes %+v", all)
	}
	r.stopSoc()
	if b, err := os.ReadFile(path); err != nil || !strings.Contains(string(b), `"version": 6`) || !strings.Contains(string(b), discovery) {
		t.Errorf("the new file: %v, %s", err, b)
	}
	if b, err := os.ReadFile(path + ".v5"); err != nil || string(b) != v5 {
		t.Errorf("the copy: %v, %s", err, b)
	}
}

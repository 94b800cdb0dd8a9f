// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/soc"
)

// TestSetup: the setup is made when the control API answers, what becomes of it
// is known, and a runtime that ends has it end first.
func TestSetup(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		result     error
		ends       bool // the runtime ends meanwhile
	}{
		{"applied", api.SetupApplied, nil, false},
		{"failed", api.SetupFailed, errors.New("a line"), false},
		{"cut short", "", nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.stopSoc()
			state := func() string { return call[api.RuntimeInfo](r, r.client(), "GET", "/v1/runtime", nil).Setup }
			began, release := make(chan struct{}), make(chan struct{})
			ended := false // read when Run has returned
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() {
				done <- soc.Run(ctx, soc.Config{Paths: r.paths, Log: r.log, Poll: poller.Interrupt, Setup: func(ctx context.Context) error {
					defer func() { ended = true }()
					if err := r.client().Get(ctx, "/v1/volumes", nil); err != nil {
						t.Error(err)
					}
					close(began)
					if tt.ends {
						<-ctx.Done()
						return ctx.Err()
					}
					<-release
					return tt.result
				}})
			}()
			select {
			case <-began:
			case err := <-done:
				t.Fatalf("it has ended: %v", err)
			}
			if got := state(); got != api.SetupApplying {
				t.Errorf("meanwhile: %s", got)
			}
			if !tt.ends {
				close(release)
				for end := time.Now().Add(30 * time.Second); state() != tt.want; time.Sleep(5 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("%s, want %s", state(), tt.want)
					}
				}
			}
			cancel()
			if err := <-done; err != nil || !ended {
				t.Errorf("%v, and the setup has ended: %v", err, ended)
			}
		})
	}
}

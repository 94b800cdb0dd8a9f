// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"context"

	"github.com/leapio/leapio/lib/api"
)

// beginSetup notes whether there is a setup to make, before anybody can ask.
func (r *Runtime) beginSetup() {
	r.setup = api.SetupNone
	if r.cfg.Setup != nil {
		r.setup = api.SetupApplying
	}
}

// makeSetup makes the setup, if there is one, and tells what became of it. It
// ends when ctx does.
func (r *Runtime) makeSetup(ctx context.Context) {
	if r.cfg.Setup == nil {
		return
	}
	state, detail := api.SetupApplied, ""
	err := r.cfg.Setup(ctx)
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		state, detail = api.SetupFailed, err.Error()
	}
	r.mu.Lock()
	r.setup = state
	r.mu.Unlock()
	r.publish(api.KindRuntime, r.cfg.Name, state, detail)
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/units"
)

// States that wait knows beside those a thing has.
const (
	stateCreated  = "created"  // it is there, in whatever state
	stateDeleted  = "deleted"  // it is not there
	stateReady    = "ready"    // a runtime answers; a volume can be used
	stateFailed   = "failed"   // a volume cannot be opened
	stateAttached = "attached" // a runtime is attached to leap-wpt
	stateApplied  = "applied"  // a runtime has made its setup, if it has one
)

// waitKinds are the kinds of things wait can wait for, with the states each can
// be waited for.
var waitKinds = map[string][]string{
	api.KindPort:      {api.PortWaiting, api.PortAttached, api.PortEnabled, api.PortFrozen, stateCreated, stateDeleted},
	api.KindVolume:    {stateReady, stateFailed, stateCreated, stateDeleted},
	api.KindSubsystem: {stateCreated, stateDeleted},
	api.KindListener:  {api.ListenerListening, api.ListenerRetrying, stateCreated, stateDeleted},
	api.KindRuntime:   {stateReady, stateAttached, stateApplied},
}

func wait() *cli.Command {
	var (
		runtime string
		timeout time.Duration
	)
	return &cli.Command{
		Name:  "wait",
		Usage: "wait until a thing enters a state",
		Help: "States: of a port, waiting, attached, enabled, frozen; of a volume, ready,\n" +
			"failed; of a listener, listening, retrying; of all these and subsystems, created\n" +
			"(it is there) and deleted; of a runtime, ready (it answers), attached (to\n" +
			"leap-wpt) and applied (its setup is there).",
		Args: "port|volume|subsystem|listener|runtime NAME STATE",
		Flags: []cli.Flag{
			command.RuntimeFlag(&runtime),
			{Name: "timeout", Arg: "DURATION", Usage: "give up after this long, with exit code 8; without it, never", Value: cli.Duration(&timeout)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			w, err := newWaiter(call, runtime)
			if err != nil {
				return err
			}
			if call.IsSet("timeout") {
				if timeout == 0 {
					return fault.Errorf(fault.Usage, "", "", "--timeout: no time at all").Hint("show tells the state now")
				}
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			err = w.wait(ctx)
			if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fault.Errorf(fault.Timeout, call.Op, w.kind+" "+w.name, "%s after %v, not %s", w.last(), timeout, w.state)
			}
			return command.About(call, w.kind+" "+w.name, err)
		},
	}
}

// waiter waits for one thing.
type waiter struct {
	kind, name, state string // as asked for

	client  *api.Client
	now     string // the state last seen; empty: none yet
	patient bool   // the daemon itself is waited for
}

// newWaiter reads the words of wait and finds the daemon that knows the thing.
func newWaiter(call *cli.Call, runtime string) (*waiter, error) {
	w := &waiter{kind: call.Arg(0), name: call.Arg(1), state: call.Arg(2)}
	states, ok := waitKinds[w.kind]
	if !ok {
		return nil, fault.Errorf(fault.Usage, "", "", "bad kind %q: it is none of port, volume, subsystem, listener, runtime", w.kind)
	}
	check := units.CheckName
	switch w.kind {
	case api.KindSubsystem:
		check = func(_, name string) error { return api.CheckSubsystem(name) }
	case api.KindListener:
		check = checkListener
	}
	if err := check(w.kind, w.name); err != nil {
		return nil, err
	}
	if !slices.Contains(states, w.state) {
		return nil, fault.Errorf(fault.Usage, "", "", "bad state %q of a %s: it is none of %s", w.state, w.kind, strings.Join(states, ", "))
	}
	var err error
	switch w.kind {
	case api.KindPort:
		w.client, err = command.Wpt(call)
	case api.KindRuntime:
		w.patient = true
		w.client, err = command.Runtime(call, w.name)
	default:
		w.client, err = command.Runtime(call, runtime)
	}
	return w, err
}

// checkListener tells whether name is the number of a listener.
func checkListener(_, name string) error {
	if n, err := strconv.Atoi(name); err != nil || n < 1 || strconv.Itoa(n) != name {
		return fault.Errorf(fault.Usage, "", "", "bad listener %q: it is not a number of 1 and up", name)
	}
	return nil
}

// last says in which state the thing was when it was last looked at.
func (w *waiter) last() string {
	if w.now == "" {
		return "no answer"
	}
	return w.now
}

// startPause is how often a daemon that does not run yet is looked for.
const startPause = 20 * time.Millisecond

// wait returns when the thing is in the state. It subscribes before it looks,
// so that no change is missed in between.
func (w *waiter) wait(ctx context.Context) error {
	for {
		err := w.follow(ctx)
		switch {
		case errors.Is(err, errBehind):
		case w.patient && ctx.Err() == nil && (fault.KindOf(err) == fault.Failure || fault.KindOf(err) == fault.Peer):
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(startPause):
			}
		default:
			return err
		}
	}
}

// errBehind: events were lost, so look again.
var errBehind = errors.New("events were lost")

// follow is wait over one stream of events.
func (w *waiter) follow(ctx context.Context) error {
	stream, err := w.client.Open(ctx, api.Path("events"))
	if err != nil {
		return err
	}
	defer stream.Close()
	for {
		if err := w.look(ctx); err != nil || w.reached(w.now) {
			return err
		}
		for relevant := false; !relevant; {
			item, err := stream.Next()
			if errors.Is(err, io.EOF) {
				return fault.Errorf(fault.Peer, "", "", "the daemon ended")
			}
			if err != nil {
				return err
			}
			var e api.Event
			if err := json.Unmarshal(item, &e); err != nil {
				return fault.Errorf(fault.Peer, "", "", "bad event: %w", err)
			}
			if e.Kind == api.KindEvents && e.State == api.StateDropped {
				return errBehind
			}
			if relevant = e.Kind == w.kind; relevant && e.Name == w.name && w.reached(e.State) {
				return nil // if only for a moment
			}
		}
	}
}

// reached reports whether a thing that is in this state is in the one asked
// for.
func (w *waiter) reached(state string) bool {
	switch {
	case state == w.state:
		return true
	case w.kind == api.KindRuntime:
		return w.state == stateReady // it answers
	}
	return w.state == stateCreated && state != stateDeleted
}

// look asks for the state now. That the thing is not there is an error, unless
// its coming or going is waited for.
func (w *waiter) look(ctx context.Context) error {
	state, err := w.get(ctx)
	switch fault.KindOf(err) {
	case fault.Exists: // not yet: it is being made
		w.now = stateDeleted
		return nil
	case fault.NotFound:
		w.now = stateDeleted
		if w.state == stateCreated || w.state == stateDeleted {
			return nil
		}
		missing := *fault.From(err)
		missing.Name = w.kind + " " + w.name
		return missing.Hint(fmt.Sprintf("wait for it to come with `leap-soc wait %s %s %s`", w.kind, w.name, stateCreated))
	}
	if err == nil {
		w.now = state
	}
	return err
}

// get asks the daemon for the thing.
func (w *waiter) get(ctx context.Context) (state string, err error) {
	switch w.kind {
	case api.KindPort:
		var p api.Port
		err = w.client.Get(ctx, api.Path("ports", w.name), &p)
		return p.State, err
	case api.KindVolume:
		var v api.Volume
		err = w.client.Get(ctx, api.Path("volumes", w.name), &v)
		return v.State, err
	case api.KindSubsystem:
		var s api.Subsystem
		err = w.client.Get(ctx, api.Path("subsystems", w.name), &s)
		return stateCreated, err
	case api.KindListener:
		var l api.Listener
		err = w.client.Get(ctx, api.Path("listeners", w.name), &l)
		return l.State, err
	}
	var r api.RuntimeInfo
	err = w.client.Get(ctx, api.Path("runtime"), &r)
	switch {
	case w.state != stateApplied && r.Epoch > 0:
		return stateAttached, err
	case w.state != stateApplied || err != nil || r.Setup == api.SetupApplying:
		return stateReady, err
	case r.Setup == api.SetupFailed:
		return "", fault.Errorf(fault.Partial, "", "", "some of its setup is not there").
			Hint("its log says which lines have failed and why, and so does `leap-soc apply` of the file")
	}
	return stateApplied, nil
}

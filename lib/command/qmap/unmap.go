// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qmap

import (
	"context"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
)

// Unmap has a port show nothing and removes the subsystem that Map made for it,
// unless another port or a listener shows that. The port stays. A guest that uses the drive
// keeps it, and the error is an exists fault.
func Unmap(ctx context.Context, paths api.Paths, name string) error {
	if err := command.CheckNames("port", name); err != nil {
		return err
	}
	wpt := paths.Wpt()
	var port api.Port
	missing := wpt.Get(ctx, api.Path("ports", name), &port)
	if missing != nil && fault.KindOf(missing) != fault.NotFound {
		return missing
	}
	soc, err := paths.Runtime(port.Runtime)
	if err != nil {
		return err
	}
	if port.Subsystem == "" {
		if missing == nil {
			missing = fault.Errorf(fault.NotFound, "", "", "the port shows nothing")
		}
		return sweep(ctx, soc, name, missing)
	}
	// Nothing is changed before the runtime has answered.
	var sub api.Subsystem
	err = soc.Get(ctx, api.Path("subsystems", port.Subsystem), &sub)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return err
	}
	free := api.PortBinding{Runtime: port.Runtime}
	if err := wpt.Put(ctx, api.Path("ports", name), free, nil); err != nil {
		return err
	}
	if !sub.Implicit {
		return nil
	}
	others, err := portsOf(ctx, wpt, port.Runtime, sub)
	if err != nil || len(others) > 0 || len(sub.Listeners) > 0 {
		return err
	}
	return deleteSubsystem(ctx, soc, sub.Name)
}

// sweep removes the subsystem that a map left which was cut short, or whose port
// was removed. If there is none, the error is none.
func sweep(ctx context.Context, soc *api.Client, port string, none error) error {
	var sub api.Subsystem
	err := soc.Get(ctx, api.Path("subsystems", port), &sub)
	if err == nil && own(port, sub) {
		return deleteSubsystem(ctx, soc, sub.Name)
	}
	return none
}

// letGoLimit is how long the runtime may take to let go of a port that shows
// nothing any more.
const letGoLimit = 5 * time.Second

// deleteSubsystem deletes a subsystem once the runtime has let go of its ports.
func deleteSubsystem(ctx context.Context, soc *api.Client, name string) error {
	deadline := time.Now().Add(letGoLimit)
	for {
		err := soc.Delete(ctx, api.Path("subsystems", name), nil, nil)
		if fault.KindOf(err) != fault.Exists || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

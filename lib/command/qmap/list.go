// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qmap

import (
	"context"
	"fmt"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
)

// mapping is a port that shows something, with its queue pairs. What only the
// runtime knows is empty while that does not answer.
type mapping struct {
	Port      string                  `json:"port"`
	Subsystem string                  `json:"subsystem"` // its name
	NQN       string                  `json:"nqn"`
	Implicit  bool                    `json:"implicit"` // the subsystem was made by Map
	Targets   api.List[string]        `json:"targets"`  // as Map takes them
	Poll      string                  `json:"poll"`
	Doorbells string                  `json:"doorbells"`
	State     string                  `json:"state"` // of the port
	Runtime   string                  `json:"runtime"`
	Queues    api.List[api.QueuePair] `json:"queues"`
}

// find gives the mapping of one port.
func find(ctx context.Context, paths api.Paths, name string) (mapping, error) {
	if err := command.CheckNames("port", name); err != nil {
		return mapping{}, err
	}
	var port api.Port
	if err := paths.Wpt().Get(ctx, api.Path("ports", name), &port); err != nil {
		return mapping{}, err
	}
	if port.Subsystem == "" {
		return mapping{}, fault.Errorf(fault.NotFound, "", "", "the port shows nothing").
			Hint(fmt.Sprintf("`leap-qmap map %s VOLUME` has it show a volume", name))
	}
	return describe(ctx, paths, port)
}

// findAll gives the mappings of all ports. If runtimes do not answer, there is
// an error beside the list.
func findAll(ctx context.Context, paths api.Paths) ([]mapping, error) {
	var ports []api.Port
	if err := paths.Wpt().Get(ctx, api.Path("ports"), &ports); err != nil {
		return nil, err
	}
	all := []mapping{}
	var errs []error
	for _, port := range ports {
		if port.Subsystem == "" {
			continue
		}
		m, err := describe(ctx, paths, port)
		if err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			errs = append(errs, fault.New(0, "", port.Name, err))
		}
		all = append(all, m)
	}
	if len(errs) == 0 {
		return all, nil
	}
	// What leap-wpt knows is there for every port: some of it all.
	return all, fault.Several(len(errs)+1, errs...)
}

// describe adds what the runtime knows. With an error the mapping has at least
// what leap-wpt knows.
func describe(ctx context.Context, paths api.Paths, port api.Port) (mapping, error) {
	m := mapping{
		Port: port.Name, Subsystem: port.Subsystem, Poll: port.Poll, Doorbells: port.Doorbells,
		State: port.State, Runtime: port.Runtime,
	}
	soc, err := paths.Runtime(port.Runtime)
	if err != nil {
		return m, err
	}
	var sub api.Subsystem
	if err := soc.Get(ctx, api.Path("subsystems", port.Subsystem), &sub); err != nil {
		return m, err
	}
	m.Subsystem, m.NQN, m.Implicit, m.Targets = sub.Name, sub.NQN, sub.Implicit, targets(port.Name, sub)
	err = soc.Get(ctx, api.Path("ports", port.Name, "queues"), &m.Queues)
	if fault.KindOf(err) == fault.NotFound {
		return m, nil // the runtime does not serve the port now
	}
	return m, err
}

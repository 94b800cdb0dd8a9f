// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qmap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
)

// Request says what a port is to show. What is empty takes its default.
type Request struct {
	Port      string
	Targets   []string // one subsystem, by name or NQN, or volumes
	Runtime   string   // the runtime that serves it; default: api.DefaultRuntime
	Poll      string   // api.PollAdaptive, ...; default: as the runtime
	Doorbells string   // api.DoorbellsTrap, ...; default: as the port has it
	Shared    bool     // the volumes may be in use elsewhere, too
	ReadOnly  bool     // the guest cannot write to the volumes
	UUID      string   // of the subsystem that the volumes get; default: a new one
}

// volumeFlag is an option given that is for volumes only; empty: none.
func (r *Request) volumeFlag() string {
	switch {
	case r.Shared:
		return sharedFlag
	case r.ReadOnly:
		return readOnlyFlag
	case r.UUID != "":
		return uuidFlag
	}
	return ""
}

// The options for volumes only, as they are given.
const (
	sharedFlag   = "--shared"
	readOnlyFlag = "--read-only"
	uuidFlag     = "--uuid"
)

// check tells whether the words of the request are well-formed.
func (r *Request) check() error {
	if err := command.CheckNames("port", r.Port); err != nil {
		return err
	}
	for i, target := range r.Targets {
		if err := api.CheckTarget(target); err != nil {
			return err
		}
		if slices.Contains(r.Targets[:i], target) {
			return fault.Errorf(fault.Usage, "", "", "target %s is given twice", target)
		}
		if api.IsNQN(target) && len(r.Targets) > 1 {
			return fault.Errorf(fault.Usage, "", "", "%s is a subsystem: it is the only target", target)
		}
		if flag := r.volumeFlag(); api.IsNQN(target) && flag != "" {
			return notForSubsystem(flag, target)
		}
	}
	if err := api.CheckUUID(r.UUID); err != nil {
		return err
	}
	r.Runtime = cmp.Or(r.Runtime, api.DefaultRuntime)
	return api.CheckRuntime(r.Runtime)
}

// mapper carries out one Request.
type mapper struct {
	Request
	wpt, soc *api.Client
	undo     []func(context.Context) error // for what was made, in order
}

// Map has a port show its targets, making the port and a subsystem for volumes
// where they are missing. If it is as asked for already, nothing changes; if it
// is another way, the error is an exists fault. After an error everything is as
// before.
func Map(ctx context.Context, paths api.Paths, r Request) error {
	if err := r.check(); err != nil {
		return err
	}
	soc, err := paths.Runtime(r.Runtime)
	if err != nil {
		return err
	}
	m := &mapper{Request: r, wpt: paths.Wpt(), soc: soc}
	port, err := m.findPort(ctx)
	if err != nil {
		return err
	}
	if port != nil && port.Subsystem != "" {
		err := m.compare(ctx, port)
		if fault.KindOf(err) != fault.NotFound || port.Subsystem != m.Port {
			return err
		}
		// The runtime has lost what map made.
	}
	if err := m.make(ctx, port); err != nil {
		return m.rollback(ctx, err)
	}
	return nil
}

// undoLimit is how long giving back what was made may take, even if the caller
// does not want to wait any more.
const undoLimit = 10 * time.Second

// rollback undoes what was made before err, and returns err.
func (m *mapper) rollback(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	for _, undo := range slices.Backward(m.undo) {
		if uerr := undo(ctx); uerr != nil {
			err = errors.Join(err, fmt.Errorf("undoing it: %w", uerr))
		}
	}
	return err
}

// findPort asks for the port; nil: there is none.
func (m *mapper) findPort(ctx context.Context) (*api.Port, error) {
	var port api.Port
	err := m.wpt.Get(ctx, api.Path("ports", m.Port), &port)
	if fault.KindOf(err) == fault.NotFound {
		return nil, nil
	}
	return &port, err
}

// unmapFirst is the hint for a port that shows something else.
func (m *mapper) unmapFirst() string {
	return fmt.Sprintf("`leap-qmap unmap %s` frees it first", m.Port)
}

// compare tells whether a port that shows something does so as asked.
func (m *mapper) compare(ctx context.Context, port *api.Port) error {
	other := func(format string, args ...any) error {
		return fault.Errorf(fault.Exists, "", "", format, args...).Hint(m.unmapFirst())
	}
	if port.Runtime != m.Runtime {
		return other("runtime %s serves it already", port.Runtime)
	}
	var sub api.Subsystem
	if err := m.soc.Get(ctx, api.Path("subsystems", port.Subsystem), &sub); err != nil {
		return err
	}
	if has := targets(m.Port, sub); !slices.Equal(has, m.Targets) && !slices.Equal([]string{sub.NQN}, m.Targets) {
		return other("it shows %s already", strings.Join(has, " "))
	}
	if own(m.Port, sub) && !api.IsNQN(m.Targets[0]) {
		if m.UUID != "" && api.UUID(m.UUID).String() != sub.UUID {
			return other("it shows %s already, in a subsystem with UUID %s", strings.Join(m.Targets, " "), sub.UUID)
		}
		for _, ns := range sub.Namespaces {
			if ns.Shared != m.Shared {
				return other("it shows %s already, %s", strings.Join(m.Targets, " "), given(sharedFlag, ns.Shared))
			}
			if ns.ReadOnly != m.ReadOnly {
				return other("it shows %s already, %s", strings.Join(m.Targets, " "), given(readOnlyFlag, ns.ReadOnly))
			}
		}
	} else if flag := m.volumeFlag(); flag != "" {
		return notForSubsystem(flag, sub.Name)
	}
	if port.Poll != m.Poll {
		return other("it is polled another way already (%s)", cmp.Or(port.Poll, "as the runtime"))
	}
	return m.checkDoorbells(port)
}

// given says how volumes are shown, in the words of the option.
func given(flag string, is bool) string {
	if is {
		return "with " + flag
	}
	return "without " + flag
}

// notForSubsystem is the fault of a volumeFlag with a subsystem.
func notForSubsystem(flag, name string) error {
	verb := "namespace add"
	if flag == uuidFlag {
		verb = "subsystem create"
	}
	return fault.Errorf(fault.Usage, "", "", "%s is a subsystem: %s is for volumes", name, flag).
		Hint(fmt.Sprintf("`leap-soc %s %s` is for a subsystem's own", verb, flag))
}

// own reports whether map made the subsystem for this very port.
func own(port string, sub api.Subsystem) bool { return sub.Implicit && sub.Name == port }

// targets are the words that map takes for a port that shows sub.
func targets(port string, sub api.Subsystem) []string {
	if !own(port, sub) {
		return []string{sub.Name}
	}
	var volumes []string
	for _, ns := range sub.Namespaces {
		volumes = append(volumes, ns.Volume)
	}
	return volumes
}

// checkDoorbells holds an existing port's doorbells against the request.
func (m *mapper) checkDoorbells(port *api.Port) error {
	if m.Doorbells == "" || m.Doorbells == port.Doorbells {
		return nil
	}
	return fault.Errorf(fault.Exists, "", "", "the port has doorbells %s already, which cannot change", port.Doorbells).
		Hint(m.unmapFirst(), fmt.Sprintf("then `leap-wpt port remove %s` lets map make it anew", m.Port))
}

// make makes what is missing and wires the port. port is nil if there is none.
func (m *mapper) make(ctx context.Context, port *api.Port) error {
	sub, err := m.subsystem(ctx)
	if err != nil {
		return err
	}
	if err := m.checkOtherPorts(ctx, sub); err != nil {
		return err
	}
	if port == nil {
		if port, err = m.addPort(ctx); err != nil {
			return err
		}
	}
	if port.Subsystem != "" {
		return m.compare(ctx, port) // another map was faster
	}
	if err := m.checkDoorbells(port); err != nil {
		return err
	}
	bind := api.PortBinding{Subsystem: sub.Name, Runtime: m.Runtime, Poll: m.Poll}
	return m.wpt.Put(ctx, api.Path("ports", m.Port), bind, nil)
}

// subsystem finds the subsystem that is the target, or makes one for volumes.
func (m *mapper) subsystem(ctx context.Context) (api.Subsystem, error) {
	var sub api.Subsystem
	if len(m.Targets) == 1 {
		target := m.Targets[0]
		err := m.soc.Get(ctx, api.Path("subsystems", target), &sub)
		switch {
		case err == nil && (!own(m.Port, sub) || api.IsNQN(target)):
			return sub, m.checkMeant(ctx, sub)
		case err != nil && (fault.KindOf(err) != fault.NotFound || api.IsNQN(target)):
			return sub, err
		}
	}
	return m.makeSubsystem(ctx)
}

// checkMeant makes sure that a target that is a subsystem is no volume as well.
func (m *mapper) checkMeant(ctx context.Context, sub api.Subsystem) error {
	if flag := m.volumeFlag(); flag != "" {
		return notForSubsystem(flag, sub.Name)
	}
	target := m.Targets[0]
	if api.IsNQN(target) {
		return nil
	}
	err := m.soc.Get(ctx, api.Path("volumes", target), nil)
	if err == nil {
		return fault.Errorf(fault.Usage, "", "", "%s is a subsystem and a volume", target).
			Hint(fmt.Sprintf("%s means the subsystem", sub.NQN), "a subsystem made with `leap-soc subsystem create` can show the volume")
	}
	if fault.KindOf(err) == fault.NotFound {
		return nil
	}
	return err
}

// makeSubsystem makes the subsystem for volumes. One that an earlier map left,
// equal to what it would make, will do.
func (m *mapper) makeSubsystem(ctx context.Context) (api.Subsystem, error) {
	var sub api.Subsystem
	spec := api.SubsystemSpec{Name: m.Port, UUID: m.UUID, Implicit: true, Volumes: m.Targets, Shared: m.Shared, ReadOnly: m.ReadOnly}
	err := m.soc.Post(ctx, api.Path("subsystems"), spec, &sub)
	if err == nil {
		m.undo = append(m.undo, func(ctx context.Context) error {
			return m.soc.Delete(ctx, api.Path("subsystems", m.Port), nil, nil)
		})
		return sub, nil
	}
	switch fault.KindOf(err) {
	case fault.NotFound:
		return sub, fault.New(0, "", "", err, "`leap-soc volume list` and `leap-soc subsystem list` show what there is")
	case fault.Exists:
		return m.existing(ctx, spec, err)
	}
	return sub, err
}

// existing gives the subsystem of the port's name that was in the way, if it is
// what was to be made; else err, with what to do about it.
func (m *mapper) existing(ctx context.Context, spec api.SubsystemSpec, err error) (api.Subsystem, error) {
	var there, sub api.Subsystem
	if gerr := m.soc.Get(ctx, api.Path("subsystems", m.Port), &there); gerr != nil {
		return sub, err // it is about a volume
	}
	if !there.Implicit {
		return sub, fault.New(0, "", "", err, fmt.Sprintf("`leap-qmap map %s %s` shows that subsystem", m.Port, m.Port))
	}
	spec.ExistOK = true
	if perr := m.soc.Post(ctx, api.Path("subsystems"), spec, &sub); perr != nil {
		return sub, fault.New(0, "", "", perr, m.unmapFirst())
	}
	return sub, nil
}

// checkOtherPorts refuses a second port on a subsystem with volumes that are
// not to be shared: two guests would overwrite each other's data.
func (m *mapper) checkOtherPorts(ctx context.Context, sub api.Subsystem) error {
	others, err := portsOf(ctx, m.wpt, m.Runtime, sub)
	if err != nil {
		return err
	}
	others = slices.DeleteFunc(others, func(name string) bool { return name == m.Port })
	if len(others) == 0 {
		return nil
	}
	for _, ns := range sub.Namespaces {
		if !ns.Shared {
			return fault.Errorf(fault.Exists, "", "", "port %s shows subsystem %s already, and its volume %s is not shared", others[0], sub.Name, ns.Volume).
				Hint("namespaces added with --shared can be shown by several ports")
		}
	}
	return nil
}

// portsOf are the ports that show a subsystem of a runtime, whether the runtime
// knows already or not.
func portsOf(ctx context.Context, wpt *api.Client, runtime string, sub api.Subsystem) ([]string, error) {
	var ports []api.Port
	if err := wpt.Get(ctx, api.Path("ports"), &ports); err != nil {
		return nil, err
	}
	var names []string
	for _, p := range ports {
		if p.Runtime == runtime && (p.Subsystem == sub.Name || p.Subsystem == sub.NQN) {
			names = append(names, p.Name)
		}
	}
	return names, nil
}

// addPort makes the port. One that was made meanwhile will do.
func (m *mapper) addPort(ctx context.Context) (*api.Port, error) {
	var port api.Port
	spec := api.PortSpec{Name: m.Port, Doorbells: m.Doorbells}
	if err := m.wpt.Post(ctx, api.Path("ports"), spec, &port); err != nil {
		if fault.KindOf(err) != fault.Exists {
			return nil, err
		}
		there, ferr := m.findPort(ctx)
		if there == nil || ferr != nil {
			return nil, cmp.Or(ferr, err)
		}
		return there, nil
	}
	m.undo = append(m.undo, func(ctx context.Context) error {
		return m.wpt.Delete(ctx, api.Path("ports", m.Port), nil, nil)
	})
	return &port, nil
}

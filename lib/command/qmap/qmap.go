// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package qmap is the command leap-qmap: it wires ports to subsystems and shows
// their queue pairs. It is a client of leap-wpt, which keeps what a port shows,
// and of the runtime that serves the port.
package qmap

import (
	"context"
	"fmt"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
)

// Command is the tree of leap-qmap.
func Command() *cli.Command {
	return &cli.Command{
		Name:     "leap-qmap",
		Usage:    "wire ports to subsystems, show queue pairs",
		Commands: []*cli.Command{mapVerb(), unmap(), list(), show(), dump(), watch()},
	}
}

func mapVerb() *cli.Command {
	var r Request
	return &cli.Command{
		Name:  "map",
		Usage: "have a port show a subsystem or volumes",
		Help: "Volumes get a subsystem of their own, named after the port. The port is made\n" +
			"where it is missing. The same command again changes nothing.",
		Args: "PORT TARGET...",
		Flags: []cli.Flag{
			{Name: "runtime", Arg: "NAME", Usage: "the runtime that serves the port; without it, soc", Value: cli.String(&r.Runtime)},
			{Name: "poll", Arg: "adaptive|busy|interrupt", Usage: "what its poller does without work; without it, as the runtime", Value: cli.Enum(&r.Poll, api.PollAdaptive, api.PollBusy, api.PollInterrupt)},
			{Name: "doorbells", Arg: "trap|map", Usage: "how doorbell writes reach the runtime; without it, as the port has it, or trap", Value: cli.Enum(&r.Doorbells, api.DoorbellsTrap, api.DoorbellsMap)},
			{Name: "shared", Usage: "the volumes may be in use elsewhere, too", Value: cli.Bool(&r.Shared)},
			{Name: "uuid", Arg: "UUID", Usage: "the UUID of the subsystem that the volumes get; without it, a new one", Value: cli.String(&r.UUID)},
			{Name: "read-only", Usage: "the guest cannot write to the volumes", Value: cli.Bool(&r.ReadOnly)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			r.Port, r.Targets = call.Arg(0), call.Args[1:]
			paths, err := command.Paths(call)
			if err != nil {
				return err
			}
			if err := Map(ctx, paths, r); err != nil {
				return command.About(call, r.Port, err)
			}
			return cli.Made(call, r.Port)
		},
	}
}

func unmap() *cli.Command {
	return &cli.Command{
		Name:  "unmap",
		Usage: "have a port show nothing; the port stays",
		Args:  "PORT",
		Run: func(ctx context.Context, call *cli.Call) error {
			paths, err := command.Paths(call)
			if err != nil {
				return err
			}
			return command.About(call, call.Arg(0), Unmap(ctx, paths, call.Arg(0)))
		},
	}
}

var columns = []cli.Column[mapping]{
	{Name: "PORT", Value: func(m mapping) any { return m.Port }},
	{Name: "STATE", Value: func(m mapping) any { return m.State }},
	{Name: "SUBSYSTEM", Value: func(m mapping) any { return m.Subsystem }},
	{Name: "IMPLICIT", Value: func(m mapping) any { return m.Implicit }},
	{Name: "TARGETS", Value: func(m mapping) any { return []string(m.Targets) }},
	{Name: "RUNTIME", Value: func(m mapping) any { return m.Runtime }},
	{Name: "POLL", Value: func(m mapping) any { return m.Poll }},
	{Name: "DOORBELLS", Value: func(m mapping) any { return m.Doorbells }},
	{Name: "QUEUES", Value: func(m mapping) any { return len(m.Queues) }},
	{Name: "NQN", Value: func(m mapping) any { return m.NQN }},
}

var queueColumns = []cli.Column[api.QueuePair]{
	{Name: "QID", Value: func(q api.QueuePair) any { return q.QID }},
	{Name: "CQID", Value: func(q api.QueuePair) any { return q.CQID }},
	{Name: "SQ-ADDR", Value: func(q api.QueuePair) any { return fmt.Sprintf("%#x", q.SQAddr) }},
	{Name: "SQ-SIZE", Value: func(q api.QueuePair) any { return q.SQEntries }},
	{Name: "SQ-HEAD", Value: func(q api.QueuePair) any { return q.SQHead }},
	{Name: "SQ-TAIL", Value: func(q api.QueuePair) any { return q.SQTail }},
	{Name: "CQ-ADDR", Value: func(q api.QueuePair) any { return fmt.Sprintf("%#x", q.CQAddr) }},
	{Name: "CQ-SIZE", Value: func(q api.QueuePair) any { return q.CQEntries }},
	{Name: "CQ-HEAD", Value: func(q api.QueuePair) any { return q.CQHead }},
	{Name: "CQ-TAIL", Value: func(q api.QueuePair) any { return q.CQTail }},
	{Name: "BUSY", Value: func(q api.QueuePair) any { return q.Outstanding }},
	{Name: "VECTOR", Value: vector},
	{Name: "SHADOW", Value: func(q api.QueuePair) any { return q.Shadow }},
	{Name: "POLLER", Value: func(q api.QueuePair) any { return q.Poller }},
}

// vector is the interrupt vector of a completion queue that uses one.
func vector(q api.QueuePair) any {
	if !q.Interrupts {
		return nil
	}
	return q.Vector
}

func list() *cli.Command {
	return &cli.Command{
		Name:  "list",
		Usage: "list the ports that show something",
		Run: func(ctx context.Context, call *cli.Call) error {
			paths, err := command.Paths(call)
			if err != nil {
				return err
			}
			mappings, err := findAll(ctx, paths)
			if mappings == nil && err != nil {
				return err
			}
			if perr := cli.List(call, columns, mappings); perr != nil {
				return perr
			}
			return err
		},
	}
}

func show() *cli.Command {
	return &cli.Command{
		Name:  "show",
		Usage: "show what one port shows, and its queue pairs",
		Args:  "PORT",
		Run: func(ctx context.Context, call *cli.Call) error {
			paths, err := command.Paths(call)
			if err != nil {
				return err
			}
			m, err := find(ctx, paths, call.Arg(0))
			if err != nil {
				return command.About(call, call.Arg(0), err)
			}
			if err := cli.Show(call, columns, m); err != nil || call.Format != cli.Text || len(m.Queues) == 0 {
				return err
			}
			if _, err := fmt.Fprintln(call.Stdout); err != nil {
				return err
			}
			return cli.List(call, queueColumns, m.Queues)
		},
	}
}

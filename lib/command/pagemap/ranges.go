// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/pagemap"
	"github.com/leapio/leapio/lib/units"
)

// mapping is a mapping of a process and how much of it is there.
type mapping struct {
	Start   uint64      `json:"start"`
	End     uint64      `json:"end"`
	Perms   string      `json:"perms"`
	Offset  uint64      `json:"offset"`
	Device  string      `json:"device"`
	Inode   uint64      `json:"inode"`
	File    string      `json:"file"`
	Present units.Size  `json:"present"`
	Swapped units.Size  `json:"swapped"`
	Special units.Size  `json:"special"`
	Private units.Size  `json:"private"` // of Present: nobody else has it mapped
	Runs    *uint64     `json:"runs"`    // physically contiguous; nil: the kernel hides it
	Longest *units.Size `json:"longest"`
	Changed bool        `json:"changed"` // the mapping was changed while it was looked at
}

var mappingColumns = []cli.Column[mapping]{
	{Name: "START", Value: func(m mapping) any { return address(&m.Start) }},
	{Name: "END", Value: func(m mapping) any { return address(&m.End) }},
	{Name: "SIZE", Value: func(m mapping) any { return units.Size(m.End - m.Start) }},
	{Name: "PERMS", Value: func(m mapping) any { return m.Perms }},
	{Name: "PRESENT", Value: func(m mapping) any { return m.Present }},
	{Name: "SWAPPED", Value: func(m mapping) any { return m.Swapped }},
	{Name: "SPECIAL", Value: func(m mapping) any { return m.Special }},
	{Name: "PRIVATE", Value: func(m mapping) any { return m.Private }},
	{Name: "RUNS", Value: func(m mapping) any { return m.Runs }},
	{Name: "LONGEST", Value: func(m mapping) any {
		if m.Longest == nil {
			return nil
		}
		return *m.Longest
	}},
	{Name: "OFFSET", Value: func(m mapping) any { return address(&m.Offset) }},
	{Name: "CHANGED", Value: func(m mapping) any { return m.Changed }},
	{Name: "FILE", Value: func(m mapping) any { return m.File }},
}

// run is a range of a process that is contiguous in physical memory.
type run struct {
	Addr uint64     `json:"addr"`
	Phys uint64     `json:"phys"`
	Size units.Size `json:"size"`
}

var runColumns = []cli.Column[run]{
	{Name: "ADDR", Value: func(r run) any { return address(&r.Addr) }},
	{Name: "PHYS", Value: func(r run) any { return address(&r.Phys) }},
	{Name: "SIZE", Value: func(r run) any { return r.Size }},
}

// vmaFlag is --vma, which chooses among mappings.
func vmaFlag(name *string) cli.Flag {
	return cli.Flag{Name: "vma", Arg: "NAME", Usage: "only mappings of this file, by path or last element, or of this name, such as [heap]", Value: cli.String(name)}
}

// named reports whether a mapping is one that --vma means.
func named(v *pagemap.VMA, name string) bool {
	return name == "" || v.Name == name || v.Name != "" && path.Base(v.Name) == name
}

func ranges() *cli.Command {
	var name string
	var runs bool
	return &cli.Command{
		Name:  "ranges",
		Usage: "list the mappings of a process and what is there of them",
		Args:  "PID",
		Flags: []cli.Flag{
			vmaFlag(&name),
			{Name: "runs", Usage: "list physically contiguous runs instead", Value: cli.Bool(&runs)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			p, err := open(call.Arg(0))
			if err != nil {
				return err
			}
			defer p.Close()
			out := bufio.NewWriterSize(call.Stdout, 64<<10)
			buffered := *call
			buffered.Stdout = out
			hidden, err := printRanges(ctx, &buffered, p, name, runs)
			err = errors.Join(explain(err), out.Flush())
			if hidden {
				err = errors.Join(err, warnHidden(call))
			}
			return err
		},
	}
}

// printRanges prints the mappings of a process, or their runs.
func printRanges(ctx context.Context, call *cli.Call, p *pagemap.Process, name string, runs bool) (hidden bool, err error) {
	printMapping, printRun := cli.Stream(call, mappingColumns), cli.Stream(call, runColumns)
	var each func(pagemap.Run) error
	if runs {
		each = func(r pagemap.Run) error { return printRun(run{r.Addr, r.Phys, units.Size(r.Size)}) }
	}
	found := false
	walked := p.VMAs(func(v pagemap.VMA) bool {
		if !named(&v, name) {
			return true
		}
		found = true
		var sum pagemap.Usage
		if sum, err = p.Usage(v.Start, v.End, each); err != nil {
			return false
		}
		hidden = hidden || sum.Hidden > 0
		var now pagemap.VMA
		if now, _, _, err = p.Find(v.Start); err != nil {
			return false
		}
		if !runs {
			m := newMapping(&v, &sum)
			m.Changed = now != v && v.Start < 1<<63 // [vsyscall] is in every list, and in no process
			err = printMapping(m)
		}
		err = errors.Join(err, context.Cause(ctx))
		return err == nil
	})
	if err = errors.Join(err, walked); err == nil && !found {
		err = fault.Errorf(fault.NotFound, "", name, "process %d has no mapping of this name", p.PID())
	}
	return hidden, err
}

func newMapping(v *pagemap.VMA, sum *pagemap.Usage) mapping {
	m := mapping{
		Start: v.Start, End: v.End, Perms: v.Perms, Offset: v.Offset, Inode: v.Inode, File: v.Name,
		Device:  fmt.Sprintf("%d:%d", v.Major, v.Minor),
		Present: units.Size(sum.Present), Swapped: units.Size(sum.Swapped), Special: units.Size(sum.Special), Private: units.Size(sum.Exclusive),
	}
	known := sum.Hidden == 0
	m.Runs, m.Longest = of(known, sum.Runs), of(known, units.Size(sum.Longest))
	return m
}

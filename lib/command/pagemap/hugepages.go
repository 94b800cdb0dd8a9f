// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"

	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/pagemap"
	"github.com/leapio/leapio/lib/units"
)

// pool is the kernel's huge pages of one size.
type pool struct {
	PageSize units.Size `json:"page_size"`
	Node     *int       `json:"node"` // nil: the whole machine
	Total    uint64     `json:"total"`
	Free     uint64     `json:"free"`
	Surplus  uint64     `json:"surplus"`
	Promised *uint64    `json:"promised"` // of Free; the kernel counts them for the whole machine
	Memory   units.Size `json:"memory"`   // of Total
}

var poolColumns = []cli.Column[pool]{
	{Name: "PAGE-SIZE", Value: func(p pool) any { return p.PageSize }},
	{Name: "NODE", Value: func(p pool) any {
		if p.Node == nil {
			return "all"
		}
		return *p.Node
	}},
	{Name: "TOTAL", Value: func(p pool) any { return p.Total }},
	{Name: "FREE", Value: func(p pool) any { return p.Free }},
	{Name: "SURPLUS", Value: func(p pool) any { return p.Surplus }},
	{Name: "PROMISED", Value: func(p pool) any { return p.Promised }},
	{Name: "MEMORY", Value: func(p pool) any { return p.Memory }},
}

func newPool(p *pagemap.Pool) pool {
	return pool{
		PageSize: units.Size(p.PageSize), Node: of(p.Node >= 0, p.Node), Total: p.Total, Free: p.Free, Surplus: p.Surplus,
		Promised: of(p.Node < 0, p.Promised), Memory: units.Size(p.PageSize * p.Total),
	}
}

func hugepages() *cli.Command {
	return &cli.Command{
		Name:     "hugepages",
		Usage:    "the kernel's huge pages",
		Commands: []*cli.Command{listPools(), reserve()},
	}
}

// pools lists what the kernel has.
func pools() ([]pagemap.Pool, error) {
	all, err := pagemap.Pools(pagemap.Sysfs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Unsupported, "", "", err)
	}
	return all, err
}

func listPools() *cli.Command {
	return &cli.Command{
		Name:  "list",
		Usage: "list how many there are, by size and node",
		Run: func(ctx context.Context, call *cli.Call) error {
			all, err := pools()
			if err != nil {
				return err
			}
			rows := make([]pool, len(all))
			for i := range all {
				rows[i] = newPool(&all[i])
			}
			return cli.List(call, poolColumns, rows)
		},
	}
}

func reserve() *cli.Command {
	node := -1
	var consent bool
	return &cli.Command{
		Name:  "reserve",
		Usage: "have the kernel keep a number of huge pages",
		Help: "The memory is taken from everything else on the machine; without --yes the\n" +
			"command says what it would do. COUNT is how many there shall be in all.",
		Args: "SIZE COUNT",
		Flags: []cli.Flag{
			{Name: "node", Arg: "N", Usage: "on this NUMA node; without it, where the kernel likes", Value: cli.Int(&node, 0, 1<<16)},
			{Name: "yes", Usage: "do it", Value: cli.Bool(&consent)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			var size units.Size
			if err := size.Set(call.Arg(0)); err != nil {
				return fault.New(fault.Usage, "", "", err)
			}
			count, err := strconv.ParseUint(call.Arg(1), 10, 32)
			if err != nil {
				return fault.Errorf(fault.Usage, "", "", "bad number of pages %q", call.Arg(1))
			}
			return reservePages(call, size, node, count, consent)
		},
	}
}

// reservePages makes count pages of a size, and takes it back where the kernel
// finds fewer.
func reservePages(call *cli.Call, size units.Size, node int, count uint64, consent bool) error {
	all, err := pools()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(p pagemap.Pool) bool { return p.Node == node && p.PageSize == uint64(size) })
	if i < 0 {
		return fault.Errorf(fault.NotFound, "", "", "no huge pages of %s there", size.Human()).Hint("`leap-pagemap hugepages list` shows what there is")
	}
	before := all[i].Total
	if !consent {
		_, err := fmt.Fprintf(call.Stdout, "would change pages of %s from %d to %d: %s of memory\n",
			size.Human(), before, count, units.Size(count*uint64(size)).Human())
		return err
	}
	got, err := pagemap.Reserve(pagemap.Sysfs, uint64(size), node, count)
	if errors.Is(err, fs.ErrPermission) {
		return fault.New(fault.Permission, "", "", err, "root may")
	}
	if err != nil {
		return err
	}
	if got < count && count > before {
		if _, err := pagemap.Reserve(pagemap.Sysfs, uint64(size), node, before); err != nil {
			return err
		}
		return fault.Errorf(fault.Failure, "", "", "the kernel found %d pages of %s, not %d; there are %d again", got, size.Human(), count, before).
			Hint("memory is least scattered right after boot")
	}
	if got > count {
		return fault.Errorf(fault.Exists, "", "", "there are %d pages of %s still: they are in use", got, size.Human())
	}
	return nil
}

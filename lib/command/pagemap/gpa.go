// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/pagemap"
	"github.com/leapio/leapio/lib/units"
)

// Levels of an address of a guest, in the order they are passed.
const (
	levelRegion = "region" // of guest memory, as the client has registered it
	levelFile   = "file"   // the file it is in
	levelVA     = "va"     // where the client has mapped that
	levelPA     = "pa"     // the page there
)

// level is what an address of a guest is at one level.
type level struct {
	GPA   uint64     `json:"gpa"`
	Level string     `json:"level"`
	Addr  *uint64    `json:"addr"` // at this level: guest-physical, an offset in the file, virtual, physical
	State string     `json:"state"`
	Size  units.Size `json:"size"`  // of the region, the mapping or the page
	Perms string     `json:"perms"` // of devices for the region, of the process for the mapping
	PID   int        `json:"pid"`   // whose mapping it is
	Node  *int       `json:"node"`
	Name  string     `json:"name"` // of the file: DEVICE:INODE or a path
}

var levelColumns = []cli.Column[level]{
	{Name: "GPA", Value: func(l level) any { return address(&l.GPA) }},
	{Name: "LEVEL", Value: func(l level) any { return l.Level }},
	{Name: "ADDR", Value: func(l level) any { return address(l.Addr) }},
	{Name: "STATE", Value: func(l level) any { return l.State }},
	{Name: "SIZE", Value: func(l level) any { return size(l.Size) }},
	{Name: "PERMS", Value: func(l level) any { return l.Perms }},
	{Name: "PID", Value: func(l level) any { return of(l.PID != 0, l.PID) }},
	{Name: "NODE", Value: func(l level) any { return l.Node }},
	{Name: "NAME", Value: func(l level) any { return l.Name }},
}

func gpa() *cli.Command {
	return &cli.Command{
		Name:  "gpa",
		Usage: "follow physical addresses of a guest to those of the host",
		Help: "Each address is followed from the region of guest memory to the file it is in,\n" +
			"to where the client has mapped that, to the page there: a line per level.\n" +
			"With - the addresses come from standard input.",
		Args: "PORT ADDR...",
		Run: func(ctx context.Context, call *cli.Call) error {
			name := call.Arg(0)
			if err := errors.Join(command.CheckNames("port", name), checkAddresses(call.Args[1:])); err != nil {
				return err
			}
			wpt, err := command.Wpt(call)
			if err != nil {
				return err
			}
			g := &guest{wpt: wpt, port: name}
			defer g.close()
			if g.frames, err = openFrames(); err != nil {
				return err
			}
			if err := g.refresh(ctx); err != nil {
				return command.About(call, name, err)
			}
			err = eachAddress(ctx, call, call.Args[1:], levelColumns, func(addr uint64, print func(level) error) error {
				levels, err := g.follow(ctx, addr)
				for _, l := range levels {
					err = errors.Join(err, print(l))
				}
				return explain(err)
			})
			if g.hidden {
				err = errors.Join(err, warnHidden(call))
			}
			return command.About(call, name, err)
		},
	}
}

// guest is the memory of a guest, and the process that has it mapped.
type guest struct {
	wpt    *api.Client
	port   string
	table  api.PortRegions
	client *pagemap.Process // of table.ClientPID
	frames *pagemap.Frames
	hidden bool
}

func (g *guest) close() {
	if g.client != nil {
		g.client.Close()
	}
	if g.frames != nil {
		g.frames.Close()
	}
}

// refresh gets the table of regions as it is now.
func (g *guest) refresh(ctx context.Context) error {
	before := g.table.ClientPID
	g.table = api.PortRegions{}
	if err := g.wpt.Get(ctx, api.Path("ports", g.port, "regions"), &g.table); err != nil {
		return err
	}
	if g.table.ClientPID == 0 {
		return fault.Errorf(fault.NotFound, "", "", "no machine is connected to the port")
	}
	if g.client != nil && g.table.ClientPID == before {
		return nil
	}
	if g.client != nil {
		g.client.Close()
		g.client = nil
	}
	var err error
	g.client, err = pagemap.Open(g.table.ClientPID)
	return explain(err)
}

// follow tells what an address is at every level, all of it at one moment.
func (g *guest) follow(ctx context.Context, addr uint64) ([]level, error) {
	for range 10 {
		generation, pid := g.table.Generation, g.table.ClientPID
		levels, steady, err := g.levels(addr)
		if err != nil {
			return nil, err
		}
		if err := g.refresh(ctx); err != nil {
			return nil, err
		}
		if steady && g.table.Generation == generation && g.table.ClientPID == pid {
			return levels, nil
		}
	}
	return nil, fmt.Errorf("address %#x: %w", addr, pagemap.ErrMoving)
}

// levels follows an address through the table and the client's mappings.
// steady is false if those did not fit each other.
func (g *guest) levels(addr uint64) (levels []level, steady bool, err error) {
	r := g.region(addr)
	if r == nil {
		return []level{{GPA: addr, Level: levelRegion, State: pagemap.Unmapped.String()}}, true, nil
	}
	levels = append(levels, level{GPA: addr, Level: levelRegion, Addr: &r.Addr, State: "mapped", Size: r.Size, Perms: r.Perms})
	if r.Inode == 0 {
		return append(levels, level{GPA: addr, Level: levelFile, State: "unshared"}), true, nil
	}
	offset := addr - r.Addr + r.Offset
	file := level{GPA: addr, Level: levelFile, Addr: &offset, State: "shared", Name: fmt.Sprintf("%d:%d:%d", unix.Major(r.Device), unix.Minor(r.Device), r.Inode)}
	vma, mapped, err := g.mappingOf(r, offset)
	if err != nil {
		return nil, false, err
	}
	if !mapped {
		return append(levels, file, level{GPA: addr, Level: levelVA, State: pagemap.Unmapped.String(), PID: g.client.PID()}), true, nil
	}
	virtual := vma.Start + offset - vma.Offset
	page, err := g.client.Lookup(virtual, g.frames)
	if err != nil {
		return nil, false, err
	}
	if !covers(&page.VMA, r, offset) || page.VMA.Start+offset-page.VMA.Offset != virtual {
		return nil, false, nil
	}
	file.Name += " " + page.VMA.Name
	p := newPlace(&page)
	g.hidden = g.hidden || page.State == pagemap.Present && !page.HasPhys
	return append(levels, file,
		level{GPA: addr, Level: levelVA, Addr: &virtual, State: "mapped", Size: units.Size(page.VMA.Size()), Perms: page.VMA.Perms, PID: g.client.PID()},
		level{GPA: addr, Level: levelPA, Addr: p.Phys, State: p.State, Size: p.PageSize, Node: p.Node},
	), true, nil
}

// region returns the region that covers an address, or nil.
func (g *guest) region(addr uint64) *api.Region {
	for i := range g.table.Regions {
		if r := &g.table.Regions[i]; addr-r.Addr < uint64(r.Size) {
			return r
		}
	}
	return nil
}

// covers reports whether a mapping is of a region's file and has the offset.
func covers(v *pagemap.VMA, r *api.Region, offset uint64) bool {
	return v.Inode == r.Inode && v.Major == unix.Major(r.Device) && v.Minor == unix.Minor(r.Device) &&
		offset-v.Offset < v.Size() && v.Shared()
}

// mappingOf finds the client's mapping of an offset of a region's file.
func (g *guest) mappingOf(r *api.Region, offset uint64) (found pagemap.VMA, ok bool, err error) {
	err = g.client.VMAs(func(v pagemap.VMA) bool {
		if covers(&v, r, offset) {
			found, ok = v, true
		}
		return !ok
	})
	return found, ok, err
}

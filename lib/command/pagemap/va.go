// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/pagemap"
	"github.com/leapio/leapio/lib/units"
)

// place is what is known of an address of a process.
type place struct {
	Addr     uint64           `json:"addr"`
	State    string           `json:"state"`
	Kind     string           `json:"kind"` // anon, file, zero; empty: nothing is there
	Phys     *uint64          `json:"phys"`
	PFN      *uint64          `json:"pfn"`
	PageSize units.Size       `json:"page_size"` // of the mapping of the page; 0: it is not present
	Node     *int             `json:"node"`
	MapCount *uint64          `json:"map_count"`
	Flags    api.List[string] `json:"flags"`
	Perms    string           `json:"perms"`
	File     string           `json:"file"`
	Offset   *uint64          `json:"offset"` // of Addr in the file
	Device   string           `json:"device"` // MAJOR:MINOR of the file
	Inode    uint64           `json:"inode"`
	SwapArea *int             `json:"swap_area"`
	Swap     *uint64          `json:"swap_offset"` // in bytes
}

var placeColumns = []cli.Column[place]{
	{Name: "ADDR", Value: func(p place) any { return address(&p.Addr) }},
	{Name: "STATE", Value: func(p place) any { return p.State }},
	{Name: "KIND", Value: func(p place) any { return p.Kind }},
	{Name: "PHYS", Value: func(p place) any { return address(p.Phys) }},
	{Name: "PAGE-SIZE", Value: func(p place) any { return size(p.PageSize) }},
	{Name: "NODE", Value: func(p place) any { return p.Node }},
	{Name: "MAPPED", Value: func(p place) any { return p.MapCount }},
	{Name: "PERMS", Value: func(p place) any { return p.Perms }},
	{Name: "OFFSET", Value: func(p place) any { return address(p.Offset) }},
	{Name: "FLAGS", Value: func(p place) any { return []string(p.Flags) }},
	{Name: "SWAP", Value: func(p place) any {
		if p.SwapArea == nil {
			return nil
		}
		return fmt.Sprintf("%d:%#x", *p.SwapArea, *p.Swap)
	}},
	{Name: "FILE", Value: func(p place) any { return p.File }},
}

// newPlace says what a page is.
func newPlace(page *pagemap.Page) place {
	p := place{Addr: page.Addr, State: page.State.String(), PageSize: units.Size(page.Size)}
	if page.State == pagemap.Unmapped {
		return p
	}
	v := &page.VMA
	p.Perms, p.File = v.Perms, v.Name
	if v.Inode != 0 {
		p.Inode, p.Device = v.Inode, fmt.Sprintf("%d:%d", v.Major, v.Minor)
		p.Offset = of(true, page.Addr-v.Start+v.Offset)
	}
	pfn, known := page.Entry.PFN()
	p.Phys, p.PFN = of(page.HasPhys, page.Phys), of(known, pfn)
	p.Node, p.MapCount = of(page.Node >= 0, page.Node), of(page.HasFlags, page.MapCount)
	if page.HasFlags && page.Flags != 0 {
		p.Flags = strings.Split(page.Flags.String(), ",")
	}
	switch {
	case page.State == pagemap.Swapped:
		area, offset := page.Entry.Swap()
		p.SwapArea, p.Swap = of(true, area), of(true, offset*pagemap.PageSize())
		p.Kind = kindOf(page)
	case page.State == pagemap.Present:
		p.Kind = kindOf(page)
	}
	return p
}

func kindOf(page *pagemap.Page) string {
	switch {
	case page.Zero:
		return "zero"
	case page.Entry.File():
		return "file"
	}
	return "anon"
}

func va() *cli.Command {
	return &cli.Command{
		Name:  "va",
		Usage: "tell what virtual addresses of a process are",
		Help:  "With - the addresses come from standard input, and each is answered at once.",
		Args:  "PID ADDR...",
		Run: func(ctx context.Context, call *cli.Call) error {
			if err := checkAddresses(call.Args[1:]); err != nil {
				return err
			}
			p, err := open(call.Arg(0))
			if err != nil {
				return err
			}
			defer p.Close()
			frames, err := openFrames()
			if err != nil {
				return err
			}
			if frames != nil {
				defer frames.Close()
			}
			hidden := false
			err = eachAddress(ctx, call, call.Args[1:], placeColumns, func(addr uint64, print func(place) error) error {
				page, err := p.Lookup(addr, frames)
				if err != nil {
					return explain(err)
				}
				hidden = hidden || page.State == pagemap.Present && !page.HasPhys
				return print(newPlace(&page))
			})
			if hidden {
				err = errors.Join(err, warnHidden(call))
			}
			return err
		},
	}
}

// eachAddress calls f for addresses from the command line or, with -, from
// standard input. What print prints is written when there is nothing more to
// read: one who asks and waits gets an answer, and a million of addresses does not
// cost a million of writes.
func eachAddress[T any](ctx context.Context, call *cli.Call, words []string, columns []cli.Column[T], f func(addr uint64, print func(T) error) error) error {
	out := bufio.NewWriterSize(call.Stdout, 64<<10)
	buffered := *call
	buffered.Stdout = out
	print := cli.Stream(&buffered, columns)
	one := func(word string) error {
		addr, err := parseAddress(word)
		if err != nil {
			return err
		}
		return f(addr, print)
	}
	var err error
	if words[0] == "-" {
		err = eachLine(ctx, call.Stdin, out.Flush, one)
	} else {
		for _, word := range words {
			if err = errors.Join(one(word), context.Cause(ctx)); err != nil {
				break
			}
		}
	}
	return errors.Join(err, out.Flush())
}

// checkAddresses finds a bad one before anything is done.
func checkAddresses(words []string) error {
	if len(words) == 1 && words[0] == "-" {
		return nil
	}
	for _, word := range words {
		if word == "-" {
			return fault.Errorf(fault.Usage, "", "", "- stands alone, it means standard input")
		}
		if _, err := parseAddress(word); err != nil {
			return err
		}
	}
	return nil
}

// eachLine calls f for each line that is not empty, and idle before it waits for
// more.
func eachLine(ctx context.Context, in io.Reader, idle func() error, f func(string) error) error {
	r := bufio.NewReaderSize(in, 64<<10)
	for n := 1; ; n++ {
		if r.Buffered() == 0 {
			if err := idle(); err != nil {
				return err
			}
		}
		line, err := r.ReadString('\n')
		if word := strings.TrimSpace(line); word != "" {
			if ferr := f(word); ferr != nil {
				return fmt.Errorf("line %d: %w", n, ferr)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err = errors.Join(err, context.Cause(ctx)); err != nil {
			return err
		}
	}
}

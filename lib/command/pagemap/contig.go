// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/pagemap"
	"github.com/leapio/leapio/lib/units"
)

// piece is a physically contiguous piece of the memory that contig has got.
type piece struct {
	Offset   units.Size `json:"offset"`
	Phys     uint64     `json:"phys"`
	Size     units.Size `json:"size"`
	PageSize units.Size `json:"page_size"`
}

var pieceColumns = []cli.Column[piece]{
	{Name: "OFFSET", Value: func(p piece) any { o := uint64(p.Offset); return address(&o) }},
	{Name: "PHYS", Value: func(p piece) any { return address(&p.Phys) }},
	{Name: "SIZE", Value: func(p piece) any { return p.Size }},
	{Name: "PAGE-SIZE", Value: func(p piece) any { return p.PageSize }},
}

func contig() *cli.Command {
	var bytes, page, least units.Size
	var verify, hold bool
	return &cli.Command{
		Name:  "contig",
		Usage: "try to get memory for DMA and list its physically contiguous pieces",
		Help: "The memory is pinned, of huge pages where enough are free, and given back at the\n" +
			"end. It fails if no piece is as large as --least.",
		Flags: []cli.Flag{
			{Name: "size", Arg: "SIZE", Usage: "how much memory", Value: &bytes, Required: true},
			{Name: "page", Arg: "SIZE", Usage: "of pages of this size only; without it, the largest of which there are enough", Value: &page},
			{Name: "least", Arg: "SIZE", Usage: "list only pieces of this size and more", Value: &least},
			{Name: "verify", Usage: "fill it with a pattern and read that back through another mapping", Value: cli.Bool(&verify)},
			{Name: "hold", Usage: "keep it until interrupted", Value: cli.Bool(&hold)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			b, err := pagemap.NewBuffer(uint64(bytes), uint64(page))
			if err != nil {
				return explainBuffer(err)
			}
			if err = useBuffer(call, b, least, verify); err == nil && hold {
				<-ctx.Done()
			}
			return errors.Join(err, b.Close())
		},
	}
}

// useBuffer verifies a buffer and prints its pieces.
func useBuffer(call *cli.Call, b *pagemap.Buffer, least units.Size, verify bool) error {
	if verify {
		line := command.NewStatusLine(call)
		total := 2 * uint64(len(b.Bytes))
		err := b.Verify(func(done uint64) { line.Show(fmt.Sprintf("verifying: %d%%", done*100/total)) })
		line.Close()
		if err != nil {
			return err
		}
	}
	print := cli.Stream(call, pieceColumns)
	listed := 0
	sum, err := b.Runs(func(r pagemap.Run) error {
		if units.Size(r.Size) < least {
			return nil
		}
		listed++
		return print(piece{units.Size(r.Addr - b.Addr()), r.Phys, units.Size(r.Size), units.Size(b.PageSize)})
	})
	switch {
	case err != nil:
		return err
	case sum.Hidden > 0:
		return fault.Errorf(fault.Permission, "", "", "the kernel hides where the memory is").Hint("root, or CAP_SYS_ADMIN, sees it")
	case listed == 0:
		return fault.Errorf(fault.NotFound, "", "", "the longest of %d pieces has %s", sum.Runs, units.Size(sum.Longest).Human()).
			Hint("`leap-pagemap hugepages reserve` makes pages that are contiguous")
	}
	return nil
}

// explainBuffer says what to do where memory is not to be had.
func explainBuffer(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EAGAIN):
		return fault.New(fault.Permission, "", "", err, "`ulimit -l` says how much memory may be pinned")
	case errors.Is(err, unix.ENOMEM):
		return fault.New(0, "", "", err, "`leap-pagemap hugepages list` shows what is free", "`ulimit -l` says how much memory may be pinned")
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOENT):
		return fault.New(fault.Unsupported, "", "", err, "`leap-pagemap hugepages list` shows the sizes that there are")
	case errors.Is(err, unix.EINVAL):
		return fault.New(fault.Usage, "", "", err)
	}
	return err
}

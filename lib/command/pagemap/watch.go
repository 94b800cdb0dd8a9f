// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/pagemap"
)

// shortestInterval keeps those who watch from being the load.
const shortestInterval = 10 * time.Millisecond

// What may have happened to a page between two looks.
const (
	changeMoved   = "moved"       // migration, compaction, a huge page made or broken up
	changeCopied  = "copied"      // written, and no longer shared: the process has a page of its own now
	changeMerged  = "merged"      // the same as another, and shared with it (KSM)
	changeOut     = "swapped-out" // to a swap area
	changeIn      = "swapped-in"
	changeDropped = "dropped" // not there any more
	changeSpecial = "special" // see the states of va
)

// change is a page that was elsewhere at the look before.
type change struct {
	Time   time.Time `json:"time"`
	Addr   uint64    `json:"addr"`
	Change string    `json:"change"`
	From   *uint64   `json:"from"` // physical addresses; nil: none
	To     *uint64   `json:"to"`
}

var changeColumns = []cli.Column[change]{
	{Name: "TIME", Value: func(c change) any { return c.Time }},
	{Name: "ADDR", Value: func(c change) any { return address(&c.Addr) }},
	{Name: "CHANGE", Value: func(c change) any { return c.Change }},
	{Name: "FROM", Value: func(c change) any { return address(c.From) }},
	{Name: "TO", Value: func(c change) any { return address(c.To) }},
}

func watch() *cli.Command {
	var name string
	every := time.Second
	count := 0
	return &cli.Command{
		Name:  "watch",
		Usage: "follow pages of a process that move",
		Help:  "Pages that come for the first time are not told.",
		Args:  "PID",
		Flags: []cli.Flag{
			vmaFlag(&name),
			{Name: "interval", Arg: "DURATION", Usage: "how often to look; without it, 1s", Value: cli.Duration(&every)},
			{Name: "count", Arg: "N", Usage: "how often in all; without it, until the process ends", Value: cli.Int(&count, 1, 1<<30)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			if every < shortestInterval {
				return fault.Errorf(fault.Usage, "", "", "--interval %v is shorter than %v", every, shortestInterval)
			}
			p, err := open(call.Arg(0))
			if err != nil {
				return err
			}
			defer p.Close()
			w := &watcher{process: p, name: name, print: cli.Stream(call, changeColumns)}
			if w.frames, err = openFrames(); err != nil {
				return err
			}
			if w.frames == nil {
				return fault.Errorf(fault.Permission, "", "", "the kernel hides where pages are").Hint("root, or CAP_SYS_ADMIN, sees it")
			}
			defer w.frames.Close()
			return explain(w.run(ctx, every, count))
		},
	}
}

// seen is a page at a look.
type seen struct {
	addr  uint64
	entry pagemap.Entry
}

// watcher compares looks at a process: some 16 bytes for each of its pages.
type watcher struct {
	process *pagemap.Process
	frames  *pagemap.Frames
	name    string // of mappings; empty: all
	print   func(change) error
}

// run looks count times, or until ctx ends if that is 0.
func (w *watcher) run(ctx context.Context, every time.Duration, count int) error {
	before, err := w.look(nil)
	if err != nil {
		return err
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	var now []seen
	for n := 0; count == 0 || n < count; n++ {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
		if now, err = w.look(now[:0]); err != nil {
			return err
		}
		if err := w.compare(before, now, time.Now()); err != nil {
			return err
		}
		before, now = now, before
	}
	return nil
}

// look lists the pages that are in memory or swapped out, by address.
func (w *watcher) look(pages []seen) ([]seen, error) {
	found := false
	var err error
	walked := w.process.VMAs(func(v pagemap.VMA) bool {
		if !named(&v, w.name) {
			return true
		}
		found = true
		err = w.process.Walk(v.Start, v.End, func(addr uint64, entries []pagemap.Entry) error {
			pages = appendSeen(pages, addr, entries)
			return nil
		})
		return err == nil
	})
	if err = errors.Join(err, walked); err == nil && !found {
		err = fault.Errorf(fault.NotFound, "", w.name, "process %d has no mapping of this name", w.process.PID())
	}
	return pages, err
}

// appendSeen adds the pages that are in memory or swapped out.
func appendSeen(pages []seen, addr uint64, entries []pagemap.Entry) []seen {
	for i, e := range entries {
		if e.Present() || e.Swapped() {
			pages = append(pages, seen{addr + uint64(i)*pagemap.PageSize(), e})
		}
	}
	return pages
}

// compare prints what is not where it was. Both are sorted by address.
func (w *watcher) compare(before, now []seen, at time.Time) error {
	for _, b := range before {
		i, ok := slices.BinarySearchFunc(now, b.addr, func(s seen, addr uint64) int {
			switch {
			case s.addr < addr:
				return -1
			case s.addr > addr:
				return 1
			}
			return 0
		})
		var e pagemap.Entry
		if ok {
			e = now[i].entry
		}
		now = now[i:]
		c := change{Time: at, Addr: b.addr, Change: w.what(b.entry, e), From: phys(b.entry), To: phys(e)}
		if c.Change == "" {
			continue
		}
		if err := w.print(c); err != nil {
			return err
		}
	}
	return nil
}

// phys is the physical address of a page, nil where it has none.
func phys(e pagemap.Entry) *uint64 {
	pfn, ok := e.PFN()
	return of(ok, pfn*pagemap.PageSize())
}

// what says what has happened to a page; "": nothing.
func (w *watcher) what(before, now pagemap.Entry) string {
	from, hadFrame := before.PFN()
	to, hasFrame := now.PFN()
	switch {
	case hadFrame && hasFrame && from == to:
		return ""
	case now.Special() || before.Special():
		if now.State() == before.State() {
			return ""
		}
		return changeSpecial
	case hadFrame && hasFrame:
		return w.moved(before, now, to)
	case now.Swapped() && !before.Swapped():
		return changeOut
	case before.Swapped() && now.Present():
		return changeIn
	case now.State() == pagemap.Absent || now.State() == pagemap.Guard:
		return changeDropped
	}
	return ""
}

// moved says why a page has another frame. Some kernels (6.12) flag every
// anonymous page as one of KSM; those that are merged have others beside them.
func (w *watcher) moved(before, now pagemap.Entry, to uint64) string {
	is, _ := w.frames.Flags(to) // an error is a frame without flags
	switch {
	case is&pagemap.FlagKSM != 0 && !now.Exclusive():
		return changeMerged
	case before.File() && !now.File(), !before.Exclusive() && now.Exclusive():
		return changeCopied
	}
	return changeMoved
}

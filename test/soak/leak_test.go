// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soak_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/metrics/metricstest"
)

// usage is what a daemon has.
type usage struct {
	pid        int
	fds        map[string]int // by kind
	mappings   int
	anonymous  int // bytes of resident memory that is no file's
	goroutines int
	threads    int
	heap       int // bytes that the last garbage collection has left
	collected  int // garbage collections
}

// What may be more than before although nothing leaks: the Go runtime takes
// memory and threads as it likes. Goroutines and files are counted exactly.
const (
	moreMappings  = 24
	moreThreads   = 64
	moreHeap      = 6 << 20
	moreAnonymous = 48 << 20
)

var number = regexp.MustCompile(`\[?\d+\]?`)

// use looks at the process from outside, and asks it what only it knows.
func (d *daemon) use() (u usage, err error) {
	u.pid, u.fds = d.pid, make(map[string]int)
	proc := fmt.Sprintf("/proc/%d/", d.pid)
	all, err := os.ReadDir(proc + "fd")
	if err != nil {
		return u, err
	}
	for _, f := range all {
		if name, err := os.Readlink(proc + "fd/" + f.Name()); err == nil { // else it has just been closed
			if !strings.HasPrefix(name, "/") || strings.HasPrefix(name, "/memfd:") {
				name = number.ReplaceAllString(name, "")
			}
			u.fds[name]++
		}
	}
	maps, err := os.ReadFile(proc + "maps")
	if err != nil {
		return u, err
	}
	u.mappings = bytes.Count(maps, []byte{'\n'})
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
		switch key {
		case "RssAnon":
			u.anonymous = n << 10
		case "Threads":
			u.threads = n
		}
	}
	return u, d.ask(&u)
}

// ask reads the metrics.
func (d *daemon) ask(u *usage) error {
	ctx, cancel := context.WithTimeout(d.s.ctx, patience)
	defer cancel()
	text, err := d.client().GetText(ctx, "/metrics")
	if err != nil {
		return err
	}
	page := metricstest.Read(d.s.t, text)
	u.goroutines = int(page.Value("go_goroutines"))
	u.heap = int(page.Value("go_gc_heap_live_bytes"))
	u.collected = int(page.Find("go_gc_duration_seconds").GetSummary().GetSampleCount())
	return nil
}

// eventfds are a kind of open files.
const eventfds = "anon_inode:[eventfd]"

// vectorMargin is how many eventfds a runtime may have more: an interrupt vector
// that had one once keeps its descriptor until the port is given up, and not
// every guest may have come before the first look.
const vectorMargin = 16

// more says of what there is more than before, beyond what may be.
func (u usage) more(before usage) []string {
	var all []string
	for _, kind := range slices.Sorted(maps.Keys(u.fds)) {
		margin := 0
		if kind == eventfds {
			margin = vectorMargin
		}
		if u.fds[kind] > before.fds[kind]+margin {
			all = append(all, fmt.Sprintf("%d open files %s, before %d", u.fds[kind], kind, before.fds[kind]))
		}
	}
	for _, n := range []struct {
		what              string
		now, before, room int
	}{
		{"goroutines", u.goroutines, before.goroutines, 0},
		{"threads", u.threads, before.threads, moreThreads},
		{"mappings", u.mappings, before.mappings, moreMappings},
		{"bytes of heap", u.heap, before.heap, moreHeap},
		{"bytes of anonymous memory", u.anonymous, before.anonymous, moreAnonymous},
	} {
		if n.now > n.before+n.room {
			all = append(all, fmt.Sprintf("%d %s, before %d", n.now, n.what, n.before))
		}
	}
	return all
}

func (u usage) String() string {
	files := 0
	for _, n := range u.fds {
		files += n
	}
	return fmt.Sprintf("%d goroutines, %d open files, %d mappings, %d threads, heap %d KiB, anonymous memory %d KiB",
		u.goroutines, files, u.mappings, u.threads, u.heap>>10, u.anonymous>>10)
}

// settled is what the daemon has when it has come to rest: no more than before, or
// else what it had in the end. Its heap is that after a garbage collection.
func (d *daemon) settled(before *usage) (u usage, more []string, err error) {
	const rest = time.Minute
	first, err := d.use()
	if err != nil {
		return u, nil, err
	}
	for end := time.Now().Add(rest); ; time.Sleep(20 * time.Millisecond) {
		// Each look makes a little garbage, so that it comes to a collection.
		if u, err = d.use(); err != nil {
			return u, nil, err
		}
		late := time.Now().After(end)
		if u.goroutines > 0 && u.collected < first.collected+2 && !late {
			continue
		}
		if before == nil {
			return u, nil, nil
		}
		if more = u.more(*before); len(more) == 0 || late {
			return u, more, nil
		}
	}
}

// quiet has all guests and hosts leave, and waits until the daemons know.
func (s *soak) quiet() error {
	for _, g := range s.guests {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.n != nil {
			if err := g.leave(); err != nil {
				return fmt.Errorf("guest %s: %w", g.spec.port, err)
			}
		}
	}
	for _, h := range s.hosts {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.cancel != nil {
			h.leave()
		}
	}
	return s.await("all are gone", func() bool {
		var w api.WptShow
		if err := s.wpt.client().Get(s.ctx, api.Path("show"), &w); err != nil {
			return false
		}
		for _, p := range w.Ports {
			if p.State != api.PortWaiting {
				return false
			}
		}
		var all []api.Listener
		if err := s.socs[0].client().Get(s.ctx, api.Path("listeners"), &all); err != nil {
			return false
		}
		return !slices.ContainsFunc(all, func(l api.Listener) bool { return len(l.Associations) > 0 })
	})
}

// look notes in before what each daemon has while nobody uses it; what a process
// has had before must not be less.
func (s *soak) look(before map[string]usage) error {
	if err := s.quiet(); err != nil {
		return err
	}
	for _, d := range append([]*daemon{s.wpt}, s.socs...) {
		var old *usage
		if u, ok := before[d.name]; ok && u.pid == d.pid {
			old = &u
		}
		u, more, err := d.settled(old)
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		s.log("%s has %v", d.name, u)
		s.t.Logf("nobody uses %s: %v", d.name, u)
		if len(more) > 0 {
			return fmt.Errorf("%s leaks: %s", d.name, strings.Join(more, "; "))
		}
		if old == nil {
			before[d.name] = u
		}
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command/qmap"
	"github.com/leapio/leapio/lib/command/rdma"
	"github.com/leapio/leapio/lib/command/wpt"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fault"
)

// setup makes what a list of commands asks for, line by line, and nothing that is
// there. The commands are those that make things (makers); they run in this
// process. None of them takes anything from a guest or host, or deletes data.
type setup struct {
	paths api.Paths
	dry   bool   // look only
	stdio cli.IO // of the commands
	steps []step
}

// step is a line of a setup.
type step struct {
	line int
	argv []string // as written
	maker
	*cli.Prepared
	runtime string // the runtime that it is about; empty: the default one
}

// setupTrees are the commands of a setup.
func setupTrees() map[string]func() *cli.Command {
	return map[string]func() *cli.Command{
		"leap-soc": Command, "leap-rdma": rdma.Command, "leap-wpt": wpt.Command, "leap-qmap": qmap.Command,
	}
}

// maker is a verb that a setup may have.
type maker struct {
	port bool // it needs leap-wpt
	// check refuses what would not be the same the next time; nil: nothing.
	check func(p *cli.Prepared) error
	// there reports whether the thing exists. If so, the verb makes nothing: it
	// holds what exists against what it was told.
	there func(ctx context.Context, s *setup, p *step) (bool, error)
}

// makers are the verbs of a setup, by program and verb.
func makers() map[string]maker {
	return map[string]maker{
		"leap-soc volume create":    {there: named("volumes", 0)},
		"leap-rdma connect":         {there: named("volumes", 1), check: checkConnect},
		"leap-soc subsystem create": {there: named("subsystems", 0)},
		"leap-soc namespace add":    {there: namespaceThere},
		"leap-soc host allow":       {there: hostThere},
		"leap-rdma listen":          {there: named("listeners", 0), check: checkListenURL},
		"leap-wpt port add":         {there: portThere, port: true},
		"leap-qmap map":             {there: mapThere, port: true},
	}
}

// get reports whether the runtime of a step has something, which goes to out
// unless that is nil.
func (s *setup) get(ctx context.Context, p *step, out any, path ...string) (bool, error) {
	client, err := s.paths.Runtime(p.runtime)
	if err != nil {
		return false, err
	}
	return found(client.Get(ctx, api.Path(path...), out))
}

// found turns the error of a look into its result.
func found(err error) (bool, error) {
	if fault.KindOf(err) == fault.NotFound {
		return false, nil
	}
	return err == nil, err
}

// named is maker.there for a thing of a collection that argument i names.
func named(collection string, i int) func(context.Context, *setup, *step) (bool, error) {
	return func(ctx context.Context, s *setup, p *step) (bool, error) {
		return s.get(ctx, p, nil, collection, p.Args()[i])
	}
}

// namespaceThere looks for the NSID, or without one for a use of the volume that
// is as asked for.
func namespaceThere(ctx context.Context, s *setup, p *step) (bool, error) {
	var sub api.Subsystem
	if ok, err := s.get(ctx, p, &sub, "subsystems", p.Args()[0]); !ok {
		return false, err
	}
	text, fixed := p.Value("nsid")
	nsid, _ := strconv.ParseUint(text, 10, 32) // Prepare has seen that it is one
	_, shared := p.Value("shared")
	_, readOnly := p.Value("read-only")
	return slices.ContainsFunc(sub.Namespaces, func(ns api.Namespace) bool {
		if fixed {
			return uint64(ns.NSID) == nsid
		}
		return ns.Volume == p.Args()[1] && ns.Shared == shared && ns.ReadOnly == readOnly
	}), nil
}

func hostThere(ctx context.Context, s *setup, p *step) (bool, error) {
	var sub api.Subsystem
	ok, err := s.get(ctx, p, &sub, "subsystems", p.Args()[0])
	return ok && slices.Contains(hosts(sub), p.Args()[1]), err
}

func checkListenURL(p *cli.Prepared) error {
	if addr, err := fabrics.ParseAddress(p.Args()[0]); err == nil && addr.Port == 0 {
		return fault.Errorf(fault.Usage, "", "", "%s: with port 0 every run would make a listener of its own", p.Args()[0])
	}
	return nil
}

func checkConnect(p *cli.Prepared) error {
	if _, dry := p.Value("dry-run"); dry || len(p.Args()) == 1 {
		return fault.Errorf(fault.Usage, "", "", "it makes no volume")
	}
	return nil
}

func portThere(ctx context.Context, s *setup, p *step) (bool, error) {
	return found(s.paths.Wpt().Get(ctx, api.Path("ports", p.Args()[0]), nil))
}

func mapThere(ctx context.Context, s *setup, p *step) (bool, error) {
	var port api.Port
	ok, err := found(s.paths.Wpt().Get(ctx, api.Path("ports", p.Args()[0]), &port))
	switch {
	case !ok || port.Subsystem == "":
		return false, err
	case port.Runtime != cmp.Or(p.runtime, api.DefaultRuntime):
		return true, nil
	}
	return s.get(ctx, p, nil, "subsystems", port.Subsystem)
}

// readSetup reads the lines of file, whose name is for errors: a usage fault for
// each that is no command of a setup, and nothing else then. Lines that name no
// runtime are about this one.
func readSetup(file, text, runtime string) ([]step, error) {
	var steps []step
	var errs []error
	for _, l := range cli.ReadLines(text) {
		p := step{line: l.Number, argv: l.Words, runtime: runtime}
		err := l.Err
		if err == nil {
			err = p.prepare()
		}
		if err != nil {
			bare := *fault.From(err)
			bare.Op = ""
			errs = append(errs, fault.New(fault.Usage, "", "", fmt.Errorf("%s:%d: %w", file, l.Number, &bare)))
		}
		steps = append(steps, p)
	}
	return steps, errors.Join(errs...)
}

// prepare holds a line against the commands of a setup.
func (p *step) prepare() error {
	makers := makers()
	program := p.argv[0]
	tree, ok := setupTrees()[program]
	if !ok {
		return notOfSetup(cli.Quote(program), makers)
	}
	var err error
	if p.Prepared, err = cli.Prepare(tree, p.argv); err != nil {
		return err
	}
	command := program + " " + p.Op()
	if p.maker, ok = makers[command]; !ok {
		return notOfSetup(command, makers)
	}
	for _, name := range p.Args() {
		if name == "" || name == "/" {
			return fault.Errorf(fault.Usage, "", "", "%q is no name of anything", name)
		}
	}
	if p.check != nil {
		if err := p.check(p.Prepared); err != nil {
			return err
		}
	}
	var more []string
	if own, ok := p.Value("runtime"); ok {
		p.runtime = own
	} else if p.Takes("runtime") && p.runtime != "" {
		more = append(more, "--runtime="+p.runtime)
	}
	if p.Takes("exist-ok") {
		more = append(more, "--exist-ok")
	}
	p.Prepared, err = cli.Prepare(tree, slices.Insert(slices.Clone(p.argv), 1, more...))
	return err
}

// notOfSetup is the fault of a command that a setup cannot have.
func notOfSetup(command string, makers map[string]maker) error {
	return fault.Errorf(fault.Usage, "", "", "%s is no command of a setup", command).
		Hint("those are " + strings.Join(slices.Sorted(maps.Keys(makers)), ", "))
}

// Results of a line.
const (
	lineUnchanged = "unchanged" // it is there, as asked for
	lineMade      = "made"      // it was missing
	lineMissing   = "missing"   // it is, and was only looked for
	lineFailed    = "failed"    // it could not be made, or is there in another way
)

// applied is what became of a line.
type applied struct {
	Line   int              `json:"line"`
	Result string           `json:"result"`
	Argv   api.List[string] `json:"argv"`
	Error  *fault.Error     `json:"error"` // why it has failed
}

// run carries out one line.
func (s *setup) run(ctx context.Context, p *step) applied {
	out := applied{Line: p.line, Result: lineMade, Argv: p.argv}
	there, err := p.there(ctx, s, p)
	switch {
	case err != nil:
	case there:
		out.Result = lineUnchanged
		err = p.Run(ctx, s.stdio)
	case s.dry:
		out.Result = lineMissing
	default:
		err = p.Run(ctx, s.stdio)
	}
	if err != nil {
		out.Result, out.Error = lineFailed, fault.From(err)
	}
	return out
}

// answers returns an error if none of the runtimes that the lines are about
// answers: then not even a part can be made.
func (s *setup) answers(ctx context.Context) (err error) {
	asked := make(map[string]bool)
	for i := range s.steps {
		p := &s.steps[i]
		if asked[p.runtime] {
			continue
		}
		asked[p.runtime] = true
		if _, err = s.get(ctx, p, nil, "runtime"); err == nil {
			return nil
		}
	}
	return err
}

// environment is that of the commands of a setup: the folders, and nothing else.
func environment(paths api.Paths) func(string) string {
	return func(name string) string {
		switch name {
		case "LEAP_RUN_DIR":
			return paths.Run
		case "LEAP_STATE_DIR":
			return paths.State
		}
		return ""
	}
}

// apply carries out all lines in order and tells each. Before the first that
// needs leap-wpt it calls ready, unless that is nil. It ends early with ctx, and
// where tell fails. The result is how many lines had each result.
func (s *setup) apply(ctx context.Context, ready func(ctx context.Context) error, tell func(applied) error) (map[string]int, error) {
	counts := make(map[string]int)
	for i := range s.steps {
		p := &s.steps[i]
		if p.port && ready != nil {
			if err := ready(ctx); err != nil {
				return counts, err
			}
			ready = nil
		}
		out := s.run(ctx, p)
		if ctx.Err() != nil {
			return counts, context.Cause(ctx)
		}
		counts[out.Result]++
		if err := tell(out); err != nil {
			return counts, err
		}
	}
	return counts, nil
}

// failed is the error of a setup of which some lines have failed.
func failed(counts map[string]int) error {
	n := counts[lineFailed]
	if n == 0 {
		return nil
	}
	total := 0
	for _, c := range counts {
		total += c
	}
	return fault.Errorf(fault.Partial, "", "", "%d of %d lines failed", n, total)
}

// openSetup reads a file and makes a setup of it.
func openSetup(file string, paths api.Paths, runtime string, stdio cli.IO) (*setup, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return newSetup(file, string(text), paths, runtime, stdio)
}

// newSetup makes a setup of the text of a file.
func newSetup(file, text string, paths api.Paths, runtime string, stdio cli.IO) (*setup, error) {
	steps, err := readSetup(file, text, runtime)
	if err != nil {
		return nil, err
	}
	stdio.Getenv = environment(paths)
	return &setup{paths: paths, stdio: stdio, steps: steps}, nil
}

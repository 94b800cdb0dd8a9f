// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package doctor looks for what keeps LeapIO from working on a machine, for users
// who are about to report a bug.
//
//	doctor.go    checks, run side by side, each with a time limit
//	kernel.go    what the kernel offers and grants
//	folders.go   RUN and STATE: modes, sockets, pid files, state files
//	daemons.go   what runs, and what is wrong with what it serves
//	programs.go  other programs: QEMU, nvme-cli, our own in other versions
//
// It changes nothing, needs neither daemons nor root, and connects to control
// sockets only: a connection to a port's socket would be a machine.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
)

// State is what a check came to.
type State string

// States of findings.
const (
	OK   State = "ok"
	Warn State = "warn" // works, but not as well as it could, or not for long
	Fail State = "fail" // something does not work
	Skip State = "skip" // not there, or not for this user to see
)

// Finding is what was found out about one thing.
type Finding struct {
	Check string `json:"check"` // what was looked at, such as "io_uring" or "volume d1"
	State State  `json:"state"`
	Found string `json:"found"`
	Fix   string `json:"fix"` // what to do; empty: nothing
}

// Doctor examines a machine.
type Doctor struct {
	Paths   api.Paths
	Version string // of this program
}

const (
	// checkLimit is how long a check may take: file systems and kernels can hang.
	checkLimit = 15 * time.Second
	// callLimit is how long a daemon or a program may take to answer.
	callLimit = 3 * time.Second
)

// check looks at something, under the name that stands for it if it hangs.
type check struct {
	name string
	run  func(d *Doctor, ctx context.Context) []Finding
}

var checks = []check{
	{"kernel", (*Doctor).kernel},
	{"io_uring", (*Doctor).uring},
	{"memfd", (*Doctor).memfd},
	{"pidfd", (*Doctor).pidfd},
	{"epoll", (*Doctor).epoll},
	{"shm", (*Doctor).shm},
	{"memlock", (*Doctor).memlock},
	{"open-files", (*Doctor).openFiles},
	{"run-folder", (*Doctor).runFolder},
	{"state-folder", (*Doctor).stateFolder},
	{"state-files", (*Doctor).stateFiles},
	{"daemons", (*Doctor).daemons},
	{"programs", (*Doctor).programs},
	{"qemu", (*Doctor).qemu},
	{"nvme-cli", (*Doctor).nvmeCLI},
}

// Examine makes all checks, and returns what they found in an order that is always
// the same. A check that hangs is a finding, too; its goroutine stays, since what
// it hangs in cannot be ended, so that Examine is for programs that end soon.
func (d *Doctor) Examine(ctx context.Context) []Finding { return d.examine(ctx, checks, checkLimit) }

func (d *Doctor) examine(ctx context.Context, checks []check, limit time.Duration) []Finding {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	results := make([][]Finding, len(checks))
	var all sync.WaitGroup
	for i, c := range checks {
		all.Go(func() {
			done := make(chan []Finding, 1)
			go func() { done <- c.run(d, ctx) }()
			select {
			case results[i] = <-done:
			case <-ctx.Done():
				results[i] = one(c.name, Fail, fmt.Sprintf("no answer within %v", limit), "see in the kernel's log what hangs")
			}
		})
	}
	all.Wait()
	var findings []Finding
	for _, r := range results {
		findings = append(findings, r...)
	}
	return findings
}

// one is the finding of a check that has one.
func one(name string, state State, found, fix string) []Finding {
	return []Finding{{name, state, found, fix}}
}

// failure is the finding of a check that could not be made: what the user may not
// see is no failure.
func failure(name string, err error, fix string) Finding {
	if errors.Is(err, fs.ErrPermission) || fault.KindOf(err) == fault.Permission {
		return Finding{name, Skip, err.Error(), "run leap-soc doctor as root, or as the user of the daemons"}
	}
	for _, hint := range fault.Hints(err) {
		fix = hint
	}
	return Finding{name, Fail, err.Error(), fix}
}

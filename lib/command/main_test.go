// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command_test

import (
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command/leapio"
	"github.com/leapio/leapio/lib/command/pagemap"
	"github.com/leapio/leapio/lib/command/qmap"
	"github.com/leapio/leapio/lib/command/rdma"
	"github.com/leapio/leapio/lib/command/soc"
	"github.com/leapio/leapio/lib/command/wpt"
)

// trees are the commands with trees of their own, by name.
var trees = map[string]func() *cli.Command{
	"leap-wpt": wpt.Command, "leap-soc": soc.Command, "leap-qmap": qmap.Command, "leap-rdma": rdma.Command, "leap-pagemap": pagemap.Command,
}

// TestMain makes this binary be the commands when it is called by their names,
// as scripts do.
func TestMain(m *testing.M) {
	// Commands that were built with the race detector sleep for a second before
	// they exit, unless told otherwise.
	os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0")
	programs := map[string]func(){
		"leapio":   func() { os.Exit(leapio.Main(os.Args)) },
		"confined": becomeConfined,
	}
	if programs[filepath.Base(os.Args[0])] == nil && trees[filepath.Base(os.Args[0])] == nil && signal.Ignored(syscall.SIGHUP) {
		// Under nohup: the commands are to know HUP all the same.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	for name, tree := range trees {
		programs[name] = func() { os.Exit(cli.Main(tree(), os.Args)) }
	}
	testscript.Main(m, programs)
}

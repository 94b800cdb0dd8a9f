// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// The command leap-wpt: see man/leap-wpt.8.
package main

import (
	"os"

	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command/wpt"
)

func main() { os.Exit(cli.Main(wpt.Command(), os.Args)) }

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// The command leap-qmap: see man/leap-qmap.8.
package main

import (
	"os"

	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command/qmap"
)

func main() { os.Exit(cli.Main(qmap.Command(), os.Args)) }

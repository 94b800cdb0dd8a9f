// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// The command leap-soc: see man/leap-soc.8.
package main

import (
	"os"

	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command/soc"
)

func main() { os.Exit(cli.Main(soc.Command(), os.Args)) }

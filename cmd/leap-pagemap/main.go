// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// The command leap-pagemap: see man/leap-pagemap.8.
package main

import (
	"os"

	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command/pagemap"
)

func main() { os.Exit(cli.Main(pagemap.Command(), os.Args)) }

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// The command leap-rdma: see man/leap-rdma.8.
package main

import (
	"os"

	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command/rdma"
)

func main() { os.Exit(cli.Main(rdma.Command(), os.Args)) }

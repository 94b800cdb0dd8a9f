// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// The command leapio: see man/leapio.8.
package main

import (
	"os"

	"github.com/leapio/leapio/lib/command/leapio"
)

func main() { os.Exit(leapio.Main(os.Args)) }

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Names of subsystems and hosts in requests.

package api

import (
	"strings"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/units"
)

// IsNQN tells whether s is meant as an NQN rather than as a name: it begins
// with "nqn.".
func IsNQN(s string) bool { return strings.HasPrefix(s, "nqn.") }

// CheckNQN is nvme.CheckNQN with a usage fault as its error.
func CheckNQN(s string) error {
	if err := nvme.CheckNQN(s); err != nil {
		return fault.New(fault.Usage, "", "", err)
	}
	return nil
}

// CheckSubsystem tells whether s can mean a subsystem: a name or an NQN. The
// error is a usage fault.
func CheckSubsystem(s string) error {
	if IsNQN(s) {
		return CheckNQN(s)
	}
	return units.CheckName("subsystem", s)
}

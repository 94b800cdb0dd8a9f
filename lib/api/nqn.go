// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Names of subsystems and hosts in requests, and what they are made of.

package api

import (
	"fmt"
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

// CheckUUID tells whether s can be the UUID of a new thing: one in text form, or
// nothing. The error is a usage fault.
func CheckUUID(s string) error {
	if s == "" {
		return nil
	}
	id, err := nvme.ParseUUID(s)
	if err == nil && id == (nvme.UUID{}) {
		err = fmt.Errorf("bad UUID %s: it is the one that means none", s)
	}
	if err != nil {
		return fault.New(fault.Usage, "", "", err)
	}
	return nil
}

// UUID is the UUID of a new thing: the one of s, which has passed CheckUUID, or a
// new one.
func UUID(s string) nvme.UUID {
	if id, err := nvme.ParseUUID(s); err == nil {
		return id
	}
	return nvme.NewUUID()
}

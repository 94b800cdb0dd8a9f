// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"context"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/vfiouser"
)

const daemon = "leap-wpt"

// layouts are the versions of what another program has to know to take over. It
// may speak to runtimes as it likes.
var layouts = map[string]int{
	"tables": tableVersion, "journal": vfiouser.JournalVersion, "registers": qpair.RegistersVersion, "state": qpair.StateVersion,
}

// Check reports what this program is, or why it could not be the broker of
// config. It changes nothing.
func Check(config Config) (api.Program, error) {
	if err := stateFile(config.Paths).Check(); err != nil {
		return api.Program{}, err
	}
	return api.Program{Daemon: daemon, Version: config.Version, Layouts: layouts}, nil
}

// upgrade has the program at a path take over, if it says that it can. When it
// returns, that is about to happen.
func (b *Broker) upgrade(ctx context.Context, to api.Upgrade) (api.Program, error) {
	program, err := api.AskProgram(ctx, to.Binary, daemon, layouts)
	if err != nil {
		return program, fault.New(0, "upgrade", to.Binary, err)
	}
	b.upgradeFailed(nil)
	select {
	case b.upgrades <- to.Binary:
		b.log.Info("upgrade", "binary", to.Binary, "version", program.Version)
		return program, nil
	default:
		return program, fault.Errorf(fault.Exists, "upgrade", to.Binary, "another upgrade is under way")
	}
}

// upgradeFailed notes why the last upgrade has not come about; nil: it still
// can.
func (b *Broker) upgradeFailed(err error) {
	b.upgradeMu.Lock()
	defer b.upgradeMu.Unlock()
	b.failure = err
}

// upgradeError tells why, or "".
func (b *Broker) upgradeError() string {
	b.upgradeMu.Lock()
	defer b.upgradeMu.Unlock()
	if b.failure == nil {
		return ""
	}
	return b.failure.Error()
}

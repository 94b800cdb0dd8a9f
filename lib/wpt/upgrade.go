// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
)

// checkLimit is how long a program may take to say that it can take over.
const checkLimit = 10 * time.Second

// Check reports what this program is and whether it could be the broker of
// config. It changes nothing.
func Check(config Config) (api.WptCheck, error) {
	if err := stateFile(config.Paths).Check(); err != nil {
		return api.WptCheck{}, err
	}
	return api.WptCheck{Daemon: daemon, Version: config.Version, Handover: handoverVersion}, nil
}

const daemon = "leap-wpt"

// upgrade has the program at a path take over, if it says that it can. When it
// returns, that is about to happen.
func (b *Broker) upgrade(ctx context.Context, to api.WptUpgrade) (api.WptCheck, error) {
	check, err := ask(ctx, to.Binary)
	if err != nil {
		return check, fault.New(0, "upgrade", to.Binary, err)
	}
	b.upgradeFailed(nil)
	select {
	case b.upgrades <- to.Binary:
		b.log.Info("upgrade", "binary", to.Binary, "version", check.Version)
		return check, nil
	default:
		return check, fault.Errorf(fault.Exists, "upgrade", to.Binary, "another upgrade is under way")
	}
}

// ask has a program say what it is, and whether it can do what this one does.
func ask(ctx context.Context, path string) (check api.WptCheck, err error) {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Args = append(slices.Clone(os.Args), "--check", "--output=json")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	switch {
	case ctx.Err() != nil:
		return check, fault.Errorf(fault.Timeout, "", "", "it does not answer run --check within %v", checkLimit)
	case errors.As(err, new(*exec.ExitError)):
		return check, fault.Errorf(fault.Unsupported, "", "", "run --check: %w: %s", err, strings.TrimSpace(stderr.String()))
	case errors.Is(err, os.ErrNotExist):
		return check, fault.New(fault.NotFound, "", "", err)
	case err != nil:
		return check, err
	}
	if err := json.Unmarshal(out, &check); err != nil || check.Daemon != daemon {
		return check, fault.Errorf(fault.Unsupported, "", "", "it is no %s with run --check", daemon)
	}
	if check.Handover != handoverVersion {
		return check, fault.Errorf(fault.Unsupported, "", "", "%s %s takes over in version %d, and this one hands over in version %d",
			daemon, check.Version, check.Handover, handoverVersion)
	}
	return check, nil
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

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command

import (
	"fmt"
	"log/slog"

	"github.com/coreos/go-systemd/v22/daemon"
)

// NotifyReady tells the service manager, if there is one, that a daemon serves.
func NotifyReady(log *slog.Logger) { notify(log, daemon.SdNotifyReady) }

// NotifyMainPID tells the service manager that another process has taken the
// daemon's place.
func NotifyMainPID(log *slog.Logger, pid int) { notify(log, fmt.Sprintf("MAINPID=%d", pid)) }

// notify says something to the service manager (sd_notify(3)). Programs that
// follow this one have the socket, too.
func notify(log *slog.Logger, words string) {
	if _, err := daemon.SdNotify(false, words); err != nil {
		log.Warn("the service manager cannot be told", "words", words, "err", err)
	}
}

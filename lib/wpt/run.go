// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
)

// Config is what leap-wpt is started with.
type Config struct {
	Paths   api.Paths
	Group   string       // whose members may look by the control API; "": nobody's
	Version string       // of this build, for the control API
	Logger  *slog.Logger // default: slog.Default
	Ready   func()       // called once everything serves; may be nil
	Ports   int          // how many there may be, 1 to MaxPorts; 0: MaxPorts

	// Store keeps open files over a crash; nil: there is none. Stored are those
	// that it has given back, by name, which are Run's.
	Store  Store
	Stored map[string]int

	before *legacy // what a program before this one has left; nil: there was none
	failed error   // why this program goes on where it had stopped itself
}

// Run is the daemon: it serves until ctx ends, or until TERM or INT, which are
// refused once while guests are attached (see Stopper). HUP is ignored. An
// upgrade replaces the program in place; Run does not return then.
func Run(ctx context.Context, config Config) error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer signal.Stop(signals)
	var err error
	if config.before, err = inherit(config.Stored); err != nil {
		return err
	}
	for {
		b, err := Open(config)
		if err != nil {
			return err
		}
		if config.Ready != nil {
			config.Ready()
		}
		config.before, err = serve(ctx, b, signals)
		if config.before == nil {
			return err
		}
		config.failed = err
	}
}

// serve serves until the end, or until a program could not be replaced: then it
// returns what to go on with, and why.
func serve(ctx context.Context, b *Broker, signals <-chan os.Signal) (*legacy, error) {
	stopper := Stopper{Broker: b}
	for {
		select {
		case <-ctx.Done():
			return nil, b.Close()
		case err := <-b.ended:
			if cerr := b.Close(); err == nil {
				err = cerr
			}
			return nil, err
		case sig := <-signals:
			if stopper.Stop(sig) {
				return nil, b.Close()
			}
		case path := <-b.upgrades:
			l := b.leave()
			err := l.exec(path)
			b.log.Error("upgrade failed", "binary", path, "err", err)
			return l, err
		}
	}
}

// Stopper decides what a signal means to a broker.
type Stopper struct {
	Broker *Broker
	warned bool
}

// Stop reports whether leap-wpt is to end because of sig. The end takes the
// drives of all guests away, so with guests attached the first TERM or INT only
// names them in the log, and a second one is needed. HUP never ends it.
func (s *Stopper) Stop(sig os.Signal) bool {
	log := s.Broker.log
	if sig == unix.SIGHUP {
		log.Info("HUP ignored: there is nothing to read again")
		return false
	}
	guests := s.Broker.Attached()
	if len(guests) > 0 && !s.warned {
		s.warned = true
		log.Warn("not ending: guests would lose their drives; send the signal again to end all the same",
			"signal", sig, "ports", strings.Join(guests, " "))
		return false
	}
	log.Info("ending", "signal", sig)
	return true
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import (
	"time"

	"github.com/leapio/leapio/lib/nvme"
)

// kas is the granularity of the Keep Alive Timer in units of 100 ms (Identify
// Controller KAS).
const kas = 10

// keepAlive is the Keep Alive Timer (NVMe Base 3.9). It belongs to the admin
// poller; the timer only posts to it.
type keepAlive struct {
	timeout time.Duration // 0: disabled
	timer   *time.Timer
	epoch   uint64 // counts restarts: an expiry of another epoch is void
}

// hasKeepAlive reports whether the transport has a keep alive.
func (c *Controller) hasKeepAlive() bool { return c.cfg.KeepAliveExpired != nil }

// keepAliveCommand restarts the timer.
func (c *Controller) keepAliveCommand(cmd *Command) {
	c.restartKeepAlive()
	cmd.finish(nvme.StatusSuccess)
}

// setKeepAlive takes a timeout in milliseconds, rounded up to the granularity
// (NVMe Base 5.27.1.12).
func (c *Controller) setKeepAlive(cmd *Command, f *feature) {
	c.startKeepAlive(cmd.SQE.CDW11)
	c.keep(cmd, f)
}

// startKeepAlive starts the timer with a timeout of ms milliseconds; 0 stops it.
func (c *Controller) startKeepAlive(ms uint32) {
	const unit = kas * 100 * time.Millisecond
	c.keepAlive.timeout = (time.Duration(ms)*time.Millisecond + unit - 1) / unit * unit
	c.restartKeepAlive()
}

// restartKeepAlive gives the host its time anew.
func (c *Controller) restartKeepAlive() {
	k := &c.keepAlive
	k.stop()
	if k.timeout == 0 {
		return
	}
	epoch := k.epoch
	k.timer = time.AfterFunc(k.timeout, func() {
		// A poller that has stopped has no controllers any more.
		_ = c.p.Post(func() {
			if c.keepAlive.epoch == epoch {
				c.cfg.KeepAliveExpired()
			}
		})
	})
}

// stop ends the timer: an expiry under way is void.
func (k *keepAlive) stop() {
	k.epoch++
	if k.timer != nil {
		k.timer.Stop()
		k.timer = nil
	}
}

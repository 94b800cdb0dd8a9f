// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import "github.com/leapio/leapio/lib/nvme"

// Write protection (NVMe Base, Namespace Write Protection). A namespace is
// write protected because its volume is read-only, because whoever made it says
// so, or because a host does, by the feature Namespace Write Protection Config.
// Only what hosts have done they can undo. It lasts over resets, restarts and
// power cycles, for every host.

// SetProtected notes whether hosts have write protected the namespace. Once the
// namespace is in a subsystem, Follow has controllers go by it. It may be
// called from any goroutine.
func (ns *Namespace) SetProtected(on bool) { ns.protected.Store(on) }

// writeProtected reports whether commands that change the namespace are refused.
func (ns *Namespace) writeProtected() bool {
	return ns.ReadOnly || ns.protected.Load() || ns.Volume.Info().ReadOnly
}

// protectable reports whether hosts can decide on its write protection.
func (ns *Namespace) protectable() bool {
	return ns.Protect != nil && !ns.ReadOnly && !ns.Volume.Info().ReadOnly
}

// getProtection answers with the state of a namespace; no other than that
// without write protection is the default.
func (c *Controller) getProtection(cmd *Command, _ *feature, initial bool) {
	ns := c.sub.Namespace(cmd.SQE.NSID)
	switch {
	case ns == nil:
		cmd.invalid() // removed just now
		return
	case !initial && ns.writeProtected():
		cmd.DW0 = nvme.WPSWriteProtect
	}
	cmd.finish(nvme.StatusSuccess)
}

// setProtection changes the state of a namespace, or of all. A change that one
// of them cannot make is refused as a whole.
func (c *Controller) setProtection(cmd *Command, _ *feature) {
	state := cmd.SQE.CDW11 & nvme.WPSMask
	if state != nvme.WPSNone && state != nvme.WPSWriteProtect {
		cmd.invalid()
		return
	}
	on := state == nvme.WPSWriteProtect
	var change []*Namespace
	for _, ns := range c.sub.Namespaces() {
		if ns.NSID != cmd.SQE.NSID && cmd.SQE.NSID != nvme.NSIDBroadcast || ns.writeProtected() == on {
			continue
		}
		if !ns.protectable() {
			cmd.finish(dnr(nvme.StatusFeatureNotChangeable))
			return
		}
		change = append(change, ns)
	}
	c.protect(change, on, func(left int, st nvme.Status) {
		switch {
		case st != nvme.StatusSuccess:
			c.unchange(cmd, change[:len(change)-left], !on, st)
		case !on:
			cmd.finish(st)
		default:
			// What hosts have written before is to be on the medium.
			c.flush(func(st nvme.Status) {
				if st != nvme.StatusSuccess {
					c.unchange(cmd, change, !on, st)
					return
				}
				cmd.finish(st)
			})
		}
	})
}

// unchange takes back what has been changed, and ends the command with why.
func (c *Controller) unchange(cmd *Command, change []*Namespace, on bool, why nvme.Status) {
	c.protect(change, on, func(int, nvme.Status) { cmd.finish(why) })
}

// protect has one namespace after the other be protected or not, until one
// fails, and then calls done with the number of those left.
func (c *Controller) protect(change []*Namespace, on bool, done func(left int, st nvme.Status)) {
	if len(change) == 0 {
		done(0, nvme.StatusSuccess)
		return
	}
	change[0].Protect(on, func(st nvme.Status) {
		_ = c.p.Post(func() { // which runs as long as a command is in execution
			if st != nvme.StatusSuccess {
				done(len(change), st)
				return
			}
			c.protect(change[1:], on, done)
		})
	})
}

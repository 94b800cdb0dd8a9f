// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package controller

import "github.com/leapio/leapio/lib/stats"

// Counts is what the SMART log counts over the life of a drive.
type Counts struct {
	ReadCommands, WriteCommands uint64
	ReadBytes, WrittenBytes     uint64
	MediaErrors                 uint64
	Errors                      uint64 // entries of the error log
}

// Life keeps the counts of a drive for the controller that comes after this
// one: after a reset, or of another runtime. It is used on the admin poller.
type Life interface {
	Load() Counts
	Store(Counts)
}

// noLife keeps nothing.
type noLife struct{}

func (noLife) Load() (c Counts) { return c }
func (noLife) Store(Counts)     {}

// lived returns the counts of the drive up to now, and keeps them. Compare and
// Verify read as Read does (NVM Command Set Specification 4.1.4.2).
func (c *Controller) lived() Counts {
	now, total := c.born, c.stats.Total()
	for _, k := range [...]stats.Kind{stats.Read, stats.Compare, stats.Verify} {
		now.ReadCommands += total.Commands(k)
		now.ReadBytes += total.Bytes(k)
	}
	now.WriteCommands += total.Commands(stats.Write)
	now.WrittenBytes += total.Bytes(stats.Write)
	now.MediaErrors += total.MediaErrors
	now.Errors += c.errors.count
	c.cfg.Life.Store(now)
	return now
}

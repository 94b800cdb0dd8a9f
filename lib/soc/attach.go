// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"time"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/disk"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/wpt/link"
)

// How often attaching is tried. At the start of a machine both daemons start
// together, and leap-wpt is there some milliseconds later.
const (
	firstRetry = time.Millisecond
	lastRetry  = time.Second
)

// firstLink attaches to leap-wpt, waiting up to linkWait for it. Without it the
// runtime starts all the same, and no client is returned.
func (r *Runtime) firstLink(ctx context.Context) (*link.Client, error) {
	wait, cancel := context.WithTimeout(ctx, linkWait)
	defer cancel()
	c, err := r.dial(wait)
	switch {
	case err == nil:
		return c, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case final(err):
		return nil, err
	}
	r.log.Warn("leap-wpt does not answer; going on without it and trying again", "err", err)
	return nil, nil
}

// sameRelease is what to do about another version.
const sameRelease = "install leap-wpt and leap-soc of the same release"

// final reports whether trying to attach again is pointless.
func final(err error) bool {
	var version *qpair.VersionError
	return errors.As(err, &version)
}

// dial attaches, trying again until ctx ends or the error is final.
func (r *Runtime) dial(ctx context.Context) (*link.Client, error) {
	var last error
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		c, err := link.Dial(ctx, r.cfg.Paths.LinkSocket(), r.cfg.Name, r.log)
		if err == nil {
			r.linkMu.Lock()
			r.client = c
			r.linkMu.Unlock()
			return c, nil
		}
		if final(err) {
			return nil, fault.New(fault.Unsupported, "", "", err, sameRelease)
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return nil, last
		case <-time.After(pause):
		}
	}
}

// keepLink serves the ports of the link, and attaches again whenever it ends,
// until ctx ends.
func (r *Runtime) keepLink(ctx context.Context, c *link.Client) {
	for ctx.Err() == nil {
		if c == nil {
			var err error
			if c, err = r.dial(ctx); err != nil {
				if ctx.Err() == nil {
					r.log.Error("attaching to leap-wpt", "err", err)
				}
				return
			}
			if err := r.fence(c.Fence()); err != nil {
				r.log.Error("attaching to leap-wpt", "err", err)
				r.dropLink(c)
				return
			}
			r.keepVolumes(c)
		}
		select {
		case <-r.admitted:
		default:
			close(r.admitted)
		}
		r.log.Info("attached to leap-wpt", "epoch", c.Epoch())
		r.publish(api.KindRuntime, r.cfg.Name, "attached", "")
		err := r.ports.Serve(ctx, c)
		if err != nil {
			r.log.Warn("link to leap-wpt ended", "err", err)
			r.publish(api.KindRuntime, r.cfg.Name, "detached", err.Error())
		}
		if ctx.Err() != nil {
			<-r.listenersKept // nor is that of hosts
		}
		// No guest's I/O is in flight any more: leap-wpt may let us in again.
		if err := r.fence(-1); err != nil {
			r.log.Error("giving up the fence", "err", err)
		}
		r.dropLink(c)
		c = nil
		if final(err) {
			// Guests wait for a runtime that can serve them. This one can still be
			// replaced (leap-soc upgrade), and has its hosts.
			r.log.Error("guests cannot be served", "err", err, "hint", sameRelease)
			return
		}
	}
}

// fence has every poller's ring keep a link's fence; negative: none.
func (r *Runtime) fence(fd int) error {
	for _, p := range r.pollers {
		var err error
		if derr := p.Do(func() { err = p.SetFence(fd) }); derr != nil {
			return derr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *Runtime) dropLink(c *link.Client) {
	if c == nil {
		return
	}
	r.linkMu.Lock()
	r.client = nil
	r.linkMu.Unlock()
	c.Close()
}

// linkNow returns the link, or nil.
func (r *Runtime) linkNow() *link.Client {
	r.linkMu.Lock()
	defer r.linkMu.Unlock()
	return r.client
}

func (r *Runtime) epoch() uint64 {
	if c := r.linkNow(); c != nil {
		return c.Epoch()
	}
	return 0
}

// keepName is the name under which leap-wpt keeps something for this runtime:
// runtimes do not see what others keep.
func (r *Runtime) keepName(name string) string { return r.cfg.Name + "/" + name }

// DataPath implements volume.Env.
func (r *Runtime) DataPath(volume string) string { return r.cfg.Paths.VolumeData(volume) }

// Disk implements volume.Env.
func (r *Runtime) Disk() disk.Disk { return diskOf(r.cfg) }

func diskOf(cfg Config) disk.Disk {
	if cfg.disk == nil {
		return disk.OS
	}
	return cfg.disk
}

// Logger implements volume.Env.
func (r *Runtime) Logger() *slog.Logger { return r.log }

// Keep implements volume.Env. Without a link the fd is kept when there is one
// again (keepVolumes).
func (r *Runtime) Keep(name string, fd int) error {
	if c := r.linkNow(); c != nil {
		return c.Keep(r.keepName(name), fd)
	}
	return nil
}

// Fetch implements volume.Env.
func (r *Runtime) Fetch(name string) (int, error) {
	if c := r.linkNow(); c != nil {
		return c.Fetch(r.keepName(name))
	}
	return -1, fs.ErrNotExist
}

// Drop implements volume.Env.
func (r *Runtime) Drop(name string) error {
	if c := r.linkNow(); c != nil {
		return c.Drop(r.keepName(name))
	}
	return nil
}

// keeper is a volume whose content lives in memory files.
type keeper interface {
	// Kept returns the descriptors to keep, by name.
	Kept() map[string]int
}

// keepVolumes hands memory volumes to a leap-wpt that does not know them yet.
func (r *Runtime) keepVolumes(c *link.Client) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.volumes {
		k, ok := v.volume.(keeper)
		if !ok {
			continue
		}
		for name, fd := range k.Kept() {
			if err := c.Keep(r.keepName(name), fd); err != nil {
				r.log.Error("volume will not outlive this process", "volume", v.spec.Name, "err", err)
			}
		}
	}
}

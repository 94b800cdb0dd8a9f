// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soak_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/units"
)

// drive is a namespace: a disk of a guest that nobody else has.
type drive struct {
	g    *guest
	d    *disk
	nsid uint32
	busy sync.Mutex  // held by who changes it
	mu   *sync.Mutex // of the guest: one change of its namespaces at a time, since events of several are one
}

// sure makes a call, again until it is known to have had its effect: a daemon may
// end under it. is tells whether it has had.
func (s *soak) sure(what string, call func(context.Context) error, is func(context.Context) (bool, error)) error {
	var last error
	there := func() (ok bool) {
		return s.call(func(ctx context.Context) (err error) {
			ok, err = is(ctx)
			return err
		}) == nil && ok
	}
	err := s.await(what, func() bool {
		steps := s.ends.Load()
		if last = s.call(call); last == nil {
			return true
		}
		if s.ends.Load() == steps && steps%2 == 0 { // nothing happened to a daemon
			if there() {
				return true
			}
			if s.ends.Load() == steps {
				s.fail("%s: %v", what, last)
				return true
			}
		}
		return there()
	})
	if err != nil && s.ctx.Err() == nil {
		return fmt.Errorf("%w: %w", err, last)
	}
	return err
}

// resize changes the size of a disk's volume.
func (s *soak) resize(v *drive, rng *rand.Rand) error {
	c := s.socs[0].client()
	size := uint64(16+rng.IntN(32)) << 20
	blocks := size / uint64(v.d.block)
	v.d.mu.Lock()
	before := v.d.limit
	v.d.mu.Unlock()
	if blocks == before {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if blocks < before {
		if err := v.d.retire(s, blocks); err != nil {
			return err
		}
	}
	events, life := v.g.events.Load(), v.g.lives.Load()
	var is api.Volume
	path := api.Path("volumes", v.d.name)
	certain := true
	err := s.sure("resize of "+v.d.name,
		func(ctx context.Context) error {
			err := c.Put(ctx, path, api.VolumeResize{Size: units.Size(size), Shrink: true}, &is)
			certain = certain && err == nil
			return err
		},
		func(ctx context.Context) (bool, error) {
			err := c.Get(ctx, path, &is)
			return uint64(is.Size) == size, err
		})
	if err != nil || s.ctx.Err() != nil {
		return err
	}
	v.d.resized(blocks, certain && blocks < before)
	if !certain || !v.g.isOn() {
		return nil // whether there is an event depends
	}
	return v.g.told(events, life)
}

// replug removes a namespace under I/O and adds it again.
func (s *soak) replug(v *drive) error {
	c := s.socs[0].client()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.d.turn()
	there := func(want bool) func(context.Context) (bool, error) {
		return func(ctx context.Context) (bool, error) {
			var all []api.Namespace
			err := c.Get(ctx, api.Path("subsystems", v.g.spec.port, "namespaces"), &all)
			for _, ns := range all {
				if ns.NSID == v.nsid {
					return want, err
				}
			}
			return !want, err
		}
	}
	events, life := v.g.events.Load(), v.g.lives.Load()
	err := s.sure("removal of "+v.d.name,
		func(ctx context.Context) error {
			return c.Delete(ctx, api.Path("subsystems", v.g.spec.port, "namespaces", fmt.Sprint(v.nsid)), nil, nil)
		}, there(false))
	if err == nil && v.g.isOn() {
		err = v.g.told(events, life)
	}
	if err != nil {
		return err
	}
	events, life = v.g.events.Load(), v.g.lives.Load()
	err = s.sure("addition of "+v.d.name,
		func(ctx context.Context) error {
			return c.Post(ctx, api.Path("subsystems", v.g.spec.port, "namespaces"), api.NamespaceSpec{Volume: v.d.name, NSID: v.nsid}, nil)
		}, there(true))
	if err == nil && v.g.isOn() {
		err = v.g.told(events, life)
	}
	if err == nil {
		v.d.turn()
	}
	return err
}

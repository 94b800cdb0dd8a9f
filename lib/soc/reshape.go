// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"sync/atomic"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/units"
	"github.com/leapio/leapio/lib/volume"
)

// A volume changes its size or its block in an order that keeps every byte a
// host could have written, wherever this process ends in between:
//
//	grow    the medium, the state file, then hosts
//	shrink  hosts, until none has a command under way beyond the new end; the
//	        state file; then the medium
//	medium  that of another machine has grown: the state file, then hosts
//	block   hosts (Format NVM lets none of their commands begin), the volume,
//	        the state file; then hosts again
//
// What the state file says is what the volume is. A medium that has more is
// that of a volume that was about to grow, or has shrunk: the rest is left
// alone until the next change (volume.Reshaper).

// resizeVolume gives a volume another size, whether it is in use or not.
func (r *Runtime) resizeVolume(ctx context.Context, name string, in api.VolumeResize) (api.Volume, error) {
	v, re, to, err := r.beginResize(name, in)
	if err != nil {
		return api.Volume{}, err
	}
	switch now := re.Info().Size; {
	case to.Size > now:
		err = r.grow(v, re, to)
	case to.Size < now:
		err = r.shrink(ctx, v, re, to)
	case in.Shrink:
		err = re.Trim() // what was cut short goes on
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	v.changing = false
	if err != nil {
		return api.Volume{}, err
	}
	return r.describeVolume(v), nil
}

// beginResize checks all there is to check, and keeps other changes away from
// the volume.
func (r *Runtime) beginResize(name string, in api.VolumeResize) (v *vol, re volume.Reshaper, to volume.Shape, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v, err = r.findVolume(name); err != nil {
		return nil, nil, to, err
	}
	if re, err = v.reshaper(); err != nil {
		return nil, nil, to, err
	}
	to = re.Info().Shape()
	now := to.Size
	switch {
	case !in.Add:
		to.Size = uint64(in.Size)
	case uint64(in.Size) > math.MaxInt64-now:
		err = fault.Errorf(fault.Usage, "", "", "%d and %d bytes are above 2^63-1", now, in.Size)
	default:
		to.Size = now + uint64(in.Size)
	}
	if err == nil {
		err = volume.CheckSize(to.Size, to.Block)
	}
	if err == nil && to.Size < now && !in.Shrink {
		err = fault.Errorf(fault.Usage, "", "", "volume %s has %d bytes, %d are less", name, now, to.Size).
			Hint("--shrink gives up what is beyond the new end, for good")
	}
	if err != nil {
		return nil, nil, to, err
	}
	v.changing = true
	return v, re, to, nil
}

// reshaper returns the volume as one that can be changed now. r.mu is held.
func (v *vol) reshaper() (volume.Reshaper, error) {
	if v.volume == nil {
		return nil, fault.Errorf(fault.Failure, "", "", "volume %s is not ready: %w", v.spec.Name, v.err)
	}
	if err := v.settled(); err != nil {
		return nil, err
	}
	re, ok := v.volume.(volume.Reshaper)
	if _, follows := v.volume.(volume.Reporter); follows && !ok {
		return nil, fault.Errorf(fault.Unsupported, "", "", "a volume of kind %s follows the size of its medium", v.spec.Kind)
	}
	if !ok {
		return nil, fault.Errorf(fault.Unsupported, "", "", "a volume of kind %s has one size", v.spec.Kind)
	}
	return re, nil
}

// settled reports, as a fault, that the volume is being changed. r.mu is held.
func (v *vol) settled() error {
	if v.changing {
		return fault.Errorf(fault.Exists, "", "", "volume %s is being resized or formatted", v.spec.Name)
	}
	return nil
}

func (r *Runtime) grow(v *vol, re volume.Reshaper, to volume.Shape) error {
	if err := re.Extend(to.Size); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := re.Info().Shape()
	if err := r.keepSize(v, to, now); err != nil {
		return err
	}
	if err := re.Reshape(to); err != nil {
		return r.undo(err, func() error { return r.keepSize(v, now, to) })
	}
	r.follow(v)
	r.reshaped(v)
	return nil
}

// followMedium has a volume become what its medium has become by itself. Where
// that cannot be kept, it stays as it was until there is another change. r.mu is
// held.
func (r *Runtime) followMedium(v *vol, medium volume.Reporter) {
	now, found := medium.Info(), medium.Found()
	if *now == *found {
		return
	}
	if found.Size != now.Size {
		if err := r.keepSize(v, found.Shape(), now.Shape()); err != nil {
			r.log.Error("a volume cannot follow the size of its medium", "volume", v.spec.Name, "size", found.Size, "err", err)
			return
		}
	}
	medium.Take(found)
	r.follow(v)
	if found.Shape() != now.Shape() || found.ReadOnly != now.ReadOnly {
		r.reshaped(v)
	}
}

func (r *Runtime) shrink(ctx context.Context, v *vol, re volume.Reshaper, to volume.Shape) error {
	r.mu.Lock()
	before := re.Info().Shape()
	err := re.Reshape(to)
	drained := r.follow(v)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case <-drained:
	case <-ctx.Done():
		err = fault.Errorf(fault.Timeout, "", "", "commands beyond the new end of volume %s are still under way: %w", v.spec.Name, ctx.Err())
	}
	r.mu.Lock()
	if err == nil {
		err = r.keepSize(v, to, before)
	}
	if err != nil {
		err = r.undo(err, func() error { return re.Reshape(before) })
		r.follow(v)
	} else {
		r.reshaped(v)
	}
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if err := re.Trim(); err != nil {
		return fault.New(0, "", "", fmt.Errorf("the volume has its new size, but not what is below it: %w", err),
			"the same command tries it again")
	}
	return nil
}

// undo takes back what was done before err, and reports what cannot be.
func (r *Runtime) undo(err error, back func() error) error {
	if again := back(); again != nil {
		r.log.Error("a change of a volume cannot be taken back", "err", again)
	}
	return err
}

// keepSize keeps the volume's size in the state file. r.mu is held.
func (r *Runtime) keepSize(v *vol, to, before volume.Shape) error {
	return r.keepOption(v, "size", units.Size(to.Size).String(), units.Size(before.Size).String())
}

// keepBlock keeps the volume's block in the state file. r.mu is held.
func (r *Runtime) keepBlock(v *vol, to, before volume.Shape) error {
	return r.keepOption(v, "block", strconv.Itoa(int(to.Block)), strconv.Itoa(int(before.Block)))
}

// keepOption keeps a value in the state file, or has it say what was before.
// r.mu is held.
func (r *Runtime) keepOption(v *vol, key, value, before string) error {
	v.spec.Note(key, value)
	err := r.save()
	if err != nil {
		v.spec.Note(key, before)
		r.saveAgain()
	}
	return err
}

// follow has all hosts of a volume follow what it is now. The channel is closed
// when none of their commands that had begun is under way any more. r.mu is held.
func (r *Runtime) follow(v *vol) (drained <-chan struct{}) {
	done := make(chan struct{})
	left := new(atomic.Int32)
	left.Store(1)
	one := func() {
		if left.Add(-1) == 0 {
			close(done)
		}
	}
	for _, s := range r.subsystems {
		for _, ns := range s.rec.Namespaces {
			if ns.Volume != v.spec.Name {
				continue
			}
			left.Add(1)
			if !s.model.Follow(ns.NSID, one) {
				one()
			}
		}
	}
	one()
	return done
}

// reshaped shows what a volume has become. r.mu is held.
func (r *Runtime) reshaped(v *vol) {
	r.showVolume(v)
	now := v.volume.Info()
	r.publish(api.KindVolume, v.spec.Name, "changed", fmt.Sprintf("size=%s block=%d", units.Size(now.Size), now.Block))
}

// reblocker is controller.Namespace.Reblock for a volume of one use.
func (r *Runtime) reblocker(name string) func(uint32, func(nvme.Status)) {
	return func(block uint32, done func(nvme.Status)) {
		r.changes.Go(func() { done(r.reblock(name, block)) })
	}
}

// reblock gives a volume another block, for Format NVM: no command begins until
// it has returned.
func (r *Runtime) reblock(name string, block uint32) nvme.Status {
	r.mu.Lock()
	v, err := r.findVolume(name)
	if err != nil {
		r.mu.Unlock()
		return nvme.StatusNamespaceNotReady
	}
	re, err := v.reshaper()
	if err != nil || len(r.users(name)) == 0 {
		r.mu.Unlock()
		return nvme.StatusNamespaceNotReady // being resized, or removed
	}
	v.changing = true
	drained := r.follow(v)
	r.mu.Unlock()
	<-drained

	r.mu.Lock()
	before := re.Info().Shape()
	to := volume.Shape{Size: before.Size, Block: block}
	status := nvme.StatusSuccess
	if volume.CheckSize(to.Size, to.Block) != nil {
		status = nvme.StatusInvalidFormat | nvme.StatusDNR // it was resized meanwhile
	} else if err := r.changeBlock(v, re, to, before); err != nil {
		r.log.Error("the block of a volume cannot be changed", "volume", name, "err", err)
		status = nvme.StatusInternalError
	} else {
		r.reshaped(v)
	}
	drained = r.follow(v)
	v.changing = false
	r.mu.Unlock()
	<-drained // every poller goes by the new block
	return status
}

// changeBlock changes the block of a volume that nobody uses. r.mu is held.
func (r *Runtime) changeBlock(v *vol, re volume.Reshaper, to, before volume.Shape) error {
	if err := re.Reshape(to); err != nil {
		return err
	}
	if err := r.keepBlock(v, to, before); err != nil {
		return r.undo(err, func() error { return re.Reshape(before) })
	}
	return nil
}

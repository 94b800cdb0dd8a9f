// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"fmt"
	"slices"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/nvme"
)

// protector is controller.Namespace.Protect for a namespace of a subsystem.
func (r *Runtime) protector(s *subsystem, ns *controller.Namespace) func(bool, func(nvme.Status)) {
	return func(on bool, done func(nvme.Status)) {
		r.changes.Go(func() { done(r.protect(s, ns, on)) })
	}
}

// protect keeps the write protection that a host wants of a namespace. First
// nobody writes any more, then it is kept; or the other way round. Hosts come
// one after the other.
func (r *Runtime) protect(s *subsystem, ns *controller.Namespace, on bool) nvme.Status {
	r.protecting.Lock()
	defer r.protecting.Unlock()
	if on {
		<-r.protectModel(s, ns, true)
	}
	kept := r.keepProtected(s, ns, on)
	if !kept {
		<-r.protectModel(s, ns, false)
	}
	if kept != on {
		return nvme.StatusInternalError
	}
	return nvme.StatusSuccess
}

// protectModel has hosts see a namespace as write protected or not. The channel
// is closed when none goes by what was before.
func (r *Runtime) protectModel(s *subsystem, ns *controller.Namespace, on bool) <-chan struct{} {
	ns.SetProtected(on)
	done := make(chan struct{})
	if !s.model.Follow(ns.NSID, func() { close(done) }) {
		close(done)
	}
	return done
}

// keepProtected keeps in the state file what a host has made of a namespace, and
// returns what is kept there then.
func (r *Runtime) keepProtected(s *subsystem, ns *controller.Namespace, on bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(s.rec.Namespaces, func(rec namespaceRecord) bool { return rec.NSID == ns.NSID })
	if i < 0 || s.model.Namespace(ns.NSID) != ns {
		return !on // removed meanwhile
	}
	before := s.rec.Namespaces
	s.rec.Namespaces = slices.Clone(before)
	s.rec.Namespaces[i].WriteProtected = on
	if err := r.save(); err != nil {
		s.rec.Namespaces = before
		_ = r.save() // it could have been the very last step that went wrong
		r.log.Error("write protection cannot be kept", "subsystem", s.rec.Name, "nsid", ns.NSID, "err", err)
		return before[i].WriteProtected
	}
	detail := "write protection off"
	if on {
		detail = "write protection on"
	}
	r.publish(api.KindNamespace, fmt.Sprintf("%s/%d", s.rec.Name, ns.NSID), "changed", detail)
	return on
}

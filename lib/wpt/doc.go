// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package wpt is the body of leap-wpt, the broker between virtual machines and
// the runtimes that serve their drives.
//
// It owns what must outlive a runtime: the vfio-user connections, the file
// descriptors of guest memory (never mapped here), the register page, doorbell
// page and state area of every port, the interrupt eventfds, and files that
// runtimes leave in its care. It executes no NVMe command and touches no data:
// register writes become words in shared pages and kicks of an eventfd, and a
// runtime does the rest (lib/qpair says how).
//
//	pci.go      PCI configuration space
//	bar.go      BAR0: controller registers and doorbells, reset generations
//	region.go   the table of guest memory
//	irq.go      interrupt eventfds
//	port.go     a port: its shared pages, its socket, its life
//	client.go   one vfio-user connection: reader, handler
//	request.go  the vfio-user commands
//	relay.go    DMA_READ and DMA_WRITE on behalf of a runtime
//	attach.go   which runtime serves a port, and what it is told
//	link.go     the link server and its runtimes
//	alive.go    whether a runtime that is waited for still runs
//	kept.go     files that runtimes leave in our care
//	outbox.go   messages to a runtime, in order, never blocking the sender
//	broker.go   all ports and runtimes; the state file
//	tables.go   what a program that follows has to know, table.go where it is kept, and
//	files.go    the open files that go with it
//	api.go      the control API; metrics.go what is counted, limits.go what is bounded
//	qemu.go     QEMU's arguments for a port
//	run.go      the daemon
//	upgrade.go  another program for the same process: whether it can take over,
//	inherit.go  what it gets,
//	leave.go    how this one stops, and
//	restore.go  how the other one goes on
//
// # Goroutines and locks
//
// A port has one goroutine that accepts; a connection has a reader, a handler
// and a relayer; a link has a reader, a writer, one that waits for the fence, and
// one that asks whether the runtime is alive. The handler answers commands in
// order and never waits for a message that was sent to the client, since QEMU
// serves those only between its own requests. All waits are bounded, so that each
// command is answered within 5 s.
//
// Broker.admin serialises changes of the configuration. A port's mu guards the
// port. Broker.mu, Broker.linkMu and an outbox's mu are held for moments, and
// nothing is locked under them but an outbox's under linkMu.
package wpt

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package vfiousertest plays the other side of a vfio-user NVMe controller: the
// virtual machine monitor and the guest in it, for tests and benchmarks that
// run where no virtual machine does.
//
//   - Client speaks vfio-user as QEMU 11.1 does: the same messages in the same
//     order, the same limits, five seconds for every answer, and one lock that
//     a waiting caller holds while the server's own commands wait for it.
//   - Memory is the guest's RAM, below and above 4 GiB, shared with the server
//     or private to the client.
//   - NVMe is the guest's driver: registers, queues, doorbells of every kind,
//     interrupts, PRP lists of every shape. It reuses command identifiers at
//     once and reads completions while the controller writes them.
//
// The helpers make it short to do what a driver does; below them every layer
// is open, so that a test can also do what no sane driver would.
//
// A usual test:
//
//	mem, err := vfiousertest.NewMemory(vfiousertest.MemoryOptions{Low: 64 << 20})
//	client, err := vfiousertest.Dial(path, mem, vfiousertest.Options{})
//	drive, err := vfiousertest.NewNVMe(client)
//	err = drive.Enable(32)
//	queue, err := drive.CreatePair(1, 64, vfiousertest.Polled)
//	err = queue.Write(1, 0, data, 512)
package vfiousertest

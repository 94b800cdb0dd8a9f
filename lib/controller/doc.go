// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package controller is the NVMe controller model: what a host sees of a
// subsystem, whatever carries its commands. Nothing here knows a transport.
//
//	Subsystem    an NQN and its namespaces, each a volume
//	Controller   one host's view of it: admin commands, features, events
//	Worker       a controller's part on one poller: the I/O commands
//
// The way of an I/O command:
//
//  1. a transport fills in a Command (SQE copied once from the host) and calls
//     Worker.Execute on the worker's poller
//  2. the handler of the opcode (the table in io.go) checks namespace, range
//     and size, and asks the command's Carrier for the data: PRPs translated,
//     a capsule's data located, or an R2T sent
//  3. the request goes to the volume's queue of that poller
//  4. the volume completes it there; the Carrier is told the result
//
// Commands that read what the host does not get use a buffer of the worker, in
// turn: Compare and Verify (scan.go), Copy (copy.go). The halves of a Compare
// and Write are paired in fused.go; fence.go keeps other writes out of their
// way. Command.Cancel ends a command early, wherever it is.
//
// Admin commands are executed one at a time on the poller of the admin queue.
// What a controller offers is in tables, from which Identify and the log pages
// that describe it derive:
//
//	ioCommands       io.go        I/O commands, by opcode
//	adminCommands    admin.go     admin commands, by opcode
//	identifications  identify.go  Identify data structures, by CNS
//	logPages         log.go       log pages, by identifier
//	featureTable     feature.go   features, by identifier
//
// count.go counts commands, for SMART and for whoever has given a namespace or
// a command something to count with. event.go tells the host of what it did not ask for, keepalive.go watches over
// a host that may be gone, and state.go lets another runtime go on as the same
// controller.
package controller

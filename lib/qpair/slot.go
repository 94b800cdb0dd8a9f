// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qpair

import "github.com/leapio/leapio/lib/nvme"

// SlotState is the state of a slot.
type SlotState uint32

// States of a slot, in the order a command passes through them.
const (
	SlotFree  SlotState = iota // no command
	SlotTaken                  // fetched; executed (again) by whoever owns the queue
	SlotDone                   // executed; CQE and CQN are final, being published
)

// Slot is one outstanding command in a submission queue's page. Slots are
// indexed by slot number; the command identifier is the guest's and may repeat.
//
// The stores, in this order, and what a crash just after one of them means:
//
//	F1  copy of the SQE, N, State=TAKEN    N >= head: dropped, fetched again
//	F2  SQPage.Head advanced               TAKEN and N < head: executed again
//	P1  the effect is done and outlives    executed again
//	    this process
//	P2  final CQE and CQN, State=DONE      published by recovery, not executed again
//	P3  guest CQ entry, dword 3 last       the same bytes are written again
//	P4  CQPage.Tail advanced               slot is freed
//	P5  State=FREE                         nothing to do
//	P6  interrupt                          recovery fires every vector once
//
// F1's State, F2, P2's State, P3's dword 3, P4 and P5 are release stores; death by
// SIGKILL keeps program order, so they need no stronger fence. TestModel explores every
// crash point, and shows what goes wrong in another order.
type Slot struct {
	SQE   nvme.SQE
	N     uint64 // fetch number: SQPage.Head at its fetch
	CQN   uint64 // completion number: CQPage.Tail at which it is published
	CQE   nvme.CQE
	Aux   [2]uint64 // notes of two-step commands for whoever executes them again; 0 when fetched
	State uint32    // a SlotState
	_     [12]byte
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package qmap

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
)

// entry is one entry of a ring.
type entry struct {
	Port    string           `json:"port"`
	QID     uint16           `json:"qid"`
	Ring    string           `json:"ring"`  // "sq" or "cq"
	Index   uint32           `json:"index"` // from 0
	At      api.List[string] `json:"at"`    // "head", "tail": the positions that are here
	Pending bool             `json:"pending"`
	Raw     string           `json:"raw"`   // hexadecimal
	Entry   string           `json:"entry"` // decoded; empty: all zero, never used
}

var entryColumns = []cli.Column[entry]{
	{Name: "RING", Value: func(e entry) any { return e.Ring }},
	{Name: "INDEX", Value: func(e entry) any { return e.Index }},
	{Name: "AT", Value: func(e entry) any { return []string(e.At) }},
	{Name: "PENDING", Value: func(e entry) any { return e.Pending }},
	{Name: "ENTRY", Value: func(e entry) any { return e.Entry }},
}

func dump() *cli.Command {
	var sq, cq bool
	return &cli.Command{
		Name:   "dump",
		Usage:  "print the rings of a queue pair, decoded or raw",
		Args:   "PORT QID",
		Binary: true,
		Flags: []cli.Flag{
			{Name: "sq", Usage: "the submission queue only", Value: cli.Bool(&sq)},
			{Name: "cq", Usage: "the completion queue only", Value: cli.Bool(&cq)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			name := call.Arg(0)
			qid, err := checkDump(call, sq, cq)
			if err != nil {
				return err
			}
			paths, err := command.Paths(call)
			if err != nil {
				return err
			}
			m, err := find(ctx, paths, name)
			if err != nil {
				return command.About(call, name, err)
			}
			rings, err := getRings(ctx, paths, m, qid, sq, cq)
			if err != nil {
				return command.About(call, name, err)
			}
			if call.Format == cli.Binary {
				return writeRaw(call, rings[0])
			}
			var entries []entry
			for _, ring := range rings {
				entries, err = appendEntries(entries, ring)
				if err != nil {
					return command.About(call, name, err)
				}
			}
			return cli.List(call, entryColumns, entries)
		},
	}
}

// checkDump reads the queue identifier and makes sure that the flags fit.
func checkDump(call *cli.Call, sq, cq bool) (uint16, error) {
	if err := command.CheckNames("port", call.Arg(0)); err != nil {
		return 0, err
	}
	qid, err := strconv.ParseUint(call.Arg(1), 10, 16)
	if err != nil {
		return 0, fault.Errorf(fault.Usage, "", "", "bad queue identifier %q: it is not a number of 0 to 65535", call.Arg(1)).
			Hint(fmt.Sprintf("`leap-qmap show %s` lists the queue pairs", call.Arg(0)))
	}
	if sq && cq {
		return 0, fault.Errorf(fault.Usage, "", "", "--sq can't be used with --cq").Hint("without either, both rings are printed")
	}
	if call.Format == cli.Binary && !sq && !cq {
		return 0, fault.Errorf(fault.Usage, "", "", "raw data is of one ring").Hint("add --sq or --cq")
	}
	return uint16(qid), nil
}

// getRings copies the rings that were asked for: both without sq and cq.
func getRings(ctx context.Context, paths api.Paths, m mapping, qid uint16, sq, cq bool) ([]api.Ring, error) {
	cqid := -1
	for _, q := range m.Queues {
		if q.QID == qid {
			cqid = int(q.CQID)
		}
	}
	if cqid < 0 {
		return nil, fault.Errorf(fault.NotFound, "", "", "the port has no queue pair %d now", qid).
			Hint(fmt.Sprintf("`leap-qmap show %s` lists the queue pairs", m.Port))
	}
	soc, err := paths.Runtime(m.Runtime)
	if err != nil {
		return nil, err
	}
	var rings []api.Ring
	get := func(id int, kind string) error {
		var ring api.Ring
		err := soc.Get(ctx, api.Path("ports", m.Port, "queues", strconv.Itoa(id), kind), &ring)
		rings = append(rings, ring)
		return err
	}
	if !cq {
		err = get(int(qid), "sq")
	}
	if err == nil && !sq {
		err = get(cqid, "cq")
	}
	return rings, err
}

// writeRaw writes the entries of a ring as they are.
func writeRaw(call *cli.Call, ring api.Ring) error {
	for _, raw := range ring.Entries {
		if _, err := call.Stdout.Write(raw); err != nil {
			return err
		}
	}
	return nil
}

// appendEntries decodes the entries of a ring.
func appendEntries(entries []entry, ring api.Ring) ([]entry, error) {
	for i, raw := range ring.Entries {
		text, err := decode(ring, raw)
		if err != nil {
			return nil, err
		}
		index := uint32(i)
		e := entry{
			Port: ring.Port, QID: ring.QID, Ring: ring.Kind, Index: index, Raw: hex.EncodeToString(raw), Entry: text,
			Pending: pending(ring, index),
		}
		if index == ring.Head {
			e.At = append(e.At, "head")
		}
		if index == ring.Tail {
			e.At = append(e.At, "tail")
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// pending reports whether an entry lies from the head up to the tail: a command
// not fetched yet, or a completion that the guest has not taken.
func pending(ring api.Ring, index uint32) bool {
	if ring.Head <= ring.Tail {
		return ring.Head <= index && index < ring.Tail
	}
	return index >= ring.Head || index < ring.Tail
}

// decode describes an entry on one line; "" if it is all zero.
func decode(ring api.Ring, raw []byte) (string, error) {
	if !slices.ContainsFunc(raw, func(b byte) bool { return b != 0 }) {
		return "", nil
	}
	switch {
	case ring.Kind == "sq" && len(raw) == nvme.SQESize:
		var e nvme.SQE
		if _, err := binary.Decode(raw, binary.LittleEndian, &e); err != nil {
			return "", err
		}
		return nvme.FormatSQE(ring.QID == 0, &e), nil
	case ring.Kind == "cq" && len(raw) == nvme.CQESize:
		var e nvme.CQE
		if _, err := binary.Decode(raw, binary.LittleEndian, &e); err != nil {
			return "", err
		}
		return nvme.FormatCQE(&e), nil
	}
	return "", fault.Errorf(fault.Peer, "", "", "an entry of %d bytes in ring %s", len(raw), ring.Kind)
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command_test

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// machine is a virtual machine with the drive of one port.
type machine struct {
	memory *vfiousertest.Memory
	client *vfiousertest.Client
	pair   *vfiousertest.Pair
}

// close ends the machine.
func (m *machine) close() {
	if m.client != nil {
		m.client.Close()
	}
	m.memory.Close()
}

// boot connects a machine to a port; its guest enables the controller and makes
// one pair of I/O queues.
func boot(socket string) (*machine, error) {
	memory, err := vfiousertest.NewMemory(vfiousertest.MemoryOptions{Low: 16 << 20})
	if err != nil {
		return nil, err
	}
	m := &machine{memory: memory}
	if err := m.start(socket); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *machine) start(socket string) (err error) {
	if m.client, err = vfiousertest.Dial(socket, m.memory, vfiousertest.Options{}); err != nil {
		return err
	}
	drive, err := vfiousertest.NewNVMe(m.client)
	if err != nil {
		return err
	}
	if err := drive.Enable(16); err != nil {
		return err
	}
	m.pair, err = drive.CreatePair(1, 8, vfiousertest.Polled)
	return err
}

// check writes block 0 of namespace 1 and reads it back.
func (m *machine) check() error {
	want, got := bytes.Repeat([]byte("leap"), 128), make([]byte, 512)
	if err := errors.Join(m.pair.Write(1, 0, want, 512), m.pair.Read(1, 0, got, 512)); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("block 0 reads %.8q..., want %.8q...", got, want)
	}
	return nil
}

// guest boot|check|leave PORT boots a machine with the drive of a port, has its
// guest use the drive, or ends it.
func guest(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: guest boot|check|leave PORT")
	}
	guests, port := of(ts).guests, args[1]
	if args[0] == "boot" {
		m, err := boot(filepath.Join(ts.Getenv("RUN"), "port", port, "cntrl"))
		ts.Check(err)
		guests[port] = m
		return
	}
	m := guests[port]
	if m == nil {
		ts.Fatalf("there is no guest at port %s", port)
	}
	switch args[0] {
	case "check":
		ts.Check(m.check())
	case "leave":
		delete(guests, port)
		m.close()
	default:
		ts.Fatalf("unknown word %s", args[0])
	}
}

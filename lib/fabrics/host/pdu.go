// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/nvme"
)

// pdus sends and receives PDUs.
type pdus struct {
	conn    net.Conn
	in, out fabrics.Framing
	maxH2C  uint32 // MAXH2CDATA, in whole dwords
}

// maxData is the most data of one C2HData.
const maxData = 128 << 10

// initialize exchanges ICReq and ICResp. r2ts is how many R2Ts a command may
// have outstanding.
func (p *pdus) initialize(o *Options, r2ts uint32) error {
	p.in = fabrics.Framing{From: fabrics.FromController, Align: fabrics.Align(0), MaxData: maxData}
	p.out = fabrics.Framing{From: fabrics.FromHost, Align: fabrics.Align(0), MaxCapsule: 8 << 10}
	req := fabrics.ICReq{MAXR2T: r2ts - 1}
	p.out.Make(&req.CommonHeader, fabrics.TypeICReq, 0, 0)
	if o.HeaderDigest {
		req.DGST |= fabrics.DGSTHeader
	}
	if o.DataDigest {
		req.DGST |= fabrics.DGSTData
	}
	if _, err := p.conn.Write(fabrics.Bytes(&req)); err != nil {
		return step("initializing the connection", err)
	}
	pdu, _, err := p.receive()
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, new(*violation)):
		return fault.Errorf(fault.Peer, "", "", "initializing the connection: who answers does not speak NVMe/TCP: %w", err)
	case err != nil:
		return step("initializing the connection", err)
	case fabrics.PDUType(pdu[0]) != fabrics.TypeICResp:
		return fault.Errorf(fault.Peer, "", "", "initializing the connection: %v came, not ICResp", fabrics.PDUType(pdu[0]))
	}
	var resp fabrics.ICResp
	copy(fabrics.Bytes(&resp), pdu)
	switch {
	case resp.PFV != 0 || resp.CPDA > fabrics.MaxPDA || resp.MAXH2CDATA < fabrics.MinMaxH2CData || resp.DGST&^req.DGST != 0:
		return fault.Errorf(fault.Peer, "", "", "initializing the connection: ICResp with PFV %d, CPDA %d, DGST %d, MAXH2CDATA %d",
			resp.PFV, resp.CPDA, resp.DGST, resp.MAXH2CDATA)
	case o.DigestsRequired && resp.DGST != req.DGST:
		return fault.Errorf(fault.Unsupported, "", "", "initializing the connection: the controller does not agree to the digests asked for (DGST %d, not %d)", resp.DGST, req.DGST)
	}
	p.out.Align, p.maxH2C = fabrics.Align(resp.CPDA), resp.MAXH2CDATA&^3
	for _, f := range []*fabrics.Framing{&p.in, &p.out} {
		f.HeaderDigest = resp.DGST&fabrics.DGSTHeader != 0
		f.DataDigest = resp.DGST&fabrics.DGSTData != 0
	}
	return nil
}

// step gives an error the step in which it happened. That the peer hangs up is
// its fault.
func step(what string, err error) error {
	if errors.Is(err, io.EOF) {
		return fault.Errorf(fault.Peer, "", "", "%s: the connection was closed", what)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// violation is a PDU that breaks the protocol.
type violation struct{ text string }

func (v *violation) Error() string { return v.text }

func broken(format string, args ...any) error {
	return fault.New(fault.Peer, "", "", &violation{fmt.Sprintf(format, args...)})
}

// receive reads a PDU and returns its header and its data.
func (p *pdus) receive() (header, data []byte, err error) {
	var h fabrics.CommonHeader
	if _, err := io.ReadFull(p.conn, fabrics.Bytes(&h)); err != nil {
		return nil, nil, err
	}
	f, v := p.in.Check(&h)
	if v.Bad() {
		return nil, nil, broken("a PDU of type %02Xh breaks the protocol: %v", uint8(h.Type), v)
	}
	b := make([]byte, f.Length)
	copy(b, fabrics.Bytes(&h))
	if _, err := io.ReadFull(p.conn, b[fabrics.CommonHeaderSize:]); err != nil {
		return nil, nil, err
	}
	header = b[:h.HLEN]
	if f.Header > uint32(h.HLEN) && binary.LittleEndian.Uint32(b[h.HLEN:]) != fabrics.Digest(header) {
		return nil, nil, broken("the header digest of %v is wrong", h.Type)
	}
	data = b[f.DataOffset : f.DataOffset+f.DataLength]
	if f.HasDigest && binary.LittleEndian.Uint32(b[f.DataOffset+f.DataLength:]) != fabrics.Digest(data) {
		return nil, nil, broken("the data digest of %v is wrong", h.Type)
	}
	if h.Type == fabrics.TypeC2HTermReq {
		var t fabrics.TermReq
		copy(fabrics.Bytes(&t), header)
		return nil, nil, broken("the controller ends the connection: %v", t.Violation())
	}
	return header, data, nil
}

// send sends a command capsule.
func (p *pdus) send(e nvme.SQE, data []byte) error {
	c := fabrics.CapsuleCmd{SQE: e}
	f := p.out.Make(&c.CommonHeader, fabrics.TypeCapsuleCmd, 0, uint32(len(data)))
	b := make([]byte, f.Length)
	n := copy(b, fabrics.Bytes(&c))
	if p.out.HeaderDigest {
		binary.LittleEndian.PutUint32(b[n:], fabrics.Digest(b[:n]))
	}
	copy(b[f.DataOffset:], data)
	if f.HasDigest {
		binary.LittleEndian.PutUint32(b[f.DataOffset+f.DataLength:], fabrics.Digest(data))
	}
	_, err := p.conn.Write(b)
	return err
}

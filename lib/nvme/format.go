// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// This file prints queue entries on one line of key=value fields, for people and scripts.

package nvme

import (
	"fmt"
	"strings"
)

// FormatSQE describes a submission queue entry on one line: key=value fields separated by one blank, values without blanks, always in the
// same order. First op, opc, cid, nsid, and fuse if the command is one of a fused pair; then the fields of the command, or its dwords where
// the command is not known here; then the data pointer, prp1 and prp2 or those of an SGL descriptor. Sizes and counts are decimal and not
// zero-based; addresses, opcodes and other identifiers of a byte are hexadecimal.
func FormatSQE(admin bool, e *SQE) string {
	var b strings.Builder
	op := IOOpcode(e.Opcode).String()
	if admin {
		op = AdminOpcode(e.Opcode).String()
	}
	fmt.Fprintf(&b, "op=%s opc=0x%02x cid=%d nsid=%d", word(op), e.Opcode, e.CID, e.NSID)
	switch e.Fuse() {
	case FuseNone:
	case FuseFirst:
		b.WriteString(" fuse=first")
	case FuseSecond:
		b.WriteString(" fuse=second")
	default:
		b.WriteString(" fuse=reserved")
	}
	if admin {
		formatAdmin(&b, e)
	} else {
		formatIO(&b, e)
	}
	formatDataPointer(&b, e)
	return b.String()
}

func formatAdmin(b *strings.Builder, e *SQE) {
	switch AdminOpcode(e.Opcode) {
	case AdminDeleteIOSQ, AdminDeleteIOCQ:
		fmt.Fprintf(b, " qid=%d", e.DeleteQID())
	case AdminCreateIOSQ:
		c := e.CreateSQ()
		fmt.Fprintf(b, " qid=%d entries=%d pc=%d qprio=%d cqid=%d nvmsetid=%d",
			c.QID, uint32(c.QSIZE)+1, bit(c.PC), c.QPRIO, c.CQID, c.NVMSETID)
	case AdminCreateIOCQ:
		c := e.CreateCQ()
		fmt.Fprintf(b, " qid=%d entries=%d pc=%d ien=%d iv=%d", c.QID, uint32(c.QSIZE)+1, bit(c.PC), bit(c.IEN), c.IV)
	case AdminGetLogPage:
		c := e.GetLogPage()
		fmt.Fprintf(b, " lid=0x%02x lsp=0x%02x rae=%d bytes=%d lsi=%d lpo=%d ot=%d csi=%d",
			uint8(c.LID), c.LSP, bit(c.RAE), c.Bytes(), c.LSI, c.LPO, bit(c.OT), c.CSI)
	case AdminIdentify:
		c := e.Identify()
		fmt.Fprintf(b, " cns=0x%02x cntid=%d cnssid=%d csi=%d", uint8(c.CNS), c.CNTID, c.CNSSID, c.CSI)
	case AdminAbort:
		c := e.Abort()
		fmt.Fprintf(b, " sqid=%d abort_cid=%d", c.SQID, c.CID)
	case AdminSetFeatures:
		c := e.SetFeatures()
		fmt.Fprintf(b, " fid=0x%02x sv=%d cdw11=0x%08x cdw12=0x%08x", uint8(c.FID), bit(c.SV), c.Value, e.CDW12)
	case AdminGetFeatures:
		c := e.GetFeatures()
		fmt.Fprintf(b, " fid=0x%02x sel=%d cdw11=0x%08x", uint8(c.FID), c.SEL, c.Value)
	case AdminFormatNVM:
		c := e.FormatNVM()
		fmt.Fprintf(b, " lbaf=%d mset=%d pi=%d pil=%d ses=%d", c.LBAF, bit(c.MSET), c.PI, bit(c.PIL), c.SES)
	case AdminAsyncEventRequest, AdminKeepAlive, AdminDoorbellBufferConfig:
	default:
		formatDwords(b, e)
	}
}

func formatIO(b *strings.Builder, e *SQE) {
	switch IOOpcode(e.Opcode) {
	case IOFlush:
	case IORead, IOWrite, IOCompare, IOVerify, IOWriteUncorrectable:
		c := e.RW()
		fmt.Fprintf(b, " lba=%d blocks=%d fua=%d lr=%d prinfo=0x%x", c.SLBA, c.Blocks(), bit(c.FUA), bit(c.LR), c.PRINFO)
	case IOWriteZeroes:
		c := e.RW()
		fmt.Fprintf(b, " lba=%d blocks=%d fua=%d lr=%d prinfo=0x%x deac=%d",
			c.SLBA, c.Blocks(), bit(c.FUA), bit(c.LR), c.PRINFO, bit(c.DEAC))
	case IODatasetManagement:
		c := e.DatasetManagement()
		fmt.Fprintf(b, " ranges=%d idr=%d idw=%d ad=%d", c.Ranges(), bit(c.IDR), bit(c.IDW), bit(c.AD))
	case IOCopy:
		c := e.Copy()
		fmt.Fprintf(b, " lba=%d ranges=%d format=%d fua=%d lr=%d", c.SDLBA, c.Ranges(), c.Format, bit(c.FUA), bit(c.LR))
	default:
		formatDwords(b, e)
	}
}

func formatDwords(b *strings.Builder, e *SQE) {
	for i, v := range [...]uint32{e.CDW10, e.CDW11, e.CDW12, e.CDW13, e.CDW14, e.CDW15} {
		fmt.Fprintf(b, " cdw%d=0x%08x", 10+i, v)
	}
}

func formatDataPointer(b *strings.Builder, e *SQE) {
	switch e.PSDT() {
	case PSDTPRP:
		fmt.Fprintf(b, " prp1=0x%x prp2=0x%x", e.PRP1, e.PRP2)
	case PSDTSGL, PSDTSGLMPTRSGL:
		d := e.SGL1()
		fmt.Fprintf(b, " sgl_type=0x%x sgl_subtype=0x%x sgl_address=0x%x", uint8(d.Type()), uint8(d.Subtype()), d.Address)
		if d.Type() == SGLKeyedDataBlock {
			fmt.Fprintf(b, " sgl_length=%d sgl_key=0x%08x", d.KeyedLength(), d.Key())
		} else {
			fmt.Fprintf(b, " sgl_length=%d", d.Length)
		}
	default:
		fmt.Fprintf(b, " psdt=reserved dptr0=0x%x dptr1=0x%x", e.PRP1, e.PRP2)
	}
	if e.MPTR != 0 {
		fmt.Fprintf(b, " mptr=0x%x", e.MPTR)
	}
}

// FormatCQE describes a completion queue entry on one line, in the manner of FormatSQE.
func FormatCQE(e *CQE) string {
	s := e.StatusField()
	return fmt.Sprintf("sqid=%d sqhd=%d cid=%d phase=%d status=%s sct=0x%x sc=0x%02x crd=%d more=%d dnr=%d dw0=0x%08x dw1=0x%08x",
		e.SQID, e.SQHead, e.CID, e.Status&1, word(s.String()), s.SCT(), s.SC(), s.CRD(), bit(s.More()), bit(s.DNR()), e.DW0, e.DW1)
}

// word turns a name of the specification into one lower case word: "Delete I/O Submission Queue" into delete_io_submission_queue.
func word(name string) string {
	return strings.ToLower(strings.NewReplacer(" ", "_", "/", "").Replace(name))
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package host

import "github.com/leapio/leapio/lib/fabrics"

// maxR2Ts is how many R2Ts of a command may be outstanding (MAXR2T, not minus
// one): those whose data has not been sent in full.
const maxR2Ts = 16

// maxSpans is how many pieces R2Ts that come in no order may leave a command's
// data in.
const maxSpans = 32

// span is bytes of a command's data, from one offset up to another.
type span struct{ from, to uint32 }

// spans are bytes of a command's data: in order, with something between any two.
type spans struct {
	list [maxSpans]span
	n    int
}

// add adds bytes. A violation: some of them are there already, or it takes more
// pieces than there may be.
func (s *spans) add(from, to uint32) fabrics.Violation {
	i := 0
	for i < s.n && s.list[i].from < from {
		i++
	}
	left, right := i > 0 && s.list[i-1].to == from, i < s.n && s.list[i].from == to
	switch {
	case i > 0 && s.list[i-1].to > from, i < s.n && s.list[i].from < to:
		return outOfRange
	case left && right:
		s.list[i-1].to = s.list[i].to
		s.n--
		copy(s.list[i:], s.list[i+1:s.n+1])
	case left:
		s.list[i-1].to = to
	case right:
		s.list[i].from = from
	case s.n == maxSpans:
		return tooManyR2Ts
	default:
		copy(s.list[i+1:s.n+1], s.list[i:s.n])
		s.list[i] = span{from, to}
		s.n++
	}
	return fabrics.Violation{}
}

// all reports whether these are the first size bytes.
func (s *spans) all(size int) bool {
	return size == 0 || s.n == 1 && s.list[0] == span{0, uint32(size)}
}

// transfer is what R2Ts have asked for of a command's data: each part once.
type transfer struct {
	asked spans
	r2ts  [maxR2Ts]struct {
		span        // what is left to be sent
		ttag uint16 // the controller's name for it
	}
	first, count int // r2ts is a ring
}

// reset has nothing asked for, or all n bytes, which are in the capsule.
func (t *transfer) reset(n uint32) {
	t.asked.n, t.first, t.count = 0, 0, 0
	if n > 0 {
		t.asked.list[0], t.asked.n = span{0, n}, 1
	}
}

// take takes an R2T for a command with size bytes of data.
func (t *transfer) take(r *fabrics.R2T, size int) fabrics.Violation {
	end := uint64(r.R2TO) + uint64(r.R2TL)
	switch {
	case t.count == maxR2Ts:
		return tooManyR2Ts
	case r.R2TL == 0 || end > uint64(size):
		return outOfRange
	}
	if v := t.asked.add(r.R2TO, uint32(end)); v.Bad() {
		return v
	}
	x := &t.r2ts[(t.first+t.count)%maxR2Ts]
	x.span, x.ttag = span{r.R2TO, uint32(end)}, r.TTAG
	t.count++
	return fabrics.Violation{}
}

// next takes what is to be sent next, at most limit bytes: the R2Ts are answered
// in the order they came, each from its beginning on. There is something.
func (t *transfer) next(limit uint32) (s span, ttag uint16, last bool) {
	x := &t.r2ts[t.first]
	s = span{x.from, min(x.to, x.from+min(limit, x.to-x.from))}
	x.from = s.to
	if last = x.from == x.to; last {
		t.first = (t.first + 1) % maxR2Ts
		t.count--
	}
	return s, x.ttag, last
}

// done reports whether all size bytes have been asked for, and taken.
func (t *transfer) done(size int) bool { return t.count == 0 && t.asked.all(size) }

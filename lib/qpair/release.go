// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build !amd64 || race

package qpair

import "sync/atomic"

// Release stores are Go's atomic ones where that costs nothing (arm64 has an
// instruction), and for the race detector.

func release32(p *uint32, v uint32) { atomic.StoreUint32(p, v) }

func release64(p *uint64, v uint64) { atomic.StoreUint64(p, v) }

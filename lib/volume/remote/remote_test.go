// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package remote

import (
	"fmt"
	"testing"

	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

// TestSuite runs the promises of volumes over loopback, without digests over one
// connection, and with both over several.
func TestSuite(t *testing.T) {
	for digest, queues := range map[string]string{"off": "1", "on": "3"} {
		t.Run("digest="+digest, func(t *testing.T) {
			volumetest.Suite(t, volumetest.Subject{
				Make: func(t *testing.T) func(volume.Shape) volume.Volume {
					var s *server
					return func(shape volume.Shape) volume.Volume {
						if s == nil {
							s = newServer(t, shape)
						}
						return open(t, spec(s.addr, "hdr-digest", digest, "data-digest", digest, "queues", queues))
					}
				},
				Poller: cfg,
			})
		})
	}
}

func BenchmarkRemote(b *testing.B) {
	s := newServer(b, volume.Shape{Size: 64 << 20, Block: 4096})
	for _, op := range []volume.Op{volume.Read, volume.Write} {
		for _, size := range []uint64{4 << 10, 128 << 10} {
			for _, depth := range []int{1, 32, 128} {
				b.Run(fmt.Sprintf("%s/%dk/qd=%d", op, size>>10, depth), func(b *testing.B) {
					volumetest.Bench(b, open(b, spec(s.addr)), cfg, op, size, depth)
				})
			}
		}
	}
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package null

import (
	"fmt"
	"testing"

	"github.com/leapio/leapio/lib/poller"
	"github.com/leapio/leapio/lib/volume"
	"github.com/leapio/leapio/lib/volume/volumetest"
)

func open(t testing.TB, size uint64, block uint32) volume.Volume {
	t.Helper()
	v, err := Kind.Make(t.Context(), volumetest.NewEnv(t, t.TempDir()), &volume.Spec{
		Name: "n", Kind: "null",
		Options: map[string]string{"size": fmt.Sprint(size), "block": fmt.Sprint(block)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestSuite(t *testing.T) {
	volumetest.Suite(t, volumetest.Subject{
		Make: func(t *testing.T) func(volume.Shape) volume.Volume {
			return func(s volume.Shape) volume.Volume { return open(t, s.Size, s.Block) }
		},
		Poller:      poller.Config{Name: "test", CPU: -1, Fence: -1},
		MovesNoData: true,
	})
}

func BenchmarkRead4K(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			volumetest.Bench(b, open(b, 4<<20, 4096), poller.Config{Name: "bench", CPU: -1, Fence: -1}, volume.Read, 4096, depth)
		})
	}
}

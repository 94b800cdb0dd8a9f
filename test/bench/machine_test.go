// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package bench_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// machine says in a line what this is measured on.
func machine() string {
	model := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	var u unix.Utsname
	release := ""
	if unix.Uname(&u) == nil {
		release = unix.ByteSliceToString(u.Release[:])
	}
	return fmt.Sprintf("%d CPUs, %s, Linux %s, %s; a cache line there and back between the two cores: %v",
		runtime.NumCPU(), model, release, runtime.Version(), pingPong())
}

// pingPong is how long a cache line takes from the core of the servers to that of
// the client and back: one of the limits of what two cores can do together.
func pingPong() time.Duration {
	const rounds = 200_000
	var word struct {
		_ [64]byte
		n atomic.Uint32
		_ [64]byte
	}
	done := make(chan time.Duration)
	player := func(cpu int, first uint32) {
		runtime.LockOSThread() // which ends with the goroutine: the thread is bound to a CPU
		var set unix.CPUSet
		set.Set(cpu)
		_ = unix.SchedSetaffinity(0, &set)
		start := time.Now()
		for n := first; n < 2*rounds; n += 2 {
			for word.n.Load() != n {
			}
			word.n.Store(n + 1)
		}
		done <- time.Since(start) / rounds
	}
	go player(atoi(serverCPU), 0)
	go player(atoi(clientCPU), 1)
	<-done
	return <-done
}

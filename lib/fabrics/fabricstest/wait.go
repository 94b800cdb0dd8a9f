// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package fabricstest

import (
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// WaitFor waits until f reports true, or ends the test when that has taken too long.
func WaitFor(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waiting for %s: in vain", what)
		}
	}
}

// networked has the Go runtime open the descriptors that it needs for networks, which it keeps.
var networked = sync.OnceValue(func() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	return l.Close()
})

// Descriptors counts the open descriptors of this process, the Go runtime's own included.
func Descriptors(t testing.TB) int {
	t.Helper()
	if err := networked(); err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package uring

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// holderEnv makes this test binary a process that holds a pipe in a ring, for
// TestFenceKill.
const holderEnv = "LEAP_TEST_URING_HOLDER"

func TestMain(m *testing.M) {
	if os.Getenv(holderEnv) != "" {
		if err := holdPipe(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	if name := os.Getenv(writerEnv); name != "" {
		if err := writeForEver(name); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// holdPipe registers descriptor 3, the write end of a pipe, closes it, has
// operations in flight and waits to be killed.
func holdPipe() error {
	runtime.LockOSThread()
	r, err := New(Config{Entries: 8, FixedFiles: 1})
	if err != nil {
		return err
	}
	if _, err := r.RegisterFile(3); err != nil {
		return err
	}
	if err := unix.Close(3); err != nil {
		return err
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	for range r.Cap() {
		if _, err := r.Read(FD(p[0]), iov(make([]byte, 8)), -1, 0, &counter{}); err != nil {
			return err
		}
	}
	if _, err := r.Submit(); err != nil {
		return err
	}
	fmt.Println("ready")
	for { // killed by the test
		unix.Pause()
	}
}

// hungUp waits up to ms for the writers of a pipe to be gone.
func hungUp(t *testing.T, r *os.File, ms int) bool {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(fd(r)), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, ms)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return n == 1 && p[0].Revents&unix.POLLHUP != 0
	}
}

// A pipe in the fixed-file table hangs up when the ring is gone, not before.
func TestFenceClose(t *testing.T) {
	eachSetup(t, Config{Entries: 4, FixedFiles: 1}, func(t *testing.T, r *Ring) {
		pr, pw := pipe(t)
		if _, err := r.RegisterFile(fd(pw)); err != nil {
			t.Fatal(err)
		}
		pw.Close()
		if hungUp(t, pr, 50) {
			t.Fatal("hung up while the ring lives")
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if !hungUp(t, pr, 20_000) {
			t.Error("silent after the ring was closed")
		}
	})
}

// The same for a process that is killed with operations in flight.
func TestFenceKill(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := New(Config{Entries: 1, FixedFiles: 1})
	requireRing(t, err)
	r.Close()

	pr, pw := pipe(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holderEnv+"=1")
	cmd.ExtraFiles = []*os.File{pw}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	pw.Close()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("holder said %q, %v", line, err)
	}
	if hungUp(t, pr, 50) {
		t.Fatal("hung up while the holder lives")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if !hungUp(t, pr, 20_000) {
		t.Error("silent after the holder was killed")
	}
}

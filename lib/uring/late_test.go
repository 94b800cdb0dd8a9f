// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package uring

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// writerEnv makes this test binary a process that writes to the file of that
// name, for TestLateWrites.
const writerEnv = "LEAP_TEST_URING_WRITER"

// The file of TestLateWrites: all its pieces are under way at a time.
const (
	latePiece  = 2 << 20
	latePieces = 128
	lateBlock  = 4096 // of the writer that comes second, the last of each piece
)

// aligned returns memory for direct I/O.
func aligned(n int, fill byte) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	copy(b, bytes.Repeat([]byte{fill}, n))
	return b, nil
}

// rewriter writes its piece again whenever that is done.
type rewriter struct {
	ring  *Ring
	file  int
	iov   []unix.Iovec
	off   int64
	wrong *int32 // a result that is not a whole piece
}

func (w *rewriter) submit() error {
	_, err := w.ring.Write(FD(w.file), w.iov, w.off, 0, w)
	return err
}

func (w *rewriter) Done(res int32, _ uint32) {
	if res != latePiece || w.submit() != nil {
		*w.wrong = res
	}
}

// writeForEver holds descriptor 3, the write end of a pipe, in its ring alone, as
// a runtime does, and writes ones to the file until it is killed.
func writeForEver(name string) error {
	runtime.LockOSThread()
	r, err := New(Config{Entries: latePieces, FixedFiles: 1})
	if err != nil {
		return err
	}
	if _, err := r.RegisterFile(3); err != nil {
		return err
	}
	if err := unix.Close(3); err != nil {
		return err
	}
	file, err := unix.Open(name, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ones, err := aligned(latePiece, 1)
	if err != nil {
		return err
	}
	var wrong int32
	for i := range latePieces {
		w := &rewriter{ring: r, file: file, iov: iov(ones), off: int64(i) * latePiece, wrong: &wrong}
		if err := w.submit(); err != nil {
			return err
		}
	}
	for ready := false; wrong == 0; {
		if _, err := r.Submit(); err != nil {
			return err
		}
		n, err := r.Reap(latePieces)
		if err != nil {
			return err
		}
		if n > 0 && !ready {
			fmt.Println("ready")
			ready = true
		}
	}
	return fmt.Errorf("a write ended with %d", wrong)
}

// lateFile makes the file, with all its blocks written, and returns it for direct
// I/O.
func lateFile(t *testing.T) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "data")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if err != nil {
		t.Skipf("not run: direct I/O: %v", err)
	}
	t.Cleanup(func() { f.Close() })
	zeros, err := aligned(latePiece, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(zeros)
	for i := range latePieces {
		if _, err := f.WriteAt(zeros, int64(i)*latePiece); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	return f
}

// killWriter has a process write to the file, kills it and returns when it has been
// reaped, with the read end of its pipe.
func killWriter(t *testing.T, f *os.File, after time.Duration) (fence *os.File) {
	t.Helper()
	pr, pw := pipe(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writerEnv+"="+f.Name())
	cmd.ExtraFiles = []*os.File{pw}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pw.Close()
	line, err := bufio.NewReader(out).ReadString('\n')
	time.Sleep(after)
	killed := cmd.Process.Kill()
	_ = cmd.Wait() // SIGKILL
	if line != "ready\n" || killed != nil {
		t.Fatalf("the writer said %q, %v; killing it: %v", line, err, killed)
	}
	return pr
}

// TestLateWrites: what a process had under way when it was killed still reaches
// the disk after it has been reaped, over what the next one has written. Once
// its fence has hung up, nothing does. That there are late writes without the
// fence depends on the disk, and is told; that there are none with it is held.
func TestLateWrites(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := New(Config{Entries: 1, FixedFiles: 1})
	requireRing(t, err)
	r.Close()
	f := lateFile(t)
	twos, err := aligned(lateBlock, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(twos)
	found, err := aligned(lateBlock, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(found)
	kills := 10
	if testing.Short() {
		kills = 2
	}
	for _, fenced := range []bool{false, true} {
		losers, lost, latest := 0, 0, time.Duration(0)
		for i := range kills {
			fence := killWriter(t, f, time.Duration(i*7%31)*time.Millisecond)
			reaped := time.Now()
			if fenced && !hungUp(t, fence, 60_000) {
				t.Fatal("the fence does not hang up")
			}
			for i := range latePieces {
				if _, err := f.WriteAt(twos, int64(i+1)*latePiece-lateBlock); err != nil {
					t.Fatal(err)
				}
			}
			if !hungUp(t, fence, 60_000) {
				t.Fatal("the fence does not hang up")
			}
			latest = max(latest, time.Since(reaped))
			time.Sleep(200 * time.Millisecond) // for what might come even now
			late := 0
			for i := range latePieces {
				if _, err := f.ReadAt(found, int64(i+1)*latePiece-lateBlock); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(found, twos) {
					late++
				}
			}
			if late > 0 {
				losers, lost = losers+1, lost+late
			}
		}
		if fenced && lost > 0 {
			t.Errorf("with the fence: %d blocks were overwritten by a process that was gone, after %d of %d kills", lost, losers, kills)
		}
		t.Logf("fence %t: after %d of %d kills, %d of %d blocks were overwritten; the fence hung up and all was written at most %v after the process had been reaped",
			fenced, losers, kills, lost, kills*latePieces, latest.Round(time.Millisecond))
	}
}

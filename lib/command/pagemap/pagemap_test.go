// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/pagemap"
)

func TestParseAddress(t *testing.T) {
	for word, want := range map[string]uint64{"0x0": 0, "0xffffffffffffffff": 1<<64 - 1, "0x7F": 127} {
		if got, err := parseAddress(word); err != nil || got != want {
			t.Errorf("%q is %#x, %v", word, got, err)
		}
	}
	for _, word := range []string{"", "0", "10", "ff", "0x", "0X10", "-0x1", "0x-1", "0x+1", "0x1_0", "0x10000000000000000", "0x 1"} {
		if got, err := parseAddress(word); fault.KindOf(err) != fault.Usage {
			t.Errorf("%q is %#x, %v, want a usage fault", word, got, err)
		}
	}
}

// TestWatch: pages of the test itself move; what happens to them is known.
func TestWatch(t *testing.T) {
	frames, err := openFrames()
	if err != nil {
		t.Fatal(err)
	}
	if frames == nil {
		t.Skip("page frame numbers are for root")
	}
	defer frames.Close()
	p, err := pagemap.Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()

	path := t.TempDir() + "/watched"
	page := int(pagemap.PageSize())
	if err := os.WriteFile(path, make([]byte, 8*page), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, 8*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	for n := range 4 {
		if b[n*page] != 0 {
			t.Fatal("the file is not zero")
		}
	}
	b[2*page] = 1                                                              // copied already
	if err := unix.Madvise(b[6*page:7*page], unix.MADV_DONTNEED); err != nil { // the kernel maps those around a fault, too
		t.Fatal(err)
	}

	var got []string
	base := uint64(0)
	w := &watcher{process: p, frames: frames, name: "watched", print: func(c change) error {
		got = append(got, fmt.Sprintf("%d %s", (c.Addr-base)/uint64(page), c.Change))
		if (c.Change == changeCopied) != (c.To != nil) || c.From == nil {
			t.Errorf("%+v", c)
		}
		return nil
	}}
	before, err := w.look(nil)
	if err != nil {
		t.Fatal(err)
	}
	base = before[0].addr
	b[1*page] = 1                                                              // copied
	if err := unix.Madvise(b[2*page:3*page], unix.MADV_DONTNEED); err != nil { // dropped
		t.Fatal(err)
	}
	b[6*page] = 1 // new
	now, err := w.look(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.compare(before, now, time.Now()); err != nil {
		t.Fatal(err)
	}
	if want := "1 copied, 2 dropped"; strings.Join(got, ", ") != want {
		t.Errorf("changes: %s, want %s", strings.Join(got, ", "), want)
	}
	got = nil
	if err := w.compare(now, now, time.Now()); err != nil || len(got) > 0 {
		t.Errorf("changes without a change: %q, %v", got, err)
	}
	w.name = "nosuch"
	if _, err := w.look(nil); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a mapping that is not there: %v", err)
	}
}

// TestWhat: what cannot be made to happen here.
func TestWhat(t *testing.T) {
	const present, swapped, file = 1 << 63, 1 << 62, 1 << 61
	w := &watcher{}
	for _, tt := range []struct {
		before, now pagemap.Entry
		want        string
	}{
		{present | 5, present | 5, ""},
		{present | 5, present | 5 | 1<<55, ""}, // soft-dirty
		{present | 5, swapped | 1, changeOut},
		{swapped | 1, present | 5, changeIn},
		{swapped | 1, swapped | 2, ""},
		{present | 5, 0, changeDropped},
		{swapped | 1, 0, changeDropped},
		{present | 5, swapped | 30, changeSpecial},
		{swapped | 30, present | 5, changeSpecial},
		{swapped | 30, swapped | 30, ""},
		{present, present, ""}, // hidden
		{present | file, present | file, ""},
	} {
		if got := w.what(tt.before, tt.now); got != tt.want {
			t.Errorf("%#x to %#x is %q, want %q", uint64(tt.before), uint64(tt.now), got, tt.want)
		}
	}
}

func TestRegion(t *testing.T) {
	g := &guest{table: api.PortRegions{Regions: []api.Region{{Addr: 0, Size: 0x1000}, {Addr: 1 << 32, Size: 0x2000}, {Addr: 1<<64 - 0x1000, Size: 0x1000}}}}
	for addr, want := range map[uint64]int{0: 0, 0xfff: 0, 0x1000: -1, 1<<32 - 1: -1, 1 << 32: 1, 1<<32 + 0x1fff: 1, 1<<32 + 0x2000: -1, 1<<64 - 1: 2} {
		got := g.region(addr)
		if want < 0 && got != nil || want >= 0 && got != &g.table.Regions[want] {
			t.Errorf("%#x is in %+v, want region %d", addr, got, want)
		}
	}
	r := &api.Region{Device: unix.Mkdev(8, 3), Inode: 7}
	v := pagemap.VMA{Start: 0x10000, End: 0x12000, Perms: "rw-s", Offset: 0x4000, Major: 8, Minor: 3, Inode: 7}
	for offset, want := range map[uint64]bool{0x3fff: false, 0x4000: true, 0x5fff: true, 0x6000: false} {
		if covers(&v, r, offset) != want {
			t.Errorf("offset %#x is covered: %t, want %t", offset, !want, want)
		}
	}
	v.Perms = "rw-p"
	if covers(&v, r, 0x4000) {
		t.Error("a private mapping is taken for the guest's memory")
	}
}

// TestEachLine: the output is written before there is a wait for more input,
// and not for each line.
func TestEachLine(t *testing.T) {
	in, feed := io.Pipe()
	idle, lines := 0, ""
	asked := make(chan int)
	done := make(chan error)
	go func() {
		done <- eachLine(context.Background(), in, func() error { idle++; asked <- idle; return nil }, func(s string) error { lines += s + ","; return nil })
	}()
	<-asked
	fmt.Fprint(feed, "a\n b \n\nc\n")
	<-asked
	fmt.Fprint(feed, "d")
	feed.Close()
	if err := <-done; err != nil || lines != "a,b,c,d," || idle != 2 {
		t.Errorf("%q, idle %d times, %v", lines, idle, err)
	}
	bad := errors.New("bad")
	err := eachLine(context.Background(), strings.NewReader("a\nb\n"), func() error { return nil }, func(s string) error {
		if s == "b" {
			return bad
		}
		return nil
	})
	if !errors.Is(err, bad) || !strings.HasPrefix(err.Error(), "line 2: ") {
		t.Errorf("%v", err)
	}
}

// BenchmarkPipe has leap-pagemap va answer a million addresses from a pipe; it
// reports addresses in a second.
func BenchmarkPipe(b *testing.B) {
	const addresses = 1_000_000
	buffer, err := pagemap.NewBuffer(64<<20, pagemap.PageSize())
	if err != nil {
		b.Skip(err)
	}
	defer buffer.Close()
	var in bytes.Buffer
	for n := range uint64(addresses) {
		fmt.Fprintf(&in, "%#x\n", buffer.Addr()+n*4096%uint64(len(buffer.Bytes)))
	}
	for b.Loop() {
		r, w, err := os.Pipe()
		if err != nil {
			b.Fatal(err)
		}
		go func() {
			w.Write(in.Bytes())
			w.Close()
		}()
		var said strings.Builder
		stdio := cli.IO{Stdin: r, Stdout: io.Discard, Stderr: &said, Getenv: func(string) string { return "" }}
		if code := cli.Run(context.Background(), Command(), []string{"leap-pagemap", "va", fmt.Sprint(os.Getpid()), "-", "-o", "tsv"}, stdio); code != 0 {
			b.Fatal(code, said.String())
		}
		r.Close()
	}
	b.ReportMetric(addresses*float64(b.N)/b.Elapsed().Seconds(), "addresses/s")
}

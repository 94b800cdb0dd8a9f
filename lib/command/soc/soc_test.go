// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
)

// TestMain makes this binary be a daemon that never ends by itself, when
// TestSignals starts it.
func TestMain(m *testing.M) {
	if os.Getenv("LEAP_TEST_SIGNALS") == "" {
		os.Exit(m.Run())
	}
	ctx, stop := untilSignal(context.Background(), slog.New(slog.DiscardHandler))
	defer stop()
	fmt.Println("ready")
	<-ctx.Done()
	fmt.Println("ending")
	select {}
}

// READ-ONLY is for protection of either kind.
func TestReadOnlyColumn(t *testing.T) {
	column := namespaceColumns[len(namespaceColumns)-1]
	for _, ns := range []api.Namespace{{}, {ReadOnly: true}, {WriteProtected: true}, {ReadOnly: true, WriteProtected: true}} {
		if got, want := column.Value(ns), ns.ReadOnly || ns.WriteProtected; got != want || column.Name != "READ-ONLY" {
			t.Errorf("%s of %+v: %v, want %v", column.Name, ns, got, want)
		}
	}
}

// HUP does nothing, the first TERM ends the context, the second one the process.
func TestSignals(t *testing.T) {
	for _, sig := range []os.Signal{unix.SIGTERM, unix.SIGINT} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "LEAP_TEST_SIGNALS=1")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		step := func(want string, signals ...os.Signal) {
			t.Helper()
			if lines.Scan(); lines.Text() != want {
				t.Errorf("it says %q, want %q", lines.Text(), want)
			}
			for _, sig := range signals {
				if err := cmd.Process.Signal(sig); err != nil {
					t.Error(err)
				}
			}
		}
		step("ready", unix.SIGHUP, sig)
		step("ending", sig)
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != fault.ExitInterrupted {
			t.Errorf("after two %v: %v, want exit code %d", sig, err, fault.ExitInterrupted)
		}
	}
}

func TestCPUList(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"0", "0"}, {"3,1", "3,1"}, {"0-3,8", "0,1,2,3,8"}, {"5-5", "5"}, {"1023", "1023"},
	} {
		l := cpuList{9}
		if err := l.Set(tt.text); err != nil || l.String() != tt.want {
			t.Errorf("%q: got %s, %v, want %s", tt.text, l.String(), err, tt.want)
		}
	}
	for _, text := range []string{"", ",", "0,", "-", "-1", "1-", "3-1", "1,1", "0-2,1", "1024", "99999999999", "a", "0x1", "1 ", "1-2-3", "0-70000"} {
		l := cpuList{9}
		if err := l.Set(text); err == nil {
			t.Errorf("%q: got %s, want an error", text, l.String())
		} else if l.String() != "9" {
			t.Errorf("%q: changed the list to %s", text, l.String())
		}
	}
}

func FuzzCPUList(f *testing.F) {
	for _, s := range []string{"0", "0-3,8", "1-", "1,,2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var l, again cpuList
		if l.Set(s) != nil {
			return
		}
		if err := again.Set(l.String()); err != nil {
			t.Fatalf("%q: its own text %q: %v", s, l.String(), err)
		}
		if d := cmp.Diff(l, again); d != "" {
			t.Error(d)
		}
	})
}

func TestReached(t *testing.T) {
	for _, tt := range []struct {
		kind, want, now string
		reached         bool
	}{
		{api.KindPort, api.PortEnabled, api.PortEnabled, true},
		{api.KindPort, api.PortEnabled, api.PortAttached, false},
		{api.KindPort, api.PortEnabled, "", false},
		{api.KindPort, stateCreated, api.PortFrozen, true},
		{api.KindPort, stateCreated, stateDeleted, false},
		{api.KindVolume, stateDeleted, stateDeleted, true},
		{api.KindVolume, stateReady, stateCreated, false},
		{api.KindRuntime, stateReady, stateAttached, true},
		{api.KindRuntime, stateAttached, stateReady, false},
	} {
		w := &waiter{kind: tt.kind, state: tt.want}
		if got := w.reached(tt.now); got != tt.reached {
			t.Errorf("%s, waiting for %s: %q reaches it: %v, want %v", tt.kind, tt.want, tt.now, got, tt.reached)
		}
	}
}

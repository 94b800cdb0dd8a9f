// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLogLevels(t *testing.T) {
	for _, tt := range []struct {
		text, back          string
		vfiouser, tcp, rest slog.Level
	}{
		{"debug", "debug", slog.LevelDebug, slog.LevelDebug, slog.LevelDebug},
		{"vfiouser=debug,tcp=info", "info,tcp=info,vfiouser=debug", slog.LevelDebug, slog.LevelInfo, slog.LevelInfo},
		{"warn,tcp=error", "warn,tcp=error", slog.LevelWarn, slog.LevelError, slog.LevelWarn},
		{"tcp=error,warn", "warn,tcp=error", slog.LevelWarn, slog.LevelError, slog.LevelWarn},
	} {
		var l logLevels
		if err := l.Set(tt.text); err != nil {
			t.Errorf("%q: %v", tt.text, err)
			continue
		}
		if a, b, c := l.level("vfiouser"), l.level("tcp"), l.level("other"); a != tt.vfiouser || b != tt.tcp || c != tt.rest {
			t.Errorf("%q: got %v %v %v, want %v %v %v", tt.text, a, b, c, tt.vfiouser, tt.tcp, tt.rest)
		}
		if got := l.String(); got != tt.back {
			t.Errorf("%q: printed as %q, want %q", tt.text, got, tt.back)
		}
	}
	for _, bad := range []string{"", ",", "loud", "tcp=", "=debug", "tcp=loud", "tcp=debug,", "DEBUG", "a b=debug"} {
		var l logLevels
		if err := l.Set(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func FuzzLogLevels(f *testing.F) {
	for _, s := range []string{"debug", "vfiouser=debug,tcp=info", "warn,tcp=error", "=", ",,"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var l, again logLevels
		if l.Set(s) != nil {
			return
		}
		if err := again.Set(l.String()); err != nil || again.String() != l.String() {
			t.Errorf("%q: printed as %q, read as %q, %v", s, l.String(), again.String(), err)
		}
	})
}

func TestLogger(t *testing.T) {
	var errs strings.Builder
	var levels logLevels
	if err := levels.Set("warn,tcp=debug"); err != nil {
		t.Fatal(err)
	}
	l := newLogs(IO{Stderr: &errs, Getenv: func(string) string { return "" }}, levels, false)
	l.logger("tcp").Debug("heard", "port", 4420)
	l.logger("vfiouser").Info("not heard")
	got := errs.String()
	if !strings.HasPrefix(got, "time=") || !strings.HasSuffix(got, " level=DEBUG msg=heard component=tcp port=4420\n") || strings.Count(got, "\n") != 1 {
		t.Errorf("got %q", got)
	}
	l = newLogs(IO{Stderr: &errs, Getenv: func(string) string { return "" }}, logLevels{}, true)
	if !l.logger("x").Enabled(t.Context(), slog.LevelDebug) {
		t.Error("verbose does not mean debug")
	}
}

func TestJournal(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	env := func(string) string { return fmt.Sprintf("%d:%d", st.Dev, st.Ino) }
	l := newLogs(IO{Stderr: file, Getenv: env}, logLevels{all: slog.LevelDebug}, false)
	log := l.logger("tcp").With("a", 1).WithGroup("g")
	log.Debug("d")
	log.Info("i", "level", "mine")
	log.Warn("w\nx")
	log.Error("e")
	got, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	want := "<7>msg=d component=tcp a=1\n<6>msg=i component=tcp a=1 g.level=mine\n<4>msg=\"w\\nx\" component=tcp a=1\n<3>msg=e component=tcp a=1\n"
	if string(got) != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for name, stdio := range map[string]IO{
		"another stream": {Stderr: file, Getenv: func(string) string { return "1:1" }},
		"no journal":     {Stderr: file, Getenv: func(string) string { return "" }},
		"no file":        {Stderr: new(strings.Builder), Getenv: env},
	} {
		if isJournal(stdio) {
			t.Errorf("%s is taken for the journal", name)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
)

// terminal is a pseudo-terminal with a command in it.
type terminal struct {
	t    *testing.T
	ptm  *os.File
	tty  *os.File
	cmd  *exec.Cmd
	exit chan error

	mu  sync.Mutex
	out bytes.Buffer
}

// openTerminal runs a command in a terminal of so many columns and rows.
func (e *place) openTerminal(t *testing.T, cols, rows uint16, env []string, words ...string) *terminal {
	t.Helper()
	ptm, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("not run: no pseudo-terminals: %v", err)
	}
	t.Cleanup(func() { ptm.Close() })
	n, err := unix.IoctlGetInt(int(ptm.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ptm.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(int(ptm.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows})
	}
	if err != nil {
		t.Fatal(err)
	}
	x := &terminal{t: t, ptm: ptm, exit: make(chan error, 1)}
	// Kept open: without a reader of its own the terminal would hang up.
	if x.tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.tty.Close() })
	x.cmd = exec.Command(words[0], words[1:]...)
	x.cmd.Env = append(append(os.Environ(), "LEAP_RUN_DIR="+e.run, "LEAP_STATE_DIR="+e.state), env...)
	x.cmd.Stdin, x.cmd.Stdout, x.cmd.Stderr = x.tty, x.tty, x.tty
	x.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	if err := x.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := ptm.Read(b)
			x.mu.Lock()
			x.out.Write(b[:n])
			x.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	go func() { x.exit <- x.cmd.Wait() }()
	return x
}

// raw is all that was written so far.
func (x *terminal) raw() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.out.String()
}

var escape = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]`)

// screen is the latest whole picture, without escape sequences. The terminal
// puts a carriage return of its own before each newline.
func (x *terminal) screen() string {
	const top, end = "\x1b[H", "\x1b[J"
	raw := x.raw()
	i := strings.LastIndex(raw, end)
	if i < 0 {
		return ""
	}
	raw = raw[:i]
	raw = escape.ReplaceAllString(raw[strings.LastIndex(raw, top)+len(top):], "")
	return strings.ReplaceAll(raw, "\r\r\n", "\r\n")
}

// waitFor waits until the picture matches.
func (x *terminal) waitFor(pattern string) string {
	x.t.Helper()
	re := regexp.MustCompile(pattern)
	for end := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		if s := x.screen(); re.MatchString(s) {
			return s
		}
		if time.Now().After(end) {
			x.t.Fatalf("no picture matches %s; the last is:\n%s", pattern, x.screen())
		}
	}
}

// press types keys.
func (x *terminal) press(keys string) {
	x.t.Helper()
	if _, err := x.ptm.WriteString(keys); err != nil {
		x.t.Fatal(err)
	}
}

// ends waits for the command's end with this exit code, and makes sure that the
// terminal is what it was before.
func (x *terminal) ends(code int) {
	x.t.Helper()
	select {
	case err := <-x.exit:
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			x.t.Fatal(err)
		}
	case <-time.After(limit):
		x.t.Fatal("the command does not end")
	}
	if got := x.cmd.ProcessState.ExitCode(); got != code {
		x.t.Errorf("exit code %d, want %d", got, code)
	}
	const leave = "\x1b[?25h\x1b[?1049l"
	for end := time.Now().Add(limit); !strings.HasSuffix(x.raw(), leave); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			x.t.Fatalf("the end of the output is %q, want %q", x.raw()[max(0, len(x.raw())-40):], leave)
		}
	}
	mode, err := unix.IoctlGetTermios(int(x.tty.Fd()), unix.TCGETS)
	if err != nil {
		x.t.Fatal(err)
	}
	if mode.Lflag&unix.ICANON == 0 || mode.Lflag&unix.ECHO == 0 {
		x.t.Errorf("the terminal is left without lines or echo: %#x", mode.Lflag)
	}
}

// busy boots a guest that writes and reads until the test ends.
func (e *place) busy(t *testing.T, port string) {
	t.Helper()
	m, err := boot(filepath.Join(e.run, "port", port, "cntrl"))
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := m.check(); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
		m.close()
	})
}

// TestScreen runs what draws on a terminal, in one.
func TestScreen(t *testing.T) {
	e := newPlace(t)
	if _, err := e.sh(t, "leap-wpt run >/dev/null 2>&1 & leap-soc run >/dev/null 2>&1 & leap-soc wait runtime soc attached --timeout 30s &&"+
		"leap-soc volume create d1 mem size=1M && leap-soc volume create d2 mem size=1M && leap-qmap map vm1 d1"); err != nil {
		t.Fatal(err)
	}
	e.busy(t, "vm1")
	t.Run("top", func(t *testing.T) {
		x := e.openTerminal(t, 160, 24, nil, "leap-soc", "top", "--interval", "20ms")
		s := x.waitFor(`(?m)^d1 +[1-9]\d* +[1-9]\S* \S+ +\d\S+s +\d\S+s +\d\S+s +[1-9]`)
		lines := strings.Split(s, "\r\n")
		if !strings.HasPrefix(lines[0], "soc: up ") || !strings.Contains(lines[0], "poller-0 ") || !strings.Contains(lines[0], "garbage collections") {
			t.Errorf("the first line is %q", lines[0])
		}
		if !strings.HasPrefix(lines[3], "NAME ") || !strings.HasPrefix(lines[4], "d1 ") || !strings.HasPrefix(lines[5], "d2 ") {
			t.Errorf("the picture is\n%s", s)
		}
		if !strings.Contains(x.raw(), "\x1b[7mNAME ") {
			t.Error("the heading is not in reverse video")
		}
		x.press("u")
		x.waitFor(`(?m)^vm1/1 +[1-9]`)
		x.press("s")
		x.waitFor(`(?m)^vm1/1 +[1-9]`)
		x.press("n")
		x.waitFor(`by namespace, sorted by name`)
		x.press("vb")
		x.waitFor(`by volume, sorted by bandwidth`)
		x.press("xq")
		x.ends(0)
	})
	t.Run("small", func(t *testing.T) {
		x := e.openTerminal(t, 20, 5, []string{"NO_COLOR=1"}, "leap-soc", "top", "--interval", "20ms", "--sort", "name")
		s := x.waitFor(`(?m)^d1 `)
		lines := strings.Split(s, "\r\n")
		if len(lines) != 5 {
			t.Errorf("%d lines in a terminal of 5:\n%s", len(lines), s)
		}
		for _, line := range lines {
			if len(line) > 20 {
				t.Errorf("line %q in a terminal of 20 columns", line)
			}
		}
		if strings.Contains(x.raw(), "\x1b[7m") {
			t.Error("reverse video in spite of NO_COLOR")
		}
		if err := unix.IoctlSetWinsize(int(x.ptm.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: 160, Row: 24}); err != nil {
			t.Fatal(err)
		}
		x.waitFor(`(?m)^d2 .*0$`)
		x.press("\x03") // Ctrl-C
		x.ends(fault.ExitInterrupted)
	})
	t.Run("terminated", func(t *testing.T) {
		x := e.openTerminal(t, 80, 24, nil, "leap-soc", "top", "d2")
		if s := x.waitFor(`(?m)^d2 `); strings.Contains(s, "d1 ") {
			t.Errorf("it shows what it was not asked for:\n%s", s)
		}
		if err := x.cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		x.ends(fault.ExitInterrupted)
	})
	t.Run("watch", func(t *testing.T) {
		x := e.openTerminal(t, 160, 24, nil, "leap-qmap", "watch", "vm1", "--interval", "20ms")
		x.waitFor(`(?s)^ports: vm1 enabled; key: q.*PORT +STATE +QID .*vm1 +served +1 +1 +\d+ +\d+ +\d+ +\d+ +\d+ +[1-9]\d* +[1-9]\d* `)
		x.press("q")
		x.ends(0)
	})
	t.Run("runtime ends", func(t *testing.T) {
		x := e.openTerminal(t, 80, 24, nil, "leap-soc", "top", "--interval", "20ms")
		x.waitFor(`(?m)^d1 `)
		if _, err := e.sh(t, "kill $(cat "+e.run+"/soc.pid)"); err != nil {
			t.Fatal(err)
		}
		x.waitFor(`(?s)^no answer: .*leap-soc is not running.*\nd1 `)
		if _, err := e.sh(t, "leap-soc run >/dev/null 2>&1 & leap-soc wait runtime soc attached --timeout 30s"); err != nil {
			t.Fatal(err)
		}
		x.waitFor(`(?s)^soc: up .*\nd1 `)
		x.press("q")
		x.ends(0)
	})
}

// TestStatusLine runs what shows on a terminal how it goes, and leaves nothing of
// that there.
func TestStatusLine(t *testing.T) {
	e := newPlace(t)
	url, err := e.sh(t, "leap-wpt run >/dev/null 2>&1 & leap-soc run >/dev/null 2>&1 & leap-soc wait runtime soc attached --timeout 30s &&"+
		"leap-soc volume create d1 mem size=1M >&2 && leap-rdma listen tcp://127.0.0.1:0 d1 --allow any")
	if err != nil {
		t.Fatal(err)
	}
	for _, cols := range []uint16{160, 20} {
		x := e.openTerminal(t, cols, 24, nil, "leap-rdma", "bench", strings.TrimSpace(url), "--time", "1h")
		shown := regexp.MustCompile(`\r[1-9]\S*s  read [^\x1b\r\n]*\x1b\[K`)
		for end := time.Now().Add(limit); !shown.MatchString(x.raw()); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("nothing is shown: %q", x.raw())
			}
		}
		for _, line := range shown.FindAllString(x.raw(), -1) {
			if len(line) > int(cols)-1+len("\r\x1b[K") {
				t.Errorf("%q in a terminal of %d columns", line, cols)
			}
		}
		x.press("\x03") // Ctrl-C
		if err := <-x.exit; err == nil || x.cmd.ProcessState.ExitCode() != fault.ExitInterrupted {
			t.Errorf("it ends with %v", err)
		}
		gone := regexp.MustCompile(`(?s)\r\x1b\[Krandread of .*OP +COMMANDS .*\nwrite `)
		for end := time.Now().Add(limit); !gone.MatchString(x.raw()); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the end is %q", x.raw())
			}
		}
	}
}

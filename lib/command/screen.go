// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command

import (
	"bytes"
	"context"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/cli"
)

// Screen is a terminal used as a whole, on its alternate screen, until Close
// brings back what was there. It belongs to one goroutine.
type Screen struct {
	out   *os.File
	in    int // keys; -1: there are none
	keep  *unix.Termios
	wake  int // eventfd: the context has ended
	plain bool
}

// Sequences that terminals have in common (ECMA-48, xterm).
const (
	enterScreen = "\x1b[?1049h\x1b[?25l" // alternate screen, no cursor
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	toTop       = "\x1b[H"
	endOfLine   = "\x1b[K"
	endOfScreen = "\x1b[J"
	reverse     = "\x1b[7m"
	normal      = "\x1b[m"
)

// OpenScreen takes over the terminal that is the call's standard output. Keys
// come from its standard input, if that is a terminal, too. There is no screen,
// and no error, if standard output is no terminal.
func OpenScreen(call *cli.Call) (*Screen, error) {
	out := call.Terminal()
	if out == nil {
		return nil, nil
	}
	s := &Screen{out: out, in: -1, plain: call.Getenv("NO_COLOR") != ""}
	var err error
	if s.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, err
	}
	if in, ok := call.Stdin.(*os.File); ok {
		s.keys(int(in.Fd()))
	}
	if _, err := out.WriteString(enterScreen); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// keys has every key come as it is pressed, and not show. Those that send
// signals still do.
func (s *Screen) keys(fd int) {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return
	}
	raw := *t
	raw.Lflag &^= unix.ICANON | unix.ECHO
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if unix.IoctlSetTermios(fd, unix.TCSETS, &raw) == nil {
		s.in, s.keep = fd, t
	}
}

// Close brings the terminal back to what it was.
func (s *Screen) Close() {
	_, _ = s.out.WriteString(leaveScreen)
	if s.keep != nil {
		_ = unix.IoctlSetTermios(s.in, unix.TCSETS, s.keep)
	}
	unix.Close(s.wake)
}

// Draw shows lines from the top, as many and as much of each as there is room
// for. Line number head is shown in reverse video, unless NO_COLOR is set.
func (s *Screen) Draw(lines []string, head int) error {
	width, height := sizeOf(s.out)
	var b bytes.Buffer
	b.WriteString(toTop)
	for i, line := range lines[:min(len(lines), height)] {
		if i > 0 {
			b.WriteString("\r\n")
		}
		line = cut(line, width)
		if i == head && !s.plain {
			line = reverse + line + strings.Repeat(" ", width-utf8.RuneCountInString(line)) + normal
		}
		b.WriteString(line)
		// Behind a full line the cursor is still on its last character.
		if utf8.RuneCountInString(line) < width {
			b.WriteString(endOfLine)
		}
	}
	b.WriteString(endOfScreen)
	_, err := s.out.Write(b.Bytes())
	return err
}

// sizeOf returns how many columns and rows a terminal has.
func sizeOf(terminal *os.File) (width, height int) {
	size, err := unix.IoctlGetWinsize(int(terminal.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 || size.Row == 0 {
		return 80, 24
	}
	return int(size.Col), int(size.Row)
}

// cut returns the first width characters of a line.
func cut(line string, width int) string {
	for i := range line {
		if width == 0 {
			return line[:i]
		}
		width--
	}
	return line
}

// Key waits for a key until a moment, and returns 0 if none came. The error is
// the cause of the context's end.
func (s *Screen) Key(ctx context.Context, until time.Time) (byte, error) {
	defer context.AfterFunc(ctx, func() { _, _ = unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })()
	for {
		left := time.Until(until)
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		if left <= 0 {
			return 0, nil
		}
		fds := []unix.PollFd{{Fd: int32(s.wake), Events: unix.POLLIN}, {Fd: int32(s.in), Events: unix.POLLIN}}
		ts := unix.NsecToTimespec(int64(left))
		if _, err := unix.Ppoll(fds, &ts, nil); err != nil && err != unix.EINTR {
			return 0, err
		}
		if fds[1].Revents == 0 {
			continue
		}
		var key [1]byte
		if n, err := unix.Read(s.in, key[:]); n == 1 && err == nil {
			return key[0], nil
		}
		s.hangUp()
	}
}

// hangUp looks for keys no more: there is nobody to press any.
func (s *Screen) hangUp() {
	if s.keep != nil {
		_ = unix.IoctlSetTermios(s.in, unix.TCSETS, s.keep)
	}
	s.in, s.keep = -1, nil
}

// StatusLine is a line on the terminal that is standard error, written again and
// again. A nil one is no terminal, and shows nothing.
type StatusLine struct{ out *os.File }

// NewStatusLine returns the line of a call.
func NewStatusLine(call *cli.Call) *StatusLine {
	if out := call.StderrTerminal(); out != nil {
		return &StatusLine{out}
	}
	return nil
}

// Show shows a text in the place of the one before, as much of it as there is
// room for.
func (l *StatusLine) Show(text string) {
	if l == nil {
		return
	}
	width, _ := sizeOf(l.out)
	// With the last column full, some terminals have begun the next line. Nobody
	// is left without the result because it cannot be shown how it comes about.
	_, _ = l.out.WriteString("\r" + cut(text, width-1) + endOfLine)
}

// Close leaves nothing of the line, and the cursor at its beginning.
func (l *StatusLine) Close() {
	if l != nil {
		_, _ = l.out.WriteString("\r" + endOfLine)
	}
}

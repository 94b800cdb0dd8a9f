// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
)

// maxLine is the longest line of a guest's output, bytes; longer ones are cut into several.
const maxLine = 16 << 10

// tailLines is how many last lines an error shows.
const tailLines = 40

// lineLog keeps what a guest prints and wakes those who wait for a line of it.
type lineLog struct {
	mu      sync.Mutex
	copy    io.Writer // may be nil
	lines   []string
	read    int           // lines before this one have been returned by, or passed over in, waitLine
	changed chan struct{} // closed at the next change
	ended   error         // why no line will follow
}

func newLineLog(w io.Writer) *lineLog { return &lineLog{copy: w, changed: make(chan struct{})} }

// add appends a line.
func (l *lineLog) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	if l.copy != nil {
		// A reader that has gone away must not stop the guest.
		if _, err := io.WriteString(l.copy, line+"\n"); err != nil {
			l.copy = nil
		}
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// end says that no line will follow, and why.
func (l *lineLog) end(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = cause
	close(l.changed)
	l.changed = make(chan struct{})
}

// waitLine returns the next line that matches re, with its submatches, among those no earlier call has returned or passed over.
func (l *lineLog) waitLine(ctx context.Context, re *regexp.Regexp) ([]string, error) {
	for {
		l.mu.Lock()
		for l.read < len(l.lines) {
			line := l.lines[l.read]
			l.read++
			if match := re.FindStringSubmatch(line); match != nil {
				l.mu.Unlock()
				return match, nil
			}
		}
		changed, ended := l.changed, l.ended
		l.mu.Unlock()
		if ended != nil {
			return nil, fmt.Errorf("waiting for a line like %q: %w", re, ended)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for a line like %q: %w%s", re, ctx.Err(), l.tail())
		}
	}
}

// text returns all lines.
func (l *lineLog) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(append(l.lines[:len(l.lines):len(l.lines)], ""), "\n")
}

// tail formats the last lines for the end of an error message.
func (l *lineLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.lines[max(0, len(l.lines)-tailLines):]
	if len(last) == 0 {
		return "; the guest printed nothing"
	}
	return "; last lines of the guest:\n\t" + strings.Join(last, "\n\t")
}

// readLines calls f with each line of r, without its end, until r ends.
func readLines(r io.Reader, f func(line string)) {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		if len(line) > 0 {
			f(strings.TrimRight(string(line), "\r\n"))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

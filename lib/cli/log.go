// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/units"
)

// logLevels is the value of --log and LEAP_LOG: "debug", "vfiouser=debug,tcp=info"
// or "warn,tcp=debug". Levels are debug, info, warn, error; the default is info.
type logLevels struct {
	all       slog.Level // the zero Level is info
	component map[string]slog.Level
}

// Set reads s. It replaces all that was set before.
func (l *logLevels) Set(s string) error {
	read := logLevels{component: make(map[string]slog.Level)}
	for _, part := range strings.Split(s, ",") {
		name, word, found := strings.Cut(part, "=")
		if !found {
			name, word = "", part
		} else if err := units.CheckName("component", name); err != nil {
			return err
		}
		var level slog.Level
		switch word {
		case "debug":
			level = slog.LevelDebug
		case "info":
			level = slog.LevelInfo
		case "warn":
			level = slog.LevelWarn
		case "error":
			level = slog.LevelError
		default:
			return fmt.Errorf("bad level %q: none of debug, info, warn, error", word)
		}
		if name == "" {
			read.all = level
		} else {
			read.component[name] = level
		}
	}
	*l = read
	return nil
}

// String is the text that Set reads, components in alphabetical order.
func (l *logLevels) String() string {
	parts := []string{strings.ToLower(l.all.String())}
	for name, level := range l.component {
		parts = append(parts, name+"="+strings.ToLower(level.String()))
	}
	slices.Sort(parts[1:])
	return strings.Join(parts, ",")
}

// level is the lowest level that component logs.
func (l *logLevels) level(component string) slog.Level {
	if level, ok := l.component[component]; ok {
		return level
	}
	return l.all
}

// logs makes the loggers of one run.
type logs struct {
	w       io.Writer
	levels  logLevels
	journal bool // stderr is the journal
}

// newLogs has the loggers write to stderr. verbose lowers the general level to
// debug and leaves those of named components alone.
func newLogs(stdio IO, levels logLevels, verbose bool) *logs {
	if verbose {
		levels.all = slog.LevelDebug
	}
	return &logs{w: &lockedWriter{w: stdio.Stderr}, levels: levels, journal: isJournal(stdio)}
}

// lockedWriter lets the loggers of several components share a writer.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// isJournal reports whether stderr is the stream systemd connected to the
// journal: JOURNAL_STREAM names its device and inode (systemd.exec(5)). The
// variable alone does not tell: children inherit it, redirected or not.
func isJournal(stdio IO) bool {
	stream := stdio.Getenv("JOURNAL_STREAM")
	file, ok := stdio.Stderr.(*os.File)
	if stream == "" || !ok {
		return false
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return false
	}
	return stream == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// logger is the log of one component.
func (l *logs) logger(component string) *slog.Logger {
	opts := &slog.HandlerOptions{Level: l.levels.level(component)}
	var h slog.Handler
	if l.journal {
		h = newJournalHandler(l.w, opts)
	} else {
		h = slog.NewTextHandler(l.w, opts)
	}
	return slog.New(h).With("component", component)
}

// journalHandler writes lines that begin with the priority as sd-daemon(3) has
// it and have no time, which the journal adds. It is one TextHandler per
// priority.
type journalHandler [4]slog.Handler

// priorities are the prefixes, by index of journalHandler.
var priorities = [4]string{"<7>", "<6>", "<4>", "<3>"}

// newJournalHandler makes a handler with w behind the prefixes.
func newJournalHandler(w io.Writer, opts *slog.HandlerOptions) journalHandler {
	bare := *opts
	bare.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
			return slog.Attr{}
		}
		return a
	}
	var h journalHandler
	for i, p := range priorities {
		h[i] = slog.NewTextHandler(&prefixWriter{w, p}, &bare)
	}
	return h
}

// priority is the index of the handler for level.
func priority(level slog.Level) int {
	switch {
	case level >= slog.LevelError:
		return 3
	case level >= slog.LevelWarn:
		return 2
	case level >= slog.LevelInfo:
		return 1
	}
	return 0
}

// Enabled reports whether level is logged.
func (h journalHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h[0].Enabled(ctx, level)
}

// Handle writes r with the prefix of its level.
func (h journalHandler) Handle(ctx context.Context, r slog.Record) error {
	return h[priority(r.Level)].Handle(ctx, r)
}

// WithAttrs gives a handler with more attributes.
func (h journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	for i := range h {
		h[i] = h[i].WithAttrs(attrs)
	}
	return h
}

// WithGroup gives a handler whose further attributes are in a group.
func (h journalHandler) WithGroup(name string) slog.Handler {
	for i := range h {
		h[i] = h[i].WithGroup(name)
	}
	return h
}

// prefixWriter puts a prefix before every line; a TextHandler writes one line
// per call.
type prefixWriter struct {
	w      io.Writer
	prefix string
}

func (p *prefixWriter) Write(b []byte) (int, error) {
	if _, err := p.w.Write(append([]byte(p.prefix), b...)); err != nil {
		return 0, err
	}
	return len(b), nil
}

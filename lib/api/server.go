// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// The server of the control API.

package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
)

// Info is what GET /v1/ answers: which daemon this is.
type Info struct {
	Daemon  string `json:"daemon"` // leap-wpt or leap-soc
	Version string `json:"version"`
	PID     int    `json:"pid"`
	API     string `json:"api"` // "v1"
}

// Time limits of the server. A handler may take as long as it wants; only a
// peer that does not send or take its bytes is cut off.
const (
	headerTimeout = 10 * time.Second
	bodyTimeout   = 10 * time.Second
)

// writeTimeout is how long a peer may take to make room for an answer or for a
// line of a stream. Tests shorten it.
var writeTimeout = 10 * time.Second

// contextKey is the type of the keys of values in a call's context.
type contextKey int

const (
	requestKey  contextKey = iota // *http.Request
	callerKey                     // Caller
	stoppingKey                   // context.Context that ends when the server shuts down
)

// Caller is the process at the other end of a call, as the kernel knows it
// (SO_PEERCRED, unix(7)).
type Caller struct {
	UID, GID uint32
	PID      int32
}

// CallerOf gives the caller of the call that ctx belongs to.
func CallerOf(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey).(Caller)
	return c, ok
}

// Param is the part of the call's path that {name} in its pattern matched.
func Param(ctx context.Context, name string) string {
	if r, ok := ctx.Value(requestKey).(*http.Request); ok {
		return r.PathValue(name)
	}
	return ""
}

// NewMux makes a mux that answers GET /v1/ with info, and calls that nobody
// registered with an unsupported fault. info.API is filled in.
func NewMux(info Info) *http.ServeMux {
	info.API = "v1"
	mux := http.NewServeMux()
	Handle(mux, "GET /v1/{$}", func(context.Context, None) (Info, error) { return info, nil })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, fault.Errorf(fault.Unsupported, "", "", "%s %s has no call %s %s",
			info.Daemon, info.Version, r.Method, r.URL.Path))
	})
	return mux
}

// Handle registers f for a pattern of http.ServeMux, such as "POST /v1/ports"
// or "GET /v1/ports/{name}" (see Param and CallerOf). The body is read strictly
// into In, whose method Check() error, if any, is asked first; only GET, DELETE
// and calls whose In is None may have no body, which is then the zero In. The
// context ends when the caller goes away.
func Handle[In, Out any](mux *http.ServeMux, pattern string, f func(ctx context.Context, in In) (Out, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var in In
		if err := readBody(w, r, &in); err != nil {
			writeError(w, err)
			return
		}
		out, err := f(context.WithValue(r.Context(), requestKey, r), in)
		if err != nil {
			writeError(w, err)
			return
		}
		b, err := encode(out)
		if err != nil {
			writeError(w, err)
			return
		}
		write(w, http.StatusOK, b)
	})
}

// HandleText registers f for a pattern as Handle does. What it returns is sent as
// it is, with this media type.
func HandleText(mux *http.ServeMux, pattern, contentType string, f func(ctx context.Context) ([]byte, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := readBody(w, r, &None{}); err != nil {
			writeError(w, err)
			return
		}
		b, err := f(r.Context())
		if err != nil {
			writeError(w, err)
			return
		}
		writeAs(w, http.StatusOK, contentType, b)
	})
}

// HandleStream registers f for a pattern as Handle does. What f sends goes out
// at once, one line of JSON each; items must not have a top-level key "error".
// An error of f before the first item is answered like any other; a later one
// is the last line. The context ends when the caller goes away or the server
// shuts down, and send fails when the caller does not read.
func HandleStream[Out any](mux *http.ServeMux, pattern string, f func(ctx context.Context, send func(Out) error) error) {
	handleStream(mux, pattern, func(ctx context.Context, out *lineWriter) error {
		return f(ctx, func(item Out) error { return out.send(item) })
	})
}

// handleStream is HandleStream for those who start the answer themselves.
func handleStream(mux *http.ServeMux, pattern string, f func(ctx context.Context, out *lineWriter) error) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := readBody(w, r, &None{}); err != nil {
			writeError(w, err)
			return
		}
		ctx, cancel := context.WithCancel(context.WithValue(r.Context(), requestKey, r))
		defer cancel()
		if stopping, ok := ctx.Value(stoppingKey).(context.Context); ok {
			defer context.AfterFunc(stopping, cancel)()
		}
		out := &lineWriter{w: w, rc: http.NewResponseController(w)}
		err := f(ctx, out)
		switch {
		case err == nil || ctx.Err() != nil:
			// The end of ctx is the normal end of a stream. An empty one has
			// the type of a stream as well.
			_ = out.start()
		case !out.started:
			writeError(w, err)
			return
		default:
			// If the caller is the reason, nobody reads this.
			_ = out.line(fault.Encode(err))
		}
		// The end is yet to be written, maybe long after the last line.
		_ = out.extend()
	})
}

// lineWriter writes a stream of JSON lines as an answer.
type lineWriter struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	started bool
}

// start sends the headers, once.
func (l *lineWriter) start() error {
	if l.started {
		return nil
	}
	l.started = true
	l.w.Header().Set("Content-Type", "application/jsonl")
	if err := l.extend(); err != nil {
		return err
	}
	l.w.WriteHeader(http.StatusOK)
	return l.rc.Flush()
}

// extend gives the peer time for what is written next.
func (l *lineWriter) extend() error {
	return l.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
}

// send writes one item.
func (l *lineWriter) send(v any) error {
	b, err := encode(v)
	if err != nil {
		return err
	}
	return l.line(b)
}

// line writes b and a newline, and waits until the kernel has it.
func (l *lineWriter) line(b []byte) error {
	if err := l.start(); err != nil {
		return err
	}
	if err := l.extend(); err != nil {
		return err
	}
	if _, err := l.w.Write(append(b, '\n')); err != nil {
		return err
	}
	return l.rc.Flush()
}

// readBody reads the body of r into in and checks it.
func readBody(w http.ResponseWriter, r *http.Request, in any) error {
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil {
		return err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxRequest))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return fault.Errorf(fault.Usage, "", "", "request: larger than %d bytes", large.Limit)
		}
		return fault.Errorf(fault.Peer, "", "", "request: %w", err)
	}
	// The server reads on to learn when the caller goes away: no deadline.
	if err := rc.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	_, none := in.(*None)
	if len(body) > 0 || !none && r.Method != http.MethodGet && r.Method != http.MethodDelete {
		if err := decode(body, in); err != nil {
			return fault.Errorf(fault.Usage, "", "", "request: %w", err)
		}
	}
	if c, ok := in.(checker); ok {
		return c.Check()
	}
	return nil
}

// statuses has the HTTP status of each kind; others are 500.
var statuses = map[fault.Kind]int{
	fault.Usage:       http.StatusBadRequest,
	fault.Permission:  http.StatusForbidden,
	fault.NotFound:    http.StatusNotFound,
	fault.Exists:      http.StatusConflict,
	fault.Unsupported: http.StatusNotImplemented,
	fault.Peer:        http.StatusBadGateway,
	fault.Interrupted: http.StatusServiceUnavailable,
	fault.Timeout:     http.StatusGatewayTimeout,
}

// writeError answers {"error":{...}} with the status of err's kind.
func writeError(w http.ResponseWriter, err error) {
	status, ok := statuses[fault.KindOf(err)]
	if !ok {
		status = http.StatusInternalServerError
	}
	write(w, status, fault.Encode(err))
}

// write answers b, which is JSON. An error of the connection is the caller's.
func write(w http.ResponseWriter, status int, b []byte) {
	writeAs(w, status, "application/json", append(b, '\n'))
}

// writeAs answers b, which is of any media type.
func writeAs(w http.ResponseWriter, status int, contentType string, b []byte) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

// Server serves the control API of a daemon. It owns its listener.
type Server struct {
	http http.Server
	stop context.CancelFunc
}

// NewServer makes a server of mux. A panic in a handler ends the process: the
// cure for a daemon in an unknown state is a restart.
func NewServer(mux *http.ServeMux) *Server {
	stopping, stop := context.WithCancel(context.Background())
	return &Server{
		stop: stop,
		http: http.Server{
			Handler:           crashing(guarded(mux)),
			ReadHeaderTimeout: headerTimeout,
			MaxHeaderBytes:    64 << 10,
			ErrorLog:          slog.NewLogLogger(slog.Default().Handler(), slog.LevelWarn),
			BaseContext: func(net.Listener) context.Context {
				return context.WithValue(context.Background(), stoppingKey, stopping)
			},
			ConnContext: func(ctx context.Context, c net.Conn) context.Context {
				if caller, ok := peer(c); ok {
					return context.WithValue(ctx, callerKey, caller)
				}
				return ctx
			},
		},
	}
}

// Serve answers calls that come in on l until Shutdown, and then returns nil.
// It closes l.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving %s: %w", l.Addr(), err)
	}
	return nil
}

// Shutdown closes the listener, ends streams, and waits for the calls that are
// under way. Those that are not done when ctx ends lose their connection, which
// ends their contexts, and Shutdown returns an error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	if err := s.http.Shutdown(ctx); err != nil {
		_ = s.http.Close()
		return fmt.Errorf("calls were still under way: %w", err)
	}
	return nil
}

// guarded lets callers who are neither root nor the user of this process read
// only. Who may connect at all is for the socket's permissions to say.
func guarded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, known := CallerOf(r.Context())
		if r.Method != http.MethodGet && (!known || c.UID != 0 && c.UID != uint32(os.Geteuid())) {
			writeError(w, fault.Errorf(fault.Permission, "", "", "user %d may look, but change nothing", c.UID).
				Hint("that is for root and the user of the daemon"))
			return
		}
		h.ServeHTTP(w, r)
	})
}

// crashing runs h where its panics end the process: net/http recovers those of
// its own goroutines.
func crashing(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.ServeHTTP(w, r)
		}()
		<-done
	})
}

// peer asks the kernel who is at the other end of c.
func peer(c net.Conn) (Caller, bool) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return Caller{}, false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return Caller{}, false
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil || err != nil {
		return Caller{}, false
	}
	return Caller{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}, true
}

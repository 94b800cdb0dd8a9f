// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// The client of the control API.

package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
)

// maxAnswer bounds what a client reads of one answer, or of one line of a
// stream, in bytes.
const maxAnswer = 64 << 20

// Client makes calls to one daemon. Each call has a connection of its own, so
// that a daemon that was restarted in between is no error and there is nothing
// to close. It may be used by several goroutines.
type Client struct {
	socket string
	start  string
	http   http.Client
}

// Dial makes a client of the daemon at socket, without connecting to it yet.
// start is the command line that starts the daemon, such as "leap-wpt run".
func Dial(socket, start string) *Client {
	return &Client{
		socket: socket,
		start:  start,
		http: http.Client{
			Transport: &http.Transport{
				DisableKeepAlives: true,
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					var d net.Dialer
					return d.DialContext(ctx, "unix", socket)
				},
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Wpt is a client of leap-wpt.
func (p Paths) Wpt() *Client { return Dial(p.WptSocket(), "leap-wpt run") }

// Runtime is a client of the runtime of this name; empty means DefaultRuntime.
// The error is that of CheckRuntime.
func (p Paths) Runtime(name string) (*Client, error) {
	socket, err := p.RuntimeSocket(name)
	if err != nil {
		return nil, err
	}
	start := "leap-soc run"
	if name != "" && name != DefaultRuntime {
		start += " --name " + name
	}
	return Dial(socket, start), nil
}

// Path joins the parts of a call's path: Path("ports", "vm1") is
// /v1/ports/vm1. Parts may be any text but "" and "/".
func Path(parts ...string) string {
	var b strings.Builder
	b.WriteString("/v1")
	for _, part := range parts {
		b.WriteByte('/')
		if part == "." || part == ".." {
			// A mux would walk them.
			b.WriteString(strings.ReplaceAll(part, ".", "%2E"))
			continue
		}
		b.WriteString(url.PathEscape(part))
	}
	return b.String()
}

// Get reads the answer into out, which is a pointer or nil. Errors of this and
// the other calls are faults: those of the daemon as it sent them; Failure with
// a hint if no daemon runs, Permission if its socket is not ours to use, Peer
// if it went away in between, Timeout or Interrupted if ctx ended.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	return c.call(ctx, http.MethodGet, path, nil, out)
}

// Post sends in, unless it is nil, and reads the answer into out, unless it is
// nil.
func (c *Client) Post(ctx context.Context, path string, in, out any) error {
	return c.call(ctx, http.MethodPost, path, in, out)
}

// Put is Post with the method PUT.
func (c *Client) Put(ctx context.Context, path string, in, out any) error {
	return c.call(ctx, http.MethodPut, path, in, out)
}

// Delete is Post with the method DELETE.
func (c *Client) Delete(ctx context.Context, path string, in, out any) error {
	return c.call(ctx, http.MethodDelete, path, in, out)
}

// GetText returns the answer of a call of HandleText as it is.
func (c *Client) GetText(ctx context.Context, path string) ([]byte, error) {
	return c.answer(ctx, http.MethodGet, path, nil)
}

// answer makes one call and returns what comes.
func (c *Client) answer(ctx context.Context, method, path string, in any) ([]byte, error) {
	resp, err := c.send(ctx, method, path, in)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, c.lost(ctx, err)
	}
	if len(b) > maxAnswer {
		return nil, c.bad("an answer above %d bytes", maxAnswer)
	}
	return b, nil
}

// call makes one call.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	b, err := c.answer(ctx, method, path, in)
	if err != nil {
		return err
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return c.bad("an answer that is no control API: %w", explain(err))
	}
	return nil
}

// send sends a request and gives its answer if the status is 200.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	if err := CheckSocketPath(c.socket); err != nil {
		return nil, err
	}
	var body io.Reader
	if in != nil {
		b, err := encode(in)
		if err != nil {
			return nil, err
		}
		if len(b) > MaxRequest {
			return nil, fault.Errorf(fault.Usage, "", "", "request: larger than %d bytes", MaxRequest)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://leapio"+path, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.lost(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, c.lost(ctx, err)
	}
	e, err := fault.Decode(b)
	if err != nil {
		return nil, c.bad("status %s without an error in it", resp.Status)
	}
	return nil, e
}

// daemon is the name of the daemon: the first word of what starts it.
func (c *Client) daemon() string {
	name, _, _ := strings.Cut(c.start, " ")
	return name
}

// bad is the fault of a daemon that does not speak the control API.
func (c *Client) bad(format string, args ...any) error {
	return fault.Errorf(fault.Peer, "", "", "%s at %s sent %w", c.daemon(), c.socket, fmt.Errorf(format, args...))
}

// lost explains why a call has no answer.
func (c *Client) lost(ctx context.Context, err error) error {
	var dial *net.OpError
	dialing := errors.As(err, &dial) && dial.Op == "dial"
	switch {
	case ctx.Err() != nil:
		// The cause may be a signal, which says less about the kind than Err.
		return fault.Errorf(fault.KindOf(ctx.Err()), "", "", "waiting for %s: %w", c.daemon(), context.Cause(ctx))
	case dialing && (errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)):
		return fault.Errorf(fault.Failure, "", "", "%s is not running (nobody listens on %s)", c.daemon(), c.socket).
			Hint(fmt.Sprintf("start it with `%s`, or set LEAP_RUN_DIR if it runs elsewhere", c.start))
	case dialing && errors.Is(err, os.ErrPermission):
		return fault.Errorf(fault.Permission, "", "", "%s: only the user who runs %s and root may use it", c.socket, c.daemon())
	case dialing:
		return fault.Errorf(fault.Peer, "", "", "%s: %w", c.socket, dial.Err)
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // without the URL, which has no meaning for users
	}
	return fault.Errorf(fault.Peer, "", "", "%s went away before it answered: %w", c.daemon(), err)
}

// Stream is a stream of JSON lines that a daemon sends. It must be closed.
type Stream struct {
	client *Client
	ctx    context.Context
	body   io.ReadCloser
	lines  *bufio.Scanner
}

// Open starts a stream. With the events of HandleEvents, all that happens after
// Open returned is in it. The context governs the whole stream.
func (c *Client) Open(ctx context.Context, path string) (*Stream, error) {
	resp, err := c.send(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxAnswer)
	return &Stream{client: c, ctx: ctx, body: resp.Body, lines: lines}, nil
}

// Next waits for the next item, which is valid until the next call. It is
// io.EOF when the daemon ended the stream, and else a fault as with Get.
func (s *Stream) Next() (json.RawMessage, error) {
	if !s.lines.Scan() {
		switch err := s.lines.Err(); {
		case err == nil:
			return nil, io.EOF
		case errors.Is(err, bufio.ErrTooLong):
			return nil, s.client.bad("a line above %d bytes", maxAnswer)
		default:
			return nil, s.client.lost(s.ctx, err)
		}
	}
	line := s.lines.Bytes()
	if e, err := fault.Decode(line); err == nil {
		return nil, e
	}
	if !json.Valid(line) {
		return nil, s.client.bad("a line that is no JSON")
	}
	return line, nil
}

// Close ends the stream.
func (s *Stream) Close() error { return s.body.Close() }

// Stream calls f with each item of a stream, which is valid during the call,
// until the daemon ends the stream (nil), f returns an error (that error), or
// ctx ends or the daemon goes away (a fault as with Get).
func (c *Client) Stream(ctx context.Context, path string, f func(item json.RawMessage) error) error {
	s, err := c.Open(ctx, path)
	if err != nil {
		return err
	}
	defer s.Close()
	for {
		item, err := s.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(item); err != nil {
			return err
		}
	}
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/fault"
)

// raw makes a call with any body and gives the status and the body answered.
func raw(t *testing.T, c *Client, method, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://x"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// echoMux answers specs with what it got.
func echoMux() *http.ServeMux {
	mux := NewMux(Info{Daemon: "leap-test", Version: "1.2", PID: 3})
	Handle(mux, "POST /v1/ports", func(_ context.Context, in PortSpec) (Port, error) {
		return Port{Name: in.Name, Doorbells: in.Doorbells}, nil
	})
	Handle(mux, "GET /v1/ports", func(context.Context, None) ([]Port, error) { return nil, nil })
	Handle(mux, "GET /v1/ports/{name}", func(ctx context.Context, _ None) (Port, error) {
		return Port{Name: Param(ctx, "name")}, nil
	})
	Handle(mux, "PUT /v1/none", func(context.Context, None) (None, error) { return None{}, nil })
	Handle(mux, "DELETE /v1/volumes/{name}", func(ctx context.Context, in VolumeDelete) (Volume, error) {
		v := Volume{Name: Param(ctx, "name"), State: "kept"}
		if in.Data {
			v.State = "gone"
		}
		return v, nil
	})
	return mux
}

func TestRequests(t *testing.T) {
	c, _ := serve(t, echoMux())
	for _, tt := range []struct {
		call, body string
		status     int
		want       string // contained in the answer
	}{
		{"GET /v1/", "", 200, `{"daemon":"leap-test","version":"1.2","pid":3,"api":"v1"}`},
		{"GET /v1/ports", "", 200, "[]\n"},
		{"GET /v1/ports/vm1", "", 200, `"name":"vm1"`},
		{"PUT /v1/none", "", 200, "{}"},
		{"PUT /v1/none", "{}", 200, "{}"},
		{"PUT /v1/none", `{"x":1}`, 400, `unknown field`},
		{"POST /v1/ports", `{"name":"vm1"}`, 200, `"name":"vm1"`},
		{"POST /v1/ports", " {\"name\":\"vm1\"}\n", 200, `"name":"vm1"`},
		{"POST /v1/ports", "", 400, "ends too early"},
		{"POST /v1/ports", `{"name":"vm1"`, 400, "ends too early"},
		{"POST /v1/ports", `{"name":"vm1","colour":"red"}`, 400, `unknown field \"colour\"`},
		{"POST /v1/ports", `{"name":"vm1"} {}`, 400, "more than one JSON value"},
		{"POST /v1/ports", `{"name":"vm1"} x`, 400, "more than one JSON value"},
		{"POST /v1/ports", `{"name":7}`, 400, "key name cannot be a JSON number"},
		{"POST /v1/ports", `[]`, 400, "it cannot be a JSON array"},
		{"POST /v1/ports", `{name:"vm1"}`, 400, "at byte 2"},
		{"POST /v1/ports", "{\"name\":\"\xff\"}", 400, "not UTF-8"},
		{"POST /v1/ports", `{"name":"VM1"}`, 400, "bad port name"},
		{"POST /v1/ports", `{"name":"vm1","doorbells":"ring"}`, 400, "bad doorbells"},
		{"POST /v1/ports", `"` + strings.Repeat("x", MaxRequest) + `"`, 400, "larger than 1048576 bytes"},
		{"DELETE /v1/volumes/d1", "", 200, `"state":"kept"`},
		{"DELETE /v1/volumes/d1", `{"data":true}`, 200, `"state":"gone"`},
		{"PATCH /v1/ports", "", 501, "leap-test 1.2 has no call PATCH /v1/ports"},
		{"GET /v1/nothing", "", 501, `"kind":"unsupported"`},
		{"GET /", "", 501, `"kind":"unsupported"`},
	} {
		method, path, _ := strings.Cut(tt.call, " ")
		status, got := raw(t, c, method, path, tt.body)
		if status != tt.status || !strings.Contains(got, tt.want) {
			t.Errorf("%s %.60s: got %d %s want %d with %s", tt.call, tt.body, status, got, tt.status, tt.want)
		}
		if status != 200 {
			if _, err := fault.Decode([]byte(got)); err != nil {
				t.Errorf("%s %.60s: %v", tt.call, tt.body, err)
			}
		}
	}
}

// Any name or NQN arrives as it was.
func TestPathParts(t *testing.T) {
	c, _ := serve(t, echoMux())
	for _, name := range []string{"vm1", ".", "..", "a/b", "%2F", "a?b#c", "nqn.2014-08.org.x:é u", "{name}"} {
		var got Port
		if err := c.Get(context.Background(), Path("ports", name), &got); err != nil || got.Name != name {
			t.Errorf("Path %s: got %q, %v, want %q", Path("ports", name), got.Name, err, name)
		}
	}
}

// A fault comes out of the client as it went into the server.
func TestFaults(t *testing.T) {
	statuses := map[fault.Kind]int{
		fault.Failure: 500, fault.Partial: 500, fault.NotFound: 404, fault.Exists: 409, fault.Unsupported: 501,
		fault.Permission: 403, fault.Timeout: 504, fault.Peer: 502, fault.Usage: 400, fault.Interrupted: 503,
	}
	var cause error
	mux := NewMux(Info{})
	Handle(mux, "GET /v1/x", func(context.Context, None) (None, error) { return None{}, cause })
	HandleStream(mux, "GET /v1/s", func(context.Context, func(None) error) error { return cause })
	HandleText(mux, "GET /t", "text/plain", func(context.Context) ([]byte, error) { return nil, cause })
	c, _ := serve(t, mux)
	for kind, want := range statuses {
		cause = fault.New(kind, "volume create", "d1", errors.New("no room"), "make room")
		for _, path := range []string{"/v1/x", "/v1/s", "/t"} {
			if status, _ := raw(t, c, "GET", path, ""); status != want {
				t.Errorf("%s: %v has status %d, want %d", path, kind, status, want)
			}
		}
		got := c.Get(context.Background(), "/v1/x", nil)
		if got == nil || got.Error() != cause.Error() || fault.KindOf(got) != kind {
			t.Errorf("got %v (%v), want %v (%v)", got, fault.KindOf(got), cause, kind)
		}
		if d := cmp.Diff([]string{"make room"}, fault.Hints(got)); d != "" {
			t.Error(d)
		}
		if got := c.Stream(context.Background(), "/v1/s", nil); got == nil || got.Error() != cause.Error() {
			t.Errorf("stream: got %v, want %v", got, cause)
		}
		if _, got := c.GetText(context.Background(), "/t"); got == nil || got.Error() != cause.Error() {
			t.Errorf("text: got %v, want %v", got, cause)
		}
	}
}

// A text comes out of the client as it went into the server.
func TestText(t *testing.T) {
	want := []byte("a text\n\x00without an end")
	mux := NewMux(Info{})
	HandleText(mux, "GET /t", "text/x-none", func(context.Context) ([]byte, error) { return want, nil })
	c, _ := serve(t, mux)
	if got, err := c.GetText(context.Background(), "/t"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestCaller(t *testing.T) {
	mux := NewMux(Info{})
	Handle(mux, "GET /v1/me", func(ctx context.Context, _ None) (Caller, error) {
		c, ok := CallerOf(ctx)
		if !ok {
			return c, errors.New("no caller")
		}
		return c, nil
	})
	c, _ := serve(t, mux)
	var got Caller
	if err := c.Get(context.Background(), "/v1/me", &got); err != nil {
		t.Fatal(err)
	}
	want := Caller{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), PID: int32(os.Getpid())}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestPanicEndsProcess(t *testing.T) {
	code, out := child(t, "panic", filepath.Join(t.TempDir(), "s"))
	if code != 2 || !strings.Contains(out, "the handler's own words") {
		t.Errorf("exit code %d, output %s; want 2 and the panic", code, out)
	}
}

// A handler's context ends when its caller goes away.
func TestCallerGoesAway(t *testing.T) {
	entered, ended := make(chan bool), make(chan bool)
	mux := NewMux(Info{})
	Handle(mux, "POST /v1/wait", func(ctx context.Context, _ None) (None, error) {
		entered <- true
		<-ctx.Done()
		ended <- true
		return None{}, ctx.Err()
	})
	c, _ := serve(t, mux)
	ctx, cancel := context.WithCancel(context.Background())
	answered := make(chan error)
	go func() { answered <- c.Post(ctx, "/v1/wait", None{}, nil) }()
	<-entered
	cancel()
	<-ended
	if err := <-answered; fault.KindOf(err) != fault.Interrupted {
		t.Errorf("got %v (%v), want interrupted", err, fault.KindOf(err))
	}
}

// Shutdown lets a call end, but not for ever.
func TestShutdown(t *testing.T) {
	entered, release := make(chan bool), make(chan bool)
	mux := NewMux(Info{})
	Handle(mux, "GET /v1/slow", func(ctx context.Context, _ None) (Port, error) {
		entered <- true
		select {
		case <-release:
			return Port{Name: "done"}, nil
		case <-ctx.Done():
			return Port{}, ctx.Err()
		}
	})
	call := func(c *Client) <-chan error {
		answered := make(chan error, 1)
		go func() {
			var p Port
			err := c.Get(context.Background(), "/v1/slow", &p)
			if err == nil && p.Name != "done" {
				err = errors.New("not done")
			}
			answered <- err
		}()
		<-entered
		return answered
	}

	c, s := serve(t, mux)
	answered := call(c)
	down := make(chan error)
	go func() { down <- s.Shutdown(context.Background()) }()
	for c.Get(context.Background(), "/v1/", nil) == nil {
		time.Sleep(time.Millisecond) // until the listener is closed
	}
	release <- true
	if err := <-answered; err != nil {
		t.Errorf("the call under way: %v", err)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}

	c, s = serve(t, mux)
	answered = call(c)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); fault.KindOf(err) != fault.Timeout {
		t.Errorf("got %v (%v), want a timeout", err, fault.KindOf(err))
	}
	if err := <-answered; fault.KindOf(err) != fault.Peer {
		t.Errorf("the call that was cut off: %v (%v), want peer", err, fault.KindOf(err))
	}
}

func TestStream(t *testing.T) {
	mux := NewMux(Info{})
	HandleStream(mux, "GET /v1/three", func(_ context.Context, send func(int) error) error {
		return errors.Join(send(1), send(2), send(3))
	})
	HandleStream(mux, "GET /v1/bad", func(_ context.Context, send func(int) error) error {
		return errors.Join(send(1), fault.Errorf(fault.Exists, "x", "y", "z"))
	})
	HandleStream(mux, "GET /v1/empty", func(context.Context, func(int) error) error { return nil })
	HandleStream(mux, "GET /v1/endless", func(ctx context.Context, send func(int) error) error {
		for {
			if err := send(1); err != nil {
				return err
			}
		}
	})
	c, _ := serve(t, mux)
	ctx := context.Background()
	for _, tt := range []struct {
		path, want string
		kind       fault.Kind
	}{
		{"/v1/three", "123", 0},
		{"/v1/bad", "1", fault.Exists},
		{"/v1/empty", "", 0},
	} {
		got := ""
		err := c.Stream(ctx, tt.path, func(item json.RawMessage) error { got += string(item); return nil })
		if got != tt.want || fault.KindOf(err) != tt.kind {
			t.Errorf("%s: got %q, %v, want %q (%v)", tt.path, got, err, tt.want, tt.kind)
		}
	}
	stop := errors.New("enough")
	if err := c.Stream(ctx, "/v1/endless", func(json.RawMessage) error { return stop }); err != stop {
		t.Errorf("got %v, want the error of the function", err)
	}
}

// The time limit is one for each write: a stream may be silent for longer, and
// a peer that does not read is cut off.
func TestStreamTimeLimit(t *testing.T) {
	old := writeTimeout
	writeTimeout = 50 * time.Millisecond
	t.Cleanup(func() { writeTimeout = old }) // after the server's end
	ended := make(chan error, 1)
	mux := NewMux(Info{})
	HandleStream(mux, "GET /v1/silent", func(ctx context.Context, send func(int) error) error {
		err := send(1)
		time.Sleep(3 * writeTimeout)
		return errors.Join(err, send(2))
	})
	HandleStream(mux, "GET /v1/late", func(ctx context.Context, send func(int) error) error {
		err := send(1)
		time.Sleep(3 * writeTimeout)
		return err
	})
	HandleStream(mux, "GET /v1/flood", func(ctx context.Context, send func(string) error) error {
		for {
			if err := send(strings.Repeat("x", 1<<16)); err != nil {
				ended <- err
				return err
			}
		}
	})
	c, _ := serve(t, mux)
	for path, want := range map[string]int{"/v1/silent": 2, "/v1/late": 1} {
		got := 0
		if err := c.Stream(context.Background(), path, func(json.RawMessage) error { got++; return nil }); err != nil || got != want {
			t.Errorf("%s: got %d items, %v, want %d", path, got, err, want)
		}
	}
	s, err := c.Open(context.Background(), "/v1/flood")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := <-ended; fault.KindOf(err) != fault.Timeout {
		t.Errorf("a peer that does not read: %v (%v), want a timeout", err, fault.KindOf(err))
	}
}

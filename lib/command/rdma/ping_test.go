// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package rdma

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/cli/clitest"
	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/fabrics"
	"github.com/leapio/leapio/lib/fault"
)

// listenFor serves each connection of a socket by f until the test ends.
func listenFor(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			f(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return "tcp://" + l.Addr().String()
}

// flipped is a way to a server on which one bit of each response with this
// type is another one, in its last byte: that of a digest.
func flipped(t *testing.T, s *server, wanted fabrics.PDUType) string {
	return listenFor(t, func(host net.Conn) {
		target, err := net.Dial("tcp", s.addr.String())
		if err != nil {
			t.Error(err)
			return
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(target, host)
			_ = target.(*net.TCPConn).CloseWrite()
		}()
		for {
			var h fabrics.CommonHeader
			if _, err := io.ReadFull(target, fabrics.Bytes(&h)); err != nil {
				break
			}
			pdu := make([]byte, h.PLEN)
			copy(pdu, fabrics.Bytes(&h))
			if _, err := io.ReadFull(target, pdu[fabrics.CommonHeaderSize:]); err != nil {
				break
			}
			if h.Type == wanted {
				pdu[len(pdu)-1] ^= 1
			}
			if _, err := host.Write(pdu); err != nil {
				break
			}
		}
		host.Close()
		target.Close()
		<-done
	})
}

// TestPingFailures: ping says at which step it has failed, and why.
func TestPingFailures(t *testing.T) {
	s := serve(t)
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	icReq := func(conn net.Conn) error {
		_, err := io.ReadFull(conn, make([]byte, fabrics.ICSize))
		return err
	}
	for _, tt := range []struct {
		name, url string
		args      string
		code      int
		want      string
		steps     int // that were done
	}{
		{"closed port", "tcp://" + closed.Addr().String(), "", fault.ExitPeer, "TCP connection: .*refused", 0},
		{"no route", "tcp://127.255.255.255", "", fault.ExitPeer, "TCP connection: .*network is unreachable", 0},
		{"web server", "tcp://" + web.Listener.Addr().String(), "--timeout 100ms", fault.ExitTimeout, "initializing the connection: ", 1},
		{"impatient web server", listenFor(t, func(conn net.Conn) {
			if icReq(conn) == nil {
				_, _ = io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request")
			}
		}), "", fault.ExitPeer, "initializing the connection: who answers does not speak NVMe/TCP: ", 1},
		{"greeting", listenFor(t, func(conn net.Conn) {
			_, _ = io.WriteString(conn, "SSH-2.0-OpenSSH_10.0\r\n")
			_ = icReq(conn)
		}), "", fault.ExitPeer, "initializing the connection: who answers does not speak NVMe/TCP: ", 1},
		{"hangs up", listenFor(t, func(conn net.Conn) { _ = icReq(conn) }), "", fault.ExitPeer, "initializing the connection: who answers does not speak NVMe/TCP: ", 1},
		{"silence", listenFor(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }), "--timeout 100ms", fault.ExitTimeout, "initializing the connection: ", 1},
		{"silence after ICResp", listenFor(t, func(conn net.Conn) {
			if icReq(conn) == nil {
				var resp fabrics.ICResp
				out := fabrics.Framing{From: fabrics.FromController, Align: 4}
				out.Make(&resp.CommonHeader, fabrics.TypeICResp, 0, 0)
				resp.MAXH2CDATA = fabrics.MinMaxH2CData
				_, _ = conn.Write(fabrics.Bytes(&resp))
				_, _ = io.Copy(io.Discard, conn)
			}
		}), "--timeout 100ms", fault.ExitTimeout, "Connect: waiting for the answer: ", 2},
		{"NQN", s.url(testNQN + "x"), "", fault.ExitNotFound, "Connect: there is no " + testNQN + "x", 2},
		{"host", s.url(testNQN), "--hostnqn " + testNQN, fault.ExitPermission, "Connect: " + testNQN + " does not allow host " + testNQN, 2},
		{"busy", s.url(busyNQN), "", fault.ExitExists, "Connect: " + busyNQN + " is busy", 2},
		{"header digest", flipped(t, s, fabrics.TypeCapsuleResp) + "/" + testNQN, "--header-digest", fault.ExitPeer, "Connect: waiting for the answer: the header digest of CapsuleResp is wrong", 2},
		{"data digest", flipped(t, s, fabrics.TypeC2HData) + "/" + testNQN, "--data-digest", fault.ExitPeer, "Identify: waiting for the answer: the data digest of C2HData is wrong", 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			words := append([]string{"ping", tt.url, "-o", "tsv", "--hostnqn", hostNQN}, strings.Fields(tt.args)...)
			r := clitest.Run(t, Command(), nil, words...)
			if steps := strings.Count(r.Stdout, "\n"); r.Code != tt.code || steps != tt.steps || !matches(tt.want, r.Stderr) || !strings.HasPrefix(r.Stderr, "leap-rdma: ping "+tt.url+": ") {
				t.Errorf("%d after %d steps: %s, want %d after %d: %s", r.Code, steps, r.Stderr, tt.code, tt.steps, tt.want)
			}
			if tt.steps > 1 {
				return // it takes the controller for one of discovery
			}
			words[0] = "discover"
			if r := clitest.Run(t, Command(), nil, words...); r.Code != tt.code || !matches(tt.want, r.Stderr) {
				t.Errorf("discover: %d: %s, want %d: %s", r.Code, r.Stderr, tt.code, tt.want)
			}
		})
	}
}

// TestPing: what comes of each step, and a summary.
func TestPing(t *testing.T) {
	s := serve(t)
	r := clitest.Run(t, Command(), nil, "ping", s.url(testNQN), "-o", "json", "--hostnqn", hostNQN, "--count", "5", "--interval", "1ms", "--header-digest", "--data-digest")
	if r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	var steps []string
	var last echo
	for line := range strings.Lines(r.Stdout) {
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Fatal(err)
		}
		steps = append(steps, last.Step)
		if last.Time <= 0 || (last.Summary != nil) != (last.Step == stepSummary) || strings.Contains(line, "summary\":null") {
			t.Errorf("%s", line)
		}
	}
	if got := strings.Join(steps, " "); got != "tcp initialize connect enable identify"+strings.Repeat(" keep-alive", 5)+" summary" {
		t.Errorf("steps %s", got)
	}
	if x := last.Summary; x.Count != 5 || x.P50 > x.P90 || x.P90 > x.Max || x.P9999 != x.Max || last.Time != x.P50 || !strings.HasPrefix(last.Detail, "count=5 p50=") {
		t.Errorf("%+v %+v", last, x)
	}
	if !strings.Contains(r.Stdout, controller.Model) || !strings.Contains(r.Stdout, "header-digest=true data-digest=true") {
		t.Errorf("no details: %s", r.Stdout)
	}
}

func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }

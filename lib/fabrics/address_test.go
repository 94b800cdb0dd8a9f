// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package fabrics

import (
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	const nqn = "nqn.2014-08.org.nvmexpress:uuid:01234567-89ab-cdef-0123-456789abcdef"
	for _, tt := range []struct {
		text string
		want Address
		url  string // String, if not text
	}{
		{"tcp://192.0.2.1", Address{TransportTCP, "192.0.2.1", 4420, "", 0}, "tcp://192.0.2.1:4420"},
		{"tcp://192.0.2.1/", Address{TransportTCP, "192.0.2.1", 4420, "", 0}, "tcp://192.0.2.1:4420"},
		{"tcp://b:8009", Address{TransportTCP, "b", 8009, "", 0}, ""},
		{"tcp://b/" + DiscoveryNQN, Address{TransportTCP, "b", 8009, DiscoveryNQN, 0}, "tcp://b:8009/" + DiscoveryNQN},
		{"tcp://b:4420/" + DiscoveryNQN, Address{TransportTCP, "b", 4420, DiscoveryNQN, 0}, ""},
		{"transport=tcp;traddr=b;nqn=" + DiscoveryNQN, Address{TransportTCP, "b", 8009, DiscoveryNQN, 0}, "tcp://b:8009/" + DiscoveryNQN},
		{"rdma://b/" + DiscoveryNQN, Address{TransportRDMA, "b", 4420, DiscoveryNQN, 0}, "rdma://b:4420/" + DiscoveryNQN},
		{"tcp://b.example.com:1/" + nqn, Address{TransportTCP, "b.example.com", 1, nqn, 0}, ""},
		{"tcp://b:0", Address{TransportTCP, "b", 0, "", 0}, ""},
		{"rdma://[2001:db8::1]:4421/" + nqn + "?nsid=7", Address{TransportRDMA, "2001:db8::1", 4421, nqn, 7}, ""},
		{"tcp://[fe80::1%eth0]", Address{TransportTCP, "fe80::1%eth0", 4420, "", 0}, "tcp://[fe80::1%eth0]:4420"},
		{"tcp://b:4420/nqn.2020-01.x:a/b", Address{TransportTCP, "b", 4420, "nqn.2020-01.x:a/b", 0}, ""},
		{"tcp://b?nsid=1", Address{TransportTCP, "b", 4420, "", 1}, "tcp://b:4420?nsid=1"},
		{"transport=tcp;traddr=192.0.2.1;trsvcid=4421", Address{TransportTCP, "192.0.2.1", 4421, "", 0}, "tcp://192.0.2.1:4421"},
		{"transport=rdma;nqn=" + nqn + ";nsid=2;traddr=::1", Address{TransportRDMA, "::1", 4420, nqn, 2}, "rdma://[::1]:4420/" + nqn + "?nsid=2"},
		{"transport=tcp;traddr=[::1]", Address{TransportTCP, "::1", 4420, "", 0}, "tcp://[::1]:4420"},
	} {
		got, err := ParseAddress(tt.text)
		if err != nil || got != tt.want {
			t.Errorf("%s: %+v, %v; want %+v", tt.text, got, err, tt.want)
		}
		if want := tt.url; got.String() != want && (want != "" || got.String() != tt.text) {
			t.Errorf("%s is written %s", tt.text, got)
		}
	}
}

func TestParseAddressOf(t *testing.T) {
	for text, want := range map[string]string{
		"tcp://b":                "tcp://b:8009/" + DiscoveryNQN,
		"tcp://b:4420":           "tcp://b:4420/" + DiscoveryNQN,
		"tcp://b/nqn.x":          "tcp://b:4420/nqn.x",
		"rdma://b":               "rdma://b:4420/" + DiscoveryNQN,
		"tcp://b:0?nsid=1":       "tcp://b:0/" + DiscoveryNQN + "?nsid=1",
		"transport=tcp;traddr=b": "tcp://b:8009/" + DiscoveryNQN,
	} {
		if got, err := ParseAddressOf(text, DiscoveryNQN); err != nil || got.String() != want {
			t.Errorf("%s: %v, %v; want %s", text, got, err, want)
		}
	}
}

func TestParseAddressBad(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", "not of the form"},
		{"192.0.2.1", "not of the form"},
		{"udp://b", "neither tcp nor rdma"},
		{"tcp://", "no host"},
		{"tcp:///nqn.a", "no host"},
		{"tcp://a b", "neither an IP address nor a name"},
		{"tcp://-a", "neither an IP address nor a name"},
		{"tcp://a..b", "neither an IP address nor a name"},
		{"tcp://" + strings.Repeat("a.", 127), "more than 253"},
		{"tcp://b:", "port"},
		{"tcp://b:+1", "port"},
		{"tcp://b:65536", "port"},
		{"tcp://b:http", "port"},
		{"tcp://::1", "brackets"},
		{"tcp://[::1", "no ]"},
		{"tcp://[b]", "not an IPv6 address"},
		{"tcp://[192.0.2.1]", "not an IPv6 address"},
		{"tcp://[::1]x", "follows"},
		{"tcp://[::1]4420", "follows"},
		{"tcp://b/x", "does not start with"},
		{"tcp://b/nqn.a?x=1", "not nsid=N"},
		{"tcp://b?nsid=0", "namespace identifier"},
		{"tcp://b?nsid=4294967295", "namespace identifier"},
		{"tcp://b?nsid=x", "namespace identifier"},
		{"transport=tcp", "traddr is missing"},
		{"transport=fc;traddr=b", "neither tcp nor rdma"},
		{"transport=tcp;traddr=b;host=c", "none of"},
		{"transport=tcp;traddr=b;traddr=c", "twice"},
		{"transport=tcp;traddr=b;nqn=nqn.a?b", "question mark"},
		{"transport=tcp;traddr=", "no host"},
	} {
		if got, err := ParseAddress(tt.text); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %+v, %v; want an error with %q", tt.text, got, err, tt.want)
		}
	}
}

// FuzzParseAddress: what is read is written so that it reads the same.
func FuzzParseAddress(f *testing.F) {
	f.Add("tcp://[fe80::1%e]:1/nqn.a?nsid=3")
	f.Add("transport=tcp;traddr=::1;trsvcid=1")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil {
			return
		}
		if b, err := ParseAddress(a.String()); err != nil || a != b {
			t.Errorf("%q is %+v, written %s, read %+v, %v", s, a, a, b, err)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// member is one entry of an archive read back.
type member struct {
	Mode         uint64
	Body         string
	Major, Minor uint64
}

// readCpio reads a newc archive up to its trailer.
func readCpio(archive []byte) (names []string, members map[string]member, err error) {
	members = map[string]member{}
	pos := 0
	take := func(n int) ([]byte, error) {
		if pos+n > len(archive) {
			return nil, fmt.Errorf("archive ends at %d, want %d bytes more", pos, n)
		}
		b := archive[pos : pos+n]
		pos += n
		return b, nil
	}
	for {
		header, err := take(110)
		if err != nil {
			return nil, nil, err
		}
		if string(header[:6]) != "070701" {
			return nil, nil, fmt.Errorf("bad magic at %d", pos-110)
		}
		var field [13]uint64
		for i := range field {
			if field[i], err = strconv.ParseUint(string(header[6+8*i:14+8*i]), 16, 32); err != nil {
				return nil, nil, err
			}
		}
		name, err := take(int(field[11]))
		if err != nil {
			return nil, nil, err
		}
		pos = (pos + 3) &^ 3
		body, err := take(int(field[6]))
		if err != nil {
			return nil, nil, err
		}
		pos = (pos + 3) &^ 3
		n := strings.TrimSuffix(string(name), "\x00")
		if n == "TRAILER!!!" {
			return names, members, nil
		}
		if _, twice := members[n]; twice {
			return nil, nil, fmt.Errorf("%s is there twice", n)
		}
		names = append(names, n)
		members[n] = member{Mode: field[1], Body: string(body), Major: field[9], Minor: field[10]}
	}
}

func TestCpioRoundTrip(t *testing.T) {
	var out bytes.Buffer
	w := newCpioWriter(&out)
	want := map[string]member{
		"d":     {Mode: cpioDir | 0o755},
		"d/one": {Mode: cpioFile | 0o644, Body: "x"},
		"d/ab":  {Mode: cpioFile | 0o755, Body: "four"},
		"link":  {Mode: cpioLink | 0o777, Body: "d/one"},
		"con":   {Mode: cpioDevice | 0o600, Major: 5, Minor: 1},
	}
	for _, name := range []string{"d", "d/one", "d/ab", "link", "con"} {
		m := want[name]
		err := w.add(cpioEntry{name: name, mode: uint32(m.Mode), size: int64(len(m.Body)), body: strings.NewReader(m.Body),
			major: uint32(m.Major), minor: uint32(m.Minor)})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	if out.Len()%4 != 0 {
		t.Errorf("archive of %d bytes: got no multiple of 4", out.Len())
	}
	_, got, err := readCpio(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
}

func TestCpioBodySize(t *testing.T) {
	for _, c := range []struct {
		name, body string
		size       int64
	}{{"short", "abc", 4}, {"long", "abcde", 4}, {"negative", "", -1}, {"huge", "", 1 << 32}} {
		w := newCpioWriter(io.Discard)
		if err := w.add(cpioEntry{name: c.name, mode: cpioFile, size: c.size, body: strings.NewReader(c.body)}); err == nil {
			t.Errorf("%s: %d bytes said to be %d: got no error", c.name, len(c.body), c.size)
		}
	}
}

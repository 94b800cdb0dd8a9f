// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/leapio/leapio/lib/units"
)

// row has one of each kind of value.
type row struct {
	Name  string        `json:"name"`
	Size  units.Size    `json:"size"`
	Wait  time.Duration `json:"wait_ns"`
	Since time.Time     `json:"since"`
	On    bool          `json:"on"`
	Users []string      `json:"used_by"`
	Block *int          `json:"block"`
}

var rowColumns = []Column[row]{
	{"NAME", func(r row) any { return r.Name }},
	{"SIZE", func(r row) any { return r.Size }},
	{"WAIT", func(r row) any { return r.Wait }},
	{"SINCE", func(r row) any { return r.Since }},
	{"ON", func(r row) any { return r.On }},
	{"USED BY", func(r row) any { return r.Users }},
	{"BLOCK", func(r row) any { return r.Block }},
	{"NOTE", func(r row) any { return nil }},
}

func testRows() []row {
	block := 512
	return []row{
		{"d1", 10 * units.GiB, 1500 * time.Millisecond, time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC), true, []string{"vm1", "vm2"}, &block},
		{"déjà\tvu\n<&>", 512, 0, time.Time{}, false, nil, nil},
	}
}

func TestOutput(t *testing.T) {
	rows := testRows()
	for _, tt := range []struct {
		name   string
		format Format
		print  func(*Call) error
		want   string
	}{
		{"list", Text, func(c *Call) error { return List(c, rowColumns, rows) }, "" +
			"NAME           SIZE    WAIT  SINCE                 ON   USED BY  BLOCK  NOTE\n" +
			"d1             10 GiB  1.5s  2024-02-29T12:00:00Z  yes  vm1,vm2  512    -\n" +
			"déjà\\tvu\\n<&>  512 B   0s    -                     no   -        -      -\n"},
		{"list", TSV, func(c *Call) error { return List(c, rowColumns, rows) }, "" +
			"d1\t10737418240\t1500000000\t2024-02-29T12:00:00Z\ttrue\tvm1,vm2\t512\t-\n" +
			"déjà\\tvu\\n<&>\t512\t0\t-\tfalse\t-\t-\t-\n"},
		{"list", JSON, func(c *Call) error { return List(c, rowColumns, rows[:1]) }, `[
  {
    "name": "d1",
    "size": 10737418240,
    "wait_ns": 1500000000,
    "since": "2024-02-29T12:00:00Z",
    "on": true,
    "used_by": [
      "vm1",
      "vm2"
    ],
    "block": 512
  }
]
`},
		{"empty list", Text, func(c *Call) error { return List(c, rowColumns[:2], nil) }, "NAME  SIZE\n"},
		{"empty list", TSV, func(c *Call) error { return List(c, rowColumns[:2], nil) }, ""},
		{"empty list", JSON, func(c *Call) error { return List(c, rowColumns[:2], nil) }, "[]\n"},
		{"show", Text, func(c *Call) error { return Show(c, rowColumns[:3], rows[0]) }, "" +
			"name:  d1\nsize:  10 GiB (10737418240 bytes)\nwait:  1.5s\n"},
		{"show", TSV, func(c *Call) error { return Show(c, rowColumns[:3], rows[0]) }, "d1\t10737418240\t1500000000\n"},
		{"show", JSON, func(c *Call) error { return Show(c, nil, map[string]string{"a": "<&>"}) }, "{\n  \"a\": \"<&>\"\n}\n"},
		{"stream", JSON, func(c *Call) error {
			emit := Stream(c, rowColumns)
			return emit(rows[1])
		}, `{"name":"déjà\tvu\n<&>","size":512,"wait_ns":0,"since":"0001-01-01T00:00:00Z","on":false,"used_by":null,"block":null}` + "\n"},
		{"stream", TSV, func(c *Call) error {
			emit := Stream(c, rowColumns[:2])
			return firstError(emit(rows[0]), emit(rows[1]))
		}, "d1\t10737418240\ndéjà\\tvu\\n<&>\t512\n"},
		{"stream", Text, func(c *Call) error {
			emit := Stream(c, rowColumns[:2])
			return firstError(emit(rows[0]), emit(rows[1]), emit(rows[0]))
		}, "NAME  SIZE\nd1    10 GiB\ndéjà\\tvu\\n<&>  512 B\nd1             10 GiB\n"},
		{"made", Text, func(c *Call) error { return Made(c, "d1") }, "d1\n"},
		{"made", TSV, func(c *Call) error { return Made(c, "d1") }, "d1\n"},
		{"made", JSON, func(c *Call) error { return Made(c, "d1") }, "{\n  \"name\": \"d1\"\n}\n"},
	} {
		var out strings.Builder
		call := &Call{IO: IO{Stdout: &out}, Format: tt.format}
		if err := tt.print(call); err != nil || out.String() != tt.want {
			t.Errorf("%s, %s: %v, got\n%swant\n%s", tt.name, tt.format, err, out.String(), tt.want)
		}
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Whatever a guest or peer calls itself, a TSV row has its tabs and one newline
// and a text line is one line of printable characters.
func FuzzCell(f *testing.F) {
	for _, s := range []string{"", "a\tb", "\n", "\\", "\x1b[2J", "\xff", "é\u202e", "\ufffd", "\xef"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		columns := []Column[string]{{"A", func(v string) any { return v }}, {"B", func(string) any { return nil }}}
		var out strings.Builder
		if err := List(&Call{IO: IO{Stdout: &out}, Format: TSV}, columns, []string{s}); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); strings.Count(got, "\t") != 1 || strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, "\t-\n") {
			t.Errorf("%q as TSV is %q", s, got)
		}
		for _, r := range visible(s) {
			if r < ' ' || r == 0x7f {
				t.Errorf("%q is shown with %q", s, r)
			}
		}
	})
}

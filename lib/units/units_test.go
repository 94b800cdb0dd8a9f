// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package units

import (
	"encoding/json"
	"math"
	"regexp"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/fault"
)

func TestParseSize(t *testing.T) {
	for _, tt := range []struct {
		text string
		want Size
	}{
		{"0", 0}, {"1", 1}, {"512", 512}, {"512B", 512}, {"010", 10},
		{"1K", 1024}, {"1M", MiB}, {"1G", GiB}, {"1T", TiB}, {"1P", PiB}, {"1E", EiB},
		{"4KiB", 4096}, {"10GiB", 10 * GiB}, {"7EiB", 7 * EiB},
		{"1kB", 1000}, {"1KB", 1000}, {"1MB", 1e6}, {"1GB", 1e9}, {"1TB", 1e12}, {"1PB", 1e15}, {"9EB", 9e18},
		{"8s", 4096}, {"1.5s", 768},
		{"1.5K", 1536}, {"0.5K", 512}, {"1.0B", 1}, {"1.001kB", 1001}, {"0.0009765625K", 1},
		{"10 GiB", 10 * GiB}, {"1 s", 512},
		// 2^53+1 has no exact float64.
		{"9007199254740993", 9007199254740993},
		{"9223372036854775807", math.MaxInt64},
		{"7.999755859375E", math.MaxInt64 - 1<<48 + 1},
	} {
		got, err := ParseSize(tt.text)
		if err != nil || got != tt.want {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", tt.text, got, err, tt.want)
		}
	}
}

func TestParseSizeBad(t *testing.T) {
	for _, tt := range []struct{ text, why string }{
		{"", "empty"}, {" ", "digit"}, {"K", "digit"}, {"-1", "digit"}, {"+1", "digit"}, {" 1", "digit"}, {".5K", "digit"},
		{"1.K", "after the point"}, {"1.", "after the point"}, {"1..5K", "after the point"},
		{"1.3B", "whole"}, {"1.3K", "whole"}, {"0.5", "whole"}, {"0.1s", "whole"},
		{"1k", "unit"}, {"1g", "unit"}, {"1Gb", "unit"}, {"1Ki", "unit"}, {"1S", "unit"}, {"1kib", "unit"}, {"1 ", "unit"}, {"1  K", "unit"},
		{"1K ", "unit"}, {"0x10", "unit"}, {"1e3", "unit"}, {"1_000", "unit"}, {"1,5K", "unit"}, {"1/2K", "unit"}, {"1GiB1", "unit"}, {"1\x00", "unit"},
		{"9223372036854775808", "2^63-1"}, {"8E", "2^63-1"}, {"16EiB", "2^63-1"}, {"10EB", "2^63-1"}, {"18446744073709551616", "2^63-1"},
		{strings.Repeat("1", 65), "long"},
	} {
		got, err := ParseSize(tt.text)
		if err == nil || !strings.Contains(err.Error(), tt.why) {
			t.Errorf("ParseSize(%q) = %d, %v, want an error with %q", tt.text, got, err, tt.why)
		}
		if err != nil && fault.KindOf(err) != fault.Usage {
			t.Errorf("ParseSize(%q): kind %v, want usage", tt.text, fault.KindOf(err))
		}
	}
}

func TestSizeString(t *testing.T) {
	for _, tt := range []struct {
		size         Size
		exact, human string
	}{
		{0, "0", "0 B"},
		{512, "512", "512 B"},
		{1023, "1023", "1023 B"},
		{KiB, "1K", "1.0 KiB"},
		{1536, "1536", "1.5 KiB"},
		{MiB - 1, "1048575", "1.0 MiB"},
		{10 * GiB, "10G", "10 GiB"},
		{1e10, "9765625K", "9.3 GiB"},
		{PiB - 1, "1125899906842623", "1.0 PiB"},
		{EiB, "1E", "1.0 EiB"},
		{math.MaxInt64, "9223372036854775807", "8.0 EiB"},
	} {
		if got := tt.size.String(); got != tt.exact {
			t.Errorf("%d.String() = %q, want %q", int64(tt.size), got, tt.exact)
		}
		if got := tt.size.Human(); got != tt.human {
			t.Errorf("%d.Human() = %q, want %q", int64(tt.size), got, tt.human)
		}
	}
}

func TestSizeJSON(t *testing.T) {
	b, err := json.Marshal(struct {
		S Size `json:"size"`
	}{10 * GiB})
	if want := `{"size":10737418240}`; err != nil || string(b) != want {
		t.Errorf("got %s, %v, want %s", b, err, want)
	}
	var s Size
	if err := json.Unmarshal([]byte("4096"), &s); err != nil || s != 4096 {
		t.Errorf("got %d, %v, want 4096", s, err)
	}
	for _, bad := range []string{"-1", "1.5", `"1G"`, "9223372036854775808", "1e3", "{}"} {
		if err := json.Unmarshal([]byte(bad), &s); err == nil {
			t.Errorf("%s: got %d, want an error", bad, s)
		}
	}
	if s != 4096 {
		t.Errorf("a refused value changed the size to %d", s)
	}
}

func TestSizeSet(t *testing.T) {
	s := GiB
	if err := s.Set("nonsense"); err == nil || s != GiB {
		t.Errorf("got %v, %v, want an error and the old value", s, err)
	}
	if err := s.Set("2K"); err != nil || s != 2048 {
		t.Errorf("got %v, %v, want 2K", s, err)
	}
}

func TestCheckName(t *testing.T) {
	for _, s := range []string{"a", "0", "vm1", "a.b-c_d", "d1.", strings.Repeat("x", 32)} {
		if err := CheckName("volume", s); err != nil {
			t.Errorf("CheckName(%q) = %v, want nil", s, err)
		}
	}
	for _, tt := range []struct{ name, want string }{
		{"", `bad port name "": it is empty`},
		{"-a", `bad port name "-a": it does not begin with a-z or 0-9`},
		{".", `bad port name ".": it does not begin with a-z or 0-9`},
		{"A", `bad port name "A": it does not begin with a-z or 0-9`},
		{"a/b", `bad port name "a/b": only a-z 0-9 _ . - may be in it`},
		{"a\n", `bad port name "a\n": only a-z 0-9 _ . - may be in it`},
		{"aé", `bad port name "aé": only a-z 0-9 _ . - may be in it`},
	} {
		err := CheckName("port", tt.name)
		if err == nil || err.Error() != tt.want || fault.KindOf(err) != fault.Usage {
			t.Errorf("CheckName(%q) = %v (%v), want %s", tt.name, err, fault.KindOf(err), tt.want)
		}
	}
	if err := CheckName("port", strings.Repeat("x", 33)); err == nil {
		t.Error("a name of 33 characters was accepted")
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"0", "1.5K", "10 GiB", "8s", "9223372036854775807", "8E", "1.3B", "-1", "0.0009765625K"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSize(text)
		if err != nil {
			return
		}
		if s < 0 {
			t.Fatalf("ParseSize(%q) = %d", text, s)
		}
		if back, err := ParseSize(s.String()); err != nil || back != s {
			t.Errorf("%q is %d, printed as %q, which is %d, %v", text, s, s, back, err)
		}
		if s.Human() == "" {
			t.Errorf("%d has no text", s)
		}
	})
}

var nameRule = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,31}$`)

func FuzzCheckName(f *testing.F) {
	for _, s := range []string{"", "a", "A", "vm1", "-", "a\n", "é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := CheckName("x", s) == nil, nameRule.MatchString(s); got != want {
			t.Errorf("CheckName(%q) accepts it: %v, want %v", s, got, want)
		}
	})
}

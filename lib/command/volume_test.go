// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/fault"
)

func TestParseVolume(t *testing.T) {
	got, err := command.ParseVolume(strings.Fields("m1 mirror size=1G on=a,b,c path=/x=y,z"))
	if err != nil {
		t.Fatal(err)
	}
	want := api.VolumeSpec{
		Name: "m1", Kind: "mirror", On: []string{"a", "b", "c"}, Options: api.Options{"size": "1G", "path": "/x=y,z"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, words := range []string{
		"m1 mirror size", "m1 mirror =1", "m1 mirror a=1 a=2", "m1 mirror on=a on=b", "m1 mirror on=", "m1 mirror on=a,,b",
		"M1 mirror", "m1 Mirror", "m1 mirror on=m1",
	} {
		if got, err := command.ParseVolume(strings.Fields(words)); fault.KindOf(err) != fault.Usage {
			t.Errorf("%q: got %+v, %v, want a usage fault", words, got, err)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package main

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRunErrors(t *testing.T) {
	t.Setenv("LEAP_CACHE", t.TempDir())
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "want a command"},
		{[]string{"install"}, `no command "install"`},
		{[]string{"fetch", "nonsense"}, `no bundle "nonsense"`},
		{[]string{"path"}, "want one of qemu-system-x86_64"},
		{[]string{"path", "vi"}, `no program "vi"`},
		{[]string{"boot", "-nosuch"}, "-nosuch"},
		{[]string{"boot", "-file", "nocolon"}, "want HOST:GUEST"},
		{[]string{"boot", "-job", "/no/such/file"}, "reading the job"},
		{[]string{"boot"}, "no job"},
		{[]string{"boot", "-mem", "1", "-job", os.Args[0]}, "1 MiB of memory"},
	} {
		status, err := run(t.Context(), c.args, strings.NewReader(""), io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), c.want) || status != exitTrouble {
			t.Errorf("%q: got status %d, %v, want %d, %q", c.args, status, err, exitTrouble, c.want)
		}
	}
}

func TestRunHelp(t *testing.T) {
	var words bytes.Buffer
	_, err := run(t.Context(), []string{"boot", "-h"}, nil, io.Discard, &words)
	if !errors.Is(err, flag.ErrHelp) || !strings.Contains(words.String(), "-firmware") {
		t.Errorf("got %v and %q, want the options", err, words.String())
	}
}

func TestBootWithoutCacheNamesIt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	t.Setenv("LEAP_CACHE", dir)
	t.Setenv("PATH", "")
	_, err := run(t.Context(), []string{"boot"}, strings.NewReader("true"), io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v, want the cache's path in it", err)
	}
}

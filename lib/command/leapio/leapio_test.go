// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package leapio

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/cli/clitest"
)

// The page describes the verb serve; those of the commands have pages of their
// own.
func TestManPage(t *testing.T) {
	only := &cli.Command{Name: "leapio", Usage: "serve", Commands: []*cli.Command{serve(new(int))}}
	clitest.ManPage(t, only, "../../../man/leapio.8")
}

// TestTrees: the multi-call tree as a whole is well-formed, and has the verbs of
// all commands.
func TestTrees(t *testing.T) {
	result := clitest.Run(t, whole(new(int)), nil, "soc", "volume", "--help")
	if result.Code != 0 || !strings.HasPrefix(result.Stdout, "usage: leapio soc volume [OPTION...] VERB\n") {
		t.Errorf("got %+v", result)
	}
	verbs := make(map[string]bool)
	for _, v := range cli.Describe(whole(new(int))).Verbs {
		verbs[v.Verb] = true
	}
	for word, tree := range commands() {
		if tree.Name != "leap-"+word {
			t.Errorf("%s chooses %s", word, tree.Name)
		}
		for _, v := range cli.Describe(tree).Verbs {
			if verb := word + " " + v.Verb; !verbs[verb] {
				t.Errorf("leapio has no %s", verb)
			}
		}
	}
}

func TestCaptiveFolders(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 100))
	blank := filepath.Join(t.TempDir(), "a b")
	short, err := os.MkdirTemp("/tmp", "t")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(short)
	for _, dir := range []string{long, blank} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	port := strings.Repeat("p", 32)
	for _, tt := range []struct{ tmp, want string }{{"", "/tmp"}, {short, short}, {long, "/tmp"}, {blank, "/tmp"}} {
		call := &cli.Call{IO: cli.IO{Getenv: func(name string) string { return map[string]string{"TMPDIR": tt.tmp}[name] }}}
		c, err := newCaptive(call, port)
		if err != nil {
			t.Errorf("TMPDIR=%s: %v", tt.tmp, err)
			continue
		}
		if got := filepath.Dir(c.dir); got != tt.want {
			t.Errorf("TMPDIR=%s: the folders are in %s, want %s", tt.tmp, got, tt.want)
		}
		if info, err := os.Stat(c.dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", c.dir, info.Mode(), err)
		}
		if err := api.CheckSocketPath(c.paths.PortSocket(port)); err != nil {
			t.Error(err)
		}
		if err := c.end(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(c.dir); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", c.dir, err)
		}
	}
}

func TestPrint(t *testing.T) {
	var out strings.Builder
	call := &cli.Call{IO: cli.IO{Stdout: &out}, Format: cli.Text}
	if err := print(call, served{QEMU: `-device {"a":"b"}`, Socket: "/it's"}); err != nil {
		t.Fatal(err)
	}
	want := `leap_qemu='-device {"a":"b"}'
leap_socket='/it'\''s'
LEAP_RUN_DIR=''
LEAP_STATE_DIR=''
`
	if got := out.String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// factDir makes a run folder with two volumes.
func factDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"d1", "d2"} {
		if err := os.MkdirAll(filepath.Join(dir, "volume", name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestComplete(t *testing.T) {
	dir := factDir(t)
	for _, tt := range []struct{ line, want string }{
		{"''", "volume wait run dump"},
		{"v", "volume"},
		{"volume ''", "create list delete"},
		{"volume l", "list"},
		{"nosuch ''", ""},
		{"-o json volume cr", "create"},
		{"-o ''", "text json tsv"},
		{"volume list -o j", "json"},
		{"dump --output=b", "--output=binary"},
		{"wait --poll ''", "adaptive busy"},
		{"wait --poll=b", "--poll=busy"},
		{"wait --po", "--poll"},
		{"volume list --", "--output --run-dir --log --verbose --help --version"},
		{"run --st", "--state-dir"},
		{"volume rm ''", "d1 d2"},
		{"volume rm d1 ''", ""},
		{"volume ls d1 ''", "d1 d2"},
		{"volume ls -- -", ""},
		{"volume ls --run-dir /nonexistent ''", ""},
		{"volume ls --nosuch ''", ""},
		{"volume create d1 file ''", ""},
	} {
		r := runTest(tt.line+" "+completionFlag, "LEAP_RUN_DIR="+dir)
		if got := strings.Join(strings.Fields(r.out), " "); got != tt.want || r.err != "" || r.code != 0 {
			t.Errorf("%s: %q, stderr %q, exit %d, want %q", tt.line, got, r.err, r.code, tt.want)
		}
	}
	if r := runTest(completionFlag); r.code != 0 || r.out != "volume\nwait\nrun\ndump\n" {
		t.Errorf("no words: %+v", r)
	}
}

func TestWords(t *testing.T) {
	dir := factDir(t)
	for placeholder, want := range map[string][]string{
		"VOLUME": {"d1", "d2"}, "NQN|any": {"any"}, "all|VOLUME": {"all", "d1", "d2"}, "../VOLUME": nil, "SIZE": nil,
	} {
		if got := words(placeholder, dir); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", placeholder, got, want)
		}
	}
}

// The bash script, in bash, with the words that bash would cut.
func TestBashScript(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash")
	}
	dir := t.TempDir()
	r := runTest("--completion bash")
	if r.code != 0 || !strings.Contains(r.out, "complete -o default -F _leap_test leap-test\n") {
		t.Fatalf("%+v", r)
	}
	// A stand-in for the program answers with its words, then candidates.
	program := "#!/bin/sh\nprintf '%s\\n' \"$@\" >" + dir + "/args\nprintf '%s\\n' tcp://a:4420 tcp://a:4421\n"
	if err := os.WriteFile(filepath.Join(dir, "leap-test"), []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ line, args, reply string }{
		{"leap-test unlisten tcp://a:44", "unlisten\ntcp://a:44\n--generate-bash-completion\n", "4420 4421\n"},
		{"leap-test unlisten ", "unlisten\n\n--generate-bash-completion\n", "tcp://a:4420 tcp://a:4421\n"},
	} {
		script := r.out + "COMP_LINE='" + tt.line + "' COMP_POINT=" + "${#COMP_LINE}\nCOMP_POINT=${#COMP_LINE}\n_leap_test\necho \"${COMPREPLY[@]}\"\n"
		cmd := exec.Command(bash, "--norc", "-c", script)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != tt.reply {
			t.Errorf("%q: %v, got %q, want %q", tt.line, err, out, tt.reply)
		}
		args, _ := os.ReadFile(filepath.Join(dir, "args"))
		if string(args) != tt.args {
			t.Errorf("%q: asked %q, want %q", tt.line, args, tt.args)
		}
	}
}

func TestZshScript(t *testing.T) {
	r := runTest("--completion zsh")
	if r.code != 0 || !strings.HasPrefix(r.out, "#compdef leap-test\n") {
		t.Fatalf("%+v", r)
	}
	zsh, err := exec.LookPath("zsh")
	if err != nil {
		t.Skip("no zsh to check the syntax with")
	}
	cmd := exec.Command(zsh, "-n", "/dev/stdin")
	cmd.Stdin = strings.NewReader(r.out)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestCompletionBadShell(t *testing.T) {
	if r := runTest("--completion fish"); r.code != 64 || r.out != "" || !strings.Contains(r.err, "none of bash, zsh") {
		t.Errorf("%+v", r)
	}
}

func TestMetadata(t *testing.T) {
	r := runTest("--dump-metadata")
	if r.code != 0 || r.err != "" {
		t.Fatalf("%+v", r)
	}
	var got Metadata
	dec := json.NewDecoder(strings.NewReader(r.out))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&got); err != nil {
		t.Fatal(err)
	}
	if got.Version != 1 || got.Name != "leap-test" {
		t.Errorf("got version %d of %s", got.Version, got.Name)
	}
	var verbs, shared []string
	for _, v := range got.Verbs {
		verbs = append(verbs, v.Verb)
	}
	for _, f := range got.Flags {
		shared = append(shared, f.Name)
	}
	if d := cmp.Diff([]string{"volume create", "volume list", "volume delete", "wait", "run", "dump"}, verbs); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"output", "run-dir", "log", "verbose", "help", "version"}, shared); d != "" {
		t.Error(d)
	}
	want := VerbMetadata{Verb: "wait", Aliases: []string{}, Args: "WHAT [STATE]", Usage: "wait", Flags: []FlagMetadata{
		{Name: "timeout", Short: "t", Arg: "TIME", Default: "0s", Usage: "how long", Required: true, Choices: []string{}},
		{Name: "poll", Arg: "MODE", Env: "LEAP_TEST_POLL", Default: "adaptive", Usage: "how to look", Choices: []string{"adaptive", "busy"}},
	}}
	if d := cmp.Diff(want, got.Verbs[3]); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"ls"}, got.Verbs[1].Aliases); d != "" {
		t.Error(d)
	}
}

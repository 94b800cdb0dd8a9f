// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/google/go-cmp/cmp"

	"github.com/leapio/leapio/lib/cli/clitest"
	"github.com/leapio/leapio/lib/controller"
	"github.com/leapio/leapio/lib/qpair"
	"github.com/leapio/leapio/lib/wpt"
)

// man is the folder of the manual pages.
const man = "../../man"

// TestManPages holds the pages against the trees; that of leapio(8) is in its
// own room.
func TestManPages(t *testing.T) {
	for name, tree := range trees {
		clitest.ManPage(t, tree(), filepath.Join(man, name+".8"))
	}
}

// TestIdentity holds what leapio(7) says about the drive against the code.
func TestIdentity(t *testing.T) {
	page := readPage(t, "leapio.7")
	for _, want := range []string{
		fmt.Sprintf("%04x:%04x, revision %02x", qpair.PCIVendor, wpt.PCIDevice, wpt.PCIRevision),
		fmt.Sprintf("%04x:%04x", qpair.PCIVendor, wpt.PCISubsystem),
		controller.Model,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("leapio.7 does not say %q", want)
		}
	}
}

func readPage(t testing.TB, page string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(man, page))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// step is a command of an example and the output the page shows, nil if none.
type step struct {
	line   string
	output []string
}

// examples reads the literal blocks of a page's EXAMPLES. A line that begins
// with "# " or "$ " is a command, as root or anybody types it; other lines are
// what the command before them prints on standard output. One without such
// lines may print anything.
func examples(text string) []step {
	var steps []step
	section, literal := "", false
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, ".Sh "):
			section = line[4:]
		case section != "EXAMPLES":
		case strings.HasPrefix(line, ".Bd -literal"):
			literal = true
		case line == ".Ed":
			literal = false
		case literal:
			line = strings.NewReplacer(`\e`, `\`, `\&`, ``, `\-`, `-`).Replace(line)
			if command, ok := strings.CutPrefix(line, "# "); ok {
				steps = append(steps, step{line: command})
			} else if command, ok := strings.CutPrefix(line, "$ "); ok {
				steps = append(steps, step{line: command})
			} else if n := len(steps); n > 0 {
				steps[n-1].output = append(steps[n-1].output, line)
			}
		}
	}
	return steps
}

// runnable tells whether a command is run here. What starts QEMU is for the
// tests with guests, and curl is nothing a test may need.
func (s step) runnable(t *testing.T) bool {
	if strings.Contains(s.line, "qemu-system") {
		return false
	}
	program, _, _ := strings.Cut(s.line, " ")
	if _, err := exec.LookPath(program); err != nil && program == "curl" {
		t.Logf("there is no %s to run: %s", program, s.line)
		return false
	}
	return true
}

// TestExamples runs the EXAMPLES of every page, each page in one shell, with
// /run/leapio and /var/lib/leapio in folders of its own.
func TestExamples(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(man, "*.[78]"))
	if err != nil || len(pages) < 5 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for _, page := range pages {
		t.Run(filepath.Base(page), func(t *testing.T) {
			steps := slices.DeleteFunc(examples(readPage(t, filepath.Base(page))), func(s step) bool { return !s.runnable(t) })
			if len(steps) == 0 {
				t.Fatal("nothing to run")
			}
			runExamples(t, steps)
		})
	}
}

// runExamples runs steps in one shell, up to the first that fails, and compares
// their output.
func runExamples(t *testing.T, steps []step) {
	e := newPlace(t)
	var script strings.Builder
	for i, s := range steps {
		line := strings.ReplaceAll(s.line, "/run/leapio", e.run)
		fmt.Fprintf(&script, "{ %s\n} >out.%d 2>err.%d || { echo $? >status.%d; exit 1; }; : >status.%d\n", line, i, i, i, i)
	}
	_, err := e.sh(t, script.String())
	for i, s := range steps {
		status, serr := os.ReadFile(filepath.Join(e.work, fmt.Sprintf("status.%d", i)))
		if serr != nil {
			t.Fatalf("%s: did not end: %v", s.line, err)
		}
		if len(status) > 0 {
			words, _ := os.ReadFile(filepath.Join(e.work, fmt.Sprintf("err.%d", i)))
			t.Fatalf("%s: exit code %s%s", s.line, status, words)
		}
		if s.output == nil {
			continue
		}
		got, err := os.ReadFile(filepath.Join(e.work, fmt.Sprintf("out.%d", i)))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(strings.Join(s.output, "\n")+"\n", string(got)); d != "" {
			t.Errorf("%s: (-page +run)\n%s", s.line, d)
		}
	}
	if err != nil {
		t.Error(err)
	}
}

// place is where a test runs commands: folders for the daemons, and one to be
// in.
type place struct {
	run, state, work string
}

// newPlace makes the folders. At the end of the test the daemons that run there
// are ended, leap-wpt last.
func newPlace(t *testing.T) *place {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "leap-man")
	if err != nil {
		t.Fatal(err)
	}
	e := &place{run: filepath.Join(dir, "run"), state: filepath.Join(dir, "state"), work: t.TempDir()}
	t.Cleanup(func() {
		e.endDaemons(t)
		os.RemoveAll(dir)
	})
	return e
}

// sh runs a shell script in the place and returns what it prints.
func (e *place) sh(t *testing.T, script string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", script)
	cmd.Dir = e.work
	cmd.Env = append(os.Environ(), "LEAP_RUN_DIR="+e.run, "LEAP_STATE_DIR="+e.state, "TMPDIR=/tmp")
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	cmd.WaitDelay = limit
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w\n%s", err, &words)
	}
	return out.String(), nil
}

// endDaemons sends TERM to the daemons and waits until they have removed their
// pid files.
func (e *place) endDaemons(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(e.run, "*.pid"))
	if err != nil {
		t.Error(err)
	}
	broker := filepath.Join(e.run, "wpt.pid")
	slices.SortFunc(files, func(a, b string) int {
		return strings.Compare(strconv.FormatBool(a == broker)+a, strconv.FormatBool(b == broker)+b)
	})
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if err := unix.Kill(pid, unix.SIGTERM); err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		for end := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
				break
			}
			if time.Now().After(end) {
				t.Errorf("%s: still there", file)
				_ = unix.Kill(pid, unix.SIGKILL)
				break
			}
		}
	}
}

// columnsOf reads the lists of columns of a page's COMMANDS: the .Dl lines, by
// verb.
func columnsOf(text string) map[string][]string {
	lists := make(map[string][]string)
	section, verb, depth := "", "", 0
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, ".Sh "), strings.HasPrefix(line, ".Ss "):
			section, verb = line[4:], ""
		case section != "COMMANDS":
		case strings.HasPrefix(line, ".Bl"):
			depth++
		case line == ".El":
			depth--
		case depth == 1 && strings.HasPrefix(line, ".It Cm "):
			var words []string
			for _, word := range strings.Fields(line[7:]) {
				if len(word) == 2 && strings.ToLower(word) != word || strings.Contains(word, "|") {
					break // the next macro, or a choice of words
				}
				words = append(words, word)
			}
			verb = strings.Join(words, " ")
		case strings.HasPrefix(line, ".Dl "):
			lists[verb] = append(lists[verb], line[4:])
		}
	}
	return lists
}

// TestColumns holds the columns that the pages list against those that the
// commands print.
func TestColumns(t *testing.T) {
	e := newPlace(t)
	sh := func(script string) string {
		t.Helper()
		out, err := e.sh(t, script)
		if err != nil {
			t.Fatalf("%s: %v", script, err)
		}
		return out
	}
	sh("leap-wpt run >/dev/null 2>&1 & leap-soc run >/dev/null 2>&1 & leap-soc wait runtime soc attached --timeout 30s")
	sh("leap-soc volume create d1 mem size=1M && leap-qmap map vm1 d1 && leap-rdma listen tcp://127.0.0.1:0")
	m, err := boot(filepath.Join(e.run, "port", "vm1", "cntrl"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	const events = "%s events >events.%[1]s & i=0; until test -s events.%[1]s; do %s >/dev/null; i=$((i+1)); sleep 0.05; done; kill $!; cat events.%[1]s"
	for _, tt := range []struct{ page, verb, command string }{
		{"leap-wpt", "port list", "leap-wpt port list"},
		{"leap-wpt", "port show", "leap-wpt port show vm1"},
		{"leap-wpt", "show", "leap-wpt show | sed '/^$/,$d'"},
		{"leap-wpt", "events", fmt.Sprintf(events, "leap-wpt", "leap-wpt port add x$i")},
		{"leap-soc", "volume list", "leap-soc volume list"},
		{"leap-soc", "volume show", "leap-soc volume show d1"},
		{"leap-soc", "volume describe", "leap-soc volume describe"},
		{"leap-soc", "volume describe", "leap-soc volume describe file"},
		{"leap-soc", "subsystem list", "leap-soc subsystem list"},
		{"leap-soc", "subsystem show", "leap-soc subsystem show vm1"},
		{"leap-soc", "namespace list", "leap-soc namespace list"},
		{"leap-soc", "host list", "leap-soc host list vm1"},
		{"leap-soc", "show", "leap-soc show"},
		{"leap-soc", "show", "leap-soc show limits"},
		{"leap-soc", "doctor", "leap-soc doctor || test $? = 1"},
		{"leap-soc", "apply", "leap-soc export | leap-soc apply -"},
		{"leap-soc", "stat", "leap-soc stat | sed 1,2d"},
		{"leap-soc", "stat", "leap-soc stat --interval 10ms --count 1"},
		{"leap-soc", "events", fmt.Sprintf(events, "leap-soc", "leap-soc volume create x$i null size=1M")},
		{"leap-qmap", "list", "leap-qmap list"},
		{"leap-qmap", "show", "leap-qmap show vm1 | sed '/^$/,$d'"},
		{"leap-qmap", "dump", "leap-qmap dump vm1 0"},
		{"leap-qmap", "watch", "leap-qmap watch --interval 10ms >watch & until test -s watch; do sleep 0.05; done; kill $!; cat watch"},
		{"leap-rdma", "list", "leap-rdma list"},
		{"leap-rdma", "show", "leap-rdma show 1 | sed '/^$/,$d'"},
		{"leap-rdma", "devices", "leap-rdma devices"},
		{"leap-rdma", "discover", "leap-rdma discover $(leap-rdma list -o tsv | cut -f 2)"},
		{"leap-rdma", "ping", "leap-rdma ping $(leap-rdma list -o tsv | cut -f 2) --count 1"},
		{"leap-rdma", "bench", "leap-soc volume create d2 mem size=1M >&2 && leap-rdma bench $(leap-rdma listen tcp://127.0.0.1:0 d2 --allow any) --time 1ms | sed 1,2d"},
		{"leap-pagemap", "va", "leap-pagemap va $$ 0x0"},
		{"leap-pagemap", "ranges", "leap-pagemap ranges $$"},
		{"leap-pagemap", "gpa", "leap-pagemap gpa vm1 0x0"},
		{"leap-pagemap", "contig", "leap-pagemap contig --size 4K"},
		{"leap-pagemap", "hugepages list", "leap-pagemap hugepages list"},
		{"leap-pagemap", "bench", "leap-pagemap bench --size 4K --time 1ms"},
		{"leapio", "serve", "leapio serve null size=1M -o tsv >row & until test -s row; do sleep 0.05; done; kill $!; echo QEMU SOCKET RUN-DIR STATE-DIR; test $(tr -cd '\\t' <row | wc -c) = 3"},
	} {
		columns := heading(sh(tt.command))
		listed := columnsOf(readPage(t, tt.page+".8"))[tt.verb]
		if !slices.Contains(listed, columns) {
			t.Errorf("%s.8: %s has %q, the page lists %q", tt.page, tt.verb, columns, listed)
		}
	}
	for _, page := range []string{"leap-wpt", "leap-soc", "leap-qmap", "leap-rdma", "leap-pagemap", "leapio"} {
		for verb, listed := range columnsOf(readPage(t, page+".8")) {
			if want := map[string]int{"leap-soc volume describe": 2, "leap-soc stat": 2, "leap-soc show": 2}[page+" "+verb]; len(listed) != max(want, 1) {
				t.Errorf("%s.8: %s lists columns %d times: %q", page, verb, len(listed), listed)
			}
		}
	}
}

// heading gives the names of the columns of a table, or of what show prints.
func heading(text string) string {
	first, _, _ := strings.Cut(text, "\n")
	if name, _, _ := strings.Cut(first, " "); !strings.HasSuffix(name, ":") {
		return strings.Join(strings.Fields(first), " ")
	}
	var names []string
	for line := range strings.Lines(text) {
		name, _, _ := strings.Cut(line, ":")
		names = append(names, strings.ToUpper(name))
	}
	return strings.Join(names, " ")
}

// TestMetricsPage holds the names that the pages of the daemons list against those
// that they have.
func TestMetricsPage(t *testing.T) {
	e := newPlace(t)
	out, err := e.sh(t, "leap-wpt run >/dev/null 2>&1 & leap-soc run >/dev/null 2>&1 & leap-soc wait runtime soc attached --timeout 30s && "+
		"leap-soc volume create d1 mem size=1M >&2 && leap-qmap map vm1 d1 >&2 && leap-rdma listen tcp://127.0.0.1:0 >&2")
	if err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	m, err := boot(filepath.Join(e.run, "port", "vm1", "cntrl"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	for _, daemon := range []string{"leap-soc", "leap-wpt"} {
		if out, err = e.sh(t, daemon+" metrics"); err != nil {
			t.Fatal(err)
		}
		var names []string
		for line := range strings.Lines(out) {
			if fields := strings.Fields(line); len(fields) > 2 && fields[1] == "TYPE" {
				names = append(names, fields[2])
			}
		}
		var listed []string
		_, section, _ := strings.Cut(readPage(t, daemon+".8"), "\n.Sh METRICS\n")
		section, _, _ = strings.Cut(section, "\n.Sh ")
		for line := range strings.Lines(section) {
			if words, ok := strings.CutPrefix(line, ".It Li "); ok {
				listed = append(listed, strings.Fields(strings.ReplaceAll(words, ",", " "))...)
			}
		}
		slices.Sort(names)
		slices.Sort(listed)
		if d := cmp.Diff(names, listed); d != "" || len(names) == 0 {
			t.Errorf("metrics (-) and the page (+) of %s: %s", daemon, d)
		}
	}
}

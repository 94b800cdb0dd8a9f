// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// Package lib_test holds the house rules that a compiler does not: which package
// may import which, licence headers, file sizes, where unsafe may be used.
package lib_test

import (
	"bytes"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/leapio/leapio/"

// rows is the order of packages, lowest first: a package imports only from rows
// above its own in this list. A name is a folder of lib/; KIND/* is any folder
// right below KIND. A folder in no row fails the test, so that a new package
// gets its place here and in docs/architecture.md.
var rows = [][]string{
	{"nvme", "fault", "stats", "disk"},
	{"units", "metrics"},
	{"cli"},
	{"api"},
	{"pagemap", "uring", "vfiouser", "fabrics", "bench"},
	{"dma"},
	{"qpair"},
	{"poller"},
	{"fabrics/tcp", "fabrics/rdma"},
	{"volume"},
	{"fabrics/host", "pcinvme", "ocssd", "zns"},
	{"volume/*"},
	{"controller"},
	{"fabrics/target", "wpt/link"},
	{"wpt", "soc"},
	{"doctor"},
	{"command"},
	{"command/*"},
	{"command/soc"},
	{"command/leapio"},
	{"guest"},
	{"guest/*"},
}

// restricted packages import only these of lib/, whatever their row allows:
// leap-wpt holds every guest's drive and is kept small.
var restricted = map[string][]string{
	"wpt": {"nvme", "fault", "units", "metrics", "api", "vfiouser", "dma", "qpair"},
}

// rowOf finds the row of a package by its folder in lib/, or -1. A name in full
// counts before a pattern.
func rowOf(pkg string) int {
	for _, patterns := range []bool{false, true} {
		for i, row := range rows {
			for _, name := range row {
				if strings.Contains(name, "*") != patterns {
					continue
				}
				if ok, err := path.Match(name, pkg); err == nil && ok {
					return i
				}
			}
		}
	}
	return -1
}

// isTest reports whether pkg is a test package, such as vfiouser/vfiousertest:
// it belongs to its parent, which it may import, and only tests import it.
func isTest(pkg string) bool {
	return strings.Contains(pkg, "/") && strings.HasSuffix(pkg, "test")
}

// mayImport tells why pkg may not import other, both folders of lib/; "" if it may.
func mayImport(pkg, other string) string {
	owner := pkg
	if isTest(pkg) {
		owner = path.Dir(pkg)
	}
	from, to := rowOf(owner), rowOf(other)
	switch {
	case from < 0:
		return "is in no row of the import order in lib/lib_test.go"
	case isTest(other):
		if to = rowOf(path.Dir(other)); isTest(pkg) && to >= 0 && to <= from {
			return ""
		}
		return fmt.Sprintf("imports %s, which is for tests", other)
	case to < 0:
		return fmt.Sprintf("imports %s, which is in no row of the import order in lib/lib_test.go", other)
	case isTest(pkg) && other == owner:
		return ""
	case to >= from:
		return fmt.Sprintf("imports %s, which is not in a row above its own", other)
	}
	if allowed, ok := restricted[pkg]; ok && !slices.Contains(allowed, other) {
		return fmt.Sprintf("imports %s; of lib/ it may only import %s", other, strings.Join(allowed, ", "))
	}
	return ""
}

func TestMayImport(t *testing.T) {
	for _, tt := range []struct {
		pkg, other string
		ok         bool
	}{
		{"units", "fault", true},
		{"fault", "units", false},
		{"nvme", "fault", false},
		{"cli", "units", true},
		{"volume/file", "volume", true},
		{"volume", "volume/file", false},
		{"volume/file", "volume/null", false},
		{"fabrics/tcp", "fabrics", true},
		{"fabrics", "fabrics/tcp", false},
		{"controller", "volume/file", true},
		{"wpt/link", "qpair", true},
		{"wpt", "qpair", true},
		{"wpt", "poller", false},
		{"wpt", "wpt/link", false},
		{"soc", "wpt/link", true},
		{"soc", "wpt", false},
		{"command/soc", "soc", true},
		{"command/leapio", "command/soc", true},
		{"command/soc", "command/qmap", true},
		{"command/rdma", "command/qmap", false},
		{"guest/tool", "guest", true},
		{"guest", "guest/tool", false},
		{"guest/tool", "command/leapio", true},
		{"nosuch", "nvme", false},
		{"soc", "nosuch", false},
		{"cli/clitest", "cli", true},
		{"vfiouser/vfiousertest", "vfiouser", true},
		{"vfiouser/vfiousertest", "nvme", true},
		{"vfiouser/vfiousertest", "dma", false},
		{"volume/volumetest", "volume", true},
		{"volume/volumetest", "volume/file", false},
		{"controller/controllertest", "volume/volumetest", true},
		{"controller", "volume/volumetest", false},
	} {
		if why := mayImport(tt.pkg, tt.other); (why == "") != tt.ok {
			t.Errorf("%s -> %s: %q, want allowed %v", tt.pkg, tt.other, why, tt.ok)
		}
	}
}

// files calls f for every file of the repository that people write, with its
// path from the root. What is built or fetched is not among them.
func files(t *testing.T, f func(name string, text []byte)) {
	t.Helper()
	root := os.DirFS("..")
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); base == ".git" || base == "testdata" || name == "bin" {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		f(name, text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// goFiles calls f for every Go file.
func goFiles(t *testing.T, f func(name string, text []byte)) {
	t.Helper()
	n := 0
	files(t, func(name string, text []byte) {
		if strings.HasSuffix(name, ".go") {
			n++
			f(name, text)
		}
	})
	if n == 0 {
		t.Fatal("found no Go files")
	}
}

// imports are the import paths of a Go file.
func imports(t *testing.T, name string, text []byte) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), name, text, parser.ImportsOnly)
	if err != nil {
		t.Error(err)
		return nil
	}
	var list []string
	for _, spec := range file.Imports {
		list = append(list, strings.Trim(spec.Path.Value, `"`))
	}
	return list
}

// TestImportOrder holds packages against rows. Tests themselves may import what
// the compiler lets them.
func TestImportOrder(t *testing.T) {
	goFiles(t, func(name string, text []byte) {
		if strings.HasSuffix(name, "_test.go") {
			return
		}
		pkg, inLib := strings.CutPrefix(path.Dir(name), "lib/")
		if !inLib && !strings.HasPrefix(name, "cmd/") {
			t.Errorf("%s: Go code is in lib/ and cmd/ only", name)
			return
		}
		if inLib && rowOf(pkg) < 0 && !isTest(pkg) {
			t.Errorf("%s: lib/%s is in no row of the import order in lib/lib_test.go", name, pkg)
			return
		}
		for _, imp := range imports(t, name, text) {
			other, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			lib, ok := strings.CutPrefix(other, "lib/")
			switch {
			case !ok:
				t.Errorf("%s: imports %s, which is not in lib/", name, other)
			case !inLib:
				if lib != "cli" && !strings.HasPrefix(lib, "command/") {
					t.Errorf("%s: imports %s; a main imports lib/cli and lib/command/*", name, other)
				}
			default:
				if why := mayImport(pkg, lib); why != "" {
					t.Errorf("%s: lib/%s %s", name, pkg, why)
				}
			}
		}
	})
}

// header is how every Go file begins.
const header = "// SPDX-License-Identifier: Apache-2.0\n// Copyright The LeapIO Authors\n\n"

func TestLicenceHeader(t *testing.T) {
	goFiles(t, func(name string, text []byte) {
		if !bytes.HasPrefix(text, []byte(header)) {
			t.Errorf("%s: does not begin with the licence header", name)
		}
	})
}

// maxLines is the length limit of a Go file that is no test.
const maxLines = 600

func TestFileLength(t *testing.T) {
	goFiles(t, func(name string, text []byte) {
		if n := bytes.Count(text, []byte("\n")); n > maxLines && !strings.HasSuffix(name, "_test.go") {
			t.Errorf("%s: has %d lines, more than %d", name, n, maxLines)
		}
	})
}

// unfinished are the marks of unfinished work, put together here so that this
// file has none.
var unfinished = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|X` + `XX)\b`)

func TestNothingUnfinished(t *testing.T) {
	files(t, func(name string, text []byte) {
		if base := path.Base(name); base == "LICENSE" || base == "go.sum" {
			return
		}
		for i, line := range bytes.Split(text, []byte("\n")) {
			if mark := unfinished.Find(line); mark != nil {
				t.Errorf("%s:%d: %s", name, i+1, mark)
			}
		}
	})
}

// TestUnsafe keeps unsafe in files that say so in their names.
func TestUnsafe(t *testing.T) {
	goFiles(t, func(name string, text []byte) {
		stem := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(name), ".go"), "_test")
		if strings.HasSuffix(stem, "_unsafe") {
			return
		}
		if slices.Contains(imports(t, name, text), "unsafe") {
			t.Errorf("%s: imports unsafe, which belongs in files named *_unsafe.go", name)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package lib_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	// shownBy is a test as docs/reliability.md names it: folder, function, and the
	// name of a subtest or script.
	shownBy = regexp.MustCompile("`((?:lib|test)(?:/[a-z]+)+)\\.((?:Test|Fuzz)\\w+)(?:/([\\w,-]+))?`")
	anyTest = regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w*`)
)

// TestReliabilityDoc: the tests that docs/reliability.md refers to are there.
func TestReliabilityDoc(t *testing.T) {
	text, err := os.ReadFile("../docs/reliability.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(text)
	tests := make(map[string]string) // all tests of a folder
	for _, name := range shownBy.FindAllStringSubmatch(doc, -1) {
		folder, function, sub := name[1], name[2], name[3]
		if _, ok := tests[folder]; !ok {
			tests[folder] = source(t, filepath.Join("..", folder))
		}
		if !strings.Contains(tests[folder], "\nfunc "+function+"(") {
			t.Errorf("%s: there is no such function", name[0])
		}
		if sub == "" || strings.Contains(tests[folder], `"`+sub+`"`) {
			continue
		}
		if _, err := os.Stat(filepath.Join("..", folder, "testdata/script", sub+".txtar")); err != nil {
			t.Errorf("%s: there is no such subtest, and no script", name[0])
		}
	}
	if len(tests) < 5 {
		t.Errorf("it names tests of %d folders", len(tests))
	}
	// None that is written in another way escapes.
	rest := shownBy.ReplaceAllString(doc, "")
	rest = strings.ReplaceAll(rest, "`go test ./lib -run TestReliabilityDoc`", "")
	for _, name := range anyTest.FindAllString(rest, -1) {
		t.Errorf("%s: which folder?", name)
	}
}

// source is the text of all tests of a folder.
func source(t *testing.T, folder string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	return all.String()
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// nvmeDoc is docs/nvme.md: by section, the rows of its first table.
type nvmeDoc map[string][]nvmeRow

// nvmeRow is a row by the names of the columns.
type nvmeRow map[string]string

// readNVMeDoc reads docs/nvme.md, which the tests of the controller keep true.
func readNVMeDoc(t *testing.T) nvmeDoc {
	t.Helper()
	text, err := os.ReadFile("../../docs/nvme.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := nvmeDoc{}
	for section := range strings.SplitSeq(string(text), "\n## ") {
		title, body, _ := strings.Cut(section, "\n")
		var columns []string
		for line := range strings.SplitSeq(body, "\n") {
			cells := strings.Split(strings.Trim(line, "|"), "|")
			switch {
			case !strings.HasPrefix(line, "|") && columns != nil:
				body = "" // end of the table
			case !strings.HasPrefix(line, "|"):
			case columns == nil:
				for _, c := range cells {
					columns = append(columns, strings.TrimSpace(c))
				}
			case !strings.HasPrefix(line, "|---"):
				row := nvmeRow{}
				for i, c := range cells {
					row[columns[i]] = strings.TrimSpace(c)
				}
				doc[title] = append(doc[title], row)
			}
			if body == "" {
				break
			}
		}
	}
	return doc
}

// number is a hexadecimal cell such as 0Ah.
func (row nvmeRow) number(column string) int {
	n, err := strconv.ParseUint(strings.TrimSuffix(row[column], "h"), 16, 16)
	if err != nil {
		panic(fmt.Sprintf("docs/nvme.md: column %s: %v", column, err))
	}
	return int(n)
}

// pci lists the identifiers, in the first column of a section's table, of what a
// drive of a virtual machine has.
func (d nvmeDoc) pci(section string) []int {
	var ids []int
	for _, row := range d[section] {
		if row["Offered"] == "fabrics" {
			continue
		}
		for _, column := range []string{"Opcode", "FID", "LID"} {
			if row[column] != "" {
				ids = append(ids, row.number(column))
			}
		}
	}
	return ids
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/leapio/leapio/lib/units"
)

// Column is one column of a verb's table. The same list of columns makes text
// and TSV; JSON is the value itself by its json tags. The order is part of the
// interface of scripts: columns are only ever added at the end.
type Column[T any] struct {
	Name  string      // the heading in text: upper case, "SIZE"
	Value func(T) any // see List for what becomes of it; nil and "" are "-"
}

// List prints rows as a table: text with a header, TSV without one, or a JSON
// array.
//
// A units.Size is 10 GiB in text and bytes in TSV, a time.Duration as Go prints
// it and nanoseconds, a time.Time RFC 3339, a bool yes or no and true or false,
// a []string joined by commas. Other values are printed as fmt.Sprint does.
func List[T any](call *Call, columns []Column[T], rows []T) error {
	if call.Format == JSON {
		if rows == nil {
			rows = []T{}
		}
		return printJSON(call.Stdout, rows, "  ")
	}
	var table [][]string
	if call.Format == Text {
		table = append(table, headings(columns))
	}
	for _, row := range rows {
		table = append(table, cells(call.Format, columns, row))
	}
	return printTable(call, table, make([]int, len(columns)))
}

// Show prints one row: text with a line per column, TSV as List does, or the
// JSON object that List has in its array.
func Show[T any](call *Call, columns []Column[T], row T) error {
	switch call.Format {
	case JSON:
		return printJSON(call.Stdout, row, "  ")
	case TSV:
		return printTable(call, [][]string{cells(TSV, columns, row)}, nil)
	}
	var table [][]string
	for _, c := range columns {
		v := c.Value(row)
		text := cell(Text, v)
		if size, ok := v.(units.Size); ok && size >= units.KiB {
			text += fmt.Sprintf(" (%d bytes)", int64(size))
		}
		table = append(table, []string{strings.ToLower(c.Name) + ":", text})
	}
	return printTable(call, table, make([]int, 2))
}

// Stream returns a function that prints rows as they come: text with a header
// before the first, TSV, or one JSON object per line. Each row is written at
// once.
func Stream[T any](call *Call, columns []Column[T]) func(T) error {
	widths := make([]int, len(columns))
	first := true
	return func(row T) error {
		if call.Format == JSON {
			return printJSON(call.Stdout, row, "")
		}
		var table [][]string
		if first && call.Format == Text {
			table = append(table, headings(columns))
		}
		first = false
		return printTable(call, append(table, cells(call.Format, columns, row)), widths)
	}
}

// Made prints the name of what a verb has made: the bare name, or {"name": ...}
// in JSON.
func Made(call *Call, name string) error {
	if call.Format == JSON {
		return printJSON(call.Stdout, struct {
			Name string `json:"name"`
		}{name}, "  ")
	}
	_, err := fmt.Fprintln(call.Stdout, name)
	return err
}

// headings are the names of columns.
func headings[T any](columns []Column[T]) []string {
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = c.Name
	}
	return names
}

// cells are the values of a row.
func cells[T any](format Format, columns []Column[T], row T) []string {
	values := make([]string, len(columns))
	for i, c := range columns {
		values[i] = cell(format, c.Value(row))
	}
	return values
}

// cell is a value in a table.
func cell(format Format, v any) string {
	if v == nil {
		return "-"
	}
	if p := reflect.ValueOf(v); p.Kind() == reflect.Pointer {
		if p.IsNil() {
			return "-"
		}
		if _, ok := v.(fmt.Stringer); !ok {
			return cell(format, p.Elem().Interface())
		}
	}
	text := plain(format, v)
	if text == "" {
		return "-"
	}
	if format == TSV {
		return tsvEscape(text)
	}
	return visible(text)
}

// plain is a value's text before escaping.
func plain(format Format, v any) string {
	tsv := format == TSV
	switch v := v.(type) {
	case units.Size:
		if tsv {
			return strconv.FormatInt(int64(v), 10)
		}
		return v.Human()
	case time.Duration:
		if tsv {
			return strconv.FormatInt(int64(v), 10)
		}
		return v.String()
	case time.Time:
		if v.IsZero() {
			return ""
		}
		return v.Format(time.RFC3339)
	case bool:
		words := [2]string{"no", "yes"}
		if tsv {
			words = [2]string{"false", "true"}
		}
		if v {
			return words[1]
		}
		return words[0]
	case []string:
		return strings.Join(v, ",")
	}
	return fmt.Sprint(v)
}

// tsvEscape writes tab, newline, carriage return and backslash as \t \n \r \\,
// and other control characters as Go does, so that a row is always one line
// with as many tabs as it has columns.
func tsvEscape(s string) string {
	return escape(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' })
}

// printTable writes rows: tabs in TSV, else columns aligned to widths, which
// grow as needed.
func printTable(call *Call, table [][]string, widths []int) error {
	var b bytes.Buffer
	for _, row := range table {
		for i := range widths {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	for _, row := range table {
		for i, text := range row {
			b.WriteString(text)
			switch {
			case i == len(row)-1:
				b.WriteByte('\n')
			case call.Format == TSV:
				b.WriteByte('\t')
			default:
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text)+2))
			}
		}
	}
	_, err := call.Stdout.Write(b.Bytes())
	return err
}

// printJSON writes v and a newline.
func printJSON(w io.Writer, v any, indent string) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

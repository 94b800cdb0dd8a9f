// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

// The JSON rules all types of the API share: lists and options are never null,
// requests are one strict value.

package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"unicode/utf8"
)

// MaxRequest is the largest request body in bytes.
const MaxRequest = 1 << 20

// List is a slice whose JSON is an array even when it is nil. It is assignable
// from and to a plain []T.
type List[T any] []T

// MarshalJSON gives an array, [] for nil.
func (l List[T]) MarshalJSON() ([]byte, error) {
	if l == nil {
		return []byte("[]"), nil
	}
	return json.Marshal([]T(l))
}

// Options are the key=value words of a volume. Their JSON is an object even
// when they are nil.
type Options map[string]string

// MarshalJSON gives an object with sorted keys, {} for nil.
func (o Options) MarshalJSON() ([]byte, error) {
	if o == nil {
		return []byte("{}"), nil
	}
	return json.Marshal(map[string]string(o))
}

// None is the request or the answer of a call that has none.
type None struct{}

// checker is a request that can tell whether its own words are well-formed.
type checker interface{ Check() error }

// decode reads exactly one JSON value from b into v: unknown keys, a second
// value and text that is not UTF-8 are refused.
func decode(b []byte, v any) error {
	if !utf8.Valid(b) {
		return errors.New("it is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return explain(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("it has more than one JSON value")
	}
	return nil
}

// explain words an error of encoding/json for users. Type errors have no place
// that holds: those of nested unmarshalers count from their own beginning.
func explain(err error) error {
	var (
		syntax *json.SyntaxError
		typed  *json.UnmarshalTypeError
	)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return errors.New("the JSON ends too early")
	case errors.As(err, &syntax):
		return fmt.Errorf("at byte %d: %w", syntax.Offset, err)
	case errors.As(err, &typed) && typed.Field != "":
		return fmt.Errorf("key %s cannot be a JSON %s", typed.Field, typed.Value)
	case errors.As(err, &typed):
		return fmt.Errorf("it cannot be a JSON %s", typed.Value)
	}
	// DisallowUnknownFields has no type of its own.
	if text, ok := strings.CutPrefix(err.Error(), "json: "); ok {
		return errors.New(text)
	}
	return err
}

// encode gives v as one JSON value; a nil slice is [].
func encode(v any) ([]byte, error) {
	if rv := reflect.ValueOf(v); rv.Kind() == reflect.Slice && rv.IsNil() {
		return []byte("[]"), nil
	}
	return json.Marshal(v)
}

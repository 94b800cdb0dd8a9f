// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package fault

import (
	"encoding/json"
	"errors"
	"fmt"
)

// wire is an Error in JSON. All keys are always present.
type wire struct {
	Op      string   `json:"op"`
	Name    string   `json:"name"`
	Kind    string   `json:"kind"`
	Code    int      `json:"code"`
	Message string   `json:"message"`
	Hints   []string `json:"hints"`
}

// envelope is what commands print with -o json and what the control API answers.
type envelope struct {
	Error *Error `json:"error"`
}

// MarshalJSON gives {"op","name","kind","code","message","hints"}: kind as
// Kind.String, code as the exit code, message the cause without op and name.
func (e *Error) MarshalJSON() ([]byte, error) {
	kind := KindOf(e)
	w := wire{Op: e.Op, Name: e.Name, Kind: kind.String(), Code: kind.ExitCode(), Message: e.cause(), Hints: Hints(e)}
	if w.Hints == nil {
		w.Hints = []string{}
	}
	return json.Marshal(w)
}

// UnmarshalJSON reads what MarshalJSON wrote. The cause becomes an error with
// the message as its text; a kind this build does not know becomes Failure.
func (e *Error) UnmarshalJSON(b []byte) error {
	var w wire
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*e = Error{Op: w.Op, Name: w.Name, Kind: parseKind(w.Kind), Err: errors.New(w.Message)}
	if len(w.Hints) > 0 {
		e.Hints = w.Hints
	}
	return nil
}

// Encode gives err as {"error":{...}} on one line, without a newline.
func Encode(err error) []byte {
	b, jerr := json.Marshal(envelope{From(err)})
	if jerr != nil {
		// A wire value is strings and an integer: it always marshals.
		panic(jerr)
	}
	return b
}

// Decode reads what Encode wrote. The first result is the fault; the second is
// not nil if b is no such object.
func Decode(b []byte) (*Error, error) {
	var env envelope
	if err := json.Unmarshal(b, &env); err != nil {
		return nil, fmt.Errorf("decoding an error: %w", err)
	}
	if env.Error == nil {
		return nil, errors.New("decoding an error: no error in it")
	}
	return env.Error, nil
}

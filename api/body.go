package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// longestBody bounds a JSON body, in bytes.
const longestBody = 64 << 10

// readBody reads a JSON object into what describes it, and refuses what that does not
// know. An empty body is an empty object.
func readBody(w http.ResponseWriter, r *http.Request, into any) error {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, longestBody))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return problem(http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", longestBody))
	}
	if err != nil {
		return invalid("body", "the body cannot be read: "+err.Error())
	}
	if len(raw) == 0 {
		return nil
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) && kind.Field != "" {
			return invalid(kind.Field, fmt.Sprintf("%s is a %s, which it cannot be", kind.Field, kind.Value))
		}
		return invalid("body", "the body is not the JSON object that is asked for: "+err.Error())
	}
	if decoder.More() {
		return invalid("body", "the body has something after its JSON object")
	}
	return nil
}

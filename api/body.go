package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"
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
	if start := bytes.TrimLeft(raw, " \t\r\n"); len(start) == 0 || start[0] != '{' {
		return invalid("body", "the body must be a JSON object")
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) && kind.Field != "" {
			field := kind.Field[strings.LastIndexByte(kind.Field, '.')+1:] // the name as clients know it
			return invalid(field, fmt.Sprintf("%s is a %s; it must be %s", field, clipped(kind.Value), wanted(kind.Type)))
		}
		var moment *time.ParseError
		if errors.As(err, &moment) {
			return invalid("body", fmt.Sprintf("%s is no time such as 2026-11-24T12:00:00Z", moment.Value))
		}
		if quoted, unknown := strings.CutPrefix(err.Error(), "json: unknown field "); unknown {
			if name, err := strconv.Unquote(quoted); err == nil {
				return invalid(clipped(name), fmt.Sprintf("%q is nothing that this request takes; see /docs", clipped(name)))
			}
		}
		return invalid("body", "the body is not the JSON object that is asked for: "+err.Error())
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return invalid("body", "the body has something after its JSON object")
	}
	return nil
}

// wanted says in a reader's words what a member must be.
func wanted(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	case reflect.Slice:
		return "an array"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Int, reflect.Int32, reflect.Int64:
		return "a whole number"
	}
	return "a number"
}

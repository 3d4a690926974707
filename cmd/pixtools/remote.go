package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/pflag"
)

// remote is a running PixTools that a tool talks to.
type remote struct{ server string }

// keyVariable is the API key that the tools send.
const keyVariable = "PIXTOOLS_API_KEY"

// sendWithKey asks, with the key where there is one.
func sendWithKey(request *http.Request) (*http.Response, error) {
	if key := os.Getenv(keyVariable); key != "" {
		request.Header.Set("Authorization", "Bearer "+key)
	}
	return http.DefaultClient.Do(request)
}

func (r *remote) flag(flags *pflag.FlagSet) {
	flags.StringVar(&r.server, "server", "http://127.0.0.1:8000", "where PixTools is; "+keyVariable+" has the API key to send, where it asks for one")
}

// check says what is wrong with the address.
func (r *remote) check() error {
	server, err := url.Parse(r.server)
	if err != nil || server.Host == "" || server.Scheme != "http" && server.Scheme != "https" {
		return fmt.Errorf("--server is %q: use an address such as http://127.0.0.1:8000", r.server)
	}
	r.server = strings.TrimRight(r.server, "/")
	return nil
}

// unreachable tells of a request that was not answered.
func (r *remote) unreachable(err error) error {
	if inner := (*url.Error)(nil); errors.As(err, &inner) {
		err = inner.Err // the address is said once
	}
	return fmt.Errorf("cannot reach %s (is PixTools running there? --server names another address): %w", r.server, err)
}

// call asks, with a body where there is one, and reads the answer, if it has any.
func (r *remote) call(ctx context.Context, method, path string, body, into any) error {
	if err := r.check(); err != nil {
		return err
	}
	var sent bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&sent).Encode(body); err != nil {
			return err
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, r.server+path, &sent)
	if err != nil {
		return err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := sendWithKey(request)
	if err != nil {
		return r.unreachable(err)
	}
	defer response.Body.Close()
	if response.StatusCode >= http.StatusBadRequest {
		return refusal(response)
	}
	if response.StatusCode == http.StatusNoContent {
		return nil
	}
	return json.NewDecoder(response.Body).Decode(into)
}

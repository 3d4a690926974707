package main

import (
	"errors"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/sr/srfake"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/schemas"
)

// TestSchemaRegistry: PixTools starts and works without its registry, and registers every
// event, by its ce_type, when it is there.
func TestSchemaRegistry(t *testing.T) {
	registry := srfake.New()
	t.Cleanup(registry.Close)
	var away atomic.Bool
	away.Store(true)
	registry.Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
		if away.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return away.Load()
	})
	env := embeddedEnv(t)
	env["SCHEMA_REGISTRY_URL"], env["SCHEMA_REGISTRY_RETRY_AFTER"] = registry.URL(), "100ms"
	p := run(t, env)
	p.ended(p.submit(file("a.png", "image/png", pngOf(t, picture(8, 8))), field("operations", `["webp"]`)))
	away.Store(false)
	for _, m := range events.Catalogue() {
		subject := string(m.ProtoReflect().Descriptor().FullName())
		eventually(t, subject, func() error {
			got, ok := registry.GetSchema(subject, 1)
			if !ok {
				return errors.New("it is not registered")
			}
			require.Equal(t, schemas.Events, got.Schema.Schema)
			return nil
		})
	}
}

package handlers_test

import (
	"bytes"
	"crypto/sha256"
	"log/slog"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/handlers"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/testenv"
)

// removedUploads is what the metric says.
func removedUploads(t *testing.T) (objects, size float64) {
	families, err := prometheus.DefaultGatherer.Gather()
	require.NoError(t, err)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if len(m.GetLabel()) != 1 || m.GetLabel()[0].GetValue() != "upload" {
				continue
			}
			switch family.GetName() {
			case "pixtools_janitor_removed_objects_total":
				objects = m.GetCounter().GetValue()
			case "pixtools_janitor_removed_bytes_total":
				size = m.GetCounter().GetValue()
			}
		}
	}
	return objects, size
}

// TestUploadsAreClearedAtTheirAge: what a client stored stays to the end of its retention, and
// goes with the first pass after it; what lies elsewhere is not looked at.
func TestUploadsAreClearedAtTheirAge(t *testing.T) {
	server := testenv.S3(t)
	cfg, err := env.ParseAsWithOptions[blob.Config](env.Options{Environment: map[string]string{"AWS_ENDPOINT_URL": server.Endpoint, "AWS_S3_BUCKET": "uploads-of-a-test",
		"AWS_ACCESS_KEY_ID": server.AccessKey, "AWS_SECRET_ACCESS_KEY": server.SecretKey, "UPLOAD_RETENTION_DAYS": "3"}})
	require.NoError(t, err)
	store, err := blob.New(t.Context(), cfg)
	require.NoError(t, err)
	require.NoError(t, store.EnsureBucket(t.Context()))
	content := []byte("of a client")
	for _, key := range []string{"uploads/a", "raw/b"} {
		require.NoError(t, store.Put(t.Context(), key, bytes.NewReader(content), int64(len(content)), sha256.Sum256(content), "image/png"))
	}
	var stored time.Time
	there := func() (keys []string) {
		require.NoError(t, store.List(t.Context(), "", func(o blob.Object) error {
			keys = append(keys, o.Key)
			if o.Key == "uploads/a" {
				stored = o.ModifiedAt
			}
			return nil
		}))
		return keys
	}
	require.Len(t, there(), 2)
	now := stored.Add(72 * time.Hour)
	j := (&handlers.Janitor{JanitorConfig: handlers.JanitorConfig{Rate: 100}, Uploads: cfg.UploadRetention(), Store: store, Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return now }}).Begin()
	clear := func(dry bool) handlers.Tally {
		tally, err := j.ClearUploads(t.Context(), dry)
		require.NoError(t, err)
		return tally
	}
	require.Empty(t, clear(false), "at its age, to the moment")
	require.Len(t, there(), 2)

	now = now.Add(1)
	one := handlers.Tally{handlers.WhyUpload: {Objects: 1, Bytes: int64(len(content))}}
	require.Equal(t, one, clear(true))
	require.Len(t, there(), 2, "it was only counted")
	before, sizeBefore := removedUploads(t)
	require.Equal(t, one, clear(false))
	require.Equal(t, []string{"raw/b"}, there())
	objects, size := removedUploads(t)
	require.Equal(t, [2]float64{1, float64(len(content))}, [2]float64{objects - before, size - sizeBefore})
	require.Empty(t, clear(false))
}

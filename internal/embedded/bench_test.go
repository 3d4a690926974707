package embedded

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/pixtools/pixtools/internal/blob"
)

func store(t testing.TB, p *Parts) *blob.Store {
	t.Helper()
	var cfg blob.Config
	require.NoError(t, env.ParseWithOptions(&cfg, env.Options{Environment: map[string]string{
		"AWS_ACCESS_KEY_ID": p.S3AccessKey, "AWS_SECRET_ACCESS_KEY": p.S3SecretKey, "AWS_REGION": p.S3Region,
		"AWS_S3_BUCKET": p.S3Bucket, "AWS_ENDPOINT_URL": p.S3Endpoint,
	}}))
	s, err := blob.New(context.Background(), cfg)
	require.NoError(t, err)
	return s
}

func TestS3Rate(t *testing.T) {
	conc, _ := strconv.Atoi(os.Getenv("CONC"))
	if conc == 0 {
		conc = 8
	}
	size, _ := strconv.Atoi(os.Getenv("SIZE"))
	if size == 0 {
		size = 1000
	}
	h := startHelper(t, helperSpec{Config: testConfig(t), Needs: Needs{S3: true}}, nil)
	s := store(t, h.Parts)
	body := bytes.Repeat([]byte("x"), size)
	sum := sha256.Sum256(body)
	run := func(what string, fn func(i int64) error) {
		var n atomic.Int64
		began := time.Now()
		var g errgroup.Group
		for range conc {
			g.Go(func() error {
				for time.Since(began) < 3*time.Second {
					if err := fn(n.Add(1)); err != nil {
						return err
					}
				}
				return nil
			})
		}
		require.NoError(t, g.Wait())
		fmt.Printf("%s: %.0f/s\n", what, float64(n.Load())/time.Since(began).Seconds())
	}
	run("put", func(i int64) error {
		return s.Put(context.Background(), fmt.Sprintf("raw/%d/source", i), bytes.NewReader(body), int64(len(body)), sum, "image/png")
	})
	run("get", func(i int64) error {
		var b bytes.Buffer
		_, err := s.Download(context.Background(), fmt.Sprintf("raw/%d/source", i%500+1), &b, sum)
		return err
	})
}

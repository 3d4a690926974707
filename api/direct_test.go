package api

import (
	"encoding/base64"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/secrets"
	"github.com/pixtools/pixtools/internal/testenv"
)

// TestTokens: a token says what was sealed in it, to its tenant, in its time, in any process; any other is unknown.
func TestTokens(t *testing.T) {
	ctx := t.Context()
	pool, err := pgxpool.New(ctx, testenv.Postgres(t))
	require.NoError(t, err)
	defer pool.Close()
	require.NoError(t, secrets.Migrate(ctx, pool))
	process := func() *Server {
		return &Server{Parts: Parts{Keys: secrets.New(secrets.Config{CheckInterval: time.Second, Hold: time.Hour}, pool, time.Minute, slog.New(slog.DiscardHandler)), Log: slog.New(slog.DiscardHandler)}}
	}
	s, other := process(), process()
	mine := ticket{Tenant: "a", Key: "uploads/x", Bytes: 3, SHA256: "00", Name: "holiday.png", Until: time.Now().Add(time.Minute).UTC().Round(0)}
	token, err := s.seal(ctx, mine)
	require.NoError(t, err)
	raw, err := base64.RawURLEncoding.DecodeString(token)
	require.NoError(t, err)
	require.NotContains(t, string(raw), "holiday")
	read, err := other.open(ctx, "a", token)
	require.NoError(t, err)
	require.Equal(t, mine, read)

	late := mine
	late.Until = time.Now().Add(-time.Second)
	expired, err := s.seal(ctx, late)
	require.NoError(t, err)
	name, err := s.Keys.Seal(ctx, "a", "job-1", `{"t":"a"}`) // sealed by us, and no ticket
	require.NoError(t, err)
	id := strings.Clone(token[:21])
	for what, c := range map[string]struct{ tenant, token, says string }{
		"another tenant's": {"b", token, "not known"},
		"expired":          {"a", expired, "UPLOAD_RETENTION_DAYS"},
		"empty":            {"a", "", "not known"},
		"no base64":        {"a", "uploads/x", "not known"},
		"cut":              {"a", token[:len(token)-4], "not known"},
		"only the key":     {"a", id, "not known"},
		"a bit changed":    {"a", flipped(raw, len(raw)-1), "not known"},
		"of another key":   {"a", flipped(raw, 0), "not known"},
		"something else":   {"a", base64.RawURLEncoding.EncodeToString(append(raw[:16:16], name.GetCiphertext()...)), "not known"},
	} {
		_, err := other.open(ctx, c.tenant, c.token)
		var p *Problem
		require.ErrorAs(t, err, &p, what)
		require.Equal(t, http.StatusNotFound, p.Status, what)
		require.Contains(t, p.Detail, c.says, what)
		require.Equal(t, "upload", p.Errors[0].Field, what)
	}
	pool.Close()
	_, err = process().open(ctx, "a", token)
	var p *Problem
	require.ErrorAs(t, err, &p)
	require.Equal(t, http.StatusServiceUnavailable, p.Status, "nobody can tell")
}

func flipped(raw []byte, at int) string {
	changed := append([]byte(nil), raw...)
	changed[at] ^= 1
	return base64.RawURLEncoding.EncodeToString(changed)
}

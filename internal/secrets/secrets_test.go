package secrets_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/secrets"
	"github.com/pixtools/pixtools/internal/testenv"
)

func newRing(pool *pgxpool.Pool) *secrets.Keyring {
	return secrets.New(secrets.Config{CheckInterval: 100 * time.Millisecond, Hold: time.Hour}, pool, time.Minute, slog.New(slog.DiscardHandler))
}

func TestSealing(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	pool, err := pgxpool.New(ctx, testenv.Postgres(t))
	require.NoError(t, err)
	defer pool.Close()
	require.NoError(t, secrets.Migrate(ctx, pool))
	require.NoError(t, secrets.Migrate(ctx, pool))

	ring := newRing(pool)
	sealed, err := ring.Seal(ctx, "a", "job-1", "holiday.jpg")
	require.NoError(t, err)
	require.NotContains(t, string(sealed.GetCiphertext()), "holiday")
	again, err := ring.Seal(ctx, "a", "job-1", "holiday.jpg")
	require.NoError(t, err)
	require.NotEqual(t, sealed.GetCiphertext(), again.GetCiphertext())

	other := newRing(pool) // another process
	text, err := other.Open(ctx, "job-1", sealed)
	require.NoError(t, err)
	require.Equal(t, "holiday.jpg", text)
	_, err = other.Open(ctx, "job-2", sealed)
	require.ErrorContains(t, err, "another job")
	sealed.Ciphertext[20] ^= 1
	_, err = other.Open(ctx, "job-1", sealed)
	require.Error(t, err)
	sealed.Ciphertext = sealed.Ciphertext[:5]
	_, err = other.Open(ctx, "job-1", sealed)
	require.ErrorContains(t, err, "too short")

	none, err := ring.Seal(ctx, "a", "job-1", "")
	require.NoError(t, err)
	require.Nil(t, none)

	foreign, err := ring.Seal(ctx, "b", "job-1", "x")
	require.NoError(t, err)
	require.NotEqual(t, again.GetKeyId(), foreign.GetKeyId())

	// Forgetting the tenant's keys erases what they sealed, for whoever has not used them yet.
	_, err = pool.Exec(ctx, "DELETE FROM pixtools_secrets.tenant_keys WHERE tenant = 'a'")
	require.NoError(t, err)
	_, err = newRing(pool).Open(ctx, "job-1", again)
	require.ErrorIs(t, err, secrets.ErrForgotten)
	// And what is in memory goes on while the database is away.
	pool.Close()
	text, err = ring.Open(ctx, "job-1", again)
	require.NoError(t, err)
	require.Equal(t, "holiday.jpg", text)
	_, err = ring.Seal(ctx, "a", "job-3", "y")
	require.NoError(t, err)
}

// TestRestore: keys go to another installation, which then opens what they sealed.
func TestRestore(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
	require.NoError(t, err)
	defer pool.Close()
	require.NoError(t, secrets.Migrate(t.Context(), pool))
	sealed, err := newRing(pool).Seal(t.Context(), "restore", "job", "name")
	require.NoError(t, err)
	keys, err := secrets.All(t.Context(), pool)
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), "DELETE FROM pixtools_secrets.tenant_keys")
	require.NoError(t, err)
	for range 2 {
		require.NoError(t, secrets.Restore(t.Context(), pool, keys))
	}
	again, err := secrets.All(t.Context(), pool)
	require.NoError(t, err)
	require.Equal(t, keys, again)
	text, err := newRing(pool).Open(t.Context(), "job", sealed)
	require.NoError(t, err)
	require.Equal(t, "name", text)

	// Another key under the same id, or none, is refused, and nothing is stored.
	fresh := secrets.TenantKey{ID: uuid.New(), Tenant: "restore", Key: make([]byte, 32), CreatedAt: keys[0].CreatedAt}
	other := keys[0]
	other.Key = make([]byte, 32)
	require.ErrorContains(t, secrets.Restore(t.Context(), pool, []secrets.TenantKey{fresh, other}), "another one")
	other.ID, other.Key = uuid.New(), make([]byte, 31)
	require.ErrorContains(t, secrets.Restore(t.Context(), pool, []secrets.TenantKey{fresh, other}), other.ID.String())
	again, err = secrets.All(t.Context(), pool)
	require.NoError(t, err)
	require.Equal(t, keys, again)
}

package secrets_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/secrets"
	"github.com/pixtools/pixtools/internal/testenv"
)

func TestSealing(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	pool, err := pgxpool.New(ctx, testenv.Postgres(t))
	require.NoError(t, err)
	defer pool.Close()
	require.NoError(t, secrets.Migrate(ctx, pool))
	require.NoError(t, secrets.Migrate(ctx, pool))

	ring := secrets.New(pool, time.Minute)
	sealed, err := ring.Seal(ctx, "a", "job-1", "holiday.jpg")
	require.NoError(t, err)
	require.NotContains(t, string(sealed.GetCiphertext()), "holiday")
	again, err := ring.Seal(ctx, "a", "job-1", "holiday.jpg")
	require.NoError(t, err)
	require.NotEqual(t, sealed.GetCiphertext(), again.GetCiphertext())

	other := secrets.New(pool, time.Minute) // another process
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
	_, err = secrets.New(pool, time.Minute).Open(ctx, "job-1", again)
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
	sealed, err := secrets.New(pool, time.Minute).Seal(t.Context(), "restore", "job", "name")
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
	text, err := secrets.New(pool, time.Minute).Open(t.Context(), "job", sealed)
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

// Secrets sign from when they are made until they are revoked, and one is made for a tenant
// that has none.
func TestWebhookSecrets(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	pool, err := pgxpool.New(ctx, testenv.Postgres(t))
	require.NoError(t, err)
	defer pool.Close()
	require.NoError(t, secrets.Migrate(ctx, pool))

	// However many processes need one first, it is one.
	found := make(chan [][]byte, 8)
	for range cap(found) {
		go func() {
			keys, err := secrets.NewWebhooks(pool, time.Minute, time.Hour).Signing(ctx, "a")
			assert.NoError(t, err)
			found <- keys
		}()
	}
	first := <-found
	require.Len(t, first, 1)
	require.Len(t, first[0], 32)
	for range cap(found) - 1 {
		require.Equal(t, first, <-found)
	}

	hooks, stale := secrets.NewWebhooks(pool, time.Minute, 0), secrets.NewWebhooks(pool, time.Minute, time.Hour)
	_, err = stale.Signing(ctx, "a")
	require.NoError(t, err)
	var last secrets.WebhookSecret
	for range secrets.MaxWebhookSecrets - 1 {
		last, err = hooks.CreateSecret(ctx, "a")
		require.NoError(t, err)
	}
	_, err = hooks.CreateSecret(ctx, "a")
	require.ErrorIs(t, err, secrets.ErrTooManySecrets)
	keys, err := hooks.Signing(ctx, "a")
	require.NoError(t, err)
	require.Len(t, keys, secrets.MaxWebhookSecrets)
	require.Equal(t, last.Key, keys[0], "the newest first")
	keys, err = stale.Signing(ctx, "a")
	require.NoError(t, err)
	require.Len(t, keys, 1, "read a moment ago")

	all, err := hooks.Secrets(ctx, "a")
	require.NoError(t, err)
	require.Equal(t, first[0], all[0].Key)
	require.ErrorIs(t, hooks.RevokeSecret(ctx, "b", all[0].ID), secrets.ErrNoSecret, "another tenant's")
	require.NoError(t, hooks.RevokeSecret(ctx, "a", all[0].ID))
	require.ErrorIs(t, hooks.RevokeSecret(ctx, "a", all[0].ID), secrets.ErrNoSecret)
	keys, err = hooks.Signing(ctx, "a")
	require.NoError(t, err)
	require.NotContains(t, keys, first[0])
	other, err := hooks.Signing(ctx, "b")
	require.NoError(t, err)
	require.NotContains(t, keys, other[0])

	require.NoError(t, hooks.SetAddress(ctx, "a", "https://example.org/1"))
	require.NoError(t, hooks.SetAddress(ctx, "a", "https://example.org/2"))
	require.Empty(t, hooks.Address("a"))
	require.NoError(t, hooks.ReadAddresses(ctx))
	require.Equal(t, "https://example.org/2", hooks.Address("a"))
	require.NoError(t, hooks.SetAddress(ctx, "a", ""))
	require.NoError(t, hooks.ReadAddresses(ctx))
	require.Empty(t, hooks.Address("a"))

	pool.Close()
	keys, err = hooks.Signing(ctx, "a")
	require.NoError(t, err, "what was read signs on without the database")
	require.Len(t, keys, secrets.MaxWebhookSecrets-1)
	_, err = hooks.Signing(ctx, "c")
	require.Error(t, err)
}

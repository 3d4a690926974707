package secrets_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
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
	held, err := secrets.Held(ctx, pool, "a")
	require.NoError(t, err, "before anything was made")
	require.Zero(t, held)
	require.NoError(t, secrets.Belong(ctx, pool, nil), "nothing is sealed")
	require.ErrorIs(t, secrets.Belong(ctx, pool, []string{"b0a742fd-bab4-4704-b235-0041f0d2a411"}), secrets.ErrOtherDatabase)
	require.NoError(t, secrets.Migrate(ctx, pool))
	require.NoError(t, secrets.Migrate(ctx, pool))

	ring := newRing(pool)
	sealed, err := ring.Seal(ctx, "a", "job-1", "holiday.jpg")
	require.NoError(t, err)
	require.NotContains(t, string(sealed.GetCiphertext()), "holiday")
	require.NoError(t, secrets.Belong(ctx, pool, []string{"b0a742fd-bab4-4704-b235-0041f0d2a411", sealed.GetKeyId()}))
	require.ErrorIs(t, secrets.Belong(ctx, pool, []string{"b0a742fd-bab4-4704-b235-0041f0d2a411"}), secrets.ErrOtherDatabase)
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

// TestForget: after CheckInterval no keyring has a key that was forgotten, what is sealed then
// has a new one. What its webhooks need goes with the keys, and is not made again for those that wait.
func TestForget(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
	require.NoError(t, err)
	defer pool.Close()
	require.NoError(t, secrets.Migrate(t.Context(), pool))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	rings := []*secrets.Keyring{newRing(pool), newRing(pool)} // of two processes
	for _, ring := range rings {
		go func() { _ = ring.Watch(ctx) }()
	}
	mine, err := rings[0].Seal(ctx, "erased", "job", "name")
	require.NoError(t, err)
	others, err := rings[1].Seal(ctx, "kept", "job", "other")
	require.NoError(t, err)
	for _, ring := range rings {
		text, err := ring.Open(ctx, "job", mine)
		require.NoError(t, err)
		require.Equal(t, "name", text)
	}
	hooks := secrets.NewWebhooks(pool, time.Minute, 0)
	for _, tenant := range []string{"erased", "kept"} {
		require.NoError(t, hooks.SetAddress(ctx, tenant, "https://example.org/"+tenant))
		_, err = hooks.Signing(ctx, tenant)
		require.NoError(t, err)
	}
	revoked, err := hooks.CreateSecret(ctx, "erased")
	require.NoError(t, err)
	require.NoError(t, hooks.RevokeSecret(ctx, "erased", revoked.ID))
	held, err := secrets.Held(ctx, pool, "erased")
	require.NoError(t, err)
	require.Equal(t, secrets.Holdings{Keys: 1, WebhookAddresses: 1, WebhookSecrets: 2}, held)
	forgotten, err := secrets.Forget(ctx, pool, "erased")
	require.NoError(t, err)
	require.Equal(t, held, forgotten)
	forgotten, err = secrets.Forget(ctx, pool, "erased")
	require.NoError(t, err)
	require.Zero(t, forgotten, "it may be repeated")
	require.NoError(t, hooks.ReadAddresses(ctx))
	require.Empty(t, hooks.Address("erased"))
	require.Equal(t, "https://example.org/kept", hooks.Address("kept"))
	_, err = hooks.Signing(ctx, "erased")
	require.ErrorIs(t, err, secrets.ErrForgotten)
	_, err = hooks.Signing(ctx, "kept")
	require.NoError(t, err)
	left, err := hooks.Secrets(ctx, "erased")
	require.NoError(t, err)
	require.Empty(t, left)
	for _, ring := range rings {
		require.Eventually(t, func() bool {
			_, err := ring.Open(ctx, "job", mine)
			return errors.Is(err, secrets.ErrForgotten)
		}, time.Minute, 10*time.Millisecond)
		text, err := ring.Open(ctx, "job", others)
		require.NoError(t, err)
		require.Equal(t, "other", text)
	}
	fresh, err := rings[0].Seal(ctx, "erased", "job", "again")
	require.NoError(t, err)
	require.NotEqual(t, mine.GetKeyId(), fresh.GetKeyId())
	_, err = hooks.Signing(ctx, "erased")
	require.NoError(t, err, "it is there again")
	text, err := rings[1].Open(ctx, "job", fresh)
	require.NoError(t, err)
	require.Equal(t, "again", text)
}

// TestHold: without the database keys are used for Hold, and no longer.
func TestHold(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
	require.NoError(t, err)
	require.NoError(t, secrets.Migrate(t.Context(), pool))
	ring := secrets.New(secrets.Config{CheckInterval: 100 * time.Millisecond, Hold: 300 * time.Millisecond}, pool, time.Minute, slog.New(slog.DiscardHandler))
	sealed, err := ring.Seal(t.Context(), "held", "job", "name")
	require.NoError(t, err)
	pool.Close()
	text, err := ring.Open(t.Context(), "job", sealed)
	require.NoError(t, err)
	require.Equal(t, "name", text)
	go func() { _ = ring.Watch(t.Context()) }()
	require.Eventually(t, func() bool {
		_, err := ring.Open(t.Context(), "job", sealed)
		return err != nil
	}, time.Minute, 10*time.Millisecond)
}

func TestConfig(t *testing.T) {
	right := secrets.Config{CheckInterval: 10 * time.Second, Hold: 24 * time.Hour}
	require.NoError(t, right.Validate())
	for want, change := range map[string]func(*secrets.Config){
		"":                                   func(c *secrets.Config) { c.CheckInterval, c.Hold = 100*time.Millisecond, 720*time.Hour },
		"TENANT_KEYS_CHECK_INTERVAL is 99ms": func(c *secrets.Config) { c.CheckInterval = 99 * time.Millisecond },
		"TENANT_KEYS_CHECK_INTERVAL is 1h0m0.001s": func(c *secrets.Config) { c.CheckInterval = time.Hour + time.Millisecond },
		"TENANT_KEYS_HOLD is 9.999s":               func(c *secrets.Config) { c.Hold = 10*time.Second - time.Millisecond },
		"TENANT_KEYS_HOLD is 720h0m0.001s":         func(c *secrets.Config) { c.Hold = 720*time.Hour + time.Millisecond },
	} {
		c := right
		change(&c)
		if err := c.Validate(); want == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, want)
		}
	}
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

// Package secrets seals what is personal in events (file names, webhook addresses)
// under a key of its tenant. The keys live in a schema of their own, which no
// rebuild of the read model touches; deleting a tenant's keys erases what was
// sealed with them, wherever the log was copied to.
package secrets

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pixtools/pixtools/events"
)

// ErrForgotten says that the key is gone: its content is erased.
var ErrForgotten = errors.New("the key was forgotten, and with it the content")

// ErrDamaged says that what is to be opened is not what was sealed, or is bound to something else.
var ErrDamaged = errors.New("sealed text was changed, or belongs to another job")

const keyBytes = 32 // AES-256

// Config says how soon a key that was forgotten is forgotten by every process.
type Config struct {
	// CheckInterval is the time between two looks whether the keys in memory are still kept:
	// after it, no process that reaches the database has one that is not.
	CheckInterval time.Duration `env:"TENANT_KEYS_CHECK_INTERVAL" envDefault:"10s" range:"100ms to 1h"`
	// Hold is how long a process that does not reach the database goes on with its keys.
	// Beyond it: they are let go; submissions with a file name are 503.
	Hold time.Duration `env:"TENANT_KEYS_HOLD" envDefault:"24h" range:"TENANT_KEYS_CHECK_INTERVAL to 720h"`
}

// Validate names every value out of range.
func (c Config) Validate() error {
	var faults []error
	if c.CheckInterval < 100*time.Millisecond || c.CheckInterval > time.Hour {
		faults = append(faults, fmt.Errorf("TENANT_KEYS_CHECK_INTERVAL is %s: it must be from 100ms to 1h", c.CheckInterval))
	}
	if c.Hold < c.CheckInterval || c.Hold > 30*24*time.Hour {
		faults = append(faults, fmt.Errorf("TENANT_KEYS_HOLD is %s: it must be from TENANT_KEYS_CHECK_INTERVAL, %s, to 720h", c.Hold, c.CheckInterval))
	}
	return errors.Join(faults...)
}

// Keyring holds tenants' keys in memory once they were used, so that a database
// that is away stops neither submissions nor links.
type Keyring struct {
	cfg     Config
	pool    *pgxpool.Pool
	timeout time.Duration
	log     *slog.Logger

	mu sync.Mutex
	// current is the key to seal with, by tenant; byID all that were seen.
	current map[string]key
	byID    map[string]key
}

type key struct {
	id   string
	aead cipher.AEAD
}

// New makes a keyring over the tables that Migrate makes; timeout bounds reading or
// making one key. Call Watch beside it.
func New(cfg Config, pool *pgxpool.Pool, timeout time.Duration, log *slog.Logger) *Keyring {
	return &Keyring{cfg: cfg, pool: pool, timeout: timeout, log: log, current: map[string]key{}, byID: map[string]key{}}
}

// Watch lets go of keys that were forgotten, until ctx is done.
func (k *Keyring) Watch(ctx context.Context) error {
	confirmed := time.Now()
	tick := time.NewTicker(k.cfg.CheckInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		asked := time.Now()
		err := k.check(ctx)
		if err == nil {
			confirmed = asked
			continue
		}
		if time.Since(confirmed) > k.cfg.Hold {
			k.log.Error("the database has not told for TENANT_KEYS_HOLD which keys of tenants are kept: they are let go, and file names can be sealed and read again when it answers", "error", err)
			k.forget(func(string) bool { return true })
		}
	}
}

// check asks which of the keys in memory are still kept.
func (k *Keyring) check(ctx context.Context) error {
	k.mu.Lock()
	ids := slices.Collect(maps.Keys(k.byID))
	k.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, k.timeout)
	defer cancel()
	rows, err := k.pool.Query(ctx, "SELECT key_id::text FROM pixtools_secrets.tenant_keys WHERE key_id = ANY($1::uuid[])", ids)
	if err != nil {
		return err
	}
	there, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	for _, id := range there {
		kept[id] = true
	}
	k.forget(func(id string) bool { return slices.Contains(ids, id) && !kept[id] })
	return nil
}

// forget lets go of keys.
func (k *Keyring) forget(gone func(id string) bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.byID, func(id string, _ key) bool { return gone(id) })
	maps.DeleteFunc(k.current, func(_ string, key key) bool { return gone(key.id) })
}

// Holdings are what the schema has of a tenant, in numbers.
type Holdings struct {
	Keys, WebhookAddresses int64
	// WebhookSecrets are those that were revoked, too: of these it has no key, but when they were made.
	WebhookSecrets int64
}

// Forget destroys what the schema has of a tenant, all or nothing, and says what it was. What was
// sealed with its keys cannot be opened any more, wherever it was copied to; processes that hold them
// in memory let go within CheckInterval. What is sealed afterwards has a new key.
func Forget(ctx context.Context, pool *pgxpool.Pool, tenant string) (gone Holdings, err error) {
	// Alone: Signing makes no secret in between for a webhook that still waits.
	err = alone(ctx, pool, tenant, func(tx pgx.Tx) error {
		for _, of := range []struct {
			statement string
			n         *int64
		}{
			{`WITH gone AS (DELETE FROM pixtools_secrets.tenant_keys WHERE tenant = $1 RETURNING key_id, tenant)
				INSERT INTO pixtools_secrets.forgotten_keys (key_id, tenant) SELECT key_id, tenant FROM gone`, &gone.Keys},
			{"DELETE FROM pixtools_secrets.webhook_addresses WHERE tenant = $1", &gone.WebhookAddresses},
			{"DELETE FROM pixtools_secrets.webhook_secrets WHERE tenant = $1", &gone.WebhookSecrets},
		} {
			tag, err := tx.Exec(ctx, of.statement, tenant)
			if err != nil {
				return err
			}
			*of.n = tag.RowsAffected()
		}
		return nil
	})
	if err != nil {
		return Holdings{}, fmt.Errorf("forget tenant %s: %w", tenant, err)
	}
	return gone, nil
}

// lacksTable says whether a statement failed for want of a table: Migrate was never called there.
func lacksTable(err error) bool {
	const undefinedTable = "42P01"
	var refused *pgconn.PgError
	return errors.As(err, &refused) && refused.Code == undefinedTable
}

// Held counts what Forget would destroy: nothing where Migrate was never called.
func Held(ctx context.Context, pool *pgxpool.Pool, tenant string) (held Holdings, err error) {
	for table, n := range map[string]*int64{"tenant_keys": &held.Keys, "webhook_addresses": &held.WebhookAddresses, "webhook_secrets": &held.WebhookSecrets} {
		err := pool.QueryRow(ctx, "SELECT count(*) FROM pixtools_secrets."+table+" WHERE tenant = $1", tenant).Scan(n)
		if err != nil && !lacksTable(err) {
			return Holdings{}, fmt.Errorf("count what there is of tenant %s: %w", tenant, err)
		}
	}
	return held, nil
}

// ErrOtherDatabase says that a database has none of a log's keys.
var ErrOtherDatabase = errors.New("the database has none of the keys that the log's names and addresses are sealed with: is DATABASE_URL that of another PixTools?")

// Belong refuses a database that has none of these keys, and has forgotten none: it is not the one
// that they were made in, and a back-up of it would restore nothing that can be read.
func Belong(ctx context.Context, pool *pgxpool.Pool, keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	var some bool
	err := pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pixtools_secrets.tenant_keys WHERE key_id::text = ANY($1))
		OR EXISTS (SELECT FROM pixtools_secrets.forgotten_keys WHERE key_id::text = ANY($1))`, keys).Scan(&some)
	if err != nil && !lacksTable(err) {
		return fmt.Errorf("look for the log's keys: %w", err)
	}
	if !some {
		return ErrOtherDatabase
	}
	return nil
}

// keyTables are part of the schema.
var keyTables = []string{
	`CREATE TABLE IF NOT EXISTS pixtools_secrets.tenant_keys (
		key_id     uuid PRIMARY KEY,
		tenant     text NOT NULL,
		key        bytea NOT NULL,
		created_at timestamptz NOT NULL DEFAULT now())`,
	// Which keys were forgotten, and when: a back-up of before still has them.
	`CREATE TABLE IF NOT EXISTS pixtools_secrets.forgotten_keys (
		key_id       uuid PRIMARY KEY,
		tenant       text NOT NULL,
		forgotten_at timestamptz NOT NULL DEFAULT now())`,
	"CREATE INDEX IF NOT EXISTS tenant_keys_by_tenant ON pixtools_secrets.tenant_keys (tenant, created_at DESC)",
}

// Migrate makes the schema, and what this package has in it.
func Migrate(ctx context.Context, pool *pgxpool.Pool) error {
	return Prepare(ctx, pool, slices.Concat(keyTables, webhookTables)...)
}

// lockSchema has whoever makes or fills tables do so one after the other.
const lockSchema = "SELECT pg_advisory_xact_lock(hashtext('pixtools schema'))"

// Prepare makes the schema, and what statements say in it, if they are not there. Many processes
// may do so at once.
func Prepare(ctx context.Context, pool *pgxpool.Pool, statements ...string) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		for _, statement := range append([]string{
			lockSchema,
			"CREATE SCHEMA IF NOT EXISTS pixtools_secrets",
		}, statements...) {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return fmt.Errorf("prepare the secrets' schema: %w", err)
			}
		}
		return nil
	})
}

// Seal encrypts text for a tenant; the job id is bound to it. Empty text is nil.
func (k *Keyring) Seal(ctx context.Context, tenant, jobID, text string) (*events.Sealed, error) {
	if text == "" {
		return nil, nil
	}
	key, err := k.sealing(ctx, tenant)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, key.aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	return &events.Sealed{KeyId: key.id, Ciphertext: key.aead.Seal(nonce, nonce, []byte(text), []byte(jobID))}, nil
}

// Open decrypts what Seal made; nil is "".
func (k *Keyring) Open(ctx context.Context, jobID string, sealed *events.Sealed) (string, error) {
	if sealed == nil {
		return "", nil
	}
	key, err := k.opening(ctx, sealed.GetKeyId())
	if err != nil {
		return "", err
	}
	n := key.aead.NonceSize()
	if len(sealed.GetCiphertext()) < n {
		return "", fmt.Errorf("%w: it is too short", ErrDamaged)
	}
	text, err := key.aead.Open(nil, sealed.GetCiphertext()[:n], sealed.GetCiphertext()[n:], []byte(jobID))
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return string(text), nil
}

// Hold takes the key that Seal uses for a tenant into memory, and makes it if there is none.
func (k *Keyring) Hold(ctx context.Context, tenant string) error {
	_, err := k.sealing(ctx, tenant)
	return err
}

func (k *Keyring) sealing(ctx context.Context, tenant string) (key, error) {
	k.mu.Lock()
	found, ok := k.current[tenant]
	k.mu.Unlock()
	if ok {
		return found, nil
	}
	ctx, cancel := context.WithTimeout(ctx, k.timeout)
	defer cancel()
	var id uuid.UUID
	var raw []byte
	const newest = "SELECT key_id, key FROM pixtools_secrets.tenant_keys WHERE tenant = $1 ORDER BY created_at DESC, key_id LIMIT 1"
	err := k.pool.QueryRow(ctx, newest, tenant).Scan(&id, &raw)
	if errors.Is(err, pgx.ErrNoRows) {
		fresh := make([]byte, keyBytes)
		if _, err := rand.Read(fresh); err != nil {
			return key{}, err
		}
		// Two processes may both find none and both write one. Both keys stay, so
		// whatever was sealed can be opened.
		if _, err := k.pool.Exec(ctx, "INSERT INTO pixtools_secrets.tenant_keys (key_id, tenant, key) VALUES ($1, $2, $3)",
			uuid.New(), tenant, fresh); err != nil {
			return key{}, fmt.Errorf("store a new key of tenant %s: %w", tenant, err)
		}
		err = k.pool.QueryRow(ctx, newest, tenant).Scan(&id, &raw)
	}
	if err != nil {
		return key{}, fmt.Errorf("read the key of tenant %s: %w", tenant, err)
	}
	made, err := newKey(id.String(), raw)
	if err != nil {
		return key{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.current[tenant], k.byID[made.id] = made, made
	return made, nil
}

func (k *Keyring) opening(ctx context.Context, id string) (key, error) {
	k.mu.Lock()
	found, ok := k.byID[id]
	k.mu.Unlock()
	if ok {
		return found, nil
	}
	ctx, cancel := context.WithTimeout(ctx, k.timeout)
	defer cancel()
	var raw []byte
	err := k.pool.QueryRow(ctx, "SELECT key FROM pixtools_secrets.tenant_keys WHERE key_id = $1", id).Scan(&raw)
	if errors.Is(err, pgx.ErrNoRows) {
		return key{}, ErrForgotten
	}
	if err != nil {
		return key{}, fmt.Errorf("read key %s: %w", id, err)
	}
	made, err := newKey(id, raw)
	if err != nil {
		return key{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.byID[id] = made
	return made, nil
}

func newKey(id string, raw []byte) (key, error) {
	block, err := aes.NewCipher(raw)
	if err != nil {
		return key{}, fmt.Errorf("key %s: %w", id, err)
	}
	aead, err := cipher.NewGCM(block)
	return key{id: id, aead: aead}, err
}

package secrets_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/secrets"
	"github.com/pixtools/pixtools/internal/testenv"
)

// tomorrow is what another version may add to the schema: tables that refer to one another,
// against the order of their names, and columns of every kind.
var tomorrow = []string{
	`CREATE TABLE pixtools_secrets."Zebras" (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, twice integer GENERATED ALWAYS AS (2 * length(name)) STORED, name text UNIQUE)`,
	`CREATE TABLE pixtools_secrets.ants (zebra text REFERENCES pixtools_secrets."Zebras" (name), raw bytea, at timestamptz, words text[], share double precision, pause interval, doc jsonb, "odd ""name" text)`,
}

func database(t *testing.T, statements ...string) *pgxpool.Pool {
	pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	if len(statements) > 0 {
		require.NoError(t, secrets.Migrate(t.Context(), pool))
		require.NoError(t, secrets.Prepare(t.Context(), pool, statements...))
	}
	return pool
}

// TestTables: whatever is in the schema goes to another installation and is the same there.
func TestTables(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	from := database(t, tomorrow...)
	sealed, err := newRing(from).Seal(ctx, "a", "job", "name")
	require.NoError(t, err)
	webhooks := secrets.NewWebhooks(from, time.Minute, 0)
	require.NoError(t, webhooks.SetAddress(ctx, "a", "https://example.org/\t\\.\n'"))
	require.NoError(t, secrets.Prepare(ctx, from,
		`INSERT INTO pixtools_secrets."Zebras" (name) SELECT 'zebra ' || n FROM generate_series(1, 3) n`,
		`INSERT INTO pixtools_secrets.ants VALUES ('zebra 2', '\x00ff0a5c', '2026-10-25 02:30:00.123456+02', ARRAY['a,b', NULL, '"'], 0.1, '1 mon -3 days 00:00:00.5', '{"a": 1}', E'\\N\n\\.\n'),
			('zebra 1', '', 'infinity', '{}', 'NaN', NULL, NULL, '')`,
		"SET TimeZone TO 'Asia/Tokyo'"))
	all, err := secrets.Dump(ctx, from)
	require.NoError(t, err)
	var names []string
	for _, table := range all {
		names = append(names, table.Name)
	}
	require.Equal(t, []string{"Zebras", "ants", "forgotten_keys", "tenant_keys", "webhook_addresses", "webhook_secrets"}, names)

	to := database(t, append(tomorrow, "ALTER TABLE pixtools_secrets.ants ADD COLUMN newer integer DEFAULT 7",
		"DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET TimeZone TO ''America/New_York''', current_database()); EXECUTE format('ALTER DATABASE %I SET DateStyle TO ''SQL, DMY''', current_database()); END$$")...)
	to.Reset() // with these settings from now on
	for range 2 {
		require.NoError(t, secrets.Vacant(ctx, to, all))
		require.NoError(t, secrets.Load(ctx, to, all))
	}
	text, err := newRing(to).Open(ctx, "job", sealed)
	require.NoError(t, err)
	require.Equal(t, "name", text)
	var newer int
	require.NoError(t, to.QueryRow(ctx, "SELECT sum(newer) FROM pixtools_secrets.ants").Scan(&newer))
	require.Equal(t, 14, newer, "what is new has its default")
	require.NoError(t, secrets.Prepare(ctx, to, "ALTER TABLE pixtools_secrets.ants DROP COLUMN newer"))
	again, err := secrets.Dump(ctx, to)
	require.NoError(t, err)
	require.Equal(t, all, again)
	var id, twice int
	require.NoError(t, to.QueryRow(ctx, `INSERT INTO pixtools_secrets."Zebras" (name) VALUES ('next') RETURNING id, twice`).Scan(&id, &twice))
	require.Equal(t, []int{4, 8}, []int{id, twice}, "it is numbered on")

	// Now there is a row more.
	require.ErrorIs(t, secrets.Vacant(ctx, to, all), secrets.ErrOccupied)
	require.ErrorContains(t, secrets.Load(ctx, to, all), "its table Zebras has 4 rows")
}

// TestTablesThatAreNotThere: nothing is put into a database that lacks a table or a column, or
// has rows of its own, and where one table cannot be filled none is.
func TestTablesThatAreNotThere(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	from := database(t, append(tomorrow, `INSERT INTO pixtools_secrets."Zebras" (name) VALUES ('one')`)...)
	_, err := newRing(from).Seal(ctx, "a", "job", "name")
	require.NoError(t, err)
	all, err := secrets.Dump(ctx, from)
	require.NoError(t, err)
	empty, err := secrets.Dump(ctx, database(t))
	require.NoError(t, err)
	require.Empty(t, empty, "without the schema there is nothing")
	require.NoError(t, secrets.Vacant(ctx, database(t), all))

	for want, statements := range map[string][]string{
		"no table pixtools_secrets.Zebras": {"SELECT 1"},
		"ants has no pause, doc":           append(tomorrow, "ALTER TABLE pixtools_secrets.ants DROP COLUMN doc, DROP COLUMN pause"),
		"webhook_addresses has 1 rows":     append(tomorrow, "INSERT INTO pixtools_secrets.webhook_addresses VALUES ('a', 'b')"),
		"others has 1 rows":                append(tomorrow, "CREATE TABLE pixtools_secrets.others AS SELECT 1"),
		"tenant_keys":                      append(tomorrow, "ALTER TABLE pixtools_secrets.tenant_keys ADD CHECK (tenant <> 'a')"),
	} {
		to := database(t, statements...)
		before := rows(ctx, t, to)
		if strings.Contains(" "+want, " no ") {
			require.ErrorContains(t, secrets.Fits(ctx, to, all), want)
		} else {
			require.NoError(t, secrets.Fits(ctx, to, all))
		}
		require.ErrorContains(t, secrets.Load(ctx, to, all), want)
		require.Equal(t, before, rows(ctx, t, to))
	}
}

func rows(ctx context.Context, t *testing.T, pool *pgxpool.Pool) map[string]int64 {
	all, err := secrets.Dump(ctx, pool)
	require.NoError(t, err)
	counts := map[string]int64{}
	for _, table := range all {
		counts[table.Name] = table.Rows
	}
	return counts
}

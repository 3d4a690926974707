package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/projections"
)

func (b *tab) database(address string) (db *pgx.Conn, execute func(sql string, args ...any)) {
	db, err := pgx.Connect(within(b.t), strings.Replace(address, "postgresql+asyncpg://", "postgres://", 1))
	require.NoError(b.t, err)
	b.t.Cleanup(func() { _ = db.Close(b.ctx) })
	return db, func(sql string, args ...any) {
		b.t.Helper()
		_, err := db.Exec(within(b.t), sql, args...)
		require.NoError(b.t, err)
	}
}

// uiLag: two jobs wait and nobody works; the saga and the projector have passed what there is.
func uiLag(b *tab, database string) {
	b.until(`Number(document.querySelector("[data-lag='pixtools.op.webp'] td")?.textContent) >= 2`)
	b.until(`/^[0-9.]+ (s|min)/.test(document.querySelector("[data-lag='pixtools.op.webp'] td:last-child").textContent)`)
	b.shows("[data-lag='pixtools.saga'] td:last-child", "none")
	b.shows("[data-lag='pixtools.projector'] td:last-child", "none")
	var lag api.Lag
	require.Equal(b.t, http.StatusOK, b.p.ask(http.MethodGet, "/api/lag", nil, &lag))
	require.NotContains(b.t, lag.Groups, events.WebhooksGroup, "nobody runs it")
	for group, of := range lag.Groups {
		require.Empty(b.t, of.Error, group)
		require.Equal(b.t, *of.Records > 0, *of.Seconds > 0, group)
	}
	// One group whose place cannot be asked for does not take the others along.
	_, execute := b.database(database)
	execute("ALTER TABLE pixtools_read.positions RENAME TO away")
	b.shows("[data-lag='pixtools.projector'] td:last-child", "could not be asked for")
	b.shows("[data-lag='pixtools.saga'] td:last-child", "none")
	execute("ALTER TABLE pixtools_read.away RENAME TO positions")
	b.shows("[data-lag='pixtools.projector'] td:last-child", "none")
}

// uiReadModels: a replay is seen while it is at work, when it is done, and when it was killed.
func uiReadModels(b *tab, database string) {
	db, execute := b.database(database)
	row := func(name string) string { return "[data-read-model=" + name + "]" }
	b.state(row("pixtools_read"), "live")

	// Replays are held up where they make the indexes of what they have read.
	execute(`CREATE FUNCTION public.hold() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
		IF current_schema() ~ '^pixtools_read_[0-9]' AND to_regclass('jobs') IS NOT NULL THEN
			IF EXISTS (SELECT FROM jobs) THEN PERFORM pg_advisory_xact_lock(4711); END IF;
		END IF; END $$`)
	execute("CREATE EVENT TRIGGER hold ON ddl_command_start WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION public.hold()")
	execute("SELECT pg_advisory_lock(4711)")
	start := func() *exec.Cmd {
		self, err := os.Executable()
		require.NoError(b.t, err)
		cmd := exec.Command(self, "replay")
		cmd.Env = slices.Clone(b.p.env)
		require.NoError(b.t, cmd.Start())
		b.t.Cleanup(func() { _ = cmd.Process.Kill() })
		return cmd
	}
	first := start()
	b.state(row("pixtools_read_1"), "building")
	b.shows(row("pixtools_read_1"), "making indexes, since")
	b.accessible("operations, a replay at work")
	execute("SELECT pg_advisory_unlock(4711)")
	b.state(row("pixtools_read_1"), "built")
	require.NoError(b.t, first.Wait())

	execute("SELECT pg_advisory_lock(4711)")
	second := start()
	b.shows(row("pixtools_read_2"), "making indexes")
	require.NoError(b.t, second.Process.Kill())
	b.state(row("pixtools_read_2"), "cut_off")
	b.shows(row("pixtools_read_2"), "It came as far as: making indexes, last heard of")
	_ = second.Wait()
	require.Regexp(b.t, "pixtools_read_2 +cut off ", b.p.replayed("--list"))
	execute("SELECT pg_advisory_unlock(4711)")
	b.p.replayed("--schema", "pixtools_read_1", "--promote")
	b.state(row("pixtools_read_previous"), "previous")
	b.until(`!document.querySelector("` + row("pixtools_read_2") + `")`)

	// What a replay of a long log writes down.
	note := projections.SchemaInfo{State: projections.StateBuilding, Backend: db.PgConn().PID(), Made: time.Now(), Since: time.Now()}
	tell := func(done int64) {
		now := time.Now()
		note.Progress = &projections.Noted{Phase: "reading the log", Done: done, Total: 10_000, Began: now.Add(-10 * time.Second), At: now}
		raw, err := json.Marshal(note)
		require.NoError(b.t, err)
		execute("COMMENT ON SCHEMA pixtools_read_7 IS '" + string(raw) + "'")
	}
	execute("SELECT pg_advisory_lock(hashtext('pixtools replay'))")
	execute("CREATE SCHEMA pixtools_read_7")
	tell(4000)
	b.shows(row("pixtools_read_7"), "reading the log, 40 %, 4,000 of 10,000 records, 400 a second, since")
	b.shows(row("pixtools_read_7"), "until about")
	b.accessible("operations, a replay reads")
	b.size(390, 844)
	b.fits("operations, a replay reads")
	b.size(1280, 900)
	tell(7000)
	b.until(fmt.Sprintf(`document.querySelector("%s progress").value === 7000`, row("pixtools_read_7")))
	require.NoError(b.t, db.Close(b.ctx))
	b.state(row("pixtools_read_7"), "cut_off")
	b.shows(row("pixtools_read_7"), "7,000 of 10,000 records")
}

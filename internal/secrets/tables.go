package secrets

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// longestDump bounds what a copy of the schema's tables may have, in bytes: it is held in memory.
// A tenant, a key and a webhook secret are a few hundred each.
const longestDump = 256 << 20

// ErrOccupied says that a table has rows which are not those that are to be put there.
var ErrOccupied = errors.New("the schema pixtools_secrets is not empty")

// Table is a table of the schema with all that is in it.
type Table struct {
	Name    string   `json:"name"`
	Columns []string `json:"columns"`
	Rows    int64    `json:"rows"`
	// Copy is the rows as PostgreSQL's COPY writes and reads them, in an order of their own.
	Copy string `json:"copy"`
}

// Dump reads every table of the schema as it is at one moment. Which there are, the
// database's catalogue says, so a table that somebody adds is in it.
func Dump(ctx context.Context, pool *pgxpool.Pool) (all []Table, err error) {
	err = atOneMoment(ctx, pool, func(tx pgx.Tx) error {
		tables, err := list(ctx, tx)
		if err != nil {
			return err
		}
		room := longestDump
		for _, t := range tables {
			if err := t.read(ctx, tx, room); err != nil {
				return err
			}
			room -= len(t.Copy)
			all = append(all, t.Table)
		}
		return nil
	})
	return all, err
}

// Vacant refuses a database that has other rows in the schema than these tables'. That a table
// has theirs already is no fault: Load was there before, and does nothing.
func Vacant(ctx context.Context, pool *pgxpool.Pool, tables []Table) error {
	return atOneMoment(ctx, pool, func(tx pgx.Tx) error {
		_, err := vacant(ctx, tx, tables)
		return err
	})
}

// atOneMoment reads the tables as they are at one moment, plainly.
func atOneMoment(ctx context.Context, pool *pgxpool.Pool, read func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := plainly(ctx, tx); err != nil {
			return err
		}
		return read(tx)
	})
}

// vacant gives the tables that are to be filled, those first that others refer to.
func vacant(ctx context.Context, tx pgx.Tx, tables []Table) (empty []table, err error) {
	there, err := list(ctx, tx)
	if err != nil {
		return nil, err
	}
	var faults []error
	for _, t := range there {
		i := slices.IndexFunc(tables, func(wanted Table) bool { return wanted.Name == t.Name })
		if i >= 0 && len(missingColumns(t, tables[i])) == 0 {
			t.Columns = tables[i].Columns
		}
		if err := t.read(ctx, tx, longestDump); err != nil {
			return nil, err
		}
		switch {
		case t.Rows == 0:
			empty = append(empty, t)
		case i < 0 || t.Copy != tables[i].Copy || !slices.Equal(t.Columns, tables[i].Columns):
			faults = append(faults, fmt.Errorf("%w: its table %s has %d rows", ErrOccupied, t.Name, t.Rows))
		}
	}
	return empty, errors.Join(faults...)
}

// Fits refuses tables and columns that this version of the program has not made.
func Fits(ctx context.Context, pool *pgxpool.Pool, tables []Table) error {
	return pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error { return known(ctx, tx, tables) })
}

// Load puts tables into the schema, all or none of them. They must be there (Fits) and empty; one that has just these rows stays as it is.
func Load(ctx context.Context, pool *pgxpool.Pool, tables []Table) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		// Two restores at once would fill them twice.
		if _, err := tx.Exec(ctx, lockSchema); err != nil {
			return fmt.Errorf("lock the secrets' schema: %w", err)
		}
		if err := plainly(ctx, tx); err != nil {
			return err
		}
		if err := known(ctx, tx, tables); err != nil {
			return err
		}
		empty, err := vacant(ctx, tx, tables)
		if err != nil {
			return err
		}
		for _, t := range empty {
			i := slices.IndexFunc(tables, func(wanted Table) bool { return wanted.Name == t.Name })
			if i < 0 || tables[i].Rows == 0 {
				continue
			}
			if err := write(ctx, tx, tables[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// plainly has the transaction write values as any PostgreSQL reads them, whatever the
// server's and the user's settings are.
func plainly(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `SELECT set_config('TimeZone', 'UTC', true), set_config('DateStyle', 'ISO', true), set_config('IntervalStyle', 'postgres', true),
		set_config('extra_float_digits', '3', true), set_config('bytea_output', 'hex', true)`)
	if err != nil {
		return fmt.Errorf("set how values are written: %w", err)
	}
	return nil
}

// table is a Table and which others its rows refer to.
type table struct {
	Table
	refers []string
}

// list gives the schema's tables without their rows, those first that others refer to.
func list(ctx context.Context, tx pgx.Tx) ([]table, error) {
	rows, err := tx.Query(ctx, `SELECT c.relname::text,
			ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum),
			ARRAY(SELECT DISTINCT o.relname::text FROM pg_constraint k JOIN pg_class o ON o.oid = k.confrelid
				WHERE k.conrelid = c.oid AND k.contype = 'f' AND o.oid <> c.oid AND o.relnamespace = c.relnamespace)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = 'pixtools_secrets' AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY c.relname COLLATE "C"`)
	if err != nil {
		return nil, fmt.Errorf("list the tables of pixtools_secrets: %w", err)
	}
	waiting, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t table, err error) {
		err = row.Scan(&t.Name, &t.Columns, &t.refers)
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("list the tables of pixtools_secrets: %w", err)
	}
	return ordered(waiting), nil
}

// ordered puts tables behind those that they refer to; a circle stays as it is.
func ordered(waiting []table) (all []table) {
	done := map[string]bool{}
	for len(waiting) > 0 {
		i := slices.IndexFunc(waiting, func(t table) bool {
			return !slices.ContainsFunc(t.refers, func(other string) bool { return !done[other] })
		})
		i = max(i, 0)
		done[waiting[i].Name] = true
		all, waiting = append(all, waiting[i]), slices.Delete(waiting, i, i+1)
	}
	return all
}

func (t Table) quoted() (name, columns string) {
	var each []string
	for _, c := range t.Columns {
		each = append(each, pgx.Identifier{c}.Sanitize())
	}
	return pgx.Identifier{"pixtools_secrets", t.Name}.Sanitize(), strings.Join(each, ", ")
}

// read fills in the rows; room is how many bytes they may have.
func (t *table) read(ctx context.Context, tx pgx.Tx, room int) error {
	name, columns := t.quoted()
	out := &bounded{room: room}
	// Ordered, so that equal contents are equal text.
	tag, err := tx.Conn().PgConn().CopyTo(ctx, out, "COPY (SELECT "+columns+" FROM "+name+" ORDER BY ROW("+columns+`)::text COLLATE "C") TO STDOUT`)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	t.Copy, t.Rows = out.String(), tag.RowsAffected()
	return nil
}

type bounded struct {
	bytes.Buffer
	room int
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.room {
		return 0, fmt.Errorf("the schema pixtools_secrets has more than %d bytes, the limit", longestDump)
	}
	return b.Buffer.Write(p)
}

// known refuses tables and columns that are not there.
func known(ctx context.Context, tx pgx.Tx, tables []Table) error {
	there, err := list(ctx, tx)
	if err != nil {
		return err
	}
	var faults []error
	for _, wanted := range tables {
		i := slices.IndexFunc(there, func(t table) bool { return t.Name == wanted.Name })
		if i < 0 {
			faults = append(faults, fmt.Errorf("this PixTools has no table pixtools_secrets.%s: restore with the version that made the back-up, or a later one", wanted.Name))
			continue
		}
		if missing := missingColumns(there[i], wanted); len(missing) > 0 {
			faults = append(faults, fmt.Errorf("in this PixTools the table pixtools_secrets.%s has no %s: restore with the version that made the back-up, or a later one",
				wanted.Name, strings.Join(missing, ", ")))
		}
	}
	return errors.Join(faults...)
}

func missingColumns(there table, wanted Table) (missing []string) {
	for _, c := range wanted.Columns {
		if !slices.Contains(there.Columns, c) {
			missing = append(missing, c)
		}
	}
	return missing
}

func write(ctx context.Context, tx pgx.Tx, t Table) error {
	name, columns := t.quoted()
	tag, err := tx.Conn().PgConn().CopyFrom(ctx, strings.NewReader(t.Copy), "COPY "+name+" ("+columns+") FROM STDIN")
	if err == nil && tag.RowsAffected() != t.Rows {
		err = fmt.Errorf("%d rows came of %d", tag.RowsAffected(), t.Rows)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	for _, c := range t.Columns {
		var sequence *string
		if err := tx.QueryRow(ctx, "SELECT pg_get_serial_sequence($1, $2)", name, c).Scan(&sequence); err != nil {
			return fmt.Errorf("ask what numbers the rows of %s: %w", name, err)
		}
		if sequence == nil {
			continue
		}
		// What numbers rows by itself goes on behind them.
		if _, err := tx.Exec(ctx, "SELECT setval($1::text::regclass, (SELECT max("+pgx.Identifier{c}.Sanitize()+")::bigint FROM "+name+"))", *sequence); err != nil {
			return fmt.Errorf("number the rows of %s on: %w", name, err)
		}
	}
	return nil
}

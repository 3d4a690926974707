package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/bench/faults/history"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/audit"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/sniff"
)

// openAtMost bounds how long a transaction may stay open once nothing is broken any more.
// A broker looks every 10 s for those that outlived their timeout, which is 10 s for us.
// Meanwhile consumers of committed records stand still.
const openAtMost = time.Minute

// ends are a topic's ends, when no transaction is open.
func (p *parts) ends(ctx context.Context, topic string) (map[int32]int64, error) {
	client, err := p.client()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	ctx, cancel := context.WithTimeout(ctx, openAtMost)
	defer cancel()
	for {
		stable, err := admin.ListCommittedOffsets(ctx, topic)
		if err == nil {
			err = stable.Error()
		}
		high, err2 := admin.ListEndOffsets(ctx, topic)
		if err2 == nil {
			err2 = high.Error()
		}
		ends, open := map[int32]int64{}, 0
		high.Each(func(o kadm.ListedOffset) {
			if s, ok := stable.Lookup(o.Topic, o.Partition); !ok || s.Offset != o.Offset {
				open++
			}
			ends[o.Partition] = o.Offset
		})
		if err = errors.Join(err, err2); err == nil && open == 0 && len(ends) > 0 {
			return ends, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%d partitions of %s still have an open transaction, %s after the load", open, topic, openAtMost), err)
		case <-time.After(200 * time.Millisecond): // before the next look
		}
	}
}

// log reads all of it.
func (p *parts) log(ctx context.Context, ends map[int32]int64) ([]history.Record, error) {
	var all []history.Record
	err := p.each(ctx, events.Topic, ends, func(r *kgo.Record) { all = append(all, recordOf(r)) })
	slices.SortFunc(all, func(a, b history.Record) int {
		if a.Partition != b.Partition {
			return int(a.Partition - b.Partition)
		}
		return int(a.Offset - b.Offset)
	})
	return all, err
}

// each gives a topic's records as far as its ends, as a consumer of committed records gets
// them.
func (p *parts) each(ctx context.Context, topic string, ends map[int32]int64, give func(*kgo.Record)) error {
	from := map[int32]kgo.Offset{}
	left := map[int32]bool{}
	for partition, end := range ends {
		if end > 0 {
			from[partition], left[partition] = kgo.NewOffset().AtStart(), true
		}
	}
	// Control records too: a partition's last offset may be that of one.
	client, err := p.client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}), kgo.KeepControlRecords())
	if err != nil {
		return err
	}
	defer client.Close()
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read %s: %d partitions were not read to their ends: %w", topic, len(left), err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset+1 >= ends[r.Partition] {
				delete(left, r.Partition)
			}
			if !r.Attrs.IsControl() {
				give(r)
			}
		})
	}
	return nil
}

func recordOf(r *kgo.Record) history.Record {
	e, err := events.Decode(r)
	if err != nil {
		return history.Record{Partition: r.Partition, Offset: r.Offset, Written: r.Timestamp, Event: events.Event{JobID: string(r.Key)}, Fault: err.Error()}
	}
	return history.Record{Partition: r.Partition, Offset: r.Offset, Written: r.Timestamp, Event: e}
}

// letters reads the topic of dead letters.
func (p *parts) letters(ctx context.Context) ([]history.Letter, error) {
	ends, err := p.ends(ctx, events.DeadLetterTopic)
	if err != nil {
		return nil, err
	}
	var all []history.Letter
	var broken error
	err = p.each(ctx, events.DeadLetterTopic, ends, func(r *kgo.Record) {
		e, err := events.DecodeLetter(r)
		if err != nil {
			broken = fmt.Errorf("dead letters, offset %d: %w", r.Offset, err)
			return
		}
		if m, ok := e.Message.(*events.DeadLettered); ok {
			l := history.Letter{ID: e.LetterID, JobID: m.GetJobId(), Operation: m.GetOperation(), Revision: m.GetRevision()}
			if o := m.GetOrigin(); o != nil {
				l.Origin = &history.Place{Partition: o.GetPartition(), Offset: o.GetOffset()}
			}
			all = append(all, l)
		}
	})
	return all, errors.Join(err, broken)
}

// positions is how far the read model says it is.
func (p *parts) positions(ctx context.Context) (map[int32]int64, error) {
	conn, err := pgx.Connect(ctx, p.postgres.URL)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, "SELECT partition, next_offset FROM pixtools_read.positions")
	if err != nil {
		return nil, err
	}
	found, partition, next := map[int32]int64{}, int32(0), int64(0)
	_, err = pgx.ForEachRow(rows, []any{&partition, &next}, func() error {
		found[partition] = next
		return nil
	})
	return found, err
}

func (p *parts) rows(ctx context.Context) ([]history.Row, error) {
	conn, err := pgx.Connect(ctx, p.postgres.URL)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, `SELECT job_id::text, tenant, phase, outcome, revision, created_at, updated_at, state FROM pixtools_read.jobs`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (history.Row, error) {
		var r history.Row
		var state []byte
		if err := row.Scan(&r.JobID, &r.Tenant, &r.Phase, &r.Outcome, &r.Revision, &r.CreatedAt, &r.UpdatedAt, &state); err != nil {
			return r, err
		}
		r.State = &events.Job{}
		return r, proto.Unmarshal(state, r.State)
	})
}

// downloads at once.
const downloads = 8

// store is the bucket.
func (p *parts) store(ctx context.Context) (*blob.Store, error) {
	cfg, err := env.ParseAsWithOptions[blob.Config](env.Options{Environment: map[string]string{"AWS_ENDPOINT_URL": p.s3.Endpoint, "AWS_S3_BUCKET": bucket,
		"AWS_REGION": p.s3.Region, "AWS_ACCESS_KEY_ID": p.s3.AccessKey, "AWS_SECRET_ACCESS_KEY": p.s3.SecretKey}})
	if err != nil {
		return nil, err
	}
	return blob.New(ctx, cfg)
}

// plantedOrphans are stored before the load begins.
const plantedOrphans = 20

// plant stores objects that look as if a submission had been cut off a moment ago.
func (p *parts) plant(ctx context.Context) (keys []string, err error) {
	store, err := p.store(ctx)
	if err != nil {
		return nil, err
	}
	for i := range plantedOrphans {
		content := fmt.Appendf(nil, "orphan %d", i)
		sum := sha256.Sum256(content)
		key := fmt.Sprintf("%s%s/%x", blob.RawPrefix, uuid.NewString(), sum)
		if err := store.Put(ctx, key, bytes.NewReader(content), int64(len(content)), sum, "application/octet-stream"); err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// objects reads every object of the bucket.
func (p *parts) objects(ctx context.Context) (map[string]history.Object, error) {
	store, err := p.store(ctx)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	all := map[string]history.Object{}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(downloads)
	err = store.List(ctx, "", func(o blob.Object) error {
		group.Go(func() error {
			object, err := readObject(ctx, store, o.Key)
			mu.Lock()
			defer mu.Unlock()
			all[o.Key] = object
			return err
		})
		return nil
	})
	return all, errors.Join(err, group.Wait())
}

func readObject(ctx context.Context, store *blob.Store, key string) (history.Object, error) {
	body, err := store.Get(ctx, key)
	if err != nil {
		return history.Object{}, err
	}
	defer body.Close()
	content, err := io.ReadAll(body)
	if err != nil {
		return history.Object{}, fmt.Errorf("read %s: %w", key, err)
	}
	sum := sha256.Sum256(content)
	o := history.Object{Bytes: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}
	// What cannot be told stays empty, and then is not what the log says.
	if header, err := sniff.Read(bytes.NewReader(content), o.Bytes, sniff.Limits{MaxPixels: 1 << 20, MaxSide: 1 << 10}); err == nil {
		o.Format, o.Width, o.Height = header.Format, header.Width, header.Height
	}
	return o, nil
}

// collect takes everything down that is judged.
func (r *run) collect(ctx context.Context) (*history.History, error) {
	h := &history.History{Calls: r.load.recorded(), Poison: r.poison, MaxStarts: maxStarts, Planted: r.planted}
	var err error
	if h.Deliveries, err = r.delivered(ctx); err != nil {
		return nil, err
	}
	if h.Ends, err = r.parts.ends(ctx, events.Topic); err != nil {
		return nil, err
	}
	if h.Log, err = r.parts.log(ctx, h.Ends); err != nil {
		return nil, err
	}
	if h.Letters, err = r.parts.letters(ctx); err != nil {
		return nil, err
	}
	if h.Positions, err = r.parts.positions(ctx); err != nil {
		return nil, fmt.Errorf("read the read model's positions: %w", err)
	}
	if h.Rows, err = r.parts.rows(ctx); err != nil {
		return nil, fmt.Errorf("read the read model: %w", err)
	}
	if h.Objects, err = r.parts.objects(ctx); err != nil {
		return nil, fmt.Errorf("read the bucket: %w", err)
	}
	return h, nil
}

// audited has pixtools verify's audit go over the same log: a second opinion, by
// events.Fold, where the judge has rules of its own. Objects and rows are the judge's.
func (p *parts) audited(ctx context.Context, h *history.History) (found []string, err error) {
	told := map[history.Place]bool{}
	for _, l := range h.Letters {
		if l.Origin != nil && l.Operation == "" {
			told[*l.Origin] = true
		}
	}
	bounds, err := env.ParseAs[audit.Config]()
	if err != nil {
		return nil, err
	}
	_, err = audit.Audit{Config: bounds, Partitions: len(h.Ends), Until: time.Now(),
		Excused: func(r *kgo.Record) bool { return told[history.Place{Partition: r.Partition, Offset: r.Offset}] },
		Found: func(f audit.Finding) error {
			found = append(found, fmt.Sprintf("pixtools verify: %s: job %s, partition %d, offset %d: %s", f.Kind, f.JobID, f.Partition, f.Offset, f.Message))
			return nil
		},
		Still: func(audit.Open) error { return nil }}.Log(ctx, func(_ string, _ bool, each func(*kgo.Record) error) error {
		var failed error
		return errors.Join(p.each(ctx, events.Topic, h.Ends, func(r *kgo.Record) { failed = errors.Join(failed, each(r)) }), failed)
	})
	return found, err
}

// lifeOf is a job's events, and what clients were told of it, as text.
func lifeOf(h *history.History, id string) string {
	if id == "" {
		return "" // of no one job
	}
	var b strings.Builder
	for _, r := range h.Log {
		if r.Event.JobID == id && r.Event.Message != nil {
			fmt.Fprintf(&b, "    %d/%-6d %s %s id %s: %s\n", r.Partition, r.Offset, r.Event.Time.Format("15:04:05.000"),
				r.Event.Name(), r.Event.ID, clip(fmt.Sprint(r.Event.Message)))
		}
	}
	for _, c := range h.Calls {
		if c.JobID != id {
			continue
		}
		fmt.Fprintf(&b, "    client %d, %s to %s: %s, answered %d", c.Client, c.Sent.Round(time.Millisecond), c.Answered.Round(time.Millisecond), c.Kind, c.Status)
		if c.View != nil {
			fmt.Fprintf(&b, " %s %v", c.View.Outcome, c.View.Operations)
		}
		fmt.Fprintln(&b, " ", clip(c.Problem))
	}
	return b.String()
}

// logOf is the whole log, as text.
func logOf(h *history.History) string {
	var b strings.Builder
	for _, r := range h.Log {
		e := r.Event
		if e.Message == nil {
			fmt.Fprintf(&b, "%d/%-6d no event: %s\n", r.Partition, r.Offset, r.Fault)
			continue
		}
		fmt.Fprintf(&b, "%d/%-6d %s %s %s: %s\n", r.Partition, r.Offset, e.Time.Format("15:04:05.000"), e.JobID, e.Name(), clip(fmt.Sprint(e.Message)))
	}
	return b.String()
}

func clip(s string) string {
	const longest = 400
	if len(s) > longest {
		return s[:longest] + "…"
	}
	return s
}

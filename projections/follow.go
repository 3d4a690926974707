package projections

import (
	"context"
	"fmt"
	"maps"
	"slices"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
)

// follower brings a read model beside the live one further, to exactly where it is told.
// It applies the log as the projector does, without a group and without telling anybody.
type follower struct {
	*session
	client *kgo.Client
	pool   *pgxpool.Pool
	// ahead are records that were read and lie beyond what was asked for, by partition.
	ahead map[int32][]*kgo.Record
}

// follow opens a read model that is whole, with the tables of this version.
func (r *Replayer) follow(ctx context.Context, schema string) (*follower, error) {
	pool, err := r.open(schema, nil)
	if err != nil {
		return nil, err
	}
	f := &follower{pool: pool, ahead: map[int32][]*kgo.Record{}}
	if err := r.begin(ctx, f, schema); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func (r *Replayer) begin(ctx context.Context, f *follower, schema string) error {
	if err := Migrate(ctx, f.pool, schema); err != nil {
		return err
	}
	starts, err := r.starts(ctx)
	if err != nil {
		return err
	}
	for partition := range starts {
		_, err := f.pool.Exec(ctx, `INSERT INTO positions (log_id, partition, next_offset) VALUES ($1, $2, 0) ON CONFLICT DO NOTHING`, r.logID[:], partition)
		if err != nil {
			return fmt.Errorf("prepare the position of partition %d: %w", partition, err)
		}
	}
	table, next, err := positionsIn(ctx, f.pool, r.logID)
	if err != nil {
		return err
	}
	jobs, err := lru.New[string, row](r.read.CachedJobs)
	if err != nil {
		return err
	}
	f.session = &session{Projector: &Projector{cfg: r.read, pool: f.pool, log: r.log, logID: r.logID, beside: true}, next: next, table: table, jobs: jobs}
	f.client, err = r.consume(next)
	return err
}

func (f *follower) close() {
	if f.client != nil {
		f.client.Close()
	}
	f.pool.Close()
}

// missing counts the records to a target.
func (f *follower) missing(targets map[int32]int64) (n int64) {
	for partition, target := range targets {
		n += max(target-f.next[partition], 0)
	}
	return n
}

// to applies the log up to the targets, the next offset of each partition, and no further.
// Where it is further already, nothing is done. After an error it is of no more use: what
// was applied and what was read may not fit each other.
func (f *follower) to(ctx context.Context, r *Replayer, targets map[int32]int64, tell func(Progress)) error {
	total := f.missing(targets)
	for left := total; left > 0; left = f.missing(targets) {
		tell(Progress{"following the log", total - left, total})
		if due := f.due(targets); len(due) > 0 {
			if err := f.apply(ctx, due); err != nil {
				return err
			}
			continue
		}
		f.pause()
		fetches := f.client.PollRecords(ctx, f.cfg.BatchRecords)
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := r.faults(fetches); err != nil {
			return err
		}
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			f.ahead[p.Partition] = append(f.ahead[p.Partition], p.Records...)
		})
	}
	return nil
}

// mostAhead is how many records of a partition are kept that lie beyond what was asked for.
const mostAhead = 10_000

// pause stops fetching partitions of which enough is here.
func (f *follower) pause() {
	var enough, others []int32
	for partition := range f.next {
		if len(f.ahead[partition]) >= mostAhead {
			enough = append(enough, partition)
		} else {
			others = append(others, partition)
		}
	}
	f.client.ResumeFetchPartitions(map[string][]int32{events.Topic: others})
	f.client.PauseFetchPartitions(map[string][]int32{events.Topic: enough})
}

// due takes what was read and is asked for, as many records as one transaction applies.
func (f *follower) due(targets map[int32]int64) kgo.Fetches {
	topic, room := kgo.FetchTopic{Topic: events.Topic}, f.cfg.BatchRecords
	for _, partition := range slices.Sorted(maps.Keys(f.ahead)) {
		records, n := f.ahead[partition], 0
		for n < len(records) && n < room && records[n].Offset < targets[partition] {
			n++
		}
		if n == 0 {
			continue
		}
		room -= n
		topic.Partitions = append(topic.Partitions, kgo.FetchPartition{Partition: partition, Records: records[:n]})
		if f.ahead[partition] = records[n:]; n == len(records) {
			delete(f.ahead, partition)
		}
	}
	if len(topic.Partitions) == 0 {
		return nil
	}
	return kgo.Fetches{{Topics: []kgo.FetchTopic{topic}}}
}

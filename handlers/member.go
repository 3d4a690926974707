package handlers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/grace"
	"github.com/pixtools/pixtools/internal/kafka"
)

// groupMember is what saga and webhooks are alike in: each is a member of a consumer group on the
// log, and what it writes, its changelog and its offsets go into Kafka in one transaction.
type groupMember struct {
	name, group string
	// id is the transactional id.
	id string
	// changelog is the topic. It has as many partitions as the log, or fewer: a partition of
	// the log has its state in the changelog's partition of that number, modulo.
	changelog string
	// transactionTimeout is after how long the brokers abort a transaction.
	transactionTimeout                 time.Duration
	logPartitions, changelogPartitions int32
	opts                               []kgo.Opt
	log                                *slog.Logger
	// client is that of the session under way, for those who ask how we are.
	client atomic.Pointer[kgo.Client]
	// SessionOpts are more options of the session's client, beside those of all.
	SessionOpts []kgo.Opt
}

// Joined says whether it is a member of its group.
func (m *groupMember) Joined() bool { return kafka.Joined(m.client.Load()) }

// run has one session after the other until ctx is done. It outlives brokers and lost sessions.
func (m *groupMember) run(ctx context.Context, retryAfter time.Duration, session func(context.Context) error) error {
	for {
		err := session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		m.log.Warn(m.name+" session ended, beginning a new one", "error", err, "after", retryAfter)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryAfter):
		}
	}
}

// join begins a session; leave ends it.
func (m *groupMember) join(own, forget func(context.Context, *kgo.Client, map[string][]int32)) (session *kgo.GroupTransactSession, leave func(), err error) {
	session, err = kgo.NewGroupTransactSession(append(slices.Concat(m.opts, m.SessionOpts),
		kgo.TransactionalID(m.id),
		kgo.RecordPartitioner(partitioner{}),
		kgo.TransactionTimeout(m.transactionTimeout),
		kgo.ConsumerGroup(m.group),
		kgo.ConsumeTopics(events.Topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // they are offsets, too: see Saga.atEnd, hooks.until
		// Without this, brokers of Kafka 4 were seen to stall a producer for five
		// seconds now and then just after a transaction's end.
		kgo.MetadataMinAge(250*time.Millisecond),
		kgo.OnPartitionsAssigned(own),
		kgo.OnPartitionsRevoked(forget),
		kgo.OnPartitionsLost(forget),
	)...)
	if err != nil {
		return nil, nil, err
	}
	m.client.Store(session.Client())
	return session, func() {
		m.client.Store(nil)
		forget(context.Background(), nil, nil)
		session.Close()
	}, nil
}

// poll waits for at most that many records, no longer than limit.
func (m *groupMember) poll(ctx context.Context, session *kgo.GroupTransactSession, limit time.Duration, records int) kgo.Fetches {
	limited, cancel := context.WithTimeout(ctx, max(limit, 0))
	defer cancel()
	fetches := session.PollRecords(limited, records)
	if ctx.Err() != nil || fetches.IsClientClosed() {
		return fetches
	}
	fetches.EachError(func(topic string, partition int32, err error) {
		if !errors.Is(err, context.DeadlineExceeded) { // our own
			m.log.Warn(m.name+" cannot fetch", "topic", topic, "partition", partition, "error", err)
		}
	})
	return fetches
}

// transact writes records, and the offsets of all that was polled. It is not committed if a
// rebalance came first: the session goes back to the committed offsets then.
//
// A stop lets it come to its end. Left open, it would hold up whoever reads what is committed
// of these partitions until it times out, or until this instance is there again.
func (m *groupMember) transact(ctx context.Context, session *kgo.GroupTransactSession, records []*kgo.Record) (committed bool, err error) {
	ctx, cancel := grace.Outlast(ctx, m.transactionTimeout)
	defer cancel()
	if err := session.Begin(); err != nil {
		return false, fmt.Errorf("begin a transaction: %w", err)
	}
	refused := make(chan error, 1)
	for _, r := range records {
		session.Produce(ctx, r, func(_ *kgo.Record, err error) {
			if err != nil {
				select {
				case refused <- err:
				default:
				}
			}
		})
	}
	// Before the end, since the end does not ask: it would commit the offsets without
	// what a broker refused.
	if err := session.Client().Flush(ctx); err != nil {
		return false, fmt.Errorf("produce in a transaction: %w", err)
	}
	if len(refused) > 0 {
		_, err := session.End(ctx, kgo.TryAbort)
		return false, errors.Join(fmt.Errorf("produce in a transaction: %w", <-refused), err)
	}
	if committed, err = session.End(ctx, kgo.TryCommit); err != nil {
		return false, fmt.Errorf("end a transaction: %w", err)
	}
	if !committed {
		m.log.Info(m.name + " transaction aborted by a rebalance; its records will be read again")
	}
	return committed, nil
}

package handlers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.opentelemetry.io/otel/trace"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/bug"
	"github.com/pixtools/pixtools/internal/telemetry"
)

// WebhooksConfig bounds the posting of outcomes.
type WebhooksConfig struct {
	// MaxAttempts at a revision's outcome.
	// Beyond it: the webhook has failed.
	MaxAttempts int32 `env:"WEBHOOK_MAX_ATTEMPTS" envDefault:"14" range:"1 to 100" unit:"attempts"`
	// BackoffMin is the wait after the first failure. Each further one is twice as long, less up to a
	// quarter, up to WEBHOOK_BACKOFF_MAX.
	// Beyond it: the next attempt is due.
	BackoffMin time.Duration `env:"WEBHOOK_BACKOFF_MIN" envDefault:"10s" range:"10ms to 1h"`
	// BackoffMax bounds the waits, and what a receiver asks for with Retry-After.
	// Beyond it: the next attempt is due.
	BackoffMax time.Duration `env:"WEBHOOK_BACKOFF_MAX" envDefault:"4h" range:"WEBHOOK_BACKOFF_MIN to 168h"`
	// MaxAge is how old an outcome may be for which nothing was tried.
	// Beyond it: it is not posted.
	MaxAge time.Duration `env:"WEBHOOK_MAX_AGE" envDefault:"72h" range:"1m to 8760h"`
	// GiveUpAfter bounds how long an attempt that is due waits for a host whose breaker is open.
	// Beyond it: the webhook has failed.
	GiveUpAfter time.Duration `env:"WEBHOOK_GIVE_UP_AFTER" envDefault:"24h" range:"1s to 8760h"`
	// Concurrency bounds the requests under way.
	// Beyond it: further ones wait.
	Concurrency int `env:"WEBHOOK_CONCURRENCY" envDefault:"64" range:"1 to 10000" unit:"requests"`
	// ConcurrencyPerHost bounds those to one host.
	// Beyond it: further ones wait, and those to other hosts go on.
	ConcurrencyPerHost int `env:"WEBHOOK_CONCURRENCY_PER_HOST" envDefault:"8" range:"1 to WEBHOOK_CONCURRENCY" unit:"requests"`
	// MaxPending bounds the outcomes that wait in this process.
	// Beyond it: the next one's webhook has failed, and can be delivered again by hand.
	MaxPending int `env:"WEBHOOK_MAX_PENDING" envDefault:"200000" range:"1 to 10000000" unit:"outcomes"`
	// MaxHosts bounds the hosts whose breakers are remembered.
	// Beyond it: the one used least lately is forgotten, and its breaker closed.
	MaxHosts int `env:"WEBHOOK_MAX_HOSTS" envDefault:"10000" range:"1 to 1000000" unit:"hosts"`
	// BreakerFailures is how many failures in a row a host may have: no answer, 5xx or 429.
	// Beyond it: its breaker opens.
	BreakerFailures int `env:"WEBHOOK_BREAKER_FAILURES" envDefault:"5" range:"1 to 1000" unit:"failures"`
	// BreakerOpen is how long a breaker stays open.
	// Beyond it: one attempt shows whether the host is back.
	BreakerOpen time.Duration `env:"WEBHOOK_BREAKER_OPEN" envDefault:"1m" range:"10ms to 24h"`
	// Pause is how long an attempt waits that cannot be made now: for the database that has
	// its keys, or for another attempt that shows whether its host is back.
	// Beyond it: it is looked at again.
	Pause time.Duration `env:"WEBHOOK_PAUSE" envDefault:"5s" range:"10ms to 10m"`
	// SecretsRefresh is after how long a new or revoked secret counts everywhere.
	// Beyond it: secrets are read again.
	SecretsRefresh time.Duration `env:"WEBHOOK_SECRETS_REFRESH" envDefault:"10s" range:"10ms to 10m"`
	// CommitInterval is how long what was read may stay uncommitted while nothing is decided.
	// Beyond it: what was read is committed.
	CommitInterval time.Duration `env:"WEBHOOK_COMMIT_INTERVAL" envDefault:"1s" range:"10ms to 1m"`
	// ForgetOpenAfter is how long a job that does not end is kept in mind: longer than JOB_DEADLINE.
	// Beyond it: its outcome is not posted.
	ForgetOpenAfter time.Duration `env:"WEBHOOK_FORGET_OPEN_AFTER" envDefault:"168h" range:"1m to 17520h"`
	// TransactionTimeout is when the broker aborts a transaction whose process died.
	// Beyond it: the broker aborts it.
	TransactionTimeout time.Duration `env:"WEBHOOK_TRANSACTION_TIMEOUT" envDefault:"10s" range:"1s to 10s"`
	// RestoreTimeout bounds reading the changelog.
	// Beyond it: the session begins anew.
	RestoreTimeout time.Duration `env:"WEBHOOK_RESTORE_TIMEOUT" envDefault:"2m" range:"1s to 1h"`
	// RetryAfter is the pause after the brokers or the transactional id were lost.
	// Beyond it: a new session begins.
	RetryAfter time.Duration `env:"WEBHOOK_RETRY_AFTER" envDefault:"500ms" range:"10ms to 1m"`
}

// Validate names every value out of range.
func (c WebhooksConfig) Validate() error {
	var faults []error
	number := func(name string, value, low, high int) {
		if value < low || value > high {
			faults = append(faults, fmt.Errorf("%s is %d: it must be from %d to %d", name, value, low, high))
		}
	}
	span := func(name string, value, low, high time.Duration) {
		if value < low || value > high {
			faults = append(faults, fmt.Errorf("%s is %s: it must be from %s to %s", name, value, low, high))
		}
	}
	const year = 365 * 24 * time.Hour
	number("WEBHOOK_MAX_ATTEMPTS", int(c.MaxAttempts), 1, 100)
	span("WEBHOOK_BACKOFF_MIN", c.BackoffMin, 10*time.Millisecond, time.Hour)
	span("WEBHOOK_BACKOFF_MAX", c.BackoffMax, c.BackoffMin, 7*24*time.Hour)
	span("WEBHOOK_MAX_AGE", c.MaxAge, time.Minute, year)
	span("WEBHOOK_GIVE_UP_AFTER", c.GiveUpAfter, time.Second, year)
	number("WEBHOOK_CONCURRENCY", c.Concurrency, 1, 10_000)
	number("WEBHOOK_CONCURRENCY_PER_HOST", c.ConcurrencyPerHost, 1, c.Concurrency)
	number("WEBHOOK_MAX_PENDING", c.MaxPending, 1, 10_000_000)
	number("WEBHOOK_MAX_HOSTS", c.MaxHosts, 1, 1_000_000)
	number("WEBHOOK_BREAKER_FAILURES", c.BreakerFailures, 1, 1000)
	span("WEBHOOK_BREAKER_OPEN", c.BreakerOpen, 10*time.Millisecond, 24*time.Hour)
	span("WEBHOOK_PAUSE", c.Pause, 10*time.Millisecond, 10*time.Minute)
	span("WEBHOOK_SECRETS_REFRESH", c.SecretsRefresh, 10*time.Millisecond, 10*time.Minute)
	span("WEBHOOK_COMMIT_INTERVAL", c.CommitInterval, 10*time.Millisecond, time.Minute)
	span("WEBHOOK_FORGET_OPEN_AFTER", c.ForgetOpenAfter, time.Minute, 2*year)
	span("WEBHOOK_TRANSACTION_TIMEOUT", c.TransactionTimeout, time.Second, 10*time.Second)
	span("WEBHOOK_RESTORE_TIMEOUT", c.RestoreTimeout, time.Second, time.Hour)
	span("WEBHOOK_RETRY_AFTER", c.RetryAfter, 10*time.Millisecond, time.Minute)
	return errors.Join(faults...)
}

func (c WebhooksConfig) policy() commands.WebhookPolicy {
	return commands.WebhookPolicy{MaxAttempts: c.MaxAttempts, BackoffMin: c.BackoffMin, BackoffMax: c.BackoffMax, MaxAge: c.MaxAge}
}

const (
	// hookBatch is how many records at most one poll takes in.
	hookBatch = 2000
	// hookTick is how often we look whether a partition is read to where it ended.
	hookTick = time.Second
	// idleCommits: while no job with an address changes, offsets are committed that many times less often.
	idleCommits = 10
	// hookSweep is how often what is not needed any more is looked for.
	hookSweep = 10 * time.Minute
)

// Webhooks posts the outcomes of jobs to the addresses that were named for them. What is to
// be posted when is in the log: WebhookScheduled says when an attempt is due, WebhookDelivered
// and WebhookFailed what it came to. So no offset waits for a receiver.
//
// It folds the jobs that have an address, and keeps them from their request until their
// outcome was posted in a changelog, events.WebhooksTopic, which goes with its offsets and
// with what it schedules in one Kafka transaction. A restart thus knows again what is due.
//
// What attempts came to is written at once and by itself, not in the transaction, which a
// rebalance would throw away: it is told under a derived id, by whoever made the attempt.
// A process that dies between the receiver's answer and Kafka's has another make the attempt
// again, with the same webhook-id.
type Webhooks struct {
	cfg WebhooksConfig
	groupMember
	publish func(context.Context, ...*kgo.Record) error
	poster  *poster
	queue   *hookQueue
	// rested is closed when no attempt is under way any more, and none begins.
	rested chan struct{}

	// mu guards what the client's rebalance callbacks change while the loop works. What the
	// loop then still does with a partition that went away is thrown away, since the session
	// aborts a transaction during which partitions were revoked.
	mu         sync.Mutex
	partitions map[int32]*hooks
	owned      map[int32]bool
	// losses counts changes of owned: what was read before one may be out of date after it.
	losses int
}

// NewWebhooks makes the role; opts must name the brokers, publish appends records and waits
// for their acknowledgement. The transactional id is as for NewSaga.
func NewWebhooks(cfg WebhooksConfig, parts WebhookParts, transactionalID string, logPartitions, changelogPartitions int32,
	publish func(context.Context, ...*kgo.Record) error, log *slog.Logger, opts ...kgo.Opt) (*Webhooks, error) {
	poster, err := newPoster(cfg, parts)
	if err != nil {
		return nil, err
	}
	return &Webhooks{cfg: cfg, groupMember: groupMember{name: "webhooks", group: events.WebhooksGroup, id: transactionalID, changelog: events.WebhooksTopic,
		transactionTimeout: cfg.TransactionTimeout, logPartitions: logPartitions, changelogPartitions: changelogPartitions, opts: opts, log: log},
		publish: publish, poster: poster, rested: make(chan struct{}), queue: newHookQueue(cfg.Concurrency, cfg.ConcurrencyPerHost, cfg.GiveUpAfter),
		partitions: map[int32]*hooks{}, owned: map[int32]bool{}}, nil
}

// Run works until ctx is done, and then until the requests under way have ended. It is called once.
func (h *Webhooks) Run(ctx context.Context) error {
	go func() {
		defer close(h.rested)
		h.attempts(ctx)
	}()
	err := h.run(ctx, h.cfg.RetryAfter, h.session)
	<-h.rested
	return err
}

// attempts makes attempts when they are due.
func (h *Webhooks) attempts(ctx context.Context) {
	var under sync.WaitGroup
	defer under.Wait()
	for ctx.Err() == nil {
		a, pause := h.queue.next(time.Now())
		if a != nil {
			under.Go(func() {
				if guard(h.log, a.job, func() error { h.attempt(ctx, a); return nil }) != nil {
					h.queue.postpone(a, time.Now().Add(h.cfg.BackoffMax))
				}
			})
			continue
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-h.queue.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// attempt makes one and writes what it came to. It is made to its end also when the process
// is to stop: the client's timeout bounds it.
func (h *Webhooks) attempt(ctx context.Context, a *attempt) {
	var failed error // for the span
	ctx, span := telemetry.Start(telemetry.OfEvent(ctx, events.Event{JobID: a.job, CorrelationID: a.state.GetCorrelationId(), TraceParent: a.traceParent}),
		"webhook", trace.WithSpanKind(trace.SpanKindClient))
	defer func() { telemetry.End(span, failed) }()
	doing := context.WithoutCancel(ctx)
	if bug.On("webhook-told-early") {
		h.tellEarly(doing, a)
	}
	result := posted{code: "host_unavailable", message: "not attempted: the host's breaker was open for longer than WEBHOOK_GIVE_UP_AFTER", final: true}
	if !a.hopeless {
		// Each time: the tenant may have been forgotten since the attempt before.
		address, host, refused := h.poster.open(doing, a)
		switch {
		case refused != nil:
			result = *refused
		case a.host == "" && !h.queue.at(a, host, time.Now()):
			return
		default:
			result = h.poster.post(doing, a, address)
		}
	}
	now := time.Now()
	if result.notYet > 0 {
		if result.hold {
			h.queue.hold(a.host, now.Add(result.notYet))
		}
		h.queue.postpone(a, now.Add(result.notYet))
		return
	}
	if result.code == "" {
		h.queue.hold(a.host, time.Time{})
	} else {
		failed = errors.New(result.code)
	}
	countWebhook(result.code)
	h.log.InfoContext(ctx, "webhook attempted", "revision", a.revision, "attempt", a.number, "status", result.status, "code", result.code)
	decided, err := commands.WebhookAttempted{WebhookPolicy: h.cfg.policy(), Revision: a.revision, Attempt: a.number, HTTPStatus: int32(result.status),
		Code: result.code, Message: result.message, Final: result.final, RetryAfter: result.retryAfter, TraceParent: telemetry.TraceParent(ctx), At: now}.Decide(a.state)
	if err == nil {
		err = h.tell(ctx, decided)
	}
	if err != nil {
		h.log.ErrorContext(ctx, "what a webhook attempt came to could not be written; it will be made again", "error", err)
		h.queue.postpone(a, now.Add(h.cfg.Pause))
		return
	}
	h.queue.done(a)
}

// tell appends events, for as long as it takes; when the process is to stop, once more.
func (h *Webhooks) tell(ctx context.Context, decided []events.Event) error {
	for {
		stopping := ctx.Err() != nil
		records, err := events.Records(decided) // anew: after an error they may not be touched
		if err != nil {
			return err
		}
		err = h.publish(context.WithoutCancel(ctx), records...)
		if err == nil || stopping {
			return err
		}
		h.log.WarnContext(ctx, "a webhook's outcome is not in the log yet", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(h.cfg.RetryAfter):
		}
	}
}

// session runs until the client can no longer be used.
func (h *Webhooks) session(ctx context.Context) error {
	session, leave, err := h.join(h.own, h.forget)
	if err != nil {
		return err
	}
	// At a stop the group may give the partitions to others only once what is being posted is in the
	// log: they would post it once more. Wherever the stop finds us, the sender comes to rest.
	defer func() {
		if ctx.Err() != nil {
			<-h.rested
		}
		leave()
	}()
	p, nextSweep := newPendingHooks(), time.Now().Add(hookSweep)
	for {
		fetches := h.poll(ctx, session, min(hookTick, h.cfg.CommitInterval), hookBatch)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if fetches.IsClientClosed() {
			return nil
		}
		if err := h.restore(ctx, session.Client()); err != nil {
			return fmt.Errorf("restore the pending webhooks: %w", err)
		}
		now := time.Now()
		h.take(fetches, p, now)
		h.goLive(session.Client(), p)
		if !now.Before(nextSweep) {
			h.sweep(p, now)
			nextSweep = now.Add(hookSweep)
		}
		full := h.queue.waiting() >= h.cfg.MaxPending
		for _, c := range p.changes {
			if c.live {
				if err := c.schedule(h.cfg.policy(), full, now); err != nil {
					return err
				}
			}
		}
		if !p.due(h.cfg, now) {
			continue
		}
		if err := h.commit(ctx, session, p.changes); err != nil {
			return err
		}
		p = newPendingHooks()
	}
}

// pendingHooks is what was read and decided since the last transaction. Should partitions be
// taken away meanwhile, the session aborts the next one, and this is thrown away as a whole.
type pendingHooks struct {
	changes map[int32]*hookChanges
	since   time.Time
}

func newPendingHooks() *pendingHooks { return &pendingHooks{changes: map[int32]*hookChanges{}} }

// of is what is pending of a partition.
func (p *pendingHooks) of(partition int32, h *hooks, now time.Time) *hookChanges {
	c := p.changes[partition]
	if c == nil {
		if len(p.changes) == 0 {
			p.since = now
		}
		c = newHookChanges(h)
		p.changes[partition] = c
	}
	return c
}

// due says whether it is time for a transaction: at once for what is to be emitted, or for a
// partition that is read to its end; soon for states; later for offsets alone.
func (p *pendingHooks) due(cfg WebhooksConfig, now time.Time) bool {
	patience := idleCommits * cfg.CommitInterval
	for _, c := range p.changes {
		if len(c.emitted) > 0 || c.live != c.hooks.live {
			return true
		}
		if len(c.jobs) > 0 {
			patience = cfg.CommitInterval
		}
	}
	return len(p.changes) > 0 && now.Sub(p.since) >= patience
}

// own takes partitions over, and forgets what it knows of them: they may have been away
// without a word, as the saga's.
func (h *Webhooks) own(_ context.Context, _ *kgo.Client, added map[string][]int32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.losses++
	for _, p := range added[events.Topic] {
		h.owned[p] = true
		delete(h.partitions, p)
		h.queue.dropPartition(p)
	}
}

// forget drops partitions that another process may own now; nil means all. Requests under way
// go on, and what they come to is told.
func (h *Webhooks) forget(_ context.Context, _ *kgo.Client, lost map[string][]int32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.losses++
	gone := lost[events.Topic]
	if lost == nil {
		gone = slices.Collect(maps.Keys(h.owned))
	}
	for _, p := range gone {
		delete(h.partitions, p)
		delete(h.owned, p)
		h.queue.dropPartition(p)
	}
}

// restore reads what is pending of partitions that are newly ours. What an earlier owner
// committed is before our fence in the changelog: once the group has another generation it
// can commit nothing more. Should partitions come or go while we read, we read again.
func (h *Webhooks) restore(ctx context.Context, client *kgo.Client) error {
	for {
		h.mu.Lock()
		losses, missing := h.losses, []int32(nil)
		for p := range h.owned {
			if h.partitions[p] == nil {
				missing = append(missing, p)
			}
		}
		h.mu.Unlock()
		if len(missing) == 0 {
			return nil
		}
		found, err := h.read(ctx, client, missing)
		if err != nil {
			return err
		}
		h.mu.Lock()
		if losses == h.losses {
			maps.Copy(h.partitions, found)
		}
		h.mu.Unlock()
	}
}

func (h *Webhooks) read(ctx context.Context, client *kgo.Client, partitions []int32) (map[int32]*hooks, error) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.RestoreTimeout)
	defer cancel()
	found := map[int32]*hooks{}
	for _, p := range partitions {
		found[p] = &hooks{jobs: map[string]*events.PendingWebhook{}, next: -1}
	}
	err := h.readChangelog(ctx, partitions, func(p int32, r *kgo.Record) error { return putState(found[p].jobs, r, h.group) })
	if err != nil {
		return nil, err
	}
	ends, err := kadm.NewClient(client).ListCommittedOffsets(ctx, events.Topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("ask for the ends of %s: %w", events.Topic, err)
	}
	for p, of := range found {
		end, ok := ends.Lookup(events.Topic, p)
		if !ok {
			return nil, fmt.Errorf("%s has no partition %d", events.Topic, p)
		}
		of.until = end.Offset
	}
	return found, nil
}

// mine are the partitions whose pending webhooks we know.
func (h *Webhooks) mine() map[int32]*hooks {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.partitions)
}

// take folds records. Those of a partition that was taken away meanwhile are passed over:
// whoever has it reads them.
func (h *Webhooks) take(fetches kgo.Fetches, p *pendingHooks, now time.Time) {
	mine := h.mine()
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		of := mine[f.Partition]
		if of == nil || len(f.Records) == 0 {
			return
		}
		c := p.of(f.Partition, of, now)
		for _, r := range f.Records {
			c.next = r.Offset + 1
			if r.Attrs.IsControl() {
				continue
			}
			e, err := events.Decode(r)
			if err != nil {
				continue // the saga makes a dead letter of it
			}
			if _, ok := e.Message.(*events.OperationStarted); ok {
				continue // says nothing of a job's outcome
			}
			guard(h.log, e.JobID, func() error { c.take(e); return nil })
		}
	})
}

// goLive begins deciding in partitions that are read to where they ended when they became ours.
func (h *Webhooks) goLive(client *kgo.Client, p *pendingHooks) {
	var committed map[int32]kgo.EpochOffset
	for partition, of := range h.mine() {
		next := of.next
		if c := p.changes[partition]; c != nil {
			next = c.next
		}
		if next < 0 {
			if committed == nil {
				committed = client.CommittedOffsets()[events.Topic]
			}
			next = committed[partition].Offset
		}
		if of.live || next < of.until {
			continue
		}
		if c := p.of(partition, of, time.Now()); !c.live {
			c.live = true
			c.everything()
		}
	}
}

// sweep lets go of what is not needed any more.
func (h *Webhooks) sweep(p *pendingHooks, now time.Time) {
	h.queue.freeHosts(now)
	for partition, of := range h.mine() {
		if of.live && len(of.jobs) > 0 {
			p.of(partition, of, now).forget(now.Add(-h.cfg.ForgetOpenAfter))
		}
	}
}

// commit writes what was decided, the new states and the offsets of all that was read.
func (h *Webhooks) commit(ctx context.Context, session *kgo.GroupTransactSession, changes map[int32]*hookChanges) error {
	var all []*kgo.Record
	for _, partition := range slices.Sorted(maps.Keys(changes)) {
		records, err := changes[partition].records(partition % h.changelogPartitions)
		if err != nil {
			return err
		}
		all = append(all, records...)
	}
	committed, err := h.transact(ctx, session, all)
	if err != nil || !committed {
		return err
	}
	h.settle(changes)
	return nil
}

// settle brings what was committed into the memory and into the queue; of partitions that
// went away meanwhile nothing.
func (h *Webhooks) settle(changes map[int32]*hookChanges) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for partition, c := range changes {
		if h.partitions[partition] != c.hooks {
			// It went away and came back, and what was read of it then lacks what was
			// committed just now.
			delete(h.partitions, partition)
			h.queue.dropPartition(partition)
			continue
		}
		news := c.commit()
		if !c.live {
			continue
		}
		for id, p := range news {
			hook := subject(p).GetWebhook()
			if p == nil || !awaits(subject(p)) || hook.GetDue() == nil || hook.GetRevision() != subject(p).GetRevision() {
				h.queue.drop(id)
				continue
			}
			h.queue.put(&attempt{job: id, partition: partition, revision: hook.GetRevision(), number: hook.GetAttempt(), due: hook.GetDue().AsTime(),
				state: subject(p), traceParent: p.GetTraceParent()})
		}
	}
}

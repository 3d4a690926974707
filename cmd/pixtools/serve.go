package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/caarlos0/env/v11"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/handlers"
	"github.com/pixtools/pixtools/internal/apikeys"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/egress"
	"github.com/pixtools/pixtools/internal/embedded"
	"github.com/pixtools/pixtools/internal/grace"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/progress"
	"github.com/pixtools/pixtools/internal/registry"
	"github.com/pixtools/pixtools/internal/secrets"
	"github.com/pixtools/pixtools/internal/telemetry"
	"github.com/pixtools/pixtools/models"
	"github.com/pixtools/pixtools/processors"
	"github.com/pixtools/pixtools/processors/denoiser"
	"github.com/pixtools/pixtools/processors/engine"
	"github.com/pixtools/pixtools/projections"
	"github.com/pixtools/pixtools/schemas"
)

// needed says which parts a role works with: it starts without the others, which may be
// away. Redis is nowhere: it saves work and is never waited for.
var needed = map[string][]string{
	"api":       {"kafka", "database", "s3"},
	"convert":   {"kafka", "s3"},
	"ml":        {"kafka", "s3"},
	"saga":      {"kafka"},
	"projector": {"kafka", "database"},
	"webhooks":  {"kafka", "database"},
	"janitor":   {"kafka", "database", "s3"},
}

var allRoles = []string{"api", "convert", "ml", "saga", "projector", "webhooks", "janitor"}

// now is the janitor's clock. Tests that wait for nothing put it forward.
var now = time.Now

func serveCommand() *cobra.Command {
	var roles []string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the services; what is not configured runs embedded",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(roles) == 0 {
				return fmt.Errorf("--roles names no role; there are %s", strings.Join(allRoles, ", "))
			}
			for _, role := range roles {
				if !slices.Contains(allRoles, role) {
					return fmt.Errorf("--roles: %q is no role; there are %s", role, strings.Join(allRoles, ", "))
				}
			}
			l := load(env.ToMap(os.Environ()))
			if err := l.fault(); err != nil {
				return err
			}
			cfg := l.config
			log := slog.New(telemetry.NewHandler(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.level})))
			slog.SetDefault(log)
			for _, doubt := range l.unknown {
				log.Warn(doubt)
			}
			return serve(cmd.Context(), cfg, roles, log)
		},
	}
	cmd.Flags().StringSliceVar(&roles, "roles", allRoles, "which services this process runs")
	return cmd
}

// services is what the roles share.
type services struct {
	cfg       config
	log       *slog.Logger
	kafka     *kgo.Client
	publisher *kafka.Publisher
	toBrokers []kgo.Opt
	logID     [16]byte
	db        *pgxpool.Pool
	store     *blob.Store
	redis     *redis.Client
	// embedded says which parts are.
	embedded embedded.Needs
	// submissions is the API's producer: who waits for an answer waits less long than a
	// processor, and records of one client fail together with the oldest.
	submissions *kgo.Client
	// precedence is what quick work has in this process.
	precedence *engine.Precedence
	waiting    waitedFor
	roles      *roleStates
}

// serve runs until ctx is done, then stops. First it only says so, on both ports, and works
// on: whoever shares requests out must have noticed before they are refused. Then the services
// stop, then what they stand on.
func serve(ctx context.Context, cfg config, roles []string, log *slog.Logger) error {
	// The port first: a second instance should hear of it before it starts anything.
	var listener net.Listener
	if slices.Contains(roles, "api") {
		var err error
		if listener, err = listen(cfg); err != nil {
			return err
		}
		defer listener.Close()
		cfg.API.Auth.Mode = authentication(cfg, listener.Addr())
	}
	if slices.Contains(roles, "ml") {
		if err := checkModel(cfg.Denoise); err != nil {
			return fmt.Errorf("configuration:\n%w", err)
		}
	}
	telemetry.Announce(roles)
	flush, err := telemetry.StartTracing(ctx, cfg.Telemetry, roles, cfg.InstanceID, log)
	if err != nil {
		return err
	}
	defer func() { // last: what stops tells of it, too
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer cancel()
		if err := flush(stopping); err != nil {
			log.Warn("the last traces were not sent", "error", err)
		}
	}()
	states := newRoleStates(ctx, roles)
	closePrivate, err := servePrivate(cfg.Telemetry.Address(), states)
	if err != nil {
		return err
	}
	defer closePrivate()
	spool, err := openSpool(cfg.API.SpoolDir)
	if err != nil {
		return fmt.Errorf("SPOOL_DIR: %w", err)
	}
	defer spool.close()
	cfg.API.SpoolDir = spool.dir
	if err := prometheus.Register(diskMetrics{cfg, roles}); err != nil {
		return err
	}
	needs := cfg.needs()
	parts, err := embedded.Start(ctx, cfg.Embedded, needs, log)
	if err != nil {
		return err
	}
	defer func() {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.StopTimeout)
		defer cancel()
		if err := parts.Stop(stopping); err != nil {
			log.Error("embedded parts did not stop cleanly", "error", err)
		}
	}()
	cfg.use(parts)
	s, err := connect(ctx, cfg, needs, log)
	if err != nil {
		return err
	}
	defer s.close()
	s.roles = states

	closing, delay := ctx.Done(), time.Duration(0)
	if listener != nil {
		delay = cfg.DrainDelay
	}
	ctx, end := grace.Outlast(ctx, delay)
	defer end()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case err := <-parts.Failed():
			return fmt.Errorf("an embedded part ended: %w; start pixtools again", err)
		}
	})
	if slices.Contains(roles, "api") || slices.Contains(roles, "ml") { // the others need none
		group.Go(func() error { return s.greetRedis(ctx) })
	}
	group.Go(func() error {
		s.announceSchemas(ctx)
		return nil
	})
	waits := s.neededBy(roles)
	states.waitsFor(s.waiting.list)
	s.waiting.expect(slices.Sorted(maps.Keys(waits))...)
	var entrance *door
	if listener != nil {
		entrance = s.open(ctx, group, listener, closing)
	}
	group.Go(func() error {
		coming, waiting := errgroup.WithContext(ctx)
		for name, prepare := range waits {
			coming.Go(func() error {
				err := persist(waiting, log, name, prepare)
				s.waiting.came(name)
				return err
			})
		}
		if err := coming.Wait(); err != nil {
			return err
		}
		for role, start := range map[string]func(context.Context, *errgroup.Group) error{
			"convert": s.convert, "ml": s.ml, "saga": s.saga, "projector": s.projector, "webhooks": s.webhooks, "janitor": s.janitor,
			"api": func(ctx context.Context, g *errgroup.Group) error { return s.api(ctx, g, listener, entrance) },
		} {
			if slices.Contains(roles, role) {
				if err := start(ctx, group); err != nil {
					return fmt.Errorf("role %s: %w", role, err)
				}
			}
		}
		return nil
	})
	return group.Wait()
}

func listen(cfg config) (net.Listener, error) {
	address := net.JoinHostPort(cfg.Host, strconv.Itoa(cfg.Port))
	listener, err := net.Listen("tcp", address)
	var unknown *net.DNSError
	switch {
	case errors.As(err, &unknown) || errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("cannot listen on %s: %w; set HOST to an address of this machine, 127.0.0.1 or 0.0.0.0 for instance", address, err)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("cannot listen on %s: %w; set PORT to one above 1023", address, err)
	case err != nil:
		return nil, fmt.Errorf("cannot listen on %s: %w; stop what uses the port, or set PORT to another", address, err)
	}
	return listener, nil
}

// authentication says whether API keys are asked for, where API_AUTH does not: not of those on
// the machine on which everything, or a part of it, runs embedded.
func authentication(cfg config, address net.Addr) string {
	switch {
	case cfg.API.Auth.Mode != "":
		return cfg.API.Auth.Mode
	case cfg.needs() != (embedded.Needs{}) && onlyHere(address):
		return api.AuthOff
	}
	return api.AuthKeys
}

// onlyHere says whether an address is reached from this machine alone.
func onlyHere(address net.Addr) bool {
	tcp, ok := address.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// connect makes the clients of all parts, and reaches none of them yet.
func connect(ctx context.Context, cfg config, needs embedded.Needs, log *slog.Logger) (*services, error) {
	s := &services{cfg: cfg, log: log, embedded: needs, precedence: engine.NewPrecedence(cfg.Denoise)}
	var err error
	if s.toBrokers, err = cfg.Kafka.Options(); err != nil {
		return nil, err
	}
	if s.kafka, err = kafka.NewProducerClient(cfg.Kafka, log, kafkaMetrics("processors")); err != nil {
		return nil, err
	}
	if s.submissions, err = kafka.NewProducerClient(cfg.Kafka, log, kafkaMetrics("submissions")); err != nil {
		return nil, err
	}
	s.publisher = kafka.NewPublisher(s.kafka, cfg.Kafka.DeliveryTimeout)
	if s.store, err = blob.New(ctx, cfg.Blob); err != nil {
		return nil, err
	}
	if s.db, err = projections.Open(cfg.Read, projections.Schema); err != nil {
		return nil, err
	}
	options, err := cfg.redis()
	if err != nil {
		return nil, err
	}
	s.redis = redis.NewClient(options)
	s.redis.AddHook(telemetry.RedisFaults{})
	return s, nil
}

// neededBy are the parts that roles need, each with what makes it ready.
func (s *services) neededBy(roles []string) map[string]func(context.Context) error {
	all := map[string]func(context.Context) error{"kafka": s.prepareLog, "database": s.prepareDatabase, "s3": s.prepareStore}
	maps.DeleteFunc(all, func(name string, _ func(context.Context) error) bool {
		return !slices.ContainsFunc(roles, func(role string) bool { return slices.Contains(needed[role], name) })
	})
	return all
}

// waitedFor are the parts that are still to come. Requests ask while the start goes on.
type waitedFor struct {
	mu    sync.Mutex
	names []string
}

func (w *waitedFor) expect(names ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names = names
}

func (w *waitedFor) came(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names = slices.DeleteFunc(slices.Clone(w.names), func(n string) bool { return n == name })
}

func (w *waitedFor) list() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.names
}

// persist tries until it succeeds, it is hopeless or ctx is done, and says what it waits for.
func persist(ctx context.Context, log *slog.Logger, name string, prepare func(context.Context) error) error {
	const pause = time.Second
	for {
		err := prepare(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if refused := errors.Join(hopeless(err), distrust(name, err)); refused != nil {
			return refused
		}
		log.Warn("waiting for a part", "part", name, "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// hopeless is the error to end with where waiting does not help, since the part is there
// and takes us for somebody else, or is not the one that we are configured for.
func hopeless(err error) error {
	var answer *pgconn.PgError
	switch {
	case errors.Is(err, kafka.ErrPartitionCount), errors.Is(err, kafka.ErrTopicSettings), errors.Is(err, projections.ErrNewer):
		return err
	case errors.Is(err, blob.ErrRefused):
		return fmt.Errorf("S3 refuses us: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to a key that may read, write and list AWS_S3_BUCKET and set its lifecycle and, with S3_CORS_ORIGINS, its CORS rules, and start pixtools again: %w", err)
	case !errors.As(err, &answer):
		return nil
	}
	switch answer.Code {
	case "28P01", "28000": // wrong password, unknown user
		return fmt.Errorf("PostgreSQL refuses us: set DATABASE_URL to a user and a password that it knows, and with the sslmode that it asks for, and start pixtools again: %w", err)
	case "3D000":
		return fmt.Errorf("PostgreSQL has no such database: create it, or set DATABASE_URL to one that is there, and start pixtools again: %w", err)
	}
	return nil
}

func (s *services) prepareLog(ctx context.Context) error {
	for _, topic := range s.cfg.topics(s.embedded.Kafka) {
		if err := kafka.EnsureTopic(ctx, s.kafka, topic); err != nil {
			return err
		}
	}
	id, err := kafka.TopicID(ctx, s.kafka, events.Topic)
	s.logID = id
	return err
}

// topics are those that must exist.
func (c config) topics(embedded bool) []kafka.Topic {
	forever := map[string]string{"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
	changelog := kafka.Topic{Partitions: c.ChangelogPartitions, Must: map[string]string{"cleanup.policy": "compact"}}
	if embedded {
		// That broker compacts by removing the log and writing it anew, which a kill would cut
		// off, and it cannot tell a compacted log from one that lost records. It would remove
		// states after a week, too.
		changelog = kafka.Topic{Partitions: c.ChangelogPartitions, Initially: forever}
	}
	saga, webhooks := changelog, changelog
	saga.Name, webhooks.Name = events.SagaTopic, events.WebhooksTopic
	all := []kafka.Topic{
		{Name: events.Topic, Partitions: c.Partitions, Must: forever},
		saga, webhooks,
		{Name: events.DeadLetterTopic, Partitions: 1, Initially: map[string]string{"cleanup.policy": "delete",
			"retention.ms": strconv.FormatInt(c.DeadLetters.Retention.Milliseconds(), 10)}},
	}
	for i := range all {
		all[i].Replication = c.Replication
		if c.Replication == 0 {
			all[i].Replication = -1 // the brokers' default
		}
		if c.MinISR > 0 && !embedded {
			initially := map[string]string{"min.insync.replicas": strconv.Itoa(int(c.MinISR))}
			maps.Copy(initially, all[i].Initially)
			all[i].Initially = initially
		}
	}
	return all
}

// announceSchemas tells the schema registry, where there is one, of every event. All
// processes do: it changes nothing where another was first, and no role is asked of that
// would have to run.
func (s *services) announceSchemas(ctx context.Context) {
	if s.cfg.Registry.URL == "" {
		return
	}
	registry.Announce(ctx, s.cfg.Registry, events.Types(), schemas.Events, s.log)
}

func (s *services) prepareDatabase(ctx context.Context) error {
	if err := s.prepareSecrets(ctx); err != nil {
		return err
	}
	return projections.Migrate(ctx, s.db, projections.Schema)
}

// prepareSecrets makes every table of the schema that no rebuild touches. A restore fills those
// that are made here, and no others.
func (s *services) prepareSecrets(ctx context.Context) error {
	if err := secrets.Migrate(ctx, s.db); err != nil {
		return err
	}
	return apikeys.Migrate(ctx, s.db)
}

func (s *services) prepareStore(ctx context.Context) error {
	if err := s.store.EnsureBucket(ctx); err != nil {
		return err
	}
	if _, err := s.store.EnsureCORS(ctx); err != nil {
		return err
	}
	applied, err := s.store.EnsureLifecycle(ctx)
	if err == nil && !applied {
		level := slog.LevelWarn
		if s.embedded.S3 {
			level = slog.LevelInfo // as it must be
		}
		s.log.Log(ctx, level, "this S3 server has no lifecycle rules: objects are removed by the role janitor alone", "retention_days", s.cfg.Blob.RetentionDays)
	}
	return err
}

func (s *services) close() {
	_ = s.publisher.Close()
	s.kafka.Close()
	s.submissions.Close()
	s.db.Close()
	_ = s.redis.Close()
}

// checkModel refuses at start what every child would refuse at work.
func checkModel(cfg denoiser.Config) error {
	model, err := models.Load(cfg.Model)
	if err != nil {
		return fmt.Errorf("DENOISE_MODEL: %w", err)
	}
	return cfg.Suits(model)
}

// convert runs what is quick, one picture a core: of those that a container may use, which Go knows.
func (s *services) convert(ctx context.Context, group *errgroup.Group) error {
	children := s.cfg.Workers
	if children == 0 {
		children = runtime.GOMAXPROCS(0)
	}
	return s.process(ctx, group, "convert", processors.Conversions(), s.cfg.Consumer, s.cfg.Processor, s.cfg.Engine, children, nil)
}

// network is how a child denoises. How many cores a container may use Go knows here, and not in a
// child, whose own Go has one.
func (c config) network() *denoiser.Config {
	if c.Denoise.Threads == 0 {
		c.Denoise.Threads = max(1, runtime.GOMAXPROCS(0)-1)
	}
	return &c.Denoise
}

// handOverMargin is what a hand-over takes beside the work: cancelling, and a commit.
const handOverMargin = 10 * time.Second

// ml runs what takes most of the cores for a while, apart from the rest.
func (s *services) ml(ctx context.Context, group *errgroup.Group) error {
	consumer, worker, pool, children := s.cfg.Consumer, s.cfg.Processor, s.cfg.Engine, s.cfg.Denoise.Concurrency
	// One more than are worked on, so that its source is here when its turn comes.
	consumer.MaxInFlight = children + 1
	// A hand-over waits for a picture rather than waste what was done of it, within the time
	// that the group gives.
	consumer.RebalanceTimeout = s.cfg.Denoise.RebalanceTimeout
	consumer.DrainTimeout = s.cfg.Denoise.RebalanceTimeout - handOverMargin
	worker.Timeout = s.cfg.Denoise.Timeout
	pool.Denoise = s.cfg.network()
	report := func(ctx context.Context, jobID, operation string, attempt int32) func(done, total int) {
		return progress.Reporter(ctx, s.redis, jobID, operation, attempt)
	}
	return s.process(ctx, group, "ml", []processors.Operation{processors.Denoise}, consumer, worker, pool, children, report)
}

// router has handlers called for what subscribers deliver; one that panics has failed.
func (s *services) router(log *slog.Logger) (*message.Router, error) {
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: s.cfg.StopTimeout}, watermill.NewSlogLogger(slog.New(withoutHandlerErrors{log.Handler()})))
	if err != nil {
		return nil, err
	}
	router.AddMiddleware(middleware.Recoverer)
	return router, nil
}

// process runs a consumer group for each operation, over children of the picture engine.
func (s *services) process(ctx context.Context, group *errgroup.Group, role string, ops []processors.Operation, consumer kafka.SubscriberConfig,
	cfg processors.WorkerConfig, children engine.Config, most int, report processors.Report) error {
	router, err := s.router(s.log)
	if err != nil {
		return err
	}
	children.Precedence = s.precedence
	var pools []*engine.Pool
	var subscribers []*kafka.Subscriber
	for _, op := range ops {
		children.Operation = op.Name
		// A pool for each: a queue of slow ones must not hold up another operation.
		pool := engine.New(children, most, s.log)
		pools = append(pools, pool)
		worker, err := processors.NewWorker(cfg, op, pool, s.store, s.publisher, report, s.cfg.API.SpoolDir,
			fmt.Sprintf("%s/%d", s.cfg.InstanceID, os.Getpid()), s.log)
		if err != nil {
			return err
		}
		consumer.Group = events.OperationGroup + op.Name
		consumer.Filter, consumer.CatchUp = worker.Notice, worker.CatchUp
		consumer.ClientOpts = []kgo.Opt{kafkaMetrics(consumer.Group)}
		subscriber, err := kafka.NewSubscriber(s.cfg.Kafka, consumer, s.log)
		if err != nil {
			return err
		}
		subscribers = append(subscribers, subscriber)
		router.AddConsumerHandler(consumer.Group, events.Topic, subscriber, worker.Handle)
	}
	s.roles.runs(role, func() error {
		for i, subscriber := range subscribers {
			if !subscriber.Joined() {
				return notJoined(events.OperationGroup + ops[i].Name)
			}
		}
		return nil
	})
	group.Go(func() error {
		defer func() {
			for _, pool := range pools {
				pool.Close()
			}
		}()
		// Not ctx: its end would end the handlers' contexts, and with them every conversion.
		return router.Run(context.WithoutCancel(ctx))
	})
	group.Go(func() error {
		<-ctx.Done()
		// First those: the router's own close ends the handlers' contexts at once.
		var closing errgroup.Group
		for _, subscriber := range subscribers {
			closing.Go(subscriber.Close)
		}
		return errors.Join(closing.Wait(), router.Close())
	})
	return nil
}

// brokers are the options of clients that read franz-go directly.
func (s *services) brokers() []kgo.Opt {
	return append(slices.Clone(s.toBrokers), kgo.ProducerLinger(0),
		kgo.SessionTimeout(s.cfg.Consumer.SessionTimeout), kgo.HeartbeatInterval(s.cfg.Consumer.HeartbeatInterval))
}

// transactionalID is that of a consumer group's member in this process.
func (s *services) transactionalID(group string) string {
	if s.embedded.Kafka { // there it must not outlive its process
		return group + "." + uuid.NewString()
	}
	return group + "." + s.cfg.InstanceID
}

func (s *services) saga(ctx context.Context, group *errgroup.Group) error {
	saga := handlers.NewSaga(s.cfg.Saga, s.transactionalID(events.SagaGroup), s.cfg.Partitions, s.cfg.ChangelogPartitions, s.log.With("role", "saga"), s.brokers()...)
	saga.SessionOpts = []kgo.Opt{kafkaMetrics(events.SagaGroup)}
	s.roles.runs("saga", joined(saga.Joined, events.SagaGroup))
	group.Go(func() error { return saga.Run(ctx) })
	return nil
}

// webhooks posts outcomes to where their clients want them.
func (s *services) webhooks(ctx context.Context, group *errgroup.Group) error {
	outside, err := egress.NewGuard(s.cfg.Outside.AllowPrivate)
	if err != nil {
		return err
	}
	log := s.log.With("role", "webhooks")
	keys := secrets.New(s.cfg.Secrets, s.db, s.cfg.Read.QueryTimeout, log)
	parts := handlers.WebhookParts{Client: egress.NewClient(s.cfg.Outside, outside, nil), MaxAnswerBytes: s.cfg.Outside.MaxAnswerBytes,
		Keys: keys, Secrets: secrets.NewWebhooks(s.db, s.cfg.Read.QueryTimeout, s.cfg.Webhooks.SecretsRefresh),
		Body: func(ctx context.Context, job *events.Job, eventID string) ([]byte, error) {
			return api.OutcomeBody(ctx, s.store, keys, s.cfg.retention(), job, eventID)
		}}
	hooks, err := handlers.NewWebhooks(s.cfg.Webhooks, parts, s.transactionalID(events.WebhooksGroup), s.cfg.Partitions, s.cfg.ChangelogPartitions,
		s.publisher.Append, log, s.brokers()...)
	if err != nil {
		return err
	}
	hooks.SessionOpts = []kgo.Opt{kafkaMetrics(events.WebhooksGroup)}
	s.roles.runs("webhooks", joined(hooks.Joined, events.WebhooksGroup))
	group.Go(func() error { return keys.Watch(ctx) })
	group.Go(func() error { return hooks.Run(ctx) })
	return nil
}

func (s *services) projector(ctx context.Context, group *errgroup.Group) error {
	projector := projections.NewProjector(s.cfg.Read, s.db, s.logID, s.log.With("role", "projector"), s.brokers()...)
	projector.SessionOpts = []kgo.Opt{kafkaMetrics(events.ProjectorGroup)}
	s.roles.runs("projector", joined(projector.Joined, events.ProjectorGroup))
	group.Go(func() error { return projector.Run(ctx) })
	return nil
}

// door is where requests come in: at what answers while the process starts, then at the API.
type door struct {
	behind atomic.Pointer[http.Handler]
	// closing is closed when the process is asked to stop.
	closing <-chan struct{}
	// open ends when the last request has its answer, or is cut off.
	open context.Context
}

func (d *door) leadTo(h http.Handler) { d.behind.Store(&h) }

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case <-d.closing:
		// A client that keeps its connection would send the next request over it, whatever
		// /api/readyz says, and perhaps in the moment in which we close it.
		w.Header().Set("Connection", "close")
	default:
	}
	(*d.behind.Load()).ServeHTTP(w, r)
}

// open serves HTTP until ctx is done, then lets requests end. It does not wait for any part:
// who asks how we are is answered from here on.
func (s *services) open(ctx context.Context, group *errgroup.Group, listener net.Listener, closing <-chan struct{}) *door {
	open, shut := context.WithCancel(context.WithoutCancel(ctx))
	entrance := &door{closing: closing, open: open}
	entrance.leadTo(api.Starting(api.Parts{Store: s.store, Kafka: s.submissions, Redis: s.redis,
		Reader: projections.NewReader(s.cfg.Read, s.db, [16]byte{}, s.log), Log: s.log.With("role", "api")}, s.waiting.list))
	// No read or write timeout here: uploads have their own, streams none.
	var handler http.Handler = entrance
	if s.cfg.API.Auth.Mode == api.AuthOff && onlyHere(listener.Addr()) {
		handler = api.OwnNames(s.cfg.API.Auth, s.cfg.Host, entrance)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10}
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	group.Go(func() error {
		defer shut()
		<-ctx.Done()
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.StopTimeout)
		defer cancel()
		if err := server.Shutdown(stopping); err != nil {
			s.log.Warn("requests were cut off: they did not end within STOP_TIMEOUT", "timeout", s.cfg.StopTimeout.String(), "error", err)
			return server.Close()
		}
		return nil
	})
	return entrance
}

// api has the door lead to the API.
func (s *services) api(ctx context.Context, group *errgroup.Group, listener net.Listener, entrance *door) error {
	reader := projections.NewReader(s.cfg.Read, s.db, s.logID, s.log)
	letters, err := projections.NewDeadLetters(s.cfg.DeadLetters, s.log.With("role", "api"), s.brokers()...)
	if err != nil {
		return err
	}
	var follower *projections.Follower
	if err := persist(ctx, s.log, "kafka", func(ctx context.Context) (err error) {
		follower, err = projections.NewFollower(ctx, s.log.With("role", "api"), s.brokers()...)
		return err
	}); err != nil {
		return err
	}
	outside, err := egress.NewGuard(s.cfg.Outside.AllowPrivate)
	if err != nil {
		return err
	}
	heard, keys := progress.NewListener(s.redis), secrets.New(s.cfg.Secrets, s.db, s.cfg.Read.QueryTimeout, s.log.With("role", "api"))
	readLog := func(ctx context.Context, topic string, partition int32, offsets []int64) ([]*kgo.Record, error) {
		return kafka.ReadOffsets(ctx, s.cfg.Kafka, s.log, topic, partition, offsets)
	}
	lags, err := s.lagReader(reader)
	if err != nil {
		return err
	}
	if err := prometheus.Register(lagMetrics{lags}); err != nil {
		return err
	}
	var ring *apikeys.Ring
	if s.cfg.API.Auth.Mode == api.AuthKeys {
		ring = apikeys.NewRing(s.cfg.API.Keys, s.db, s.cfg.Read.QueryTimeout, s.log.With("role", "api"))
	}
	handler, err := api.New(s.cfg.API, api.Parts{APIKeys: ring, Store: s.store, Publisher: kafka.NewPublisher(s.submissions, s.cfg.Kafka.SubmitTimeout),
		Kafka: s.submissions, Redis: s.redis, Reader: reader, DeadLetters: letters, Follower: follower, Progress: heard, ReadLog: readLog, Lags: lags.Lags, Keys: keys, Retention: s.cfg.retention(),
		Webhooks: secrets.NewWebhooks(s.db, s.cfg.Read.QueryTimeout, s.cfg.Webhooks.SecretsRefresh), Outside: outside, LogID: s.logID, Partitions: int(s.cfg.Partitions),
		Room: s.room, OnSubmission: s.hurry, Draining: entrance.closing, Stopping: ctx.Done(), Log: s.log.With("role", "api")})
	if err != nil {
		return err
	}
	if err := persist(ctx, s.log, "database", handler.HoldKeys); err != nil {
		return err
	}
	// What requests lean on is there until the last of them has its answer.
	for _, run := range []func(context.Context) error{keys.Watch, reader.Listen, letters.Run, follower.Run, heard.Run, handler.WatchQueues, handler.WatchAddresses} {
		group.Go(func() error { return run(entrance.open) })
	}
	if ring != nil {
		group.Go(func() error { return handler.RefreshKeys(entrance.open) })
	}
	group.Go(func() error {
		<-entrance.open.Done()
		lags.Close()
		return nil
	})
	entrance.leadTo(handler)
	s.roles.runs("api", s.room)
	fmt.Printf("PixTools is at http://%s (%s)\n", shownAddress(listener.Addr().String()), s.access(listener.Addr()))
	return nil
}

// access says who may use the API, and warns where that is everybody.
func (s *services) access(address net.Addr) string {
	if s.cfg.API.Auth.Mode == api.AuthKeys {
		return "it asks for API keys: pixtools keys create"
	}
	if onlyHere(address) {
		return "it asks for no API keys: whoever is on this machine may use it"
	}
	s.log.Warn("API_AUTH is off on an address of the network: whoever reaches it may read, submit and redrive everything; API_AUTH=keys asks for keys", "address", address.String())
	return "it asks for no API keys: whoever reaches this address may use it"
}

// hurry tells those that denoise of a submission that asks for something quick.
func (s *services) hurry(operations []string) {
	if slices.ContainsFunc(operations, func(name string) bool { return name != processors.Denoise.Name }) {
		s.precedence.Sign()
	}
}

// shownAddress is one that a browser here can open.
func shownAddress(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil || (host != "::" && host != "0.0.0.0" && host != "") {
		return address
	}
	return net.JoinHostPort("localhost", port)
}

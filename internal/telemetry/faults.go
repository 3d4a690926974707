package telemetry

import (
	"context"
	"errors"
	"net"
	"runtime"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/redis/go-redis/v9"
)

// The packages register their own metrics where they count; these are everybody's.
var (
	faults = promauto.NewCounterVec(prometheus.CounterOpts{Name: "pixtools_dependency_faults_total",
		Help: "Calls to a part outside this process that failed for its own reasons: away, silent, overloaded, refusing us."}, []string{"dependency"})
	buildInfo = promauto.NewGaugeVec(prometheus.GaugeOpts{Name: "pixtools_build_info",
		Help: "1, with what was built and what it runs."}, []string{"version", "revision", "go_version", "roles"})
)

// The parts that a process may find away.
const (
	S3       = "s3"
	Database = "database"
	Redis    = "redis"
	Kafka    = "kafka"
)

func init() {
	for _, name := range []string{S3, Database, Redis, Kafka} {
		faults.WithLabelValues(name) // 0 is an answer, too
	}
}

// Announce tells which roles this process has.
func Announce(roles []string) {
	version, revision := Version()
	buildInfo.WithLabelValues(version, revision, runtime.Version(), strings.Join(roles, ",")).Set(1)
}

// Fault counts a call that failed.
func Fault(dependency string) { faults.WithLabelValues(dependency).Inc() }

// PostgresFaults counts, as a pool's tracer, queries that failed for the database's reasons.
type PostgresFaults struct{}

var (
	_ pgx.QueryTracer   = PostgresFaults{}
	_ pgx.ConnectTracer = PostgresFaults{}
)

// TraceQueryStart does nothing.
func (PostgresFaults) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

// TraceQueryEnd counts.
func (PostgresFaults) TraceQueryEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	if databasesFault(data.Err) {
		Fault(Database)
	}
}

// TraceConnectStart does nothing.
func (PostgresFaults) TraceConnectStart(ctx context.Context, _ pgx.TraceConnectStartData) context.Context {
	return ctx
}

// TraceConnectEnd counts.
func (PostgresFaults) TraceConnectEnd(_ context.Context, data pgx.TraceConnectEndData) {
	if databasesFault(data.Err) {
		Fault(Database)
	}
}

// databasesFault tells a database that is away, out of something or broken from one that
// refuses a statement, which is ours, and from a caller who went away.
func databasesFault(err error) bool {
	var answer *pgconn.PgError
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, pgx.ErrNoRows):
		return false
	case !errors.As(err, &answer):
		return true
	}
	switch answer.Code[:min(2, len(answer.Code))] {
	case "08", "28", "53", "57", "58", "XX": // connection, authorization, resources, shutdown, system, internal
		return true
	}
	return false
}

// RedisFaults counts, as a client's hook, commands that failed for Redis' reasons.
type RedisFaults struct{}

var _ redis.Hook = RedisFaults{}

// DialHook does nothing: the command fails, too.
func (RedisFaults) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook counts.
func (RedisFaults) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		countRedis(err)
		return err
	}
}

// ProcessPipelineHook counts a pipeline once.
func (RedisFaults) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		countRedis(err)
		return err
	}
}

func countRedis(err error) {
	if err != nil && !errors.Is(err, redis.Nil) && !errors.Is(err, context.Canceled) {
		Fault(Redis)
	}
}

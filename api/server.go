// Package api is the HTTP side: commands in, queries out. The contract is that of
// the Python service before us, see docs; errors are RFC 9457.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/go-fuego/fuego"
	"github.com/go-redis/redis_rate/v10"
	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/internal/apikeys"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/egress"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/progress"
	"github.com/pixtools/pixtools/internal/secrets"
	"github.com/pixtools/pixtools/internal/sniff"
	"github.com/pixtools/pixtools/internal/telemetry"
	"github.com/pixtools/pixtools/projections"
)

// PositionHeader carries the position of what a request wrote.
const PositionHeader = "Pixtools-Position"

const (
	requestIDHeader = "X-Request-ID"
	// longestRequestID, in bytes: a longer one, or one with odd characters, is replaced.
	longestRequestID = 128
	// mostDirectBytes is what S3 takes, and copies, in one request.
	mostDirectBytes = 5 << 30
)

// Config bounds the API.
type Config struct {
	// MaxUploadBytes bounds a file.
	// Beyond it: 413.
	MaxUploadBytes int64 `env:"MAX_UPLOAD_BYTES" envDefault:"10485760" range:"1 or more" unit:"bytes"`
	// MaxDirectUploadBytes bounds a file that a client stores itself. S3 copies no more at once.
	// Beyond it: 413.
	MaxDirectUploadBytes int64 `env:"MAX_DIRECT_UPLOAD_BYTES" envDefault:"268435456" range:"1 to 5368709120" unit:"bytes"`
	// MaxFieldBytes bounds each other field of the form.
	// Beyond it: 422.
	MaxFieldBytes int64 `env:"MAX_FIELD_BYTES" envDefault:"65536" range:"1 or more" unit:"bytes"`
	// Picture bounds a picture, by its header.
	Picture sniff.Limits
	// MaxUploads bounds the uploads in progress.
	// Beyond it: 429 with Retry-After.
	MaxUploads int `env:"MAX_CONCURRENT_UPLOADS" envDefault:"256" range:"1 or more" unit:"uploads"`
	// MaxStreams bounds the event streams that are open.
	// Beyond it: 429 with Retry-After.
	MaxStreams int `env:"MAX_STREAMS" envDefault:"2000" range:"1 or more" unit:"streams"`
	// UploadTimeout bounds reading one upload.
	// Beyond it: 422, the upload is cut off.
	UploadTimeout time.Duration `env:"UPLOAD_TIMEOUT" envDefault:"5m" range:"100ms or more"`
	// WaitTimeout bounds how long a query waits for the projection, and for the database. With
	// what it does besides it answers within 2 s.
	// Beyond it: 503 with Retry-After.
	WaitTimeout time.Duration `env:"READ_WAIT_TIMEOUT" envDefault:"1700ms" range:"100ms or more"`
	// LongestWait bounds what a client may ask for with `wait=`.
	// Beyond it: 422.
	LongestWait time.Duration `env:"READ_LONGEST_WAIT" envDefault:"60s" range:"100ms or more"`
	// MaxWaits bounds the queries that wait for a job's end.
	// Beyond it: 429 with Retry-After.
	MaxWaits int `env:"MAX_WAITING_READS" envDefault:"4096" range:"1 or more" unit:"queries"`
	// IdempotencyTTL is how long Redis remembers a key; the log remembers for ever.
	// Beyond it: the read model answers.
	IdempotencyTTL time.Duration `env:"IDEMPOTENCY_TTL" envDefault:"24h" range:"100ms or more"`
	// IdempotencySettle is for how long a Redis that came up empty is not believed that it
	// does not know a key: longer than a submission takes, and than the read model is behind.
	// Beyond it: a submission with a key waits for the projection no more.
	IdempotencySettle time.Duration `env:"IDEMPOTENCY_SETTLE" envDefault:"2m" range:"100ms or more"`
	// MaxListed bounds the jobs on one page of a list; a page has 50 where the client does not say.
	// Beyond it: 422.
	MaxListed int `env:"LIST_MAX_JOBS" envDefault:"500" range:"1 to 10000" unit:"jobs"`
	// UsageMaxDays bounds the days that usage is asked for at once.
	// Beyond it: 422.
	UsageMaxDays int `env:"USAGE_MAX_DAYS" envDefault:"366" range:"1 to 3660" unit:"days"`
	// MaxRevisions bounds how often a job may run: its first time and its retries.
	// Beyond it: a retry is 409; a redrive leaves the dead letter open.
	MaxRevisions int32 `env:"JOB_MAX_REVISIONS" envDefault:"100" range:"1 or more" unit:"revisions"`
	// QueueMaxAge is how long the oldest waiting work of an operation may wait.
	// Beyond it: submissions of that operation are 429 with Retry-After.
	QueueMaxAge time.Duration `env:"QUEUE_MAX_AGE" envDefault:"30m" range:"1s or more"`
	// QueueRefresh is how often the queues are looked at.
	QueueRefresh time.Duration `env:"QUEUE_REFRESH_INTERVAL" envDefault:"1s" range:"50ms to 30s"`
	// MaxSpoolBytes bounds what the uploads in progress take on disk, all together.
	// Beyond it: 429 with Retry-After.
	MaxSpoolBytes int64 `env:"SPOOL_MAX_BYTES" envDefault:"1073741824" range:"MAX_UPLOAD_BYTES or more" unit:"bytes"`
	// AddressRefresh is after how long a tenant's new webhook address counts for submissions.
	AddressRefresh time.Duration `env:"WEBHOOK_ADDRESS_REFRESH" envDefault:"5s" range:"10ms to 10m"`
	// SpoolDir holds uploads while they arrive, and pictures while they are worked on. It must be this
	// user's.
	// Beyond it: a directory of somebody else ends the program; a full disk is 507.
	SpoolDir string `env:"SPOOL_DIR" derived:"pixtools-<uid> in the directory for temporary files"`
	// Auth says who may send requests; Keys what is known of their keys.
	Auth AuthConfig
	Keys apikeys.Config
}

// Validate names every value out of range.
func (c Config) Validate() error {
	var faults []error
	positive := func(name string, n int64) {
		if n < 1 {
			faults = append(faults, fmt.Errorf("%s is %d: it must be 1 or more", name, n))
		}
	}
	positive("MAX_UPLOAD_BYTES", c.MaxUploadBytes)
	positive("MAX_FIELD_BYTES", c.MaxFieldBytes)
	positive("MAX_CONCURRENT_UPLOADS", int64(c.MaxUploads))
	positive("MAX_STREAMS", int64(c.MaxStreams))
	positive("JOB_MAX_REVISIONS", int64(c.MaxRevisions))
	positive("MAX_WAITING_READS", int64(c.MaxWaits))
	if c.MaxDirectUploadBytes < 1 || c.MaxDirectUploadBytes > mostDirectBytes {
		faults = append(faults, fmt.Errorf("MAX_DIRECT_UPLOAD_BYTES is %d: it must be from 1 to %d bytes", c.MaxDirectUploadBytes, int64(mostDirectBytes)))
	}
	if c.UsageMaxDays < 1 || c.UsageMaxDays > mostUsageDays {
		faults = append(faults, fmt.Errorf("USAGE_MAX_DAYS is %d: it must be from 1 to %d days", c.UsageMaxDays, mostUsageDays))
	}
	if c.MaxListed < 1 || c.MaxListed > mostListed {
		faults = append(faults, fmt.Errorf("LIST_MAX_JOBS is %d: it must be from 1 to %d jobs", c.MaxListed, mostListed))
	}
	if c.MaxSpoolBytes < c.MaxUploadBytes {
		faults = append(faults, fmt.Errorf("SPOOL_MAX_BYTES is %d: it must be MAX_UPLOAD_BYTES, %d, or more", c.MaxSpoolBytes, c.MaxUploadBytes))
	}
	if c.QueueMaxAge < time.Second {
		faults = append(faults, fmt.Errorf("QUEUE_MAX_AGE is %s: it must be 1s or more", c.QueueMaxAge))
	}
	if c.QueueRefresh < 50*time.Millisecond || c.QueueRefresh > queuesStaleAfter/2 {
		faults = append(faults, fmt.Errorf("QUEUE_REFRESH_INTERVAL is %s: it must be from 50ms to %s", c.QueueRefresh, queuesStaleAfter/2))
	}
	if c.AddressRefresh < 10*time.Millisecond || c.AddressRefresh > 10*time.Minute {
		faults = append(faults, fmt.Errorf("WEBHOOK_ADDRESS_REFRESH is %s: it must be from 10ms to 10m", c.AddressRefresh))
	}
	for name, d := range map[string]time.Duration{"UPLOAD_TIMEOUT": c.UploadTimeout, "READ_WAIT_TIMEOUT": c.WaitTimeout, "READ_LONGEST_WAIT": c.LongestWait, "IDEMPOTENCY_TTL": c.IdempotencyTTL,
		"IDEMPOTENCY_SETTLE": c.IdempotencySettle} {
		if d < 100*time.Millisecond {
			faults = append(faults, fmt.Errorf("%s is %s: it must be 100ms or more", name, d))
		}
	}
	return errors.Join(append(faults, c.Picture.Validate(), c.Auth.Validate(), c.Keys.Validate())...)
}

// Parts is what the API works with.
type Parts struct {
	Store       *blob.Store
	Publisher   *kafka.Publisher
	Kafka       *kgo.Client
	Redis       *redis.Client
	Reader      *projections.Reader
	DeadLetters *projections.DeadLetters
	Follower    *projections.Follower
	Progress    *progress.Listener
	// ReadLog reads records of a topic, at offsets that ascend.
	ReadLog func(ctx context.Context, topic string, partition int32, offsets []int64) ([]*kgo.Record, error)
	// Lags tells how far the groups that follow the log are behind.
	Lags func(ctx context.Context) (kafka.Lags, error)
	Keys *secrets.Keyring
	// Retention is how long pictures are kept.
	Retention commands.Retention
	// Webhooks has the tenants' default addresses; Outside knows which addresses may be called.
	Webhooks *secrets.Webhooks
	Outside  *egress.Guard
	// APIKeys says whose a key is; nil where none is asked for.
	APIKeys *apikeys.Ring
	LogID   [16]byte
	// Partitions is how many the log has.
	Partitions int
	// Room says that there is no disk left for new work.
	Room func() error
	// OnSubmission hears which operations a valid submission asks for, before it is written
	// and when it was.
	OnSubmission func(operations []string)
	// Draining is closed when the process is asked to stop: others are to get the requests, but
	// those that come all the same are answered. Stopping is closed when no more come: then
	// nobody's patience is used up.
	Draining, Stopping <-chan struct{}
	Log                *slog.Logger
}

// Server answers requests.
type Server struct {
	cfg Config
	Parts
	// uploads holds a token per upload in progress.
	uploads chan struct{}
	// streams holds a token per event stream that is open.
	streams chan struct{}
	// retrying is held by the one request that retries jobs. Two that retry the same job at
	// once would both ask for the same revision, and of those the log takes one. Of two
	// processes each may have such a request: then one of them is answered, and not done.
	retrying sync.Mutex
	// waits holds a token per query that waits for a job's end.
	waits chan struct{}
	// spooled counts the bytes that uploads in progress have on disk.
	spooled atomic.Int64
	watcher watcher
	limiter limiter
	ownPage *http.CrossOriginProtection
	// access says which scope a route needs, by its pattern; other routes are open.
	access map[string]apikeys.Scope
	// named are the paths that are named in full.
	named map[string]bool
	// queried are the routes that read a query string, by pattern.
	queried map[string]bool
	mux     *http.ServeMux
	// entrance is serve, with a span around it where spans are sent.
	entrance http.Handler
	spec     []byte
}

// New makes the server; it is an http.Handler.
func New(cfg Config, parts Parts) (*Server, error) {
	s := &Server{cfg: cfg, Parts: parts, uploads: make(chan struct{}, cfg.MaxUploads), waits: make(chan struct{}, cfg.MaxWaits), streams: make(chan struct{}, cfg.MaxStreams)}
	f := fuego.NewServer(
		fuego.WithoutStartupMessages(), fuego.WithoutLogger(), fuego.WithoutAutoGroupTags(),
		fuego.WithEngineOptions(
			fuego.WithOpenAPIConfig(fuego.OpenAPIConfig{Disabled: true, DisableLocalSave: true, DisableSwaggerUI: true, DisableDefaultServer: true, DisableMessages: true}),
			fuego.WithErrorHandler(func(_ context.Context, err error) error { return err }),
		),
		fuego.WithSerializer(fuego.SendJSON),
		fuego.WithErrorSerializer(s.sendError),
	)
	s.routes(f)
	var err error
	s.named, s.queried = map[string]bool{}, map[string]bool{}
	for path, item := range f.OpenAPI.Description().Paths.Map() {
		s.named[path] = !strings.Contains(path, "{")
		for method, op := range item.Operations() {
			s.queried[method+" "+path] = slices.ContainsFunc(op.Parameters, func(p *openapi3.ParameterRef) bool { return p.Value.In == "query" })
		}
	}
	if s.access, err = accessOf(f.OpenAPI.Description()); err != nil {
		return nil, err
	}
	if s.spec, err = describe(f); err != nil {
		return nil, err
	}
	if s.ownPage, err = ownPage(cfg.Auth); err != nil {
		return nil, err
	}
	s.mux = f.Mux
	s.limiter.Limiter = redis_rate.NewLimiter(parts.Redis)
	spoolLimit.Set(float64(cfg.MaxSpoolBytes))
	if err := s.pages(); err != nil {
		return nil, err
	}
	s.mux.Handle("GET "+telemetry.MetricsPath, telemetry.Metrics())
	s.entrance = traced(s.crossOrigin(http.HandlerFunc(s.serve)))
	return s, nil
}

// HoldKeys takes the API keys, the keys that protect their tenants' file names, and the tenants'
// webhook addresses, into memory, so that submissions go on without the database from the first
// one on.
func (s *Server) HoldKeys(ctx context.Context) error {
	if err := s.Webhooks.ReadAddresses(ctx); err != nil {
		return err
	}
	if s.APIKeys == nil {
		return s.Keys.Hold(ctx, apikeys.DefaultTenant)
	}
	if err := s.APIKeys.Load(ctx); err != nil {
		return err
	}
	return s.holdTenants(ctx)
}

// RefreshKeys goes on doing so until ctx is done.
func (s *Server) RefreshKeys(ctx context.Context) error {
	return s.APIKeys.Run(ctx, func(ctx context.Context) {
		if err := s.holdTenants(ctx); err != nil && ctx.Err() == nil {
			s.Log.Warn("the key that protects a tenant's file names cannot be read", "error", err)
		}
	})
}

// holdTenants takes the keys that protect file names of tenants with an API key into memory.
// The error names the tenant.
func (s *Server) holdTenants(ctx context.Context) error {
	for _, tenant := range s.APIKeys.Tenants() {
		if err := s.Keys.Hold(ctx, tenant); err != nil {
			return err
		}
	}
	return nil
}

// Spec is the OpenAPI document.
func (s *Server) Spec() []byte { return s.spec }

func (s *Server) sendError(w http.ResponseWriter, r *http.Request, err error) {
	p := asProblem(err)
	if r.Context().Err() != nil {
		return // nobody is there to be told, and it is no fault of ours
	}
	if route := routeOf(r.Pattern); p.Status >= http.StatusInternalServerError && !probed[route] {
		s.Log.ErrorContext(r.Context(), "request failed", "route", route, "status", p.Status, "error", errors.Join(p.cause, err))
	}
	p.write(w)
}

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.entrance.ServeHTTP(w, r) }

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	id := identify(w, r)
	_, pattern := s.mux.Handler(r)
	ctx := telemetry.With(telemetry.OfRequest(r.Context(), r.Header), telemetry.About{RequestID: id, JobID: jobIn(pattern, r.URL.Path)})
	q := &quiet{ResponseWriter: w}
	// What the framework wraps around w hides the connection.
	seen := &request{connection: http.NewResponseController(w)}
	r = r.WithContext(context.WithValue(ctx, requestKey{}, seen))
	defer s.observe(r, seen, pattern, q)()
	// What is named in full is not meant as a parameter: DELETE of the path of totals deletes no job.
	if pattern == "" || strings.Contains(pattern, "{") && s.named[r.URL.Path] {
		s.unrouted(q, r).write(q)
		return
	}
	who, err := s.enter(q, r, pattern)
	if err != nil {
		s.sendError(q, r, err)
		return
	}
	// What reads single parameters hears nothing of those that cannot be read, and would answer as if they were not there.
	if s.queried[pattern] {
		if _, err := url.ParseQuery(r.URL.RawQuery); err != nil {
			s.sendError(q, r, invalid("query", "the query string cannot be read: "+err.Error()+"; write % as %25, ; as %3B and & within a value as %26"))
			return
		}
	}
	s.mux.ServeHTTP(q, r.WithContext(apikeys.With(r.Context(), who)))
}

// identify gives a request its id, and its answer the headers of all.
func identify(w http.ResponseWriter, r *http.Request) (id string) {
	id = r.Header.Get(requestIDHeader)
	if !plain(id) {
		id = uuid.NewString()
		r.Header.Set(requestIDHeader, id)
	}
	w.Header().Set(requestIDHeader, id)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Referrer-Policy", "no-referrer")
	return id
}

type requestKey struct{}

// request is what goes with a request beside its context's ids.
type request struct {
	connection *http.ResponseController
	// jobID is that of the job that it made, or empty.
	jobID string
}

// connectionOf reaches the request's connection: its deadlines, and what is buffered.
func connectionOf(r *http.Request) *http.ResponseController {
	return r.Context().Value(requestKey{}).(*request).connection
}

// unrouted tells an unknown path from a known one asked with another method.
func (s *Server) unrouted(w http.ResponseWriter, r *http.Request) *Problem {
	var allowed []string
	named := s.named[r.URL.Path]
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete} {
		other := r.Clone(r.Context())
		other.Method = method
		_, pattern := s.mux.Handler(other)
		if pattern != "" && (!named || pattern == method+" "+r.URL.Path) { // what is named in full is not meant as a parameter
			allowed = append(allowed, method)
			if method == http.MethodGet {
				allowed = append(allowed, http.MethodHead)
			}
		}
	}
	if len(allowed) > 0 {
		list := strings.Join(allowed, ", ")
		w.Header().Set("Allow", list)
		return problem(http.StatusMethodNotAllowed, fmt.Sprintf("%s takes %s, not %s", r.URL.Path, list, r.Method))
	}
	return problem(http.StatusNotFound, "There is nothing at "+r.URL.Path+"; see /docs")
}

// plain says whether text may be echoed as a request id.
func plain(text string) bool {
	for _, c := range []byte(text) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return text != "" && len(text) <= longestRequestID
}

// quiet takes out headers that the framework adds to every answer; the trailer
// would make each of them chunked.
type quiet struct {
	http.ResponseWriter
	begun bool
	// status and bytes are what was answered.
	status int
	bytes  int64
}

func (q *quiet) WriteHeader(status int) {
	if !q.begun {
		q.begun, q.status = true, status
		for _, h := range []string{"X-Powered-By", "Trailer", "Server-Timing"} {
			q.Header().Del(h)
		}
	}
	q.ResponseWriter.WriteHeader(status)
}

func (q *quiet) Write(b []byte) (int, error) {
	if !q.begun {
		q.WriteHeader(http.StatusOK)
	}
	n, err := q.ResponseWriter.Write(b)
	q.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (q *quiet) Unwrap() http.ResponseWriter { return q.ResponseWriter }

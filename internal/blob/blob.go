// Package blob keeps pictures in S3: the sources below raw/, the results below processed/. Events carry
// the keys and the hashes, never the bytes. What runs of reprocessing note lies below reprocess/. What
// clients store themselves comes below uploads/, and is copied from there.
//
// Of all others, an object is written once and never changed, under a key that contains its hash or belongs to one
// attempt, so writing it again is harmless and every call may be repeated.
package blob

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/singleflight"

	"github.com/pixtools/pixtools/internal/telemetry"
)

// The kinds of objects, by prefix: retention rules go by them.
const (
	RawPrefix       = "raw/"
	ProcessedPrefix = "processed/"
	ReprocessPrefix = "reprocess/"
	UploadsPrefix   = "uploads/"
)

// Store is a bucket. It is safe for use by many goroutines.
type Store struct {
	cfg     Config
	client  *s3.Client
	presign *s3.PresignClient
	// probes keeps it to one question at a time whether the server is there: see watch.
	probes singleflight.Group
}

// Object is what is known about an object without reading it.
type Object struct {
	Key         string
	Size        int64 // bytes
	ContentType string
	ModifiedAt  time.Time
}

// New makes the client; it does not talk to the server yet.
func New(ctx context.Context, cfg Config) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	awsCfg := aws.Config{Region: cfg.Region}
	if cfg.AccessKeyID != "" {
		awsCfg.Credentials = aws.NewCredentialsCache(credentials.NewStaticCredentialsProvider(cfg.AccessKeyID, cfg.SecretAccessKey, ""))
	} else {
		var err error
		if awsCfg, err = config.LoadDefaultConfig(ctx, config.WithRegion(cfg.Region)); err != nil {
			return nil, fmt.Errorf("find credentials for S3: %w", err)
		}
	}
	trusting, err := cfg.tls()
	if err != nil {
		return nil, err
	}
	awsCfg.HTTPClient = httpClient(cfg, trusting)
	options := func(endpoint string) func(*s3.Options) {
		return func(o *s3.Options) {
			if endpoint != "" {
				o.BaseEndpoint = aws.String(endpoint)
			}
			o.UsePathStyle = true // a name per bucket needs a DNS that only Amazon has
			o.Retryer = retryer(cfg)
			// We bring a SHA-256 for what we write and check it on what we read.
			o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
			o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
			o.ContinueHeaderThresholdBytes = -1 // waiting for leave costs a round trip per object
		}
	}
	public := cfg.PublicEndpoint
	if public == "" {
		public = cfg.Endpoint
	}
	return &Store{
		cfg:     cfg,
		client:  s3.NewFromConfig(awsCfg, options(cfg.Endpoint)),
		presign: s3.NewPresignClient(s3.NewFromConfig(awsCfg, options(public))),
	}, nil
}

func httpClient(cfg Config, trusting *tls.Config) aws.HTTPClient {
	return awshttp.NewBuildableClient().
		WithDialerOptions(func(d *net.Dialer) { d.Timeout = cfg.ConnectTimeout }).
		WithTransportOptions(func(t *http.Transport) {
			t.MaxIdleConns, t.MaxIdleConnsPerHost = cfg.MaxIdleConns, cfg.MaxIdleConns
			t.DisableCompression = true // pictures are compressed
			t.TLSClientConfig = trusting
		})
}

// retryer tries again what may succeed. The SDK's own budget across calls is off: with it a call's fate
// would depend on the calls before it, and every call is bounded by itself.
func retryer(cfg Config) aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = cfg.MaxAttempts
		o.MaxBackoff = cfg.MaxBackoff
		o.RateLimiter = ratelimit.None
		// The SDK goes by error codes; some servers throttle with a bare status.
		o.Retryables = append(o.Retryables, retry.RetryableHTTPStatusCode{Codes: map[int]struct{}{http.StatusTooManyRequests: {}}})
	})
}

// Put stores an object in one request. sum goes along, so the server stores these bytes or refuses
// (ErrChecksum). body is read from its present position, more than once if the first attempt fails, and
// is not closed.
func (s *Store) Put(ctx context.Context, key string, body io.ReadSeeker, size int64, sum [sha256.Size]byte, contentType string) (failed error) {
	ctx, span := startCall(ctx, "PutObject")
	defer func() { telemetry.End(span, failed) }()
	t := s.watch(ctx)
	defer t.stop()
	_, err := s.client.PutObject(t.ctx, &s3.PutObjectInput{
		Bucket: &s.cfg.Bucket, Key: &key, Body: source{body, &t.moved}, ContentLength: &size, ContentType: &contentType,
		ChecksumSHA256: aws.String(base64.StdEncoding.EncodeToString(sum[:])),
	}, payloadHash(sum))
	return classify(ctx, "put", key, t.verdict(err))
}

// payloadHash tells the signer the hash of the body, which it would otherwise read the body to compute.
func payloadHash(sum [sha256.Size]byte) func(*s3.Options) {
	set := middleware.FinalizeMiddlewareFunc("pixtools.PayloadHash",
		func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
			return next.HandleFinalize(v4.SetPayloadHash(ctx, hex.EncodeToString(sum[:])), in)
		})
	return func(o *s3.Options) {
		o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
			return stack.Finalize.Add(set, middleware.Before)
		})
	}
}

// Get opens an object. Close what it returns. All of it must be read within TransferTimeout.
func (s *Store) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	ctx, span := startCall(ctx, "GetObject")
	t := s.watch(ctx)
	out, err := s.client.GetObject(t.ctx, &s3.GetObjectInput{Bucket: &s.cfg.Bucket, Key: &key})
	if err != nil {
		defer t.stop()
		err = classify(ctx, "get", key, t.verdict(err))
		telemetry.End(span, err)
		return nil, err
	}
	return &content{ctx: ctx, key: key, body: out.Body, transfer: t, span: span}, nil
}

// content ends its transfer with its body, and gives errors on the way their kind.
type content struct {
	ctx      context.Context
	key      string
	body     io.ReadCloser
	transfer *transfer
	// span lasts until the body was read; broken is the error on the way.
	span   trace.Span
	broken error
}

// startCall begins the span of a call, which names no key: that is the job's id and a hash.
func startCall(ctx context.Context, name string) (context.Context, trace.Span) {
	return telemetry.Start(ctx, "S3 "+name, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(semconv.RPCMethod("S3/"+name)))
}

func (c *content) Read(b []byte) (int, error) {
	n, err := c.body.Read(b)
	c.transfer.moved.Add(int64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		err = classify(c.ctx, "read", c.key, c.transfer.verdict(err))
		c.broken = err
	}
	return n, err
}

func (c *content) Close() error {
	defer c.transfer.stop()
	telemetry.End(c.span, c.broken)
	return c.body.Close()
}

// Download copies an object to w and tells its size. If the content does not have the hash want, the
// error is ErrChecksum and what was written is worthless.
func (s *Store) Download(ctx context.Context, key string, w io.Writer, want [sha256.Size]byte) (int64, error) {
	body, err := s.Get(ctx, key)
	if err != nil {
		return 0, err
	}
	defer func() { _ = body.Close() }()
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, hash), body)
	if err != nil {
		return n, fmt.Errorf("download %s: %w", key, err)
	}
	if got := [sha256.Size]byte(hash.Sum(nil)); got != want {
		return n, fmt.Errorf("%w: download %s: SHA-256 is %x, should be %x", ErrChecksum, key, got, want)
	}
	return n, nil
}

// Head tells about an object without reading it.
func (s *Store) Head(ctx context.Context, key string) (Object, error) {
	call, cancel := context.WithTimeout(ctx, s.cfg.CallTimeout)
	defer cancel()
	out, err := s.client.HeadObject(call, &s3.HeadObjectInput{Bucket: &s.cfg.Bucket, Key: &key})
	if err != nil {
		return Object{}, classify(ctx, "head", key, err)
	}
	return Object{
		Key: key, Size: aws.ToInt64(out.ContentLength),
		ContentType: aws.ToString(out.ContentType), ModifiedAt: aws.ToTime(out.LastModified),
	}, nil
}

// Delete removes an object. That it is gone already is no error.
func (s *Store) Delete(ctx context.Context, key string) error {
	call, cancel := context.WithTimeout(ctx, s.cfg.CallTimeout)
	defer cancel()
	_, err := s.client.DeleteObject(call, &s3.DeleteObjectInput{Bucket: &s.cfg.Bucket, Key: &key})
	if err != nil && errors.Is(kindOf(err), ErrNotFound) {
		return nil
	}
	return classify(ctx, "delete", key, err)
}

// List calls each for the objects below prefix, in the order of their keys, without content types, until
// it returns an error. Each page is a call of its own, so a long list is not bounded as a whole.
func (s *Store) List(ctx context.Context, prefix string, each func(Object) error) error {
	pages := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{Bucket: &s.cfg.Bucket, Prefix: &prefix})
	for pages.HasMorePages() {
		page, err := s.nextPage(ctx, pages)
		if err != nil {
			return classify(ctx, "list", prefix, err)
		}
		for _, o := range page.Contents {
			if err := each(Object{Key: aws.ToString(o.Key), Size: aws.ToInt64(o.Size), ModifiedAt: aws.ToTime(o.LastModified)}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) nextPage(ctx context.Context, pages *s3.ListObjectsV2Paginator) (*s3.ListObjectsV2Output, error) {
	call, cancel := context.WithTimeout(ctx, s.cfg.CallTimeout)
	defer cancel()
	return pages.NextPage(call)
}

// PublicOrigin is the origin (scheme, host and port) that links lead to.
func (s *Store) PublicOrigin(ctx context.Context) (string, error) {
	link, _, err := s.PresignGet(ctx, "any", "any")
	if err != nil {
		return "", err
	}
	parsed, err := url.Parse(link)
	if err != nil {
		return "", err
	}
	return parsed.Scheme + "://" + parsed.Host, nil
}

// PresignGet makes a link that anybody can download the object with until expiresAt, saved under
// downloadName. It is computed here, without the server: whether the object exists is not looked at.
func (s *Store) PresignGet(ctx context.Context, key, downloadName string) (link string, expiresAt time.Time, err error) {
	expiry := time.Duration(s.cfg.PresignExpirySeconds) * time.Second
	expiresAt = time.Now().Add(expiry).Truncate(time.Second) // signatures know whole seconds
	req, err := s.presign.PresignGetObject(ctx, &s3.GetObjectInput{
		Bucket: &s.cfg.Bucket, Key: &key,
		ResponseContentDisposition: aws.String(contentDisposition(downloadName)),
	}, s3.WithPresignExpires(expiry))
	if err != nil {
		return "", time.Time{}, fmt.Errorf("sign a link to %s: %w", key, err)
	}
	return req.URL, expiresAt, nil
}

// maxDownloadName bounds a name in a link, in bytes. File systems end at 255, and each byte can take nine
// characters of the address, because the header's encoding is encoded once more.
const maxDownloadName = 200

// contentDisposition names a download as RFC 6266 says: a quoted ASCII name for every client, and the
// real one in UTF-8 beside it where the two differ. Quotes, slashes and control characters, with which
// a name could leave its header or its directory, become underscores.
func contentDisposition(name string) string {
	name = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || strings.ContainsRune(`"\/`, r) {
			return '_'
		}
		return r
	}, shorten(strings.ToValidUTF8(name, "_")))
	ascii := strings.Map(func(r rune) rune {
		if r > 0x7f {
			return '_'
		}
		return r
	}, name)
	header := `attachment; filename="` + ascii + `"`
	if ascii != name {
		header += "; filename*=UTF-8''" + extValue(name)
	}
	return header
}

// shorten cuts the middle out of a long name, between two characters: begin and extension stay.
func shorten(name string) string {
	if len(name) <= maxDownloadName {
		return name
	}
	const tail = 20
	boundary := func(n int) int {
		for n > 0 && !utf8.RuneStart(name[n]) {
			n--
		}
		return n
	}
	return name[:boundary(maxDownloadName-tail)] + name[boundary(len(name)-tail+utf8.UTFMax):]
}

// extValue encodes as RFC 5987 says: percent signs for all but its attr-char.
func extValue(s string) string {
	const attrChars = "!#$&+-.^_`|~"
	var b strings.Builder
	for _, c := range []byte(s) {
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte(attrChars, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

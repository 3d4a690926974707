package blob

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"github.com/pixtools/pixtools/internal/telemetry"
)

// Which of these an error is decides what to do about it. An error that is none of them is a fault of the
// configuration, as a missing bucket is: the same call will fail again.
var (
	// ErrNotFound: there is no such object. Trying again does not help.
	ErrNotFound = errors.New("no such object")
	// ErrUnavailable: the server, or the way to it, failed for now. Try again later.
	ErrUnavailable = errors.New("object storage unavailable")
	// ErrChecksum: the bytes are not those that were announced.
	ErrChecksum = errors.New("checksum mismatch")
	// ErrRefused: the server is there and does not let us. Only another configuration, ours or its, helps.
	ErrRefused = errors.New("object storage refuses us")
	// ErrNoBucket: there is no such bucket.
	ErrNoBucket = errors.New("there is no such bucket")
)

// classify says which kind an error of the SDK is. parent is the caller's context, not the one with our
// own deadline: when the caller gave up it is neither the server's fault nor ours.
func classify(parent context.Context, what, key string, err error) error {
	if err == nil {
		return nil
	}
	if cause := parent.Err(); cause != nil {
		return fmt.Errorf("%s %s: %w", what, key, cause)
	}
	kind := kindOf(err)
	if errors.Is(kind, ErrUnavailable) || errors.Is(kind, ErrRefused) {
		telemetry.Fault(telemetry.S3)
	}
	if kind != nil {
		return fmt.Errorf("%w: %s %s: %w", kind, what, key, err)
	}
	return fmt.Errorf("%s %s: %w", what, key, err)
}

func kindOf(err error) error {
	var api smithy.APIError
	if errors.As(err, &api) {
		switch api.ErrorCode() {
		case "NoSuchKey", "NotFound":
			return ErrNotFound
		case "NoSuchBucket":
			return ErrNoBucket
		// Three servers, three names: of the checksum header, and of the signature's hash of the body.
		case "BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch":
			return ErrChecksum
		case "InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied":
			return ErrRefused
		case "SlowDown", "RequestTimeout", "RequestLimitExceeded", "Throttling", "ThrottlingException", "ServerBusy", "QuotaExceeded":
			return ErrUnavailable
		}
	}
	switch status := httpStatus(err); {
	case status == 0: // no answer: refused, cut off, timed out
		return ErrUnavailable
	case status == http.StatusNotFound:
		return ErrNotFound
	case status == http.StatusUnauthorized, status == http.StatusForbidden: // HEAD has no body to name a code in
		return ErrRefused
	case status == http.StatusNotImplemented:
		return nil
	case status >= http.StatusInternalServerError, status == http.StatusTooManyRequests, status == http.StatusRequestTimeout:
		return ErrUnavailable
	}
	return nil
}

func httpStatus(err error) int {
	var resp *awshttp.ResponseError
	if errors.As(err, &resp) {
		return resp.HTTPStatusCode()
	}
	return 0
}

func hasCode(err error, codes ...string) bool {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return false
	}
	for _, code := range codes {
		if api.ErrorCode() == code {
			return true
		}
	}
	return false
}

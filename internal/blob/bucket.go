package blob

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// Health asks once whether the bucket can be reached. ctx should have a deadline; CallTimeout bounds it anyway.
func (s *Store) Health(ctx context.Context) error {
	call, cancel := context.WithTimeout(ctx, s.cfg.CallTimeout)
	defer cancel()
	_, err := s.client.HeadBucket(call, &s3.HeadBucketInput{Bucket: &s.cfg.Bucket}, func(o *s3.Options) { o.Retryer = aws.NopRetryer{} })
	return s.bucketError(ctx, err)
}

func (s *Store) bucketError(ctx context.Context, err error) error {
	switch httpStatus(err) {
	case http.StatusNotFound:
		return fmt.Errorf("the bucket %s does not exist: create it, or set AWS_S3_BUCKET: %w", s.cfg.Bucket, err)
	case http.StatusForbidden:
		return fmt.Errorf("%w: the bucket %s is closed to us: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_S3_BUCKET: %w", ErrRefused, s.cfg.Bucket, err)
	}
	return classify(ctx, "reach bucket", s.cfg.Bucket, err)
}

// amazonsFirstRegion must not be named when a bucket is created in it; every other one must be.
const amazonsFirstRegion = "us-east-1"

// EnsureBucket creates the bucket if there is none. Several processes may do so at once.
func (s *Store) EnsureBucket(ctx context.Context) error {
	call, cancel := context.WithTimeout(ctx, s.cfg.CallTimeout)
	defer cancel()
	_, err := s.client.HeadBucket(call, &s3.HeadBucketInput{Bucket: &s.cfg.Bucket})
	if httpStatus(err) != http.StatusNotFound {
		return s.bucketError(ctx, err)
	}
	in := &s3.CreateBucketInput{Bucket: &s.cfg.Bucket}
	if s.cfg.Region != amazonsFirstRegion {
		in.CreateBucketConfiguration = &types.CreateBucketConfiguration{LocationConstraint: types.BucketLocationConstraint(s.cfg.Region)}
	}
	if _, err = s.client.CreateBucket(call, in); hasCode(err, "BucketAlreadyOwnedByYou") {
		return nil
	}
	return classify(ctx, "create bucket", s.cfg.Bucket, err)
}

// ourRules is how the names of our lifecycle rules begin; rules with other names are somebody else's.
const ourRules = "pixtools-"

// EnsureLifecycle makes the server delete sources, results and notes after their retention, also while no
// janitor runs, and clients' own uploads after UploadRetentionDays. Rules of others stay. false without an
// error means that this server has no lifecycles.
func (s *Store) EnsureLifecycle(ctx context.Context) (applied bool, err error) {
	call, cancel := context.WithTimeout(ctx, s.cfg.CallTimeout)
	defer cancel()
	present, err := s.client.GetBucketLifecycleConfiguration(call, &s3.GetBucketLifecycleConfigurationInput{Bucket: &s.cfg.Bucket})
	switch {
	case hasCode(err, "NoSuchLifecycleConfiguration"):
		present = &s3.GetBucketLifecycleConfigurationOutput{}
	case isNotImplemented(err):
		return false, nil
	case err != nil:
		return false, classify(ctx, "read lifecycle of", s.cfg.Bucket, err)
	}
	rules, changed := s.withOurRules(present.Rules)
	if !changed {
		return true, nil
	}
	_, err = s.client.PutBucketLifecycleConfiguration(call, &s3.PutBucketLifecycleConfigurationInput{
		Bucket: &s.cfg.Bucket, LifecycleConfiguration: &types.BucketLifecycleConfiguration{Rules: rules},
	})
	if isNotImplemented(err) {
		return false, nil
	}
	return err == nil, classify(ctx, "set lifecycle of", s.cfg.Bucket, err)
}

// withOurRules replaces our rules among those present; without a change there is nothing to write.
func (s *Store) withOurRules(present []types.LifecycleRule) (rules []types.LifecycleRule, changed bool) {
	ours := map[string]types.LifecycleRule{}
	for _, r := range present {
		if id := aws.ToString(r.ID); strings.HasPrefix(id, ourRules) {
			ours[id] = r
		} else {
			rules = append(rules, r)
		}
	}
	days := map[string]int{RawPrefix: s.cfg.sourceDays(), ProcessedPrefix: s.cfg.RetentionDays, ReprocessPrefix: s.cfg.RetentionDays,
		UploadsPrefix: s.cfg.UploadRetentionDays}
	changed = len(ours) != len(days)
	for _, prefix := range slices.Sorted(maps.Keys(days)) {
		want := types.LifecycleRule{
			ID:         aws.String(ourRules + strings.TrimSuffix(prefix, "/")),
			Status:     types.ExpirationStatusEnabled,
			Filter:     &types.LifecycleRuleFilter{Prefix: aws.String(prefix)},
			Expiration: &types.LifecycleExpiration{Days: aws.Int32(int32(days[prefix]))},
		}
		changed = changed || !sameRule(ours[*want.ID], want)
		rules = append(rules, want)
	}
	return rules, changed
}

// sameRule compares what we set; servers add empty members of their own.
func sameRule(a, b types.LifecycleRule) bool {
	if a.Filter == nil || a.Expiration == nil {
		return false
	}
	return a.Status == b.Status && aws.ToString(a.Filter.Prefix) == aws.ToString(b.Filter.Prefix) &&
		aws.ToInt32(a.Expiration.Days) == aws.ToInt32(b.Expiration.Days)
}

func isNotImplemented(err error) bool {
	return err != nil && (httpStatus(err) == http.StatusNotImplemented || hasCode(err, "NotImplemented"))
}

// EnsureCORS lets pages of CORSOrigins read results and store uploads. Rules of others stay. false without an
// error means that nothing was asked for, or that this server has no such rules and decides by a setting of its own.
func (s *Store) EnsureCORS(ctx context.Context) (applied bool, err error) {
	if len(s.cfg.CORSOrigins) == 0 {
		return false, nil
	}
	call, cancel := context.WithTimeout(ctx, s.cfg.CallTimeout)
	defer cancel()
	present, err := s.client.GetBucketCors(call, &s3.GetBucketCorsInput{Bucket: &s.cfg.Bucket})
	switch {
	case hasCode(err, "NoSuchCORSConfiguration"):
		present = &s3.GetBucketCorsOutput{}
	case isNotImplemented(err):
		return false, nil
	case err != nil:
		return false, classify(ctx, "read CORS rules of", s.cfg.Bucket, err)
	}
	want := types.CORSRule{
		ID: aws.String(ourRules + "page"), AllowedOrigins: s.cfg.CORSOrigins, AllowedMethods: []string{http.MethodGet, http.MethodPut},
		AllowedHeaders: []string{"content-type", "x-amz-checksum-sha256"}, MaxAgeSeconds: aws.Int32(int32(time.Hour / time.Second)),
	}
	rules := []types.CORSRule{want}
	for _, r := range present.CORSRules {
		switch {
		case !strings.HasPrefix(aws.ToString(r.ID), ourRules):
			rules = append(rules, r)
		case aws.ToString(r.ID) == *want.ID && slices.Equal(r.AllowedOrigins, want.AllowedOrigins) &&
			slices.Equal(r.AllowedMethods, want.AllowedMethods) && slices.Equal(r.AllowedHeaders, want.AllowedHeaders):
			return true, nil
		}
	}
	_, err = s.client.PutBucketCors(call, &s3.PutBucketCorsInput{Bucket: &s.cfg.Bucket, CORSConfiguration: &types.CORSConfiguration{CORSRules: rules}})
	if isNotImplemented(err) {
		return false, nil
	}
	return err == nil, classify(ctx, "set CORS rules of", s.cfg.Bucket, err)
}

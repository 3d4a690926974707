package blob_test

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/blob"
)

// plainClient is the SDK's own, to look at the server without the code under test.
func plainClient(cfg blob.Config) *s3.Client {
	return s3.New(s3.Options{
		Region: cfg.Region, BaseEndpoint: &cfg.Endpoint, UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(cfg.AccessKeyID, cfg.SecretAccessKey, ""),
	})
}

func rules(t *testing.T, cfg blob.Config) map[string]int32 {
	t.Helper()
	out, err := plainClient(cfg).GetBucketLifecycleConfiguration(testContext(t), &s3.GetBucketLifecycleConfigurationInput{Bucket: &cfg.Bucket})
	require.NoError(t, err)
	days := map[string]int32{}
	for _, r := range out.Rules {
		require.Equal(t, types.ExpirationStatusEnabled, r.Status)
		days[aws.ToString(r.ID)+" "+aws.ToString(r.Filter.Prefix)] = aws.ToInt32(r.Expiration.Days)
	}
	return days
}

func addRule(t *testing.T, cfg blob.Config, id, prefix string, days int32) {
	t.Helper()
	client := plainClient(cfg)
	out, err := client.GetBucketLifecycleConfiguration(testContext(t), &s3.GetBucketLifecycleConfigurationInput{Bucket: &cfg.Bucket})
	require.NoError(t, err)
	_, err = client.PutBucketLifecycleConfiguration(testContext(t), &s3.PutBucketLifecycleConfigurationInput{
		Bucket: &cfg.Bucket,
		LifecycleConfiguration: &types.BucketLifecycleConfiguration{Rules: append(out.Rules, types.LifecycleRule{
			ID: &id, Status: types.ExpirationStatusEnabled,
			Filter: &types.LifecycleRuleFilter{Prefix: &prefix}, Expiration: &types.LifecycleExpiration{Days: &days},
		})},
	})
	require.NoError(t, err)
}

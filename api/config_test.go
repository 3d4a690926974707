package api

import (
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/stretchr/testify/require"
)

// TestLimitsOfTheConfiguration tries values just below, at and above the limits. A fault names the variable.
func TestLimitsOfTheConfiguration(t *testing.T) {
	for variable, values := range map[string]struct{ good, bad []string }{
		"MAX_DIRECT_UPLOAD_BYTES": {[]string{"1", "2", "5368709119", "5368709120"}, []string{"0", "5368709121"}},
		"MAX_CONCURRENT_UPLOADS":  {[]string{"1", "2"}, []string{"0"}},
		"MAX_WAITING_READS":       {[]string{"1", "2"}, []string{"0"}},
		"LIST_MAX_JOBS":           {[]string{"1", "2", "9999", "10000"}, []string{"0", "10001"}},
		"USAGE_MAX_DAYS":          {[]string{"1", "2", "3659", "3660"}, []string{"0", "3661"}},
		"READ_WAIT_TIMEOUT":       {[]string{"100ms", "1m"}, []string{"99ms"}},
		"QUEUE_MAX_AGE":           {[]string{"1s", "1001ms"}, []string{"999ms"}},
		"QUEUE_REFRESH_INTERVAL":  {[]string{"50ms", "51ms", "30s"}, []string{"49ms", "30001ms"}},
		"SPOOL_MAX_BYTES":         {[]string{"10485760", "10485761"}, []string{"10485759"}}, // what one upload may have
		"API_AUTH":                {[]string{"keys", "off", ""}, []string{"on", "KEYS"}},
		"API_SESSION_TTL":         {[]string{"1m", "61s", "720h"}, []string{"59s", "720h1s"}},
		"CORS_ORIGINS": {[]string{"https://shop.example", "http://localhost:3000,https://a.b"},
			[]string{"*", "https://*.example", "https://shop.example/", "shop.example", "ftp://shop.example", "https://a.b,null"}},
		"RATE_LIMIT_SUBMITS_PER_MINUTE": {[]string{"0", "1", "1000000"}, []string{"-1", "1000001"}},
		"RATE_LIMIT_READS_PER_MINUTE":   {[]string{"0", "1", "1000000"}, []string{"-1", "1000001"}},
	} {
		check := func(value string) error {
			var c Config
			require.NoError(t, env.ParseWithOptions(&c, env.Options{Environment: map[string]string{variable: value}}))
			return c.Validate()
		}
		for _, value := range values.good {
			require.NoError(t, check(value), "%s=%s", variable, value)
		}
		for _, value := range values.bad {
			require.ErrorContains(t, check(value), variable+" is ", value)
		}
	}
	var c Config
	require.NoError(t, env.ParseWithOptions(&c, env.Options{Environment: map[string]string{}}))
	require.NoError(t, c.Validate())
	require.Less(t, c.WaitTimeout, 2*time.Second, "the contract's")
}

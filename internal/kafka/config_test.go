package kafka

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

// fault is empty for a valid configuration.
func fault(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestLimitsOfTheConfiguration tries each variable just below, at and just above its
// limits. A fault names the variable.
func TestLimitsOfTheConfiguration(t *testing.T) {
	t.Parallel()
	const ms, s, minute = int64(time.Millisecond), int64(time.Second), int64(time.Minute)
	// So wide that no variable is in the way of another one's limits.
	wide := DefaultSubscriberConfig("group")
	wide.SessionTimeout, wide.HeartbeatInterval = time.Second, 50*time.Millisecond
	wide.DrainTimeout, wide.RebalanceTimeout = time.Second, time.Hour
	wide.WorkersPerPartition, wide.MaxPendingRecords, wide.MaxUncommittedRecords = 8, 20_000, 10_000_000
	wide.RedeliveryMin, wide.RedeliveryMax = time.Millisecond, time.Hour
	wide.GiveUp = func(context.Context, *kgo.Record, int) error { return nil }
	require.NoError(t, wide.Validate())

	limits := map[string][2]int64{
		"KAFKA_CONSUMER_CLOSE_TIMEOUT": {10 * ms, 10 * minute},
		"KAFKA_DIAL_TIMEOUT":           {100 * ms, minute},
		"KAFKA_DELIVERY_TIMEOUT":       {100 * ms, 10 * minute},
		"KAFKA_SUBMIT_TIMEOUT":         {100 * ms, 10 * minute},
		"KAFKA_MAX_BUFFERED_RECORDS":   {1, 1_000_000},
		"KAFKA_MAX_BUFFERED_BYTES":     {1 << 20, 4 << 30},
		"KAFKA_MAX_BATCH_BYTES":        {1 << 10, 64 << 20},

		"KAFKA_LAG_REFRESH_INTERVAL": {100 * ms, 10 * minute},
		"KAFKA_LAG_TIMEOUT":          {100 * ms, minute},

		"KAFKA_CONSUMER_SESSION_TIMEOUT":         {500 * ms, 30 * minute},
		"KAFKA_CONSUMER_HEARTBEAT_INTERVAL":      {50 * ms, 500 * ms},  // half a session
		"KAFKA_CONSUMER_REBALANCE_TIMEOUT":       {8 * s, 60 * minute}, // draining and the last commit
		"KAFKA_CONSUMER_DRAIN_TIMEOUT":           {10 * ms, 10 * minute},
		"KAFKA_CONSUMER_COMMIT_INTERVAL":         {100 * ms, minute},
		"KAFKA_CONSUMER_WORKERS_PER_PARTITION":   {1, 10_000},
		"KAFKA_CONSUMER_MAX_IN_FLIGHT":           {1, 100_000},
		"KAFKA_CONSUMER_MAX_PENDING_RECORDS":     {8, 1_000_000}, // one for each worker
		"KAFKA_CONSUMER_MAX_PENDING_BYTES":       {1 << 10, 1 << 30},
		"KAFKA_CONSUMER_MAX_UNCOMMITTED_RECORDS": {20_000, 10_000_000}, // what is pending
		"KAFKA_CONSUMER_REDELIVERY_MIN":          {ms, 60 * minute},    // the maximum
		"KAFKA_CONSUMER_REDELIVERY_MAX":          {ms, 60 * minute},
		"KAFKA_CONSUMER_MAX_DELIVERIES":          {0, 1_000_000},
	}
	unlimited := map[string]bool{"KAFKA_BROKERS": true, "KAFKA_CLIENT_ID": true, "KAFKA_TLS": true}
	for _, variable := range secure {
		unlimited[variable] = true
	}

	check := func(variable string, validate func(value int64) error) {
		low, high := limits[variable][0], limits[variable][1]
		delete(limits, variable)
		for value, valid := range map[int64]bool{low - 1: false, low: true, high: true, high + 1: false} {
			err := fault(validate(value))
			if valid {
				require.Empty(t, err, "%s=%d", variable, value)
				continue
			}
			require.True(t, slices.ContainsFunc(strings.Split(err, "\n"), func(line string) bool {
				return strings.HasPrefix(line, variable+" is ")
			}), "%s=%d: %q", variable, value, err)
		}
	}
	for variable, field := range variables(Config{}) {
		if unlimited[variable] {
			continue
		}
		check(variable, func(value int64) error {
			c := DefaultConfig("broker:9092")
			reflect.ValueOf(&c).Elem().FieldByIndex(field).SetInt(value)
			return c.Validate()
		})
	}
	for variable, field := range variables(SubscriberConfig{}) {
		check(variable, func(value int64) error {
			c := wide
			reflect.ValueOf(&c).Elem().FieldByIndex(field).SetInt(value)
			return c.Validate()
		})
	}
	for variable, field := range variables(LagConfig{}) {
		check(variable, func(value int64) error {
			c := DefaultLagConfig()
			reflect.ValueOf(&c).Elem().FieldByIndex(field).SetInt(value)
			return c.Validate()
		})
	}
	require.Empty(t, limits, "of variables that do not exist")
}

// secure are variables without a range, which may be empty.
var secure = []string{"KAFKA_CA_FILE", "KAFKA_CLIENT_CERT_FILE", "KAFKA_CLIENT_KEY_FILE", "KAFKA_SASL_MECHANISM", "KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"}

// variables are the fields that come from the environment; so none is forgotten.
func variables(config any) map[string][]int {
	found := map[string][]int{}
	for i := range reflect.TypeOf(config).NumField() {
		field := reflect.TypeOf(config).Field(i)
		if name := field.Tag.Get("env"); name != "" {
			found[name] = field.Index
		}
	}
	return found
}

func TestFaultsOfTheConfiguration(t *testing.T) {
	t.Parallel()
	require.NoError(t, DefaultConfig("broker:9092").Validate())
	require.NoError(t, DefaultSubscriberConfig("group").Validate())
	require.NoError(t, DefaultLagConfig().Validate())
	require.ErrorContains(t, DefaultConfig().Validate(), "KAFKA_BROKERS is empty")
	require.ErrorContains(t, DefaultSubscriberConfig("").Validate(), "set Group")

	c := DefaultSubscriberConfig("group")
	c.MaxDeliveries = 1
	require.ErrorContains(t, c.Validate(), "GiveUp")

	// Where a subscriber starts, all faults are told at once.
	_, err := NewSubscriber(Config{}, SubscriberConfig{}, logger())
	require.Error(t, err)
	for _, config := range []any{Config{}, SubscriberConfig{}} {
		for variable := range variables(config) {
			if slices.Contains(secure, variable) {
				continue // TestSecurity's
			}
			switch variable {
			case "KAFKA_TLS", "KAFKA_CLIENT_ID", "KAFKA_CONSUMER_MAX_DELIVERIES": // may be empty
			case "KAFKA_CONSUMER_MAX_PENDING_RECORDS", "KAFKA_CONSUMER_MAX_UNCOMMITTED_RECORDS": // no less than they must
			default:
				require.ErrorContains(t, err, variable)
			}
		}
	}
	_, err = NewClient(Config{}, logger())
	require.ErrorContains(t, err, "KAFKA_BROKERS")
}

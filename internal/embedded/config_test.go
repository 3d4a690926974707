package embedded

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

var complete = Config{DataDir: "data", DiskReserve: leastReserve, Bucket: "pixtools", Region: "us-east-1"}

// portFields are the ports with the variables that set them.
func portFields(c *Config) map[string]*int {
	return map[string]*int{
		"PIXTOOLS_EMBEDDED_KAFKA_PORT": &c.KafkaPort, "PIXTOOLS_EMBEDDED_POSTGRES_PORT": &c.PostgresPort,
		"PIXTOOLS_EMBEDDED_REDIS_PORT": &c.RedisPort, "PIXTOOLS_EMBEDDED_S3_PORT": &c.S3Port,
	}
}

func TestValidatePorts(t *testing.T) {
	t.Parallel()
	require.NoError(t, complete.Validate())
	for port, valid := range map[int]bool{-1: false, 0: true, 1: true, 65534: true, 65535: true, 65536: false} {
		for variable := range portFields(&Config{}) {
			t.Run(fmt.Sprintf("%s %d", variable, port), func(t *testing.T) {
				cfg := complete
				*portFields(&cfg)[variable] = port
				err := cfg.Validate()
				if valid {
					require.NoError(t, err)
					return
				}
				require.ErrorContains(t, err, fmt.Sprintf("%s is %d: use 1 to 65535", variable, port))
			})
		}
	}
}

func TestValidateNamesEveryFault(t *testing.T) {
	t.Parallel()
	err := Config{KafkaPort: 9092, RedisPort: 9092, PostgresPort: -5, S3Port: 70000}.Validate()
	for _, fault := range []string{
		"PIXTOOLS_DATA_DIR is empty",
		"AWS_S3_BUCKET is empty",
		"PIXTOOLS_DISK_RESERVE_BYTES is 0: it must be from 67108864 to 1099511627776",
		"PIXTOOLS_EMBEDDED_KAFKA_PORT and PIXTOOLS_EMBEDDED_REDIS_PORT are both 9092",
		"PIXTOOLS_EMBEDDED_POSTGRES_PORT is -5",
		"PIXTOOLS_EMBEDDED_S3_PORT is 70000",
	} {
		require.ErrorContains(t, err, fault)
	}
	neighbours := complete
	neighbours.KafkaPort, neighbours.RedisPort = 9092, 9093
	require.NoError(t, neighbours.Validate())

	_, err = Start(t.Context(), Config{}, Needs{Redis: true}, nil)
	require.ErrorContains(t, err, "PIXTOOLS_DATA_DIR is empty")
}

func TestValidateReserve(t *testing.T) {
	t.Parallel()
	for bytes, valid := range map[int64]bool{leastReserve - 1: false, leastReserve: true, mostReserve: true, mostReserve + 1: false} {
		cfg := complete
		cfg.DiskReserve = bytes
		if err := cfg.Validate(); valid {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, fmt.Sprintf("PIXTOOLS_DISK_RESERVE_BYTES is %d", bytes))
		}
	}
}

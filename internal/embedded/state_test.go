package embedded

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStateIsDrawnOnce(t *testing.T) {
	t.Parallel()
	cfg := complete
	cfg.DataDir = t.TempDir()
	first, err := loadState(cfg)
	require.NoError(t, err)
	different := map[any]bool{}
	for _, drawn := range []any{
		first.KafkaPort, first.PostgresPort, first.RedisPort, first.S3Port,
		first.PostgresPassword, first.S3AccessKey, first.S3SecretKey,
	} {
		require.NotZero(t, drawn)
		different[drawn] = true
	}
	require.Len(t, different, 7)
	info, err := os.Stat(filepath.Join(cfg.DataDir, stateFile))
	require.NoError(t, err)
	require.Zero(t, info.Mode().Perm()&0o077, "it holds secrets")

	again, err := loadState(cfg)
	require.NoError(t, err)
	require.Equal(t, first, again)

	// A configured port is for this run only: clients of the drawn one find it when the variable is gone.
	cfg.S3Port = 9000
	configured, err := loadState(cfg)
	require.NoError(t, err)
	require.Equal(t, 9000, configured.S3Port)
	require.Equal(t, first.KafkaPort, configured.KafkaPort)
	cfg.S3Port = 0
	again, err = loadState(cfg)
	require.NoError(t, err)
	require.Equal(t, first, again)
}

// TestStateIsCompleted: a version of PixTools with fewer parts wrote it.
func TestStateIsCompleted(t *testing.T) {
	t.Parallel()
	cfg := complete
	cfg.DataDir = t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(cfg.DataDir, stateFile), []byte(`{"kafka_port":20001,"postgres_password":"old"}`), 0o600))
	first, err := loadState(cfg)
	require.NoError(t, err)
	require.Equal(t, 20001, first.KafkaPort)
	require.Equal(t, "old", first.PostgresPassword)
	require.NotZero(t, first.S3Port)
	require.NotZero(t, first.S3SecretKey)
	again, err := loadState(cfg)
	require.NoError(t, err)
	require.Equal(t, first, again)
}

// TestDamagedState: drawing a new password would lock the database for ever.
func TestDamagedState(t *testing.T) {
	t.Parallel()
	cfg := complete
	cfg.DataDir = t.TempDir()
	path := filepath.Join(cfg.DataDir, stateFile)
	require.NoError(t, os.WriteFile(path, []byte(`{"kafka_port":20001,"postgr`), 0o600))
	_, err := Start(t.Context(), cfg, Needs{Redis: true}, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, path+" is damaged")
	require.ErrorContains(t, err, "restore it from a backup")
}

// TestTakenPort: whichever part it is, the message names the port and the variable that sets another.
func TestTakenPort(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", address(0))
	require.NoError(t, err)
	defer func() { _ = taken.Close() }()
	port := taken.Addr().(*net.TCPAddr).Port
	for variable, needs := range map[string]Needs{
		"PIXTOOLS_EMBEDDED_KAFKA_PORT": {Kafka: true}, "PIXTOOLS_EMBEDDED_POSTGRES_PORT": {Postgres: true},
		"PIXTOOLS_EMBEDDED_REDIS_PORT": {Redis: true}, "PIXTOOLS_EMBEDDED_S3_PORT": {S3: true},
	} {
		t.Run(variable, func(t *testing.T) {
			cfg := testConfig(t)
			*portFields(&cfg)[variable] = port
			_, err := Start(testContext(t), cfg, needs, slog.New(slog.DiscardHandler))
			require.ErrorContains(t, err, fmt.Sprintf("port %d is taken", port))
			require.ErrorContains(t, err, "set "+variable+" to a free one")
		})
	}
}

func TestOneProcessPerDirectory(t *testing.T) {
	t.Parallel()
	spec := helperSpec{Config: testConfig(t), Needs: Needs{Kafka: true}}
	first := startHelper(t, spec, nil)
	// Another part does not make it another directory.
	_, failure := tryHelper(t, helperSpec{Config: spec.Config, Needs: Needs{Redis: true}}, nil)
	require.Contains(t, failure, fmt.Sprintf("%s is in use by process %d (since ", spec.Config.DataDir, first.cmd.Process.Pid))
	require.Contains(t, failure, "PIXTOOLS_DATA_DIR")
	require.False(t, refused(first.Brokers[0]), "the second one disturbed the first")

	first.kill(t)
	startHelper(t, spec, nil).stop(t)
	startHelper(t, spec, nil)
}

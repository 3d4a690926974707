package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/events"
)

// TestFlippedByteEndsTheStart: `pixtools serve` does not start on a log of which an acknowledged byte has changed,
// whichever topic it is in, and says what to do. With the byte back in its place it starts and has everything.
func TestFlippedByteEndsTheStart(t *testing.T) {
	const flips = 10 // of each topic; internal/embedded has hundreds
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	variables := embeddedEnv(t)
	p := run(t, variables, "--roles=api,convert,saga,projector")
	var ids []string
	for range 5 {
		ids = append(ids, p.submit(file("a.png", "image/png", pngOf(t, picture(8, 8))), field("operations", `["webp","jpg"]`)))
	}
	for _, id := range ids {
		p.ended(id)
	}
	require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
	require.NoError(t, p.cmd.Wait())

	dir := filepath.Join(variables["PIXTOOLS_DATA_DIR"], "kafka")
	for _, topic := range []string{events.Topic, events.SagaTopic} {
		segments, err := filepath.Glob(filepath.Join(dir, "partitions", topic+"-*", "*.dat"))
		require.NoError(t, err)
		require.NotEmpty(t, segments)
		for range flips {
			path := segments[random.IntN(len(segments))]
			content, err := os.ReadFile(path)
			require.NoError(t, err)
			at, bit := random.IntN(len(content)), byte(1)<<random.IntN(8)
			content[at] ^= bit
			require.NoError(t, os.WriteFile(path, content, 0o600))
			what := fmt.Sprintf("%s, byte %d, bit %x", path, at, bit)

			p.start()
			overdue := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
			require.Error(t, p.cmd.Wait(), what)
			overdue.Stop()
			require.Positive(t, p.cmd.ProcessState.ExitCode(), what)
			require.Contains(t, p.log.String(), "pixtools: embedded kafka: the event log has lost acknowledged records", what)
			require.Contains(t, p.log.String(), "restore "+dir+" from a backup", what)

			content[at] ^= bit
			require.NoError(t, os.WriteFile(path, content, 0o600))
		}
	}
	p.start()
	p.healthy()
	for _, id := range ids {
		require.Equal(t, "COMPLETED", p.ended(id).Status)
	}
}

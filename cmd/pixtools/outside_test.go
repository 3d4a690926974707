package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestConsumerThatIsNotOurs: librdkafka and protobuf's reflection read a job's events,
// from Apache Kafka and from the embedded broker.
func TestConsumerThatIsNotOurs(t *testing.T) {
	for name, env := range map[string]func(*testing.T) map[string]string{"real": realEnv, "embedded": embeddedEnv} {
		t.Run(name, func(t *testing.T) {
			variables := env(t)
			brokers := variables["KAFKA_BROKERS"]
			if brokers == "" {
				port := freePort(t)
				variables["PIXTOOLS_EMBEDDED_KAFKA_PORT"], brokers = port, "127.0.0.1:"+port
			}
			p := run(t, variables)
			id := p.submit(file("secret name.png", "image/png", pngOf(t, picture(8, 8))), field("operations", `["webp","jpg"]`))
			require.Equal(t, "COMPLETED", p.ended(id).Status)
			out := consume(t, "python", []string{"KAFKA_BROKERS=" + brokers, "CONSUMER_GROUP=not-ours-" + id}, "--until-end", "--events")
			require.NotContains(t, out, "secret name", "personal data is sealed")
			seen := map[string]int{}
			ids := map[string]bool{}
			for line := range strings.Lines(out) {
				var e struct {
					Headers map[string]string
					Data    map[string]any
				}
				require.NoError(t, json.Unmarshal([]byte(line), &e))
				if e.Headers["ce_subject"] != id {
					continue // of another test's job; the last line is the counts
				}
				require.Equal(t, []string{"1.0", "application/protobuf"}, []string{e.Headers["ce_specversion"], e.Headers["content-type"]})
				require.NotEmpty(t, e.Headers["ce_correlationid"])
				require.False(t, ids[e.Headers["ce_id"]], "two events of one id")
				ids[e.Headers["ce_id"]] = true
				kind := strings.TrimPrefix(e.Headers["ce_type"], "pixtools.events.v1.")
				require.Equal(t, kind == "JobRequested", e.Headers["ce_causationid"] == "")
				seen[kind]++
				if kind == "JobFinalized" {
					require.Equal(t, "OUTCOME_SUCCEEDED", e.Data["outcome"])
				}
			}
			require.Equal(t, map[string]int{"JobRequested": 1, "OperationStarted": 2, "OperationCompleted": 2, "JobFinalized": 1}, seen)
		})
	}
}

package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/testenv"
)

// TestDocumentedACLs: with the ACLs of docs/consumers/README.md, and on topics that an
// administrator made, every role works as a user of its own; consumers read, in their
// groups, and neither they nor the projector write.
func TestDocumentedACLs(t *testing.T) {
	password := rand.Text()
	users := make([]string, 0, len(allRoles))
	for _, role := range allRoles {
		users = append(users, "pixtools-"+role)
	}
	kafka, err := testenv.StartGuardedKafka(map[string]string{"reports": password, "stranger": password}, users...)
	require.NoError(t, err)
	t.Cleanup(kafka.Stop)
	makeTopics(t, kafka)
	grant(t, kafka)

	env := realEnv(t)
	env["WEBHOOK_ALLOW_PRIVATE"] = "127.0.0.2"
	var api *program
	for _, role := range allRoles {
		own := maps.Clone(env)
		own["KAFKA_BROKERS"], own["INSTANCE_ID"] = kafka.As("pixtools-"+role), "acls"
		p := prepare(t, own, "--roles="+role)
		p.start()
		if role == "api" {
			api = p
		}
	}
	api.healthy()
	image := file("a.png", "image/png", pngOf(t, picture(20, 20)))
	id := api.submit(image, field("operations", `["webp","denoise"]`), field("webhook_url", newReceiver(t, "127.0.0.2").server.URL))
	require.Equal(t, "SUCCEEDED", *api.ended(id).Outcome)
	api.hook(id, "DELIVERED")

	var lag struct {
		Groups map[string]struct{ Error string }
	}
	require.Equal(t, http.StatusOK, api.ask(http.MethodGet, "/api/lag", nil, &lag))
	require.NotEmpty(t, lag.Groups)
	for group, of := range lag.Groups {
		require.Empty(t, of.Error, group)
	}

	login := func(user, group string) []string {
		return []string{"KAFKA_BROKERS=" + kafka.Users, "KAFKA_SECURITY_PROTOCOL=SASL_PLAINTEXT", "KAFKA_USERNAME=" + user, "KAFKA_PASSWORD=" + password, "CONSUMER_GROUP=" + group}
	}
	for _, language := range languages {
		t.Run(language, func(t *testing.T) {
			read := readTally(t, consume(t, language, login("reports", "reports."+language), "--until-end"))
			require.Equal(t, map[string]int{"SUCCEEDED": 1}, read.Finals)
			for _, refused := range [][]string{
				login("reports", "pixtools.projector"), // somebody else's group
				login("reports", "reports-"+language),  // not in its prefix
				login("stranger", "reports."+language), // nobody gave it anything
			} {
				out, err := consumer(t, language, refused, "--until-end").CombinedOutput()
				require.Error(t, err, "%s: %s", refused, out)
				require.Regexp(t, `(?i)not authorized|authorization.?failed`, string(out))
			}
		})
	}

	user := kgo.SASL(scram.Auth{User: "reports", Pass: password}.AsSha512Mechanism())
	for name, options := range map[string][]kgo.Opt{
		"a consumer":    {kgo.SeedBrokers(kafka.Users), user},
		"the projector": {kgo.SeedBrokers(kafka.As("pixtools-projector"))},
	} {
		client, err := kgo.NewClient(append(options, kgo.DefaultProduceTopic(events.Topic), kgo.DisableIdempotentWrite())...) // else refused before it names a topic
		require.NoError(t, err)
		err = client.ProduceSync(within(t), final(t, events.Outcome_OUTCOME_SUCCEEDED)).FirstErr()
		client.Close()
		require.ErrorIs(t, err, kerr.TopicAuthorizationFailed, "%s writes", name)
	}
}

// makeTopics does what an administrator does whose PixTools may make none.
func makeTopics(t *testing.T, kafka *testenv.GuardedKafka) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(kafka.Brokers()...))
	require.NoError(t, err)
	defer client.Close()
	set := func(values ...string) map[string]*string {
		settings := map[string]*string{}
		for i := 0; i < len(values); i += 2 {
			settings[values[i]] = &values[i+1]
		}
		return settings
	}
	for topic, how := range map[string]struct {
		partitions int32
		settings   map[string]*string
	}{
		events.Topic:           {6, set("cleanup.policy", "delete", "retention.ms", "-1", "retention.bytes", "-1")},
		events.SagaTopic:       {6, set("cleanup.policy", "compact")},
		events.WebhooksTopic:   {6, set("cleanup.policy", "compact")},
		events.DeadLetterTopic: {1, set("cleanup.policy", "delete", "retention.ms", "7776000000")},
	} {
		_, err := kadm.NewClient(client).CreateTopic(within(t), how.partitions, 1, how.settings, topic)
		require.NoError(t, err)
	}
}

// grant runs the commands of the document.
func grant(t *testing.T, kafka *testenv.GuardedKafka) {
	t.Helper()
	document, err := os.ReadFile("../../docs/consumers/README.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllSubmatch(document, -1)
	require.Len(t, blocks, 2)
	admin := filepath.Join(t.TempDir(), "admin.properties")
	require.NoError(t, os.WriteFile(admin, []byte("security.protocol=PLAINTEXT\n"), 0o600))
	// A JVM for each command, on a machine that may be busy.
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	for _, block := range blocks {
		cmd := exec.CommandContext(ctx, "sh", "-e", "-c", string(block[1]))
		cmd.Env = append(os.Environ(), fmt.Sprintf("PATH=%s:%s", kafka.Tools(t), os.Getenv("PATH")),
			"BROKERS="+strings.Join(kafka.Brokers(), ","), "ADMIN="+admin)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
}

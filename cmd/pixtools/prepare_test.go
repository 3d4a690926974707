package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/pixtools/pixtools/events"
)

// TestPrepare: on empty servers it makes everything, and a role that may make nothing would
// find it; run again it changes nothing; what is otherwise than configured it names.
func TestPrepare(t *testing.T) {
	t.Parallel()
	env := ownKafka(t) // whose topics it changes
	env["KAFKA_REPLICATION_FACTOR"], env["KAFKA_MIN_INSYNC_REPLICAS"], env["PREPARE_TIMEOUT"] = "1", "1", "1m"
	p := prepare(t, env)
	out, complaints, status := p.command("prepare")
	require.Zero(t, status, complaints)
	require.Equal(t, 3, strings.Count(out, "\n"), out)

	cfg := p.config()
	cfg.derive()
	conn, topics := p.admin(t), cfg.topics(false)
	require.Len(t, topics, 4)
	described, err := conn.ListTopics(within(t))
	require.NoError(t, err)
	for _, topic := range topics {
		require.Len(t, described[topic.Name].Partitions, int(topic.Partitions), topic.Name)
		require.Equal(t, map[string]string{"min.insync.replicas": "1"}, p.settings(t, topic.Name, "min.insync.replicas"))
	}
	require.Equal(t, map[string]string{"retention.ms": "-1", "cleanup.policy": "delete"}, p.settings(t, events.Topic, "retention.ms", "cleanup.policy"))
	require.Empty(t, p.bucket().keys())

	out, complaints, status = p.command("prepare")
	require.Zero(t, status, complaints)
	require.Contains(t, out, "the tables are there")

	t.Run("settings that an operator changed", func(t *testing.T) {
		p.set(t, events.DeadLetterTopic, "retention.ms", "1000000")
		p.set(t, events.SagaTopic, "min.insync.replicas", "2")
		var out, complaints string
		var status int
		eventually(t, "the new settings", func() error { // brokers hear of them one after the other
			out, complaints, status = p.command("prepare")
			if status != 1 || strings.Count(complaints, "--add-config") != 2 {
				return errStill(complaints)
			}
			return nil
		})
		require.Contains(t, complaints, "topic "+events.DeadLetterTopic+": retention.ms is 1000000; set them with kafka-configs.sh")
		require.Contains(t, complaints, "topic "+events.SagaTopic+": min.insync.replicas is 2; set them with kafka-configs.sh")
		require.Contains(t, complaints, "--add-config min.insync.replicas=1")
		require.Contains(t, out, "the tables are there")
	})
	t.Run("replicas and partitions", func(t *testing.T) {
		_, complaints, status := p.with("KAFKA_REPLICATION_FACTOR=3", "KAFKA_MIN_INSYNC_REPLICAS=2").command("prepare")
		require.Equal(t, 1, status)
		require.Contains(t, complaints, "topic "+events.Topic+": partitions have 1 to 1 replicas, and 3 are configured; change them with kafka-reassign-partitions.sh")
		out, complaints, status := p.with("KAFKA_PARTITIONS=7").command("prepare")
		require.Equal(t, 1, status)
		require.Contains(t, complaints, "it has 6, 7 are configured")
		require.Contains(t, out, "the bucket", "the other parts are prepared all the same")
	})
	t.Run("parts that are away", func(t *testing.T) {
		nothing := "127.0.0.1:" + freePort(t)
		_, complaints, status := p.with("PREPARE_TIMEOUT=2s", "KAFKA_BROKERS="+nothing, "DATABASE_URL=postgres://user:hunter2@"+nothing+"/pixtools", "AWS_ENDPOINT_URL=http://"+nothing).command("prepare")
		require.Equal(t, 1, status)
		for _, part := range []string{"kafka", "database", "s3"} {
			require.Contains(t, complaints, part+" is not ready after PREPARE_TIMEOUT, 2s: ")
		}
		require.NotContains(t, complaints, "hunter2")
	})
	t.Run("parts that nobody configured", func(t *testing.T) {
		_, complaints, status := p.with("KAFKA_BROKERS=", "AWS_ENDPOINT_URL=").command("prepare")
		require.Equal(t, 1, status)
		require.Contains(t, complaints, "set KAFKA_BROKERS, AWS_ENDPOINT_URL: ")
	})
}

// TestMinISR: no more replicas can be in sync than there are.
func TestMinISR(t *testing.T) {
	t.Parallel()
	for most, valid := range map[string]bool{"2": true, "3": true, "4": false} {
		l := load(map[string]string{"KAFKA_REPLICATION_FACTOR": "3", "KAFKA_MIN_INSYNC_REPLICAS": most})
		require.Equal(t, valid, l.fault() == nil, most)
	}
	require.ErrorContains(t, load(map[string]string{"KAFKA_MIN_INSYNC_REPLICAS": "1"}).fault(), "it must be from 0 to KAFKA_REPLICATION_FACTOR, 0")
}

type errStill string

func (e errStill) Error() string { return string(e) }

func (p *program) admin(t *testing.T) *kadm.Client {
	t.Helper()
	options, err := p.config().Kafka.Options()
	require.NoError(t, err)
	client, err := kadm.NewOptClient(options...)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

func (p *program) settings(t *testing.T, topic string, names ...string) map[string]string {
	t.Helper()
	all, err := p.admin(t).DescribeTopicConfigs(within(t), topic)
	require.NoError(t, err)
	found := map[string]string{}
	for _, setting := range all[0].Configs {
		for _, name := range names {
			if setting.Key == name {
				found[name] = setting.MaybeValue()
			}
		}
	}
	return found
}

func (p *program) set(t *testing.T, topic, name, value string) {
	t.Helper()
	_, err := p.admin(t).AlterTopicConfigs(within(t), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: name, Value: &value}}, topic)
	require.NoError(t, err)
}

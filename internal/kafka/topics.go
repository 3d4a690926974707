package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ErrPartitionCount says that a topic exists with another number of partitions. That
// number decides where a key lives, so neither side can be adapted.
var ErrPartitionCount = errors.New("the topic has another number of partitions")

// ErrTopicSettings says that a topic exists with settings that it must not have.
var ErrTopicSettings = errors.New("the topic has other settings than it must have")

// Topic is one that must exist.
type Topic struct {
	Name        string
	Partitions  int32
	Replication int16
	// Must are settings without which the topic is of no use; Initially are those that it
	// is made with, and an operator may change.
	Must, Initially map[string]string
}

// EnsureTopic creates the topic unless it exists, and then checks that it has the
// partitions and settings asked for. Several processes may call it at once. One that may
// not create topics finds those that an administrator made.
func EnsureTopic(ctx context.Context, client *kgo.Client, t Topic) error {
	values := map[string]*string{}
	for _, settings := range []map[string]string{t.Must, t.Initially} {
		for key, value := range settings {
			values[key] = &value
		}
	}
	name, partitions, replication := t.Name, t.Partitions, t.Replication
	_, err := kadm.NewClient(client).CreateTopic(ctx, partitions, replication, values, name)
	made, forbidden := err == nil, errors.Is(err, kerr.TopicAuthorizationFailed)
	if err != nil && !forbidden && !errors.Is(err, kerr.TopicAlreadyExists) {
		return fmt.Errorf("create topic %s with %d partitions, replication %d: %w", name, partitions, replication, err)
	}
	topic, err := describeNew(ctx, client, name)
	if err != nil {
		if forbidden {
			return fmt.Errorf("%w; nor may we create it: %w", err, kerr.TopicAuthorizationFailed)
		}
		return err
	}
	if has := len(topic.Partitions); has != int(partitions) {
		return fmt.Errorf("topic %s: %w: it has %d, %d are configured; set the configuration to %d, or import the log into a new topic",
			name, ErrPartitionCount, has, partitions, has)
	}
	if made {
		return nil
	}
	return checkSettings(ctx, client, t)
}

// checkSettings refuses a topic that would lose what it is there to keep. Where we are
// not allowed to see the settings, whoever gave us so little is trusted with them.
func checkSettings(ctx context.Context, client *kgo.Client, t Topic) error {
	if len(t.Must) == 0 {
		return nil
	}
	others, err := otherSettings(ctx, client, t.Name, t.Must)
	if err == nil && others != "" {
		err = fmt.Errorf("topic %s: %w: %s", t.Name, ErrTopicSettings, others)
	}
	if errors.Is(err, kerr.TopicAuthorizationFailed) {
		return nil
	}
	return err
}

// otherSettings tells which settings of a topic are not the wanted ones, and how to set them.
func otherSettings(ctx context.Context, client *kgo.Client, name string, want map[string]string) (string, error) {
	all, err := kadm.NewClient(client).DescribeTopicConfigs(ctx, name)
	if err != nil {
		return "", fmt.Errorf("read the settings of topic %s: %w", name, err)
	}
	settings, err := all.On(name, nil)
	if err := errors.Join(err, settings.Err); err != nil {
		return "", fmt.Errorf("read the settings of topic %s: %w", name, err)
	}
	var others, wanted []string
	for _, setting := range settings.Configs {
		if value, ok := want[setting.Key]; ok && setting.MaybeValue() != value {
			others = append(others, fmt.Sprintf("%s is %s", setting.Key, setting.MaybeValue()))
			wanted = append(wanted, setting.Key+"="+value)
		}
	}
	if len(others) == 0 {
		return "", nil
	}
	return fmt.Sprintf("%s; set them with kafka-configs.sh --alter --entity-type topics --entity-name %s --add-config %s",
		strings.Join(others, ", "), name, strings.Join(wanted, ",")), nil
}

// Differences names what a topic that exists has otherwise than EnsureTopic would make it
// now: replicas, and any setting. It may be of use as it is, so EnsureTopic lets it be.
func Differences(ctx context.Context, client *kgo.Client, t Topic) (found []string, err error) {
	topic, err := describe(ctx, client, t.Name)
	if err != nil {
		return nil, err
	}
	fewest, most := math.MaxInt, 0
	for _, partition := range topic.Partitions {
		fewest, most = min(fewest, len(partition.Replicas)), max(most, len(partition.Replicas))
	}
	if want := int(t.Replication); want > 0 && (fewest != want || most != want) {
		found = append(found, fmt.Sprintf("topic %s: partitions have %d to %d replicas, and %d are configured; change them with kafka-reassign-partitions.sh, or the configuration",
			t.Name, fewest, most, want))
	}
	want := maps.Clone(t.Must)
	if want == nil {
		want = map[string]string{}
	}
	maps.Copy(want, t.Initially)
	others, err := otherSettings(ctx, client, t.Name, want)
	if errors.Is(err, kerr.TopicAuthorizationFailed) {
		return nil, fmt.Errorf("%w; allow DescribeConfigs on it, to have it checked", err)
	}
	if others != "" {
		found = append(found, fmt.Sprintf("topic %s: %s", t.Name, others))
	}
	return found, err
}

// TopicID is what Kafka drew when the topic was created. A topic deleted and made
// again under its old name has another one, so it identifies the log.
func TopicID(ctx context.Context, client *kgo.Client, name string) ([16]byte, error) {
	topic, err := describe(ctx, client, name)
	return topic.TopicID, err
}

// describeNew waits for a topic that was just made: the controller knows it then, and the
// broker that is asked may not yet.
func describeNew(ctx context.Context, client *kgo.Client, name string) (kmsg.MetadataResponseTopic, error) {
	const limit, pause = 30 * time.Second, 50 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		topic, err := describe(ctx, client, name)
		if !errors.Is(err, kerr.UnknownTopicOrPartition) {
			return topic, err
		}
		select {
		case <-ctx.Done():
			return topic, err
		case <-time.After(pause):
		}
	}
}

// describe asks a broker each time. The client's own view, which kadm would take, may be
// some seconds old, and then say that a new topic does not exist or that a deleted one does.
func describe(ctx context.Context, client *kgo.Client, name string) (kmsg.MetadataResponseTopic, error) {
	request := kmsg.NewPtrMetadataRequest()
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = &name
	request.Topics = append(request.Topics, topic)
	response, err := request.RequestWith(ctx, client)
	if err == nil && len(response.Topics) != 1 {
		err = fmt.Errorf("the answer is about %d topics", len(response.Topics))
	}
	if err == nil {
		err = kerr.ErrorForCode(response.Topics[0].ErrorCode)
	}
	if err != nil {
		return kmsg.MetadataResponseTopic{}, fmt.Errorf("describe topic %s: %w", name, err)
	}
	return response.Topics[0], nil
}

// Starts is where a topic begins, by partition.
func Starts(ctx context.Context, admin *kadm.Client, topic string) (map[int32]int64, error) {
	return offsetsOf(ctx, admin.ListStartOffsets, topic, "begins")
}

// CommittedEnds is where a topic ends now for who reads committed records.
func CommittedEnds(ctx context.Context, admin *kadm.Client, topic string) (map[int32]int64, error) {
	return offsetsOf(ctx, admin.ListCommittedOffsets, topic, "ends")
}

func offsetsOf(ctx context.Context, list func(context.Context, ...string) (kadm.ListedOffsets, error), topic, what string) (map[int32]int64, error) {
	listed, err := list(ctx, topic)
	if err == nil {
		err = listed.Error()
	}
	if err == nil && len(listed[topic]) == 0 {
		err = errors.New("there is no such topic")
	}
	if err != nil {
		return nil, fmt.Errorf("ask where topic %s %s: %w", topic, what, err)
	}
	offsets := map[int32]int64{}
	for _, o := range listed[topic] {
		offsets[o.Partition] = o.Offset
	}
	return offsets, nil
}

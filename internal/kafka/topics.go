package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ErrPartitionCount says that a topic exists with another number of partitions. That
// number decides where a key lives, so neither side can be adapted.
var ErrPartitionCount = errors.New("the topic has another number of partitions")

// EnsureTopic creates the topic unless it exists, and then checks that it has the
// partitions asked for. Several processes may call it at once.
func EnsureTopic(ctx context.Context, client *kgo.Client, name string, partitions int32, replication int16, configs map[string]string) error {
	values := make(map[string]*string, len(configs))
	for key, value := range configs {
		values[key] = &value
	}
	_, err := kadm.NewClient(client).CreateTopic(ctx, partitions, replication, values, name)
	if err == nil {
		return nil
	}
	if !errors.Is(err, kerr.TopicAlreadyExists) {
		return fmt.Errorf("create topic %s with %d partitions, replication %d: %w", name, partitions, replication, err)
	}
	topic, err := describe(ctx, client, name)
	if err != nil {
		return err
	}
	if has := len(topic.Partitions); has != int(partitions) {
		return fmt.Errorf("topic %s: %w: it has %d, %d are configured; set the configuration to %d, or import the log into a new topic",
			name, ErrPartitionCount, has, partitions, has)
	}
	return nil
}

// TopicID is what Kafka drew when the topic was created. A topic deleted and made
// again under its old name has another one, so it identifies the log.
func TopicID(ctx context.Context, client *kgo.Client, name string) ([16]byte, error) {
	topic, err := describe(ctx, client, name)
	return topic.TopicID, err
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

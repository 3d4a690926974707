package kafka

import "github.com/twmb/franz-go/pkg/kgo"

// PartitionOf is where Kafka's clients put a key: murmur2.
func PartitionOf(key []byte, partitions int) int32 {
	hash := kgo.StickyKeyPartitioner(nil).ForTopic("")
	return int32(hash.Partition(&kgo.Record{Key: key}, partitions))
}

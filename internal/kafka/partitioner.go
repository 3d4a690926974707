package kafka

import "github.com/twmb/franz-go/pkg/kgo"

// murmur2 is asked of keys alone. So it remembers nothing, and any number of goroutines may
// ask it at once.
var murmur2 = kgo.StickyKeyPartitioner(nil).ForTopic("")

// PartitionOf is where Kafka's clients put a key: murmur2. Of a nil key, it is that of an
// empty one.
func PartitionOf(key []byte, partitions int) int32 {
	if key == nil {
		key = []byte{}
	}
	return int32(murmur2.Partition(&kgo.Record{Key: key}, partitions))
}

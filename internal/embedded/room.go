package embedded

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/pixtools/pixtools/internal/disk"
)

// A full disk is a fault that passes, if nobody has tried to write on it. The broker has no way back from
// a write that fails: of an idempotent batch it has counted the number already, so that the same batch,
// sent again, is acknowledged as a repeat, though nothing was written; a transaction whose marker is
// missing counts as committed for now, and as aborted after a restart; half an index entry, in
// this process, puts every later one out of place. So it is not let try.
//
// Two limits, one above the other. Below DiskReserve no new work is accepted (Config.Room): three
// quarters of it are for what was accepted before to come to its end. Below a quarter, the broker's
// requests that write are refused before it sees them, with an error that clients try again at, and so
// are the S3 server's. When there is room, all goes on by itself.
//
// Who else fills the disk may do so to the last byte, between our look and our write. Then the broker has
// tried, and its log cannot be believed in this process any more: the program ends. What is on disk is
// mended or finished at the next start, as after a kill -9.

// lastParts is which part of DiskReserve is left to nobody.
const lastParts = 4

// Room is a *disk.Full where no new work may be accepted for want of disk.
func (c Config) Room() error {
	dir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return err
	}
	return disk.Check(dir, c.DiskReserve)
}

// floor is below which nothing is written, in bytes.
func (c Config) floor() int64 { return c.DiskReserve / lastParts }

// checkRoom refuses a start that could not write.
func (c Config) checkRoom() error {
	if err := disk.Check(c.DataDir, c.floor()); err != nil {
		return fmt.Errorf("%w; then start pixtools again", err)
	}
	return nil
}

// guardLog has the broker refuse what it may not be let try.
func (p *Parts) guardLog(cluster *kfake.Cluster, dir string, floor int64) {
	refusing := atomic.Bool{}
	full := func() bool {
		err := disk.Check(dir, floor)
		if was := refusing.Swap(err != nil); was != (err != nil) {
			if err != nil {
				p.log.Error("the embedded log takes nothing", "error", err)
			} else {
				p.log.Info("the embedded log takes records again")
			}
		}
		return err != nil
	}
	for key, refuse := range refusals {
		cluster.ControlKey(int16(key), func(r kmsg.Request) (kmsg.Response, error, bool) {
			cluster.KeepControl()
			if !full() {
				return nil, nil, false
			}
			response := refuse(r, kerr.KafkaStorageError.Code)
			if response == nil {
				return nil, errNoAnswer, true
			}
			return response, nil, true
		})
	}
}

// errNoAnswer closes the connection of a producer that wants no acknowledgement.
var errNoAnswer = errors.New("the disk is full")

// refusals answer, by their key, the requests that make the broker write, each part of them with an error.
var refusals = map[kmsg.Key]func(r kmsg.Request, code int16) kmsg.Response{
	kmsg.Produce: func(r kmsg.Request, code int16) kmsg.Response {
		request := r.(*kmsg.ProduceRequest)
		if request.Acks == 0 {
			return nil
		}
		response := request.ResponseKind().(*kmsg.ProduceResponse)
		for _, t := range request.Topics {
			topic := kmsg.NewProduceResponseTopic()
			topic.Topic, topic.TopicID = t.Topic, t.TopicID
			for _, p := range t.Partitions {
				partition := kmsg.NewProduceResponseTopicPartition()
				partition.Partition, partition.ErrorCode = p.Partition, code
				topic.Partitions = append(topic.Partitions, partition)
			}
			response.Topics = append(response.Topics, topic)
		}
		return response
	},
	kmsg.OffsetCommit: func(r kmsg.Request, code int16) kmsg.Response {
		request := r.(*kmsg.OffsetCommitRequest)
		response := request.ResponseKind().(*kmsg.OffsetCommitResponse)
		for _, t := range request.Topics {
			topic := kmsg.NewOffsetCommitResponseTopic()
			topic.Topic, topic.TopicID = t.Topic, t.TopicID
			for _, p := range t.Partitions {
				partition := kmsg.NewOffsetCommitResponseTopicPartition()
				partition.Partition, partition.ErrorCode = p.Partition, code
				topic.Partitions = append(topic.Partitions, partition)
			}
			response.Topics = append(response.Topics, topic)
		}
		return response
	},
	kmsg.TxnOffsetCommit: func(r kmsg.Request, code int16) kmsg.Response {
		request := r.(*kmsg.TxnOffsetCommitRequest)
		response := request.ResponseKind().(*kmsg.TxnOffsetCommitResponse)
		for _, t := range request.Topics {
			topic := kmsg.NewTxnOffsetCommitResponseTopic()
			topic.Topic, topic.TopicID = t.Topic, t.TopicID
			for _, p := range t.Partitions {
				partition := kmsg.NewTxnOffsetCommitResponseTopicPartition()
				partition.Partition, partition.ErrorCode = p.Partition, code
				topic.Partitions = append(topic.Partitions, partition)
			}
			response.Topics = append(response.Topics, topic)
		}
		return response
	},
	kmsg.EndTxn: func(r kmsg.Request, code int16) kmsg.Response {
		response := r.ResponseKind().(*kmsg.EndTxnResponse)
		response.ErrorCode = code
		return response
	},
	kmsg.InitProducerID: func(r kmsg.Request, code int16) kmsg.Response {
		response := r.ResponseKind().(*kmsg.InitProducerIDResponse)
		response.ErrorCode = code
		return response
	},
}

// wroteInVain says whether a line of the broker's log tells that a write failed.
func wroteInVain(format string) bool {
	return strings.HasPrefix(format, "persist ") || strings.Contains(format, "failed to persist")
}

// diskFault is how the part ends then.
func diskFault(dir, line string) error {
	return fmt.Errorf("embedded kafka: %s could not be written, as on a full disk: make room there (%s)", filepath.Dir(dir), line)
}

// fullAgain is the least time between two lines about the same full disk.
const fullAgain = time.Minute

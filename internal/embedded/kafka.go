package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// brokerConfigs are Kafka's names. They are given at every start and win over what the directory holds.
var brokerConfigs = map[string]string{
	// A KIP-848 group forms within a heartbeat or two: 1 s instead of 5 s.
	"group.consumer.heartbeat.interval.ms": "1000",
	// A consumer that died without leaving holds its partitions this long. Kafka's default is 45 s,
	// which is about machines and networks; here all are processes of one machine.
	"group.consumer.session.timeout.ms": "6000",
	// Retention and compaction run once a minute; the default is once an hour.
	"log.cleaner.backoff.ms": "60000",
	// By default offsets of a group without members expire after 7 days: a laptop left alone for a
	// holiday would forget what it has done and do all of it again.
	"offsets.retention.minutes":  "5256000", // 10 years
	"transaction.max.timeout.ms": "60000",
}

const (
	// groupMinSessionTimeout lets a classic consumer ask for a short session, so that a restarted
	// process does not wait for its dead self.
	groupMinSessionTimeout = time.Second
	// brokerTimeout bounds the broker's own requests at start and for the note.
	brokerTimeout = 10 * time.Second
	// abortTimeoutMillis goes with the producer id that is taken only to abort what is open.
	abortTimeoutMillis = 10_000
	// sessionFile is what the broker writes when it is stopped in order.
	sessionFile = "session_state.json"
	// stoppedFile is there while the broker is stopped, and was in order. The broker's own
	// file does not tell: it is not written where there is nothing to put into it.
	stoppedFile       = "stopped"
	kafkaPortVariable = "PIXTOOLS_EMBEDDED_KAFKA_PORT"
)

// startKafka starts the broker: one node, acknowledging a record only when it is synced to disk.
// Topics are made by the program; a misspelt name makes none.
func (p *Parts) startKafka(ctx context.Context, cfg Config, st state) error {
	dir := filepath.Join(cfg.DataDir, "kafka")
	existed := exists(dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// Before the broker opens the log, because opening it cuts off what is damaged, and with it the evidence.
	if err := checkLog(dir); err != nil {
		return err
	}
	stopped := filepath.Join(dir, stoppedFile)
	crashed := existed && !exists(stopped)
	// Before anything is written: a kill from now on is one.
	if err := os.Remove(stopped); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := errors.Join(syncDir(dir), forgetGroupMembers(dir)); err != nil {
		return err
	}
	journal, err := openJournal(dir, p.log)
	if err != nil {
		return err
	}
	// On a port that nobody knows: consumers that come back must not read before it is done.
	apart := func() (*broker, error) { return p.openBroker(dir, 0) }
	if err := p.finishCommit(ctx, dir, journal, apart); err != nil {
		return errors.Join(err, journal.file.Close())
	}
	b, err := p.openBroker(dir, st.KafkaPort)
	if err != nil {
		return errors.Join(err, journal.file.Close())
	}
	if err := b.tidy(ctx, crashed); err != nil {
		b.close()
		return errors.Join(err, journal.file.Close())
	}
	p.guardLog(b.cluster, dir, cfg.floor()) // first: what is refused is not noted as committed
	journal.watch(b.cluster)
	n := startNote(b.cluster, b.client, dir, p.fail, p.log)
	p.onStop("kafka", func(context.Context) error {
		err := n.stop()
		b.close() // it has handled its last request by then: no commit is torn
		if p.logLost.Load() {
			// Nor was all of its state written: the next start is that after a crash.
			return errors.Join(err, journal.file.Close(), errors.New("the disk did not take what is kept over a stop in order"))
		}
		if err := errors.Join(err, journal.clear(), journal.file.Close()); err != nil {
			return err
		}
		return writeFileSynced(stopped, nil)
	})
	p.Brokers = []string{address(st.KafkaPort)}
	return nil
}

// broker is one run of the embedded broker, with a client of our own.
type broker struct {
	cluster *kfake.Cluster
	client  *kgo.Client
}

// openBroker opens the log; port 0 is any.
func (p *Parts) openBroker(dir string, port int) (*broker, error) {
	cluster, err := kfake.NewCluster(
		kfake.DataDir(dir), kfake.SyncWrites(),
		kfake.Ports(port),
		kfake.BrokerConfigs(brokerConfigs),
		kfake.GroupMinSessionTimeout(groupMinSessionTimeout),
		kfake.ClusterID("pixtools"),
		kfake.WithLogger(kafkaLog{p.log.With("part", "kafka"), func(line string) {
			p.logLost.Store(true)
			p.fail(diskFault(dir, line))
		}}),
	)
	if err != nil {
		if opErr := (*net.OpError)(nil); errors.As(err, &opErr) && opErr.Op == "listen" {
			return nil, portError(port, kafkaPortVariable, err)
		}
		return nil, fmt.Errorf("open the log in %s: %w", dir, err)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.DisableClientMetrics())
	if err != nil {
		cluster.Close()
		return nil, err
	}
	return &broker{cluster, client}, nil
}

func (b *broker) close() {
	b.client.Close()
	b.cluster.Close()
}

// tidy ends what an earlier run left open.
func (b *broker) tidy(ctx context.Context, crashed bool) error {
	ctx, cancel := context.WithTimeout(ctx, brokerTimeout)
	defer cancel()
	if err := b.abortOpenTransactions(ctx); err != nil {
		return fmt.Errorf("abort the transactions that an earlier run left open: %w", err)
	}
	if !crashed {
		return nil
	}
	if err := b.closeTails(ctx); err != nil {
		return fmt.Errorf("mark where an earlier run was cut off: %w", err)
	}
	return nil
}

// forgetGroupMembers drops the group members that the broker noted when it stopped, so that it could be
// restarted under living consumers. Ours ended with it: a new process would wait until the old one's
// sessions time out. Everything else in the file stays, above all open transactions: without that entry
// their records would count as committed.
func forgetGroupMembers(dir string) error {
	path := filepath.Join(dir, sessionFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // after a kill -9: the members are forgotten anyway
	}
	if err != nil {
		return err
	}
	var session map[string]json.RawMessage
	if err := json.Unmarshal(raw, &session); err != nil {
		return nil // the broker ignores a damaged one, too
	}
	delete(session, "classicGroups")
	delete(session, "consumerGroups")
	if raw, err = json.Marshal(session); err != nil {
		return err
	}
	return writeFileSynced(path, raw)
}

// abortOpenTransactions ends what a stopped process left open. Consumers that read committed records
// only wait at the first open transaction; without this, until it times out.
//
// After a kill -9 nothing is listed: while replaying, the broker takes what has no end for aborted. It
// forgets that again for a producer that goes on under the same transactional id, so programs must use
// a new id in every process.
func (b *broker) abortOpenTransactions(ctx context.Context) error {
	open, err := kadm.NewClient(b.client).ListTransactions(ctx, nil, []string{"Ongoing"})
	if err != nil {
		return err
	}
	for _, txn := range open.Sorted() {
		req := kmsg.NewPtrInitProducerIDRequest()
		req.TransactionalID = kmsg.StringPtr(txn.TxnID)
		req.TransactionTimeoutMillis = abortTimeoutMillis
		resp, err := req.RequestWith(ctx, b.client)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		if err != nil {
			return fmt.Errorf("transactional id %s: %w", txn.TxnID, err)
		}
	}
	return nil
}

// closeTails writes an abort marker at the end of every partition that has records.
// After a kill -9 the broker takes a transaction without an end for aborted, but no
// marker stands where it ended. A consumer of committed records is never given what was
// aborted, so a partition that ends so has an end that no such consumer is ever seen to
// reach, and "has the projection caught up?" would stay open until the next record.
func (b *broker) closeTails(ctx context.Context) error {
	ends, err := kadm.NewClient(b.client).ListEndOffsets(ctx)
	if err != nil {
		return err
	}
	producer, err := kmsg.NewPtrInitProducerIDRequest().RequestWith(ctx, b.client)
	if err == nil {
		err = kerr.ErrorForCode(producer.ErrorCode)
	}
	if err != nil {
		return err
	}
	marker := kmsg.NewWriteTxnMarkersRequestMarker()
	marker.ProducerID, marker.ProducerEpoch = producer.ProducerID, producer.ProducerEpoch
	for topic, partitions := range ends {
		t := kmsg.NewWriteTxnMarkersRequestMarkerTopic()
		t.Topic = topic
		for partition, end := range partitions {
			if end.Err == nil && end.Offset > 0 {
				t.Partitions = append(t.Partitions, partition)
			}
		}
		if len(t.Partitions) > 0 {
			marker.Topics = append(marker.Topics, t)
		}
	}
	return b.mark(ctx, marker)
}

// mark writes the end of a transaction into partitions.
func (b *broker) mark(ctx context.Context, marker kmsg.WriteTxnMarkersRequestMarker) error {
	if len(marker.Topics) == 0 {
		return nil
	}
	req := kmsg.NewPtrWriteTxnMarkersRequest()
	req.Markers = append(req.Markers, marker)
	resp, err := req.RequestWith(ctx, b.client)
	if err != nil {
		return err
	}
	for _, m := range resp.Markers {
		for _, t := range m.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					return fmt.Errorf("%s/%d: %w", t.Topic, p.Partition, err)
				}
			}
		}
	}
	return nil
}

// kafkaLog passes on what a person should see: the broker's info level is every request.
type kafkaLog struct {
	log *slog.Logger
	// lost hears that a write failed.
	lost func(line string)
}

func (l kafkaLog) Logf(level kfake.LogLevel, format string, args ...any) {
	if level <= kfake.LogLevelWarn && wroteInVain(format) {
		l.lost(fmt.Sprintf(format, args...))
	}
	switch level {
	case kfake.LogLevelError:
		l.log.Error(fmt.Sprintf(format, args...))
	case kfake.LogLevelWarn:
		if strings.Contains(format, "EndTxn slow") {
			return // more than 5 ms, which is what syncing takes
		}
		l.log.Warn(fmt.Sprintf(format, args...))
	}
}

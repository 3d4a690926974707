// Command go counts how PixTools' jobs ended: a consumer of the log to begin with, in Go.
//
//	KAFKA_BROKERS=127.0.0.1:9092 go run ./docs/consumers/go --until-end
//
// It knows of PixTools what is published, and no more: the topic, the headers and the
// descriptor set. docs/consumers/README.md tells its configuration.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

const (
	topic         = "pixtools.jobs.v1"
	typePrefix    = "pixtools.events.v1."
	rememberedIDs = 100_000 // of the newest events; repeats come soon after the first
	batch         = 1_000   // records handled between two polls
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, slices.Contains(os.Args[1:], "--until-end"))
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, untilEnd bool) error {
	types, err := readTypes(setting("DESCRIPTORS", "schemas/descriptors.binpb"))
	if err != nil {
		return err
	}
	t := newTally(types)
	end := &logEnd{group: setting("CONSUMER_GROUP", "example-finals"), left: map[int32]int64{}}
	options := []kgo.Opt{
		kgo.SeedBrokers(strings.Split(setting("KAFKA_BROKERS", "127.0.0.1:9092"), ",")...),
		kgo.ConsumerGroup(end.group),
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), // a new group begins where the log does
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),      // what was aborted never happened
		// Only what was handled is marked, and only what is marked is committed: at least once.
		kgo.AutoCommitMarks(),
		// Partitions are taken away between two batches, never within one.
		kgo.BlockRebalanceOnPoll(),
		kgo.OnPartitionsRevoked(func(ctx context.Context, client *kgo.Client, partitions map[string][]int32) {
			if err := client.CommitMarkedOffsets(ctx); err != nil {
				fmt.Fprintln(os.Stderr, "commit:", err) // the next owner reads some records again
			}
			end.forget(partitions[topic])
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
			end.forget(partitions[topic]) // somebody else has them already: too late to commit
		}),
		// The end of a transaction is a record, too: without it, a log that ends with an
		// aborted one would seem to go on.
		kgo.KeepControlRecords(),
	}
	if untilEnd {
		options = append(options, kgo.OnPartitionsAssigned(end.find))
	}
	client, err := kgo.NewClient(append(options, security()...)...)
	if err != nil {
		return err
	}
	defer client.CloseAllowingRebalance()
	for ctx.Err() == nil {
		if err := t.poll(ctx, client, end); err != nil {
			return err
		}
		reached, err := end.reached()
		if err != nil {
			return fmt.Errorf("the log's end: %w", err)
		}
		if untilEnd && reached {
			break
		}
	}
	// The work is done whatever ended it: its position is kept.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := client.CommitMarkedOffsets(last); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return json.NewEncoder(os.Stdout).Encode(t)
}

// setting is a variable of the environment, or what stands in for it.
func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// security follows the names that Kafka's own clients use; the mechanism is SCRAM-SHA-512.
func security() []kgo.Opt {
	var options []kgo.Opt
	protocol := setting("KAFKA_SECURITY_PROTOCOL", "PLAINTEXT")
	if strings.HasPrefix(protocol, "SASL_") {
		user := scram.Auth{User: os.Getenv("KAFKA_USERNAME"), Pass: os.Getenv("KAFKA_PASSWORD")}
		options = append(options, kgo.SASL(user.AsSha512Mechanism()))
	}
	if strings.HasSuffix(protocol, "SSL") {
		options = append(options, kgo.DialTLSConfig(&tls.Config{MinVersion: tls.VersionTLS12}))
	}
	return options
}

// readTypes reads the descriptor set: types found by name, without generated code.
func readTypes(path string) (*dynamicpb.Types, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(raw, &set); err != nil {
		return nil, fmt.Errorf("%s is no descriptor set: %w", path, err)
	}
	files, err := protodesc.NewFiles(&set)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return dynamicpb.NewTypes(files), nil
}

// tally is what was read. It is in memory only: what a program of yours makes of events
// belongs in a database, at best in one transaction with the position.
type tally struct {
	Events  int            `json:"events"`  // counted once each
	Repeats int            `json:"repeats"` // of an event that was counted
	Unknown int            `json:"unknown"` // of a type that is newer than the descriptor set
	Broken  int            `json:"broken"`  // not to be decoded
	Finals  map[string]int `json:"finals"`  // JobFinalized, by outcome

	types *dynamicpb.Types
	seen  *lru.Cache[string, struct{}]
}

func newTally(types *dynamicpb.Types) *tally {
	seen, err := lru.New[string, struct{}](rememberedIDs)
	if err != nil {
		panic(err) // the size is not positive
	}
	return &tally{Finals: map[string]int{}, types: types, seen: seen}
}

// poll handles what comes within a second, and marks it.
func (t *tally) poll(ctx context.Context, client *kgo.Client, end *logEnd) error {
	waiting, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	fetches := client.PollRecords(waiting, batch)
	defer client.AllowRebalance()
	for _, fault := range fetches.Errors() {
		if !errors.Is(fault.Err, waiting.Err()) {
			return fmt.Errorf("partition %d: %w", fault.Partition, fault.Err)
		}
	}
	fetches.EachRecord(func(r *kgo.Record) {
		if !r.Attrs.IsControl() {
			t.count(r)
		}
		client.MarkCommitRecords(r)
		end.passed(r)
	})
	return nil
}

func (t *tally) count(r *kgo.Record) {
	id, kind := header(r, "ce_id"), header(r, "ce_type")
	known, err := t.types.FindMessageByName(protoreflect.FullName(kind))
	if errors.Is(err, protoregistry.NotFound) || !strings.HasPrefix(kind, typePrefix) {
		t.Unknown++
		return
	}
	if err == nil {
		err = t.event(r, id, known.New())
	}
	if err != nil { // yours may stop here, or keep the record aside; it must not just go on
		t.Broken++
		fmt.Fprintf(os.Stderr, "partition %d offset %d: %v\n", r.Partition, r.Offset, err)
	}
}

func (t *tally) event(r *kgo.Record, id string, message protoreflect.Message) error {
	if id == "" {
		return errors.New("the header ce_id is missing")
	}
	if err := proto.Unmarshal(r.Value, message.Interface()); err != nil {
		return err
	}
	if again, _ := t.seen.ContainsOrAdd(id, struct{}{}); again {
		t.Repeats++
		return nil
	}
	t.Events++
	if message.Descriptor().FullName() == typePrefix+"JobFinalized" {
		t.Finals[outcome(message)]++
	}
	return nil
}

func outcome(final protoreflect.Message) string {
	field := final.Descriptor().Fields().ByName("outcome")
	number := final.Get(field).Enum()
	value := field.Enum().Values().ByNumber(number)
	if value == nil { // newer than the descriptor set
		return fmt.Sprint(number)
	}
	return strings.TrimPrefix(string(value.Name()), "OUTCOME_")
}

func header(r *kgo.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

// logEnd is what is left to read of the assigned partitions, up to the end that each had
// when it was assigned. The client calls back from a goroutine of its own.
type logEnd struct {
	group string

	mu       sync.Mutex // guards what follows
	assigned bool
	left     map[int32]int64 // partition: the offset after its last record
	err      error           // of the last search for ends
}

func (e *logEnd) find(ctx context.Context, client *kgo.Client, partitions map[string][]int32) {
	admin := kadm.NewClient(client)
	ends, endsErr := admin.ListCommittedOffsets(ctx, topic)
	committed, committedErr := admin.FetchOffsetsForTopics(ctx, e.group, topic)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.assigned = true
	if e.err = errors.Join(endsErr, committedErr); e.err != nil {
		return
	}
	for _, partition := range partitions[topic] {
		last, _ := ends.Lookup(topic, partition)
		position, _ := committed.Lookup(topic, partition) // zero where there is none
		if max(position.At, 0) < last.Offset {
			e.left[partition] = last.Offset
		}
	}
}

func (e *logEnd) passed(r *kgo.Record) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if last, some := e.left[r.Partition]; some && r.Offset+1 >= last {
		delete(e.left, r.Partition)
	}
}

func (e *logEnd) forget(partitions []int32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, partition := range partitions {
		delete(e.left, partition)
	}
}

func (e *logEnd) reached() (bool, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.assigned && len(e.left) == 0, e.err
}

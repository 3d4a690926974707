package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/testenv"
)

// The example consumers of docs/consumers, each in a process of its own, as their users
// run them.

var languages = []string{"go", "python", "java"}

// consumer is the command of one of them.
func consumer(t *testing.T, language string, env []string, flags ...string) *exec.Cmd {
	t.Helper()
	var argv []string
	switch language {
	case "go":
		program := filepath.Join(t.TempDir(), "finals")
		out, err := exec.Command("go", "build", "-o", program, "../../docs/consumers/go").CombinedOutput()
		require.NoError(t, err, "%s", out)
		argv = []string{program}
	case "python":
		argv = []string{testenv.Python(t), "../../docs/consumers/python/finals.py"}
	case "java":
		argv = []string{"java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-jar", testenv.JavaConsumer(t)}
	}
	// Members of a group live through several waits.
	ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, argv[0], append(argv[1:], flags...)...)
	cmd.Env = append(append(os.Environ(), "DESCRIPTORS=../../schemas/descriptors.binpb"), env...)
	return cmd
}

// consume runs one to its end and returns what it printed.
func consume(t *testing.T, language string, env []string, flags ...string) string {
	t.Helper()
	cmd := consumer(t, language, env, flags...)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	require.NoError(t, err, "%s: %s", language, complaints.String())
	return string(out)
}

// tally is what they print.
type tally struct {
	Events, Repeats, Unknown, Broken int
	Finals                           map[string]int
}

func readTally(t *testing.T, out string) tally {
	t.Helper()
	var c tally
	require.NoError(t, json.Unmarshal([]byte(out), &c), "%s", out)
	return c
}

func (c tally) and(d tally) tally {
	sum := tally{c.Events + d.Events, c.Repeats + d.Repeats, c.Unknown + d.Unknown, c.Broken + d.Broken, maps.Clone(c.Finals)}
	for outcome, n := range d.Finals {
		sum.Finals[outcome] += n
	}
	return sum
}

// countLog counts what is committed in the log with our own code, knows every id, and says
// where each partition's last record lies.
func countLog(t *testing.T, brokers []string) (tally, map[int32]int64) {
	t.Helper()
	count, last, seen := tally{Finals: map[string]int{}}, map[int32]int64{}, map[string]bool{}
	eachCommitted(t, brokers, func(r *kgo.Record) {
		last[r.Partition] = r.Offset
		count.add(r, seen)
	})
	return count, last
}

// eachCommitted reads what is committed in the log now.
func eachCommitted(t *testing.T, brokers []string, each func(*kgo.Record)) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(events.Topic), kgo.KeepControlRecords(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	require.NoError(t, err)
	defer client.Close()
	ctx := within(t)
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, events.Topic)
	require.NoError(t, err)
	left := map[int32]int64{}
	ends.Each(func(end kadm.ListedOffset) {
		if end.Offset > 0 {
			left[end.Partition] = end.Offset
		}
	})
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		require.NoError(t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset+1 >= left[r.Partition] {
				delete(left, r.Partition)
			}
			if !r.Attrs.IsControl() {
				each(r)
			}
		})
	}
}

func (c *tally) add(r *kgo.Record, seen map[string]bool) {
	e, err := events.Decode(r)
	switch final, is := e.Message.(*events.JobFinalized); {
	case errors.Is(err, events.ErrUnknownType):
		c.Unknown++
	case err != nil:
		c.Broken++
	case seen[e.ID]:
		c.Repeats++
	default:
		seen[e.ID] = true
		c.Events++
		if is {
			c.Finals[strings.TrimPrefix(final.GetOutcome().String(), "OUTCOME_")]++
		}
	}
}

// final is the record of a job's end that no saga has written.
func final(t *testing.T, outcome events.Outcome) *kgo.Record {
	t.Helper()
	e := events.New(uuid.NewString(), time.Now(), "pixtools/test", "", &events.JobFinalized{Revision: 1, Outcome: outcome})
	record, err := e.Record()
	require.NoError(t, err)
	return record
}

// disturb appends what a consumer must not count: a repeat, a type of the future, a value
// that is none, and finals that were aborted, as the last records of their partitions.
func disturb(t *testing.T, brokers []string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.TransactionalID("test-"+uuid.NewString()), kgo.DefaultProduceTopic(events.Topic))
	require.NoError(t, err)
	defer client.Close()
	ctx := within(t)
	transaction := func(how kgo.TransactionEndTry, records ...*kgo.Record) {
		require.NoError(t, client.BeginTransaction())
		require.NoError(t, client.ProduceSync(ctx, records...).FirstErr())
		require.NoError(t, client.EndTransaction(ctx, how))
	}
	once := final(t, events.Outcome_OUTCOME_CANCELLED)
	again := &kgo.Record{Key: once.Key, Value: once.Value, Headers: once.Headers}
	ahead, torn := final(t, events.Outcome_OUTCOME_FAILED), final(t, events.Outcome_OUTCOME_FAILED)
	for i, h := range ahead.Headers {
		if h.Key == events.HeaderType {
			ahead.Headers[i].Value = []byte("pixtools.events.v1.JobPrinted")
		}
	}
	torn.Value = []byte{0xff}
	transaction(kgo.TryCommit, once, again, ahead, torn)
	var aborted []*kgo.Record
	for range 30 { // some in every partition
		aborted = append(aborted, final(t, events.Outcome_OUTCOME_SUCCEEDED))
	}
	transaction(kgo.TryAbort, aborted...)
}

// TestConsumersCountAlike: the three example consumers, pixtools verify and this test count the same, with
// the log growing under their first run. The second goes on where that ended.
func TestConsumersCountAlike(t *testing.T) {
	kafka, err := testenv.StartKafka("", 1)
	require.NoError(t, err)
	t.Cleanup(kafka.Stop)
	env := realEnv(t)
	env["KAFKA_BROKERS"] = strings.Join(kafka.Brokers(), ",")
	env["MAX_IMAGE_SIDE"] = "20000" // more than WebP can hold
	p := run(t, env)

	whole := pngOf(t, picture(40, 40))
	kinds := [][]part{
		{file("a.png", "image/png", whole), field("operations", `["webp"]`)},
		{file("a.png", "image/png", whole[:len(whole)/2]), field("operations", `["webp","jpg"]`)},
		{file("a.png", "image/png", pngOf(t, picture(16400, 2))), field("operations", `["webp","jpg"]`)},
		{file("a.png", "image/png", whole), field("operations", `["jpg","avif"]`)},
	}
	outcomes := []string{"SUCCEEDED", "FAILED", "PARTIAL", "SUCCEEDED"}
	count := func(language string) tally {
		env := []string{"KAFKA_BROKERS=" + env["KAFKA_BROKERS"], "CONSUMER_GROUP=example-" + language}
		return readTally(t, consume(t, language, env, "--until-end"))
	}

	// One job of each kind after the other, until all have read; then one more of each.
	var load errgroup.Group
	stop, ids := make(chan struct{}), make([][]string, len(kinds))
	for kind, parts := range kinds {
		load.Go(func() error {
			for last := false; !last; {
				select {
				case <-stop:
					last = true
				default:
				}
				id, err := p.insist(t.Context(), parts...)
				if err != nil {
					return err
				}
				ids[kind] = append(ids[kind], id)
				if _, err := p.job(id); err != nil { // waits a moment for its end
					return err
				}
			}
			return nil
		})
	}
	eventually(t, "a job's end", func() error {
		if now, _ := countLog(t, kafka.Brokers()); len(now.Finals) == 0 {
			return errors.New("none has ended")
		}
		return nil
	})
	first := map[string]tally{}
	for _, language := range languages {
		first[language] = count(language)
	}
	close(stop)
	require.NoError(t, load.Wait())
	finals := map[string]int{"CANCELLED": 1} // the one of disturb
	for kind, jobs := range ids {
		finals[outcomes[kind]] += len(jobs)
		for _, id := range jobs {
			require.Equal(t, outcomes[kind], *p.ended(id).Outcome)
		}
	}
	p.kill()
	disturb(t, kafka.Brokers())

	want, _ := countLog(t, kafka.Brokers())
	require.Equal(t, finals, want.Finals, "the audit")
	require.Equal(t, []int{1, 1, 1}, []int{want.Repeats, want.Unknown, want.Broken})
	// What disturb appended are findings: ends of jobs that nobody requested.
	verified := p.verify(1, "--artifacts=none", "--read-model=false").summary
	same := tally{int(verified.Events), int(verified.Repeats), int(verified.Unknown), int(verified.Broken), map[string]int{}}
	for outcome, n := range verified.Finals {
		same.Finals[outcome] = int(n)
	}
	require.Equal(t, want, same, "pixtools verify")
	for _, language := range languages {
		second := count(language)
		t.Logf("%s: %d events, then %d; finals %v", language, first[language].Events, second.Events, first[language].and(second).Finals)
		require.Positive(t, first[language].Events, language)
		require.Equal(t, want, first[language].and(second), language)
		require.Equal(t, tally{Finals: map[string]int{}}, count(language), "%s: nothing is left", language)
	}
}

// TestConsumersHandOver: members of one group that come and go count each event once,
// since what is handed over was counted and committed.
func TestConsumersHandOver(t *testing.T) {
	kafka, err := testenv.StartKafka("", 1)
	require.NoError(t, err)
	t.Cleanup(kafka.Stop)
	client, err := kgo.NewClient(kgo.SeedBrokers(kafka.Brokers()...), kgo.DefaultProduceTopic(events.Topic))
	require.NoError(t, err)
	t.Cleanup(client.Close)
	admin := kadm.NewClient(client)
	_, err = admin.CreateTopic(within(t), 6, 1, nil, events.Topic)
	require.NoError(t, err)
	for _, language := range languages {
		t.Run(language, func(t *testing.T) {
			group := "example-" + language
			env := []string{"KAFKA_BROKERS=" + strings.Join(kafka.Brokers(), ","), "CONSUMER_GROUP=" + group}
			more := func() {
				for range 40 {
					require.NoError(t, client.ProduceSync(within(t), final(t, events.Outcome_OUTCOME_SUCCEEDED)).FirstErr())
				}
			}
			read := func() {
				_, last := countLog(t, kafka.Brokers())
				eventually(t, "commit of all that there is", func() error { return committed(admin, group, last) })
			}
			more()
			one := begin(t, language, env)
			read()
			two := begin(t, language, env)
			eventually(t, "two members with partitions", func() error { return shared(admin, group, 2) })
			more()
			read()
			first := one.end()
			eventually(t, "one member with partitions", func() error { return shared(admin, group, 1) })
			more()
			read()
			second := two.end()
			want, _ := countLog(t, kafka.Brokers())
			t.Logf("%s: %d and %d", language, first.Events, second.Events)
			require.Less(t, 40, second.Events, "it had partitions beside the first")
			require.Equal(t, want, first.and(second))
		})
	}
}

// member is a consumer that goes on until it is told to end.
type member struct {
	t        *testing.T
	cmd      *exec.Cmd
	out, log bytes.Buffer
}

func begin(t *testing.T, language string, env []string) *member {
	t.Helper()
	m := &member{t: t, cmd: consumer(t, language, env)}
	m.cmd.Stdout, m.cmd.Stderr = &m.out, &m.log
	require.NoError(t, m.cmd.Start())
	return m
}

func (m *member) end() tally {
	m.t.Helper()
	require.NoError(m.t, m.cmd.Process.Signal(syscall.SIGTERM))
	// A JVM that is told to end says so with its status, whatever else it did.
	var exit *exec.ExitError
	if err := m.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 128+int(syscall.SIGTERM) {
		require.NoError(m.t, err, "%s", m.log.String())
	}
	return readTally(m.t, m.out.String())
}

// committed says what a group has not committed of the records up to last.
func committed(admin *kadm.Client, group string, last map[int32]int64) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	offsets, err := admin.FetchOffsetsForTopics(ctx, group, events.Topic)
	if err != nil {
		return err
	}
	for partition, offset := range last {
		if at, _ := offsets.Lookup(events.Topic, partition); at.At <= offset {
			return fmt.Errorf("partition %d: committed %d, last record %d", partition, at.At, offset)
		}
	}
	return nil
}

// shared says whether a group is at rest with so many members that have partitions.
func shared(admin *kadm.Client, group string, members int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	groups, err := admin.DescribeGroups(ctx, group)
	if err != nil {
		return err
	}
	owners, partitions := 0, 0
	for _, m := range groups[group].Members {
		if assigned, ok := m.Assigned.AsConsumer(); ok && len(assigned.Topics) > 0 {
			owners++
			partitions += len(assigned.Topics[0].Partitions)
		}
	}
	if groups[group].State != "Stable" || owners != members || partitions != 6 {
		return fmt.Errorf("%s, %d members have %d partitions", groups[group].State, owners, partitions)
	}
	return nil
}

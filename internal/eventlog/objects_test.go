package eventlog_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/eventlog"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/testenv"
)

func bucket(t *testing.T, name string) *blob.Store {
	server := testenv.S3(t)
	var cfg blob.Config
	require.NoError(t, env.ParseWithOptions(&cfg, env.Options{Environment: map[string]string{"AWS_ENDPOINT_URL": server.Endpoint,
		"AWS_ACCESS_KEY_ID": server.AccessKey, "AWS_SECRET_ACCESS_KEY": server.SecretKey, "AWS_S3_BUCKET": name}}))
	store, err := blob.New(t.Context(), cfg)
	require.NoError(t, err)
	require.NoError(t, store.EnsureBucket(t.Context()))
	return store
}

// TestObjects: what events name is copied, equal bytes once; what is not there is told of,
// unless it is gone by right.
func TestObjects(t *testing.T) {
	source, store := onEmbedded(t), bucket(t, "pixtools-objects")
	require.NoError(t, source.prepare(2)(t.Context()))
	const retention = 24 * time.Hour
	put := func(key, content string) {
		require.NoError(t, store.Put(t.Context(), key, strings.NewReader(content), int64(len(content)), sha256.Sum256([]byte(content)), "image/png"))
	}
	tell := func(job string, at time.Time, m proto.Message) {
		r, err := events.New(job, at, "test", "r", m).Record()
		require.NoError(t, err)
		r.Partition = kafka.PartitionOf(r.Key, 2)
		source.produce(r)
	}
	sum := func(content string) string {
		s := sha256.Sum256([]byte(content))
		return hex.EncodeToString(s[:])
	}
	now := time.Now()
	for name, c := range map[string]struct {
		at           time.Time
		told, stored string
		gone         proto.Message
	}{
		"stored":  {now, "content", "content", nil},
		"equal":   {now, "content", "content", nil},
		"old":     {now.Add(-retention - time.Minute), "content", "", nil},
		"recent":  {now.Add(-retention + time.Minute), "content", "", nil},
		"expired": {now, "content", "", &events.ArtifactsExpired{Operations: []string{"webp"}, Source: true}},
		"deleted": {now, "content", "", &events.JobDeleted{}},
		// Nothing else has its bytes: they would be taken from there.
		"damaged": {now, "another", "ANOTHER", nil},
	} {
		job := events.JobID("test", name)
		raw, made := "raw/"+job+"/"+sum(c.told), "processed/"+job+"/webp/"+sum(c.told)+".webp"
		tell(job, c.at, &events.JobRequested{Source: &events.Source{Key: raw, Sha256: sum(c.told), Bytes: 7}})
		for range 2 { // a repeat names nothing new
			tell(job, c.at, &events.OperationCompleted{Operation: "webp", Artifact: &events.Artifact{Key: made, Sha256: sum(c.told), Bytes: 7}})
		}
		if c.stored != "" {
			put(raw, c.stored)
			put(made, c.stored)
		}
		if c.gone != nil {
			tell(job, c.at, c.gone)
		}
	}
	tell(events.JobID("test", "nonsense"), now, &events.JobRequested{Source: &events.Source{Key: "raw/nonsense", Sha256: "../../x"}})
	dir := filepath.Join(t.TempDir(), "export")
	var lost []string
	m, err := source.Export(t.Context(), eventlog.Export{Dir: dir, Store: store, Retention: retention, SourceRetention: retention, Progress: silent,
		Lost: func(key, _ string) { lost = append(lost, key) }})
	require.NoError(t, err)
	require.Equal(t, eventlog.ManifestObjects{Stored: 4, Bytes: 28, Expired: 6, Missing: 2, Damaged: 3}, *m.Objects)
	require.Len(t, lost, 5)
	blobs, err := filepath.Glob(filepath.Join(dir, "blobs", "*", "*"))
	require.NoError(t, err)
	require.Equal(t, []string{filepath.Join(dir, "blobs", sum("content")[:2], sum("content"))}, blobs)

	target, other := onEmbedded(t), bucket(t, "pixtools-objects-copy")
	im := eventlog.Import{Dir: dir, Partitions: 1, Prepare: target.prepare(1), WithObjects: true, Store: other, Progress: silent}
	for range 2 {
		_, err = target.Import(t.Context(), im)
		require.NoError(t, err)
	}
	found := 0
	require.NoError(t, other.List(t.Context(), "", func(o blob.Object) error {
		found++
		head, err := other.Head(t.Context(), o.Key)
		require.NoError(t, err)
		require.Equal(t, "image/png", head.ContentType)
		body, err := other.Get(t.Context(), o.Key)
		require.NoError(t, err)
		defer body.Close()
		content, err := io.ReadAll(body)
		require.Equal(t, "content", string(content))
		return err
	}))
	require.Equal(t, 4, found)
}

// TestDeletedMeanwhile: a job that is deleted while its objects are copied is deleted in the copy, and
// what comes with the rest of the log is copied, too.
func TestDeletedMeanwhile(t *testing.T) {
	t.Parallel()
	source, store := onEmbedded(t), bucket(t, "pixtools-deleted-meanwhile")
	require.NoError(t, source.prepare(1)(t.Context()))
	sum := sha256.Sum256([]byte("content"))
	keyOf := func(name string) string {
		return "raw/" + events.JobID("test", name) + "/" + hex.EncodeToString(sum[:])
	}
	tell := func(name string, m proto.Message) {
		r, err := events.New(events.JobID("test", name), time.Now(), "test", "r", m).Record()
		require.NoError(t, err)
		source.produce(r)
	}
	submit := func(name string) {
		require.NoError(t, store.Put(t.Context(), keyOf(name), strings.NewReader("content"), 7, sum, "image/png"))
		tell(name, &events.JobRequested{Source: &events.Source{Key: keyOf(name), Sha256: hex.EncodeToString(sum[:]), Bytes: 7}})
	}
	remove := func(name string) {
		tell(name, &events.JobDeleted{})
		require.NoError(t, store.Delete(t.Context(), keyOf(name)))
	}
	submit("deleted")
	submit("kept")
	submit("lost")
	require.NoError(t, store.Delete(t.Context(), keyOf("lost")))
	did, lost := false, []string(nil)
	dir := filepath.Join(t.TempDir(), "set")
	m, err := source.Export(t.Context(), eventlog.Export{Dir: dir, Store: store, Retention: time.Hour, SourceRetention: time.Hour,
		Lost: func(key, _ string) { lost = append(lost, key) },
		Progress: func(what string, done, total int64) {
			if !did && strings.HasPrefix(what, "exporting "+events.Topic) { // its end is known by now
				did = true
				remove("deleted")
				submit("later")
			}
		}})
	require.NoError(t, err)
	require.True(t, did)
	require.Equal(t, []string{keyOf("lost")}, lost)
	require.Equal(t, eventlog.ManifestObjects{Stored: 2, Bytes: 14, Expired: 1, Missing: 1}, *m.Objects)
	require.EqualValues(t, 5, m.Topics[0].Records)
	require.EqualValues(t, 4, *m.Topics[0].Partitions[0].Last)

	target, other := onEmbedded(t), bucket(t, "pixtools-deleted-meanwhile-copy")
	_, err = target.Import(t.Context(), eventlog.Import{Dir: dir, Partitions: 1, Prepare: target.prepare(1), WithObjects: true, Store: other, Progress: silent})
	require.NoError(t, err)
	want, got := source.all(events.Topic), target.all(events.Topic)
	require.Len(t, got, 4)
	for key := range want {
		require.Len(t, got[key], len(want[key]))
	}
	for _, name := range []string{"kept", "later"} {
		_, err := other.Head(t.Context(), keyOf(name))
		require.NoError(t, err)
	}
}

// TestMergeByTime: partitions come as one sequence, also where one is far ahead of the
// others and has to wait.
func TestMergeByTime(t *testing.T) {
	const partitions, each = 3, 3000
	c := onEmbedded(t)
	require.NoError(t, c.prepare(partitions)(t.Context()))
	var records []*kgo.Record
	for i := range each {
		for p, at := range []int{i, each + i, 2 * i} { // the second begins where the first ends
			records = append(records, &kgo.Record{Topic: events.Topic, Partition: int32(p), Timestamp: began.Add(time.Duration(at) * time.Millisecond),
				Value: bytes.Repeat([]byte("x"), 500)})
		}
	}
	c.produce(records...)
	topic, err := c.Topic(t.Context(), events.Topic)
	require.NoError(t, err)
	var last time.Time
	next := make([]int64, partitions)
	require.NoError(t, c.Read(t.Context(), events.Topic, topic.Ranges, func(r *kgo.Record) error {
		require.False(t, r.Timestamp.Before(last))
		require.Equal(t, next[r.Partition], r.Offset)
		last, next[r.Partition] = r.Timestamp, r.Offset+1
		return nil
	}))
	require.Equal(t, []int64{each, each, each}, next)
}

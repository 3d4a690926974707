package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/handlers"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/processors"
)

// bucket is what is stored, looked at beside the program.
type bucket struct {
	t     *testing.T
	store *blob.Store
}

// config is the program's, with the addresses of its parts, embedded or configured.
func (p *program) config() (cfg config) {
	p.t.Helper()
	variables := map[string]string{}
	for _, variable := range p.env {
		name, value, _ := strings.Cut(variable, "=")
		variables[name] = value
	}
	require.NoError(p.t, env.ParseWithOptions(&cfg, env.Options{Environment: variables}))
	if cfg.Blob.Endpoint == "" {
		cfg = p.reach()
	}
	return cfg
}

func (p *program) bucket() bucket {
	p.t.Helper()
	store, err := blob.New(p.t.Context(), p.config().Blob)
	require.NoError(p.t, err)
	return bucket{p.t, store}
}

func (b bucket) keys() map[string]bool {
	b.t.Helper()
	all := map[string]bool{}
	require.NoError(b.t, b.store.List(within(b.t), "", func(o blob.Object) error {
		all[o.Key] = true
		return nil
	}))
	return all
}

func (b bucket) put(key string, content []byte) string {
	b.t.Helper()
	require.NoError(b.t, b.store.Put(within(b.t), key, bytes.NewReader(content), int64(len(content)), sha256.Sum256(content), "application/octet-stream"))
	return key
}

// below are those of some keys that begin so.
func below(all map[string]bool, prefixes ...string) map[string]bool {
	found := map[string]bool{}
	for key := range all {
		for _, prefix := range prefixes {
			if strings.HasPrefix(key, prefix) {
				found[key] = true
			}
		}
	}
	return found
}

func without(all map[string]bool, gone ...string) map[string]bool {
	left := map[string]bool{}
	for key := range all {
		left[key] = true
	}
	for _, key := range gone {
		delete(left, key)
	}
	return left
}

// settles waits until exactly those objects are stored.
func (b bucket) settles(want map[string]bool) {
	b.t.Helper()
	eventually(b.t, "the objects that are to be there", func() error {
		have := b.keys()
		for key := range have {
			if !want[key] {
				return fmt.Errorf("%s is still there", key)
			}
		}
		if len(have) != len(want) {
			return fmt.Errorf("%d objects, and not %d", len(have), len(want))
		}
		return nil
	})
}

// sweep runs `pixtools janitor`, its clock put forward.
func (p *program) sweep(ahead time.Duration, args ...string) handlers.Tally {
	p.t.Helper()
	out, complaints, status := p.with(aheadVariable + "=" + ahead.String()).command(append([]string{"janitor", "--json"}, args...)...)
	require.Zero(p.t, status, "%s\n%s", out, complaints)
	var told struct{ What handlers.Tally }
	require.NoError(p.t, json.Unmarshal([]byte(out), &told), out)
	return told.What
}

// objects are the counts without the bytes.
func objects(tally handlers.Tally) map[handlers.Why]int64 {
	counts := map[handlers.Why]int64{}
	for why, count := range tally {
		counts[why] = count.Objects
	}
	return counts
}

// remove asks for a job's deletion.
func (p *program) remove(id string) *http.Response {
	p.t.Helper()
	request, err := http.NewRequestWithContext(p.t.Context(), http.MethodDelete, p.base+"/api/jobs/"+id, http.NoBody)
	require.NoError(p.t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(p.t, err)
	response.Body.Close()
	return response
}

const day = 24 * time.Hour

// TestJanitor: what is past its retention, deleted or named by no event is removed, and nothing
// else, object by object; on a server that expires by itself (MinIO) and on one that does not.
func TestJanitor(t *testing.T) {
	for name, variables := range map[string]func(*testing.T) map[string]string{"real": ownKafka, "embedded": embeddedEnv} {
		t.Run(name, func(t *testing.T) {
			e := variables(t)
			e["S3_RETENTION_DAYS"], e["S3_SOURCE_RETENTION_DAYS"] = "10", "20"
			testJanitor(t, run(t, e))
		})
	}
}

func testJanitor(t *testing.T, p *program) {
	content := file("a.png", "image/png", pngOf(t, picture(30, 20)))
	asked := time.Now()
	whole := p.submit(content, field("operations", `["webp","jpg"]`))
	replaced := p.submit(content, field("operations", `["webp"]`))
	deleted := p.submit(content, field("operations", `["webp"]`), field("idempotency_key", "once"))
	first := p.ended(replaced)
	for _, id := range []string{whole, deleted} {
		require.Equal(t, "SUCCEEDED", *p.ended(id).Outcome)
	}
	job := p.ended(whole)
	require.WithinDuration(t, asked.Add(20*day), *job.Source.ExpiresAt, patience)
	require.WithinDuration(t, asked.Add(10*day), *job.OperationResults["webp"].Artifact.ExpiresAt, patience)
	require.WithinDuration(t, asked.Add(day), *job.OperationResults["webp"].Artifact.LinkExpiresAt, patience)
	require.False(t, job.Source.Expired || job.OperationResults["webp"].Artifact.Expired)

	b := p.bucket()
	named := b.keys()
	require.Len(t, named, 3+4)
	// What lies there besides: results of attempts that lost, uploads without an event, what is
	// none of ours; results that reprocessing has made, of a part that is done and of one that is not.
	hash := func(of string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(of))) }
	orphans := []string{b.put("raw/"+uuid.NewString()+"/"+hash("lost"), []byte("x")), b.put("processed/"+whole+"/webp/"+hash("lost")+".webp", []byte("xy"))}
	foreign := map[string]bool{b.put("raw/readme.txt", []byte("x")): true, b.put("processed/"+uuid.NewString()+"/webp.webp", []byte("x")): true}
	made, unfinished := b.put("processed/"+replaced+"/webp/"+hash("made")+".webp", []byte("x")), b.put("processed/"+whole+"/jpg/"+hash("about to be")+".jpg", []byte("x"))
	run := uuid.NewString()
	note := func(name string, of any) string {
		raw, err := json.Marshal(of)
		require.NoError(t, err)
		return b.put("reprocess/"+run+"/"+name, raw)
	}
	notes := []string{note("plan-000000.json", []processors.Item{{JobID: replaced, Before: processors.Version{Key: "processed/" + replaced + "/webp/old.webp"}}}),
		note("plan-000001.json", []processors.Item{{JobID: whole, Before: processors.Version{Key: "processed/" + whole + "/jpg/old.jpg"}}}),
		note("results-000000.json", []processors.Remade{{Fate: processors.FateMade, After: &processors.Version{Key: made}}})}
	// Another result takes the place of one: the event names it, and the old one stays for a while.
	other := []byte("another result")
	sum := fmt.Sprintf("%x", sha256.Sum256(other))
	next := b.put("processed/"+replaced+"/webp/"+sum+".webp", other)
	cfg := p.config()
	appendRecords(t, cfg, events.New(replaced, time.Now(), "pixtools/test", "", &events.ArtifactReplaced{Revision: 1, Operation: "webp",
		Artifact: &events.Artifact{Key: next, Sha256: sum, Bytes: int64(len(other)), Width: 30, Height: 20, Format: "webp"}, ReplacedSha256: first.OperationResults["webp"].Artifact.SHA256, Campaign: "test"}))
	p.shows(replaced, "webp", sum)
	everything := b.keys()
	require.Len(t, everything, len(named)+2+2+2+3+1)

	require.Equal(t, map[handlers.Why]int64{handlers.WhyForeign: 1}, objects(p.sweep(0)), "all else is young")
	require.Equal(t, everything, b.keys())
	require.Equal(t, map[handlers.Why]int64{handlers.WhyForeign: 2, handlers.WhyOrphan: 2}, objects(p.sweep(60*time.Hour, "--dry-run")))
	require.Equal(t, everything, b.keys())
	out, complaints, status := p.with(aheadVariable+"=60h", "JANITOR_MAX_ORPHANS=1").command("janitor")
	require.Equal(t, 1, status, out)
	require.Contains(t, complaints, "JANITOR_MAX_ORPHANS, 1; nothing was removed")
	require.Equal(t, everything, b.keys())
	swept := p.with("JANITOR_MAX_ORPHANS=1", "JANITOR_BATCH=1").sweep(60*time.Hour, "--all-orphans")
	require.Equal(t, handlers.Count{Objects: 2, Bytes: 3}, swept[handlers.WhyOrphan])
	left := without(everything, orphans...)
	require.Equal(t, left, b.keys())

	var problem api.Problem
	response := p.remove(deleted)
	require.Equal(t, http.StatusNoContent, response.StatusCode)
	require.NotEmpty(t, response.Header.Get(api.PositionHeader))
	for _, request := range []struct{ method, path string }{{http.MethodGet, ""}, {http.MethodGet, "/events"}, {http.MethodGet, "/stream"}, {http.MethodGet, "?at=" + time.Now().UTC().Format(time.RFC3339)},
		{http.MethodDelete, ""}, {http.MethodPost, "/cancel"}, {http.MethodPost, "/retry"}} {
		require.Equal(t, http.StatusNotFound, p.ask(request.method, "/api/jobs/"+deleted+request.path, nil, &problem), request)
		require.Equal(t, "Job "+deleted+" not found", problem.Detail, request)
	}
	require.Equal(t, http.StatusNotFound, p.remove(uuid.NewString()).StatusCode)
	var list api.JobPage
	require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/jobs?q="+deleted, nil, &list))
	require.Empty(t, list.Jobs)
	var totals api.JobTotals
	require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/jobs/totals", nil, &totals))
	require.EqualValues(t, 2, totals.Jobs)
	for _, op := range []string{"webp", "jpg"} {
		refused, body, err := p.post(nil, content, field("operations", `["`+op+`"]`), field("idempotency_key", "once"))
		require.NoError(t, err)
		require.Equal(t, http.StatusUnprocessableEntity, refused.StatusCode)
		require.Contains(t, string(body), "the job of this idempotency_key was deleted", op)
	}
	for key := range below(left, "raw/"+deleted, "processed/"+deleted) {
		left = without(left, key)
	}
	b.settles(left)

	late := 10*day + patience
	due := p.sweep(late, "--dry-run")
	require.EqualValues(t, 3, due[handlers.WhyResult].Objects, "%v", due)
	require.Zero(t, due[handlers.WhySource].Objects)
	p.sweep(late)
	gone := []string{next}
	for key := range below(named, "processed/"+whole) {
		gone = append(gone, key)
	}
	left = without(left, gone...)
	b.settles(left)
	eventually(t, "the job without results", func() error {
		if job = p.ended(whole); len(job.ResultURLs) > 0 {
			return fmt.Errorf("%v", job.ResultURLs)
		}
		return nil
	})
	require.True(t, job.OperationResults["webp"].Artifact.Expired)
	require.False(t, job.Source.Expired)
	require.NotEmpty(t, job.Source.URL)

	// Its notes and what was replaced go a day later, as with a server that does it at midnight;
	// and what the notes were of, with the next pass.
	p.sweep(late + day)
	for key := range below(named, "processed/"+replaced) {
		gone = append(gone, key)
	}
	left = without(left, append(gone, notes...)...)
	b.settles(left)
	p.sweep(late + day)
	left = without(left, made, unfinished)
	b.settles(left)

	swept = p.sweep(20*day + patience)
	require.EqualValues(t, 2, swept[handlers.WhySource].Objects, "%v", swept)
	b.settles(foreign)
	upload := b.put("uploads/"+uuid.NewString(), []byte("a client stored it"))
	require.Empty(t, below(without(b.keys(), upload), "uploads/"))
	require.Zero(t, p.sweep(day - patience)[handlers.WhyUpload].Objects)
	require.Contains(t, b.keys(), upload)
	require.Equal(t, handlers.Count{Objects: 1, Bytes: 18}, p.sweep(day + patience)[handlers.WhyUpload])
	b.settles(foreign)
	eventually(t, "expired sources", func() error {
		if job = p.ended(replaced); !job.Source.Expired || job.Source.URL != "" {
			return fmt.Errorf("%+v", job.Source)
		}
		return nil
	})
	require.Equal(t, http.StatusConflict, p.ask(http.MethodPost, "/api/jobs/"+whole+"/retry", "{}", &problem))
	require.Contains(t, problem.Detail, "source has expired")
	verified := p.verify(0)
	require.Zero(t, verified.summary.Objects.Missing)
	require.Zero(t, verified.summary.Objects.Intact)
	require.Contains(t, p.replayed("--diff"), "0 changed (~), 0 added (+), 0 missing (-)")
	require.Equal(t, map[handlers.Why]int64{handlers.WhyForeign: 2}, objects(p.sweep(40*day)), "nothing is left to do")
}

// TestJanitorKilled: kill -9 in the middle of removing what was deleted, and of letting expire;
// the next one goes on, and in the end exactly what is kept is there.
func TestJanitorKilled(t *testing.T) {
	variables := ownKafka(t)
	variables["JANITOR_INTERVAL"], variables["KAFKA_CONSUMER_SESSION_TIMEOUT"] = "1s", "6s"
	p := run(t, variables, "--roles=api,convert,saga,projector")
	content := file("a.png", "image/png", pngOf(t, picture(30, 20)))
	const kept, deleted = 12, 24
	var ids []string
	for range kept + deleted {
		ids = append(ids, p.submit(content, field("operations", `["webp"]`)))
	}
	for _, id := range ids {
		require.Equal(t, "SUCCEEDED", *p.ended(id).Outcome)
	}
	b := p.bucket()
	everything := b.keys()
	require.Len(t, everything, 2*(kept+deleted))
	for _, id := range ids[kept:] {
		require.Equal(t, http.StatusNoContent, p.remove(id).StatusCode)
	}
	left := map[string]bool{}
	for _, id := range ids[:kept] {
		for key := range below(everything, "raw/"+id, "processed/"+id) {
			left[key] = true
		}
	}
	require.Equal(t, everything, b.keys(), "no janitor runs")

	// killed runs a janitor that is slow and kills it when some of the objects are gone.
	killed := func(variables ...string) {
		before := len(b.keys())
		j := prepare(t, nil, "--roles=janitor")
		j.env = append(append(j.env, p.env...), append(variables, "JANITOR_RATE=4")...)
		j.start()
		eventually(t, "some are gone", func() error {
			if len(b.keys()) == before {
				return fmt.Errorf("%d", before)
			}
			return nil
		})
		j.kill()
		require.Less(t, len(left), len(b.keys()), "it was killed too late")
	}
	finish := func(variables ...string) *program {
		j := prepare(t, nil, "--roles=janitor")
		j.env = append(append(j.env, p.env...), append(variables, "JANITOR_RATE=10000")...)
		j.start()
		b.settles(left)
		return j
	}
	killed()
	finish().kill()
	left = map[string]bool{}
	killed(aheadVariable + "=744h")
	finish(aheadVariable + "=744h").kill()
	for _, id := range ids[:kept] {
		eventually(t, "the job knows", func() error {
			if job := p.ended(id); !job.Source.Expired || !job.OperationResults["webp"].Artifact.Expired {
				return fmt.Errorf("%+v", job)
			}
			return nil
		})
	}
	require.Zero(t, p.verify(0).summary.Objects.Missing)
}

// TestOpenJobsAreKept: an open job is not deleted, and nothing of it expires or is an orphan.
func TestOpenJobsAreKept(t *testing.T) {
	p := run(t, embeddedEnv(t), "--roles=api,saga,projector,janitor") // nobody works
	id := p.submit(file("a.png", "image/png", pngOf(t, picture(30, 20))), field("operations", `["webp"]`))
	b := p.bucket()
	b.put(fmt.Sprintf("processed/%s/webp/%x.webp", id, sha256.Sum256(nil)), []byte("x"))
	everything := b.keys()
	require.Len(t, everything, 2)
	require.Equal(t, http.StatusConflict, p.remove(id).StatusCode)
	require.Empty(t, p.sweep(100*day))
	require.Equal(t, everything, b.keys())
	require.Equal(t, http.StatusAccepted, p.cancel(id).StatusCode)
	require.Equal(t, "CANCELLED", *p.ended(id).Outcome)
	out, err := p.tool("job", "delete", id)
	require.NoError(t, err, out)
	require.Contains(t, out, "deleted")
	b.settles(map[string]bool{})
}

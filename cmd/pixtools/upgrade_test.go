package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/testenv"
	"github.com/pixtools/pixtools/projections"
)

// upgraders are clients that go on while versions change. Each submits a picture, waits for its
// end, and begins again. Any answer but the one it wants is a fault.
type upgraders struct {
	content []byte
	service *program // what stands before the processes

	mu     sync.Mutex
	jobs   []string
	faults []error
}

// one is a job from its submission to its end.
func (u *upgraders) one() error {
	response, body, err := u.service.post(nil, file("a.png", "image/png", u.content), field("operations", `["webp"]`))
	if err != nil {
		return err
	}
	var accepted api.Accepted
	if response.StatusCode != http.StatusAccepted {
		return fmt.Errorf("a submission was answered %s: %s", response.Status, body)
	}
	if err := json.Unmarshal(body, &accepted); err != nil {
		return err
	}
	u.mu.Lock()
	u.jobs = append(u.jobs, accepted.JobID)
	u.mu.Unlock()
	for deadline := time.Now().Add(patience); ; {
		job, err := u.service.job(accepted.JobID)
		switch {
		case err != nil:
			return err
		case job.Outcome != nil && *job.Outcome == "SUCCEEDED":
			return nil
		case job.Outcome != nil || time.Now().After(deadline):
			return fmt.Errorf("job %s: %+v", accepted.JobID, job)
		}
	}
}

// begin has so many clients work until stop is called, which waits for what they have begun.
func (u *upgraders) begin(clients int) (stop func()) {
	enough := make(chan struct{})
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for {
				select {
				case <-enough:
					return
				case <-time.After(50 * time.Millisecond): // the pace of the load
				}
				if err := u.one(); err != nil {
					u.mu.Lock()
					u.faults = append(u.faults, err)
					u.mu.Unlock()
				}
			}
		})
	}
	return sync.OnceFunc(func() {
		close(enough)
		all.Wait()
	})
}

// TestNextVersion replaces this version by the next one under load, process by process, and goes
// back the same way. Between, both are at work on one log, one read model and one changelog.
func TestNextVersion(t *testing.T) {
	t.Parallel()
	next := nextVersion(t)
	cluster, err := testenv.StartKafka("", 1)
	require.NoError(t, err)
	t.Cleanup(cluster.Stop)
	shared := realEnvOn(t, cluster.Brokers())
	shared["DRAIN_DELAY"] = drainDelay.String()
	shared["KAFKA_CONSUMER_SESSION_TIMEOUT"], shared["KAFKA_CONSUMER_HEARTBEAT_INTERVAL"] = "6s", "300ms" // members hear soon of hand-overs
	begin := func(instance, roles string) *program {
		variables := maps.Clone(shared)
		variables["PRIVATE_ADDR"], variables["INSTANCE_ID"] = "127.0.0.1:"+freePort(t), instance
		p := prepare(t, variables, "--roles="+roles)
		p.start()
		return p
	}
	all := []*program{begin("one", "api,projector"), begin("two", "api,projector"), begin("three", "saga,convert,webhooks,janitor")}
	first := all[0]
	for _, p := range all {
		p.ready()
	}
	pool, err := pgxpool.New(t.Context(), strings.Replace(shared["DATABASE_URL"], "postgresql+asyncpg://", "postgres://", 1))
	require.NoError(t, err)
	defer pool.Close()
	count := func(what string) (n int) {
		require.NoError(t, pool.QueryRow(within(t), "SELECT count(*) FROM "+projections.Schema+"."+what).Scan(&n))
		return n
	}
	before := newBalancer(t, all[0].base, all[1].base)
	for _, p := range all[:2] {
		before.wait(t, p.base)
	}
	replace := func(p *program, by string) {
		require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
		require.NoError(t, p.cmd.Wait(), "it ends in order, whatever the other version has written:\n%s", p.log)
		p.binary = by
		p.start()
		p.ready()
		before.wait(t, p.base)
	}
	load := &upgraders{content: pngOf(t, picture(40, 30)), service: &program{t: t, base: before.URL}}

	stop := load.begin(2)
	defer stop()
	replace(all[0], next)
	// The projector of this version, which is there still, meets what it does not know.
	eventually(t, "something passed over", func() error {
		if count("passed_over") == 0 {
			return errors.New("nothing yet")
		}
		return nil
	})
	for _, p := range all[1:] {
		replace(p, next)
	}
	stop()
	require.Empty(t, load.faults)
	require.Empty(t, before.found())
	upgraded := len(load.jobs)
	eventually(t, "all that was passed over is taken in", func() error {
		if n := count("passed_over"); n > 0 {
			return fmt.Errorf("%d notes are left", n)
		}
		return nil
	})
	require.Empty(t, first.verify(0).findings, "of the next version")
	require.NotZero(t, count("jobs WHERE noted = '/'"), "jobs of this version")
	require.NotZero(t, count("jobs WHERE noted = 'noted at once/noted later'"), "jobs of the next version")
	require.Zero(t, count("jobs WHERE noted NOT IN ('/', 'noted at once/noted later')"))

	stop = load.begin(2)
	defer stop()
	for _, p := range all {
		replace(p, "")
	}
	stop()
	require.Empty(t, load.faults)
	require.Empty(t, before.found())
	require.Greater(t, len(load.jobs), upgraded)
	verified := first.verify(0)
	require.Empty(t, verified.findings, "of this version, again")
	require.EqualValues(t, len(load.jobs), verified.summary.Jobs, "none is lost, and none is there twice")
	require.NotZero(t, verified.summary.Unknown)

	// What it does not know it leaves as it is, in states and in the log, and shows the rest.
	var id string
	var raw []byte
	require.NoError(t, pool.QueryRow(within(t), "SELECT job_id::text, state FROM "+projections.Schema+".jobs WHERE noted = 'noted at once/noted later' ORDER BY updated_at DESC LIMIT 1").Scan(&id, &raw))
	var state events.Job
	require.NoError(t, proto.Unmarshal(raw, &state))
	require.NotEmpty(t, state.ProtoReflect().GetUnknown())
	response, err := http.Get(first.base + "/api/jobs/" + id + "/events")
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode)
	// Had the next version left tables that this one cannot work on, it would say so and end.
	_, err = pool.Exec(within(t), "UPDATE "+projections.Schema+".fits SET since = 1000000")
	require.NoError(t, err)
	late := begin("late", "projector")
	require.Error(t, late.over())
	require.Contains(t, late.log.String(), "they ask for migration 1000000")
	require.Contains(t, late.log.String(), "pixtools replay --promote")
}

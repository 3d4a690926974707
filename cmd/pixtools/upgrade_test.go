package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	"github.com/pixtools/pixtools/projections"
)

// upgraders are clients that go on while versions change. Each submits a picture, waits for its
// end, and begins again. It sends to a process with the role api that is ready, as a load
// balancer does, and takes another where nobody takes its connection, or it is cut off: under
// its idempotency key, that is the same job. Any answer but the one it wants is a fault.
type upgraders struct {
	content []byte
	apis    []*program
	client  http.Client

	mu     sync.Mutex
	jobs   []string
	faults []error
	turn   int
}

// ask sends a request to one after the other until one answers it.
func (u *upgraders) ask(ctx context.Context, make func(p *program) (*http.Request, error)) (status int, body []byte, err error) {
	for {
		u.mu.Lock()
		u.turn++
		p := u.apis[u.turn%len(u.apis)]
		u.mu.Unlock()
		request, err := make(p)
		if err != nil {
			return 0, nil, err
		}
		if status, body, err = u.send(ctx, p, request); err == nil {
			return status, body, nil
		}
		select {
		case <-ctx.Done():
			return 0, nil, errors.Join(ctx.Err(), err)
		case <-time.After(20 * time.Millisecond): // nobody took it: the next one may
		}
	}
}

// send is one try. What was not read to its end is no answer.
func (u *upgraders) send(ctx context.Context, p *program, request *http.Request) (int, []byte, error) {
	if status, _, err := p.private("/readyz"); err != nil || status != http.StatusOK {
		return 0, nil, errors.Join(errors.New("it is not ready"), err)
	}
	response, err := u.client.Do(request.WithContext(ctx))
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, body, err
}

// one is a job from its submission to its end.
func (u *upgraders) one(ctx context.Context, key string) error {
	status, body, err := u.ask(ctx, func(p *program) (*http.Request, error) {
		return p.form(file("a.png", "image/png", u.content), field("operations", `["webp"]`), field("idempotency_key", key))
	})
	if err != nil {
		return err
	}
	var accepted api.Accepted
	if status != http.StatusAccepted {
		return fmt.Errorf("a submission was answered %d: %s", status, body)
	}
	if err := json.Unmarshal(body, &accepted); err != nil {
		return err
	}
	u.mu.Lock()
	u.jobs = append(u.jobs, accepted.JobID)
	u.mu.Unlock()
	for {
		status, body, err := u.ask(ctx, func(p *program) (*http.Request, error) {
			return http.NewRequest(http.MethodGet, p.base+"/api/jobs/"+accepted.JobID+"?wait=1", http.NoBody)
		})
		if err != nil {
			return err
		}
		var job api.Job
		if status != http.StatusOK {
			return fmt.Errorf("job %s was answered %d: %s", accepted.JobID, status, body)
		}
		if err := json.Unmarshal(body, &job); err != nil {
			return err
		}
		switch {
		case job.Outcome == nil:
		case *job.Outcome != "SUCCEEDED":
			return fmt.Errorf("job %s: %s", accepted.JobID, body)
		default:
			return nil
		}
	}
}

// begin has so many clients work until stop is called, which waits for what they have begun.
func (u *upgraders) begin(ctx context.Context, name string, clients int) (stop func()) {
	enough := make(chan struct{})
	var all sync.WaitGroup
	for c := range clients {
		all.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-enough:
					return
				case <-ctx.Done():
					return
				case <-time.After(50 * time.Millisecond): // the pace of the load
				}
				if err := u.one(ctx, fmt.Sprintf("%s-%d-%d", name, c, n)); err != nil {
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
	shared := ownKafka(t)
	// Redis has been up for long, and nobody's patience depends on how busy this machine is.
	shared["IDEMPOTENCY_SETTLE"], shared["READ_WAIT_TIMEOUT"] = "100ms", "30s"
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
	replace := func(p *program, by string) {
		require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
		require.NoError(t, p.cmd.Wait(), "it ends in order, whatever the other version has written:\n%s", p.log)
		p.binary = by
		p.start()
		p.ready()
	}
	load := &upgraders{content: pngOf(t, picture(40, 30)), apis: all[:2], client: http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()

	stop := load.begin(ctx, "up", 2)
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

	stop = load.begin(ctx, "down", 2)
	defer stop()
	for _, p := range all {
		replace(p, "")
	}
	stop()
	require.Empty(t, load.faults)
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
	require.Error(t, late.cmd.Wait())
	require.Contains(t, late.log.String(), "they ask for migration 1000000")
	require.Contains(t, late.log.String(), "pixtools replay --promote")
}

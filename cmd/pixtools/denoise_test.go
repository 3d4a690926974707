package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"iter"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/models"
)

// grainy is picture with noise of a standard deviation in steps of 8 bits.
func grainy(width, height int, sigma float64) image.Image {
	random := rand.New(rand.NewPCG(5, 6))
	m := picture(width, height).(*image.NRGBA)
	for i := range m.Pix {
		if i%4 != 3 {
			m.Pix[i] = uint8(min(max(math.Round(float64(m.Pix[i])+sigma*random.NormFloat64()), 0), 255))
		}
	}
	return m
}

// likeness is the PSNR against picture, in decibels.
func likeness(m image.Image) float64 {
	size, sum := m.Bounds(), 0.0
	want := picture(size.Dx(), size.Dy())
	for y := range size.Dy() {
		for x := range size.Dx() {
			a, b := color.NRGBAModel.Convert(m.At(x, y)).(color.NRGBA), want.At(x, y).(color.NRGBA)
			for _, d := range []float64{float64(a.R) - float64(b.R), float64(a.G) - float64(b.G), float64(a.B) - float64(b.B)} {
				sum += d * d
			}
		}
	}
	return 10 * math.Log10(255*255*float64(size.Dx()*size.Dy()*3)/sum)
}

// TestDenoise: of ["webp","denoise"], webp is served while denoise still runs and tells
// how far it is; then the denoised picture is, and the log says which model made it.
func TestDenoise(t *testing.T) {
	variables := embeddedEnv(t)
	kafkaPort := freePort(t)
	variables["PIXTOOLS_EMBEDDED_KAFKA_PORT"] = kafkaPort
	// Many tiles, one at a time, so that there is progress to see, long after webp is done.
	variables["DENOISE_TILE"], variables["DENOISE_THREADS"] = "256", "1"
	p := run(t, variables)
	noisy := grainy(1100, 800, 25)
	id := p.submit(file("night.png", "image/png", pngOf(t, noisy)), field("operations", `["webp","denoise"]`))

	var between api.Job
	eventually(t, "webp, and progress of denoise", func() error {
		job, err := p.now(id)
		if err != nil {
			return err
		}
		denoise := job.OperationResults["denoise"]
		require.NotEqual(t, "COMPLETED", denoise.State, "denoise was done before webp, or told nothing; progress seen: %v", between.OperationResults)
		between = job
		if job.ResultURLs["webp"] == "" || denoise.State != "RUNNING" || denoise.Progress == 0 {
			return fmt.Errorf("%+v", job.OperationResults)
		}
		return nil
	})
	require.Nil(t, between.Outcome)
	require.Less(t, between.OperationResults["denoise"].Progress, 1.0)
	early, _ := fetch(t, between.ResultURLs["webp"])
	require.NotEmpty(t, early)

	job := p.ended(id)
	require.Equal(t, "COMPLETED", job.Status)
	require.Equal(t, 1.0, job.OperationResults["denoise"].Progress)
	made, name := fetch(t, job.ResultURLs["denoise"])
	require.Contains(t, name, "pixtools_denoise_night.png")
	decoded, err := png.Decode(bytes.NewReader(made))
	require.NoError(t, err)
	require.Equal(t, noisy.Bounds(), decoded.Bounds())
	require.Greater(t, likeness(decoded), likeness(noisy)+6)

	model, err := models.Load("")
	require.NoError(t, err)
	for e := range logged(t, "127.0.0.1:"+kafkaPort, 1) {
		done, ok := e.Message.(*events.OperationCompleted)
		switch {
		case ok && done.GetOperation() == "denoise":
			require.Equal(t, model.SHA256, done.GetModelSha256())
			require.Contains(t, done.GetEngine(), "onnxruntime 1.")
			require.Contains(t, done.GetEngine(), "libvips 8.")
		case ok:
			require.Empty(t, done.GetModelSha256())
			require.NotContains(t, done.GetEngine(), "onnxruntime")
		}
	}
}

// now is the job as it is, without waiting for its end.
func (p *program) now(id string) (api.Job, error) {
	var job api.Job
	response, err := http.Get(p.base + "/api/jobs/" + id)
	if err != nil {
		return job, err
	}
	defer response.Body.Close()
	err = json.NewDecoder(response.Body).Decode(&job)
	return job, err
}

// logged reads the log until so many jobs have ended.
func logged(t *testing.T, broker string, jobs int) iter.Seq[events.Event] {
	client, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.ConsumeTopics(events.Topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	t.Cleanup(client.Close)
	ctx := within(t)
	return func(yield func(events.Event) bool) {
		for jobs > 0 {
			fetches := client.PollFetches(ctx)
			require.NoError(t, fetches.Err0())
			for r := range fetches.RecordsAll() {
				e, err := events.Decode(r)
				require.NoError(t, err)
				if _, ok := e.Message.(*events.JobFinalized); ok {
					jobs--
				}
				if !yield(e) {
					return
				}
			}
		}
	}
}

// TestDenoiseJobsTakeTurns: an attempt begins when the one child is free, not before: else
// it would count, and run out of time, while it waits. The one before may still be on its
// way into the store.
func TestDenoiseJobsTakeTurns(t *testing.T) {
	variables := embeddedEnv(t)
	kafkaPort := freePort(t)
	variables["PIXTOOLS_EMBEDDED_KAFKA_PORT"] = kafkaPort
	p := run(t, variables)
	const jobs = 4
	for range jobs {
		p.submit(file("a.png", "image/png", pngOf(t, grainy(200, 200, 25))), field("operations", `["denoise"]`))
	}
	type attempt struct{ from, to time.Time }
	attempts := map[string]attempt{}
	for e := range logged(t, "127.0.0.1:"+kafkaPort, jobs) {
		a := attempts[e.JobID]
		switch e.Message.(type) {
		case *events.OperationStarted:
			a.from = e.Time
		case *events.OperationCompleted:
			a.to = e.Time
		}
		attempts[e.JobID] = a
	}
	require.Len(t, attempts, jobs)
	inOrder := slices.SortedFunc(maps.Values(attempts), func(a, b attempt) int { return a.from.Compare(b.from) })
	for i, a := range inOrder {
		require.False(t, a.to.IsZero())
		if i >= 2 {
			first := inOrder[i-2].to
			if inOrder[i-1].to.Before(first) {
				first = inOrder[i-1].to
			}
			require.False(t, a.from.Before(first), "attempt %d began while two were under way", i)
		}
	}
}

// TestDenoiseSurvivesRebalances: workers come and go while pictures are in work. Each is
// worked on once, since a hand-over waits for it.
func TestDenoiseSurvivesRebalances(t *testing.T) {
	variables := realEnv(t)
	variables["DENOISE_TILE"], variables["DENOISE_THREADS"] = "256", "1"
	variables["DENOISE_CONCURRENCY"] = "4" // so that some of what moves is in work
	// How long a stop waits is not asked here: on a busy machine a picture takes longer than by default.
	variables["KAFKA_CONSUMER_CLOSE_TIMEOUT"], variables["STOP_TIMEOUT"] = "2m", "3m"
	p := run(t, variables)
	const jobs = 16
	var ids []string
	for i := range jobs {
		ids = append(ids, p.submit(file("a.png", "image/png", pngOf(t, grainy(500+i, 400, 25))), field("operations", `["denoise"]`)))
	}
	p.ended(ids[0]) // the work has begun
	for range 2 {
		other := prepare(t, variables, "--roles=ml")
		other.start()
		eventually(t, "partitions at a second member of the group", func() error {
			if n := ownersIn(t, variables["KAFKA_BROKERS"], events.OperationGroup+"denoise"); n != 2 {
				return fmt.Errorf("%d members have partitions", n)
			}
			return nil
		})
		require.NoError(t, other.cmd.Process.Signal(os.Interrupt))
		require.NoError(t, other.cmd.Wait())
	}
	for _, id := range ids {
		job := p.ended(id)
		require.Equal(t, "COMPLETED", job.Status)
		require.EqualValues(t, 1, job.OperationResults["denoise"].Attempt)
	}
}

// ownersIn counts the members of a group that have partitions.
func ownersIn(t *testing.T, brokers, group string) int {
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(brokers, ",")...))
	require.NoError(t, err)
	defer client.Close()
	groups, err := kadm.NewClient(client).DescribeGroups(within(t), group)
	require.NoError(t, err)
	owners := 0
	for _, member := range groups[group].Members {
		if assigned, ok := member.Assigned.AsConsumer(); ok && len(assigned.Topics) > 0 {
			owners++
		}
	}
	return owners
}

// TestDenoiseSurvivesItsChild: one that is killed at work costs an attempt, and no more.
func TestDenoiseSurvivesItsChild(t *testing.T) {
	variables := embeddedEnv(t)
	variables["DENOISE_TILE"], variables["DENOISE_THREADS"] = "256", "1"
	p := run(t, variables, "--roles=api,ml,saga,projector")
	id := p.submit(file("a.png", "image/png", pngOf(t, grainy(500, 400, 25))), field("operations", `["denoise"]`))
	eventually(t, "progress", func() error {
		job, err := p.now(id)
		if err == nil && job.OperationResults["denoise"].Progress == 0 {
			err = errors.New("none yet")
		}
		return err
	})
	p.killEngines()
	job := p.ended(id)
	require.Equal(t, "COMPLETED", job.Status)
	require.EqualValues(t, 2, job.OperationResults["denoise"].Attempt)
}

// TestModelIsCheckedAtStart: a model that is not what its description says is refused
// before anything is started, and only by those who would use it.
func TestModelIsCheckedAtStart(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"denoise.onnx", "model.json"} {
		content, err := os.ReadFile("../../models/" + name)
		require.NoError(t, err)
		if name == "denoise.onnx" {
			content[len(content)/2] ^= 1
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
	}
	for fault, variables := range map[string]map[string]string{
		"SHA-256":              {"DENOISE_MODEL": dir},
		"DENOISE_MODEL":        {"DENOISE_MODEL": filepath.Join(dir, "absent")},
		"DENOISE_TILE is 64: ": {"DENOISE_TILE": "64"},
		"DENOISE_NICE is 20":   {"DENOISE_NICE": "20"},
	} {
		p := prepare(t, variables)
		p.start()
		overdue := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
		require.Error(t, p.cmd.Wait(), fault)
		overdue.Stop()
		require.Contains(t, p.log.String(), fault)
	}
	variables := embeddedEnv(t)
	variables["DENOISE_MODEL"] = dir
	run(t, variables, "--roles=api,convert,saga,projector")
}

// killEngines kills the children that are at pictures, or wait for some.
func (p *program) killEngines() {
	for _, pid := range descendants(p.cmd.Process.Pid) {
		if command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); bytes.HasPrefix(command, []byte("pixtools-engine")) {
			if child, err := os.FindProcess(pid); err == nil {
				_ = child.Kill() // it may have ended by itself
			}
		}
	}
}

// TestGivesUpAfterFailedAttempts: a picture whose every attempt ends with its child is not
// tried for ever, and the job says why.
func TestGivesUpAfterFailedAttempts(t *testing.T) {
	variables := embeddedEnv(t)
	variables["DENOISE_TILE"], variables["DENOISE_THREADS"] = "216", "1" // slow enough to be found at work
	p := run(t, variables, "--roles=api,ml,saga,projector")
	id := p.submit(file("a.png", "image/png", pngOf(t, picture(3000, 2000))), field("operations", `["denoise"]`))
	var job api.Job
	eventually(t, "the job's end", func() error {
		p.killEngines()
		var err error
		if job, err = p.now(id); err == nil && job.Outcome == nil {
			err = fmt.Errorf("%+v", job.OperationResults)
		}
		return err
	})
	require.Equal(t, "FAILED", *job.Outcome)
	require.Equal(t, "INTERNAL", job.OperationResults["denoise"].Error.Kind)
	require.Equal(t, "attempts_used_up", job.OperationResults["denoise"].Error.Code)
	require.EqualValues(t, 3, job.OperationResults["denoise"].Attempt)
}

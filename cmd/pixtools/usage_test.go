package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/internal/testenv"
)

// TestUsageCommand: what was used is shown, by the API and the tool, and audited against the log.
func TestUsageCommand(t *testing.T) {
	variables := embeddedEnv(t)
	database := testenv.Postgres(t)
	variables["DATABASE_URL"], variables["USAGE_MAX_DAYS"] = database, "10"
	p := run(t, variables)
	good, broken := pngOf(t, picture(300, 200)), jpegOf(t, picture(300, 200))
	broken = broken[:len(broken)/2]
	before := time.Now().UTC().Format(time.DateOnly)
	failed := p.submit(file("a.jpg", "image/jpeg", broken), field("operations", `["webp"]`))
	id := p.submit(file("a.png", "image/png", good), field("operations", `["jpg","webp"]`))
	p.ended(failed)
	require.Equal(t, http.StatusAccepted, p.ask(http.MethodPost, "/api/jobs/"+failed+"/retry", nil, &api.Retried{}))
	p.endedIn(failed, 2)
	job := p.ended(id)
	days := "from=" + before + "&to=" + time.Now().UTC().Format(time.DateOnly) // two, around midnight

	var usage api.Usage
	require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/usage?group=operation&"+days, nil, &usage))
	require.Len(t, usage.Usage, 2)
	for i, want := range []struct {
		operation string
		used      api.Used
	}{
		{"jpg", api.Used{Operations: 1, InputBytes: int64(len(good)), OutputBytes: job.OperationResults["jpg"].Artifact.Bytes}},
		{"webp", api.Used{Operations: 3, Failures: 2, InputBytes: int64(len(good) + 2*len(broken)), OutputBytes: job.OperationResults["webp"].Artifact.Bytes}},
	} {
		row := usage.Usage[i]
		require.Nil(t, row.Day)
		require.Equal(t, want.operation, *row.Operation)
		require.Positive(t, row.CPUSeconds)
		row.CPUSeconds = 0
		require.Equal(t, want.used, row.Used)
	}
	require.EqualValues(t, 4, usage.Total.Operations)
	for query, rows := range map[string]int{"group=total&" + days: 1, "operation=jpg&group=operation&" + days: 1, "operation=avif&" + days: 0, "from=2020-01-01&to=2020-01-10": 0} {
		require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/usage?"+query, nil, &usage))
		require.Len(t, usage.Usage, rows, query)
	}
	for query, field := range map[string]string{
		"to=2020-01-01": "from", "from=2020-01-01": "to", "from=2020-1-1&to=2020-01-01": "from", "from=2020-01-02&to=2020-01-01": "to", "from=2020-01-01&to=2020-01-11": "to",
		"group=hour&" + days: "group", "operation=gif&" + days: "operation", "day=1&" + days: "day", "after=x&" + days: "after", "to=2020-01-01&" + days: "to",
	} {
		var problem api.Problem
		require.Equal(t, http.StatusUnprocessableEntity, p.ask(http.MethodGet, "/api/usage?"+query, nil, &problem), query)
		require.Equal(t, field, problem.Errors[0].Field, query)
		require.True(t, query != "from=2020-01-01&to=2020-01-11" || strings.Contains(problem.Detail, "10 days (USAGE_MAX_DAYS)"))
	}

	out, err := p.tool("usage", "--from", before, "--group", "operation")
	require.NoError(t, err, out)
	require.Regexp(t, `(?s)^DAY +OPERATION.*\n- +jpg +1 +0 .*\n- +webp +3 +2 .*\ntotal +4 +2 `, out)
	out, err = p.tool("usage", "--json", "--from", before)
	require.NoError(t, err, out)
	require.NoError(t, json.Unmarshal([]byte(out), &usage))
	require.EqualValues(t, 4, usage.Total.Operations)
	out, err = p.tool("usage")
	require.ErrorContains(t, err, "exit status 1", "30 days are more than this one has")
	require.Contains(t, out, "USAGE_MAX_DAYS")

	out, complaints, status := p.command("usage", "--audit")
	require.Zero(t, status, complaints)
	require.Contains(t, out, " 0 rows of usage differ")
	conn, err := pgx.Connect(within(t), database)
	require.NoError(t, err)
	defer conn.Close(within(t))
	_, err = conn.Exec(within(t), "UPDATE pixtools_read.usage SET failures = failures + 1 WHERE operation = 'jpg'")
	require.NoError(t, err)
	out, complaints, status = p.command("usage", "--audit")
	require.Equal(t, 1, status, complaints)
	require.Contains(t, complaints, "the live usage is not that of the log")
	require.Contains(t, out, "jpg of default\n    failures: 1 -> 0\n")
	require.Contains(t, out, " 1 rows of usage differ")
	found := p.verify(1).findings
	require.Len(t, found, 1)
	require.Contains(t, found[0].Message, "failures is 1, should be 0")
	out, err = p.replay("--diff", "--promote")
	require.NoError(t, err, out)
	require.Contains(t, out, "1 rows of usage differ")
	_, complaints, status = p.command("usage", "--audit")
	require.Zero(t, status, complaints)
}

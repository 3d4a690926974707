package main

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/events"
)

// pages reads a list to its end.
func (p *program) pages(query string) (ids []string) {
	p.t.Helper()
	for cursor := ""; ; {
		require.Less(p.t, len(ids), 100, "a page brings what another has brought")
		var page api.JobPage
		require.Equal(p.t, http.StatusOK, p.ask(http.MethodGet, "/api/jobs?"+query+"&cursor="+cursor, nil, &page), query)
		for _, job := range page.Jobs {
			ids = append(ids, job.JobID)
		}
		if page.Next == nil {
			return ids
		}
		cursor = *page.Next
	}
}

// TestListJobs: what was submitted is listed, picked and counted; a wrong question is told what is wrong with it.
func TestListJobs(t *testing.T) {
	variables := embeddedEnv(t)
	variables["LIST_MAX_JOBS"] = "3"
	p := run(t, variables)
	good := pngOf(t, picture(30, 20))
	broken := jpegOf(t, picture(300, 200))
	var ids []string // the newest first
	add := func(id string) { ids = append([]string{id}, ids...) }
	add(p.submit(file("a.jpg", "image/jpeg", broken[:len(broken)/2]), field("operations", `["webp"]`)))
	for _, ops := range []string{`["webp"]`, `["jpg","webp"]`, `["jpg"]`} {
		add(p.submit(file("a.png", "image/png", good), field("operations", ops)))
	}
	for _, id := range ids {
		p.ended(id)
	}
	// Right after its submission, with its position, a job is in the list.
	response, _, err := p.post(nil, file("a.png", "image/png", good), field("operations", `["avif"]`))
	require.NoError(t, err)
	var page api.JobPage
	require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/jobs?limit=1&after="+response.Header.Get(api.PositionHeader), nil, &page))
	require.Equal(t, []string{"avif"}, page.Jobs[0].Operations)
	require.NotNil(t, page.Next)
	add(page.Jobs[0].JobID)
	p.ended(ids[0])

	for _, query := range []string{"limit=1", "limit=2", "limit=3", ""} {
		require.Equal(t, ids, p.pages(query), query)
	}
	require.Equal(t, []string{ids[2], ids[3], ids[4]}, p.pages("operation=webp"))
	require.Equal(t, ids[4:], p.pages("status=FAILED"))
	require.Equal(t, ids[:4], p.pages("status=COMPLETED&outcome=SUCCEEDED,PARTIAL"))
	require.Empty(t, p.pages("status=PENDING,PROCESSING,COMPLETED_WEBHOOK_FAILED"))
	require.Equal(t, []string{ids[1]}, p.pages("q="+ids[1]))
	require.Equal(t, ids, p.pages("q="+strings.ToUpper(ids[1][:3])), "ids of one day begin alike")
	third, err := p.job(ids[2])
	require.NoError(t, err)
	at := url.QueryEscape(third.CreatedAt.Format("2006-01-02T15:04:05.999999Z07:00"))
	require.Equal(t, ids[:3], p.pages("since="+at))
	require.Equal(t, ids[3:], p.pages("until="+at))

	require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/jobs?status=FAILED", nil, &page))
	require.Equal(t, "FAILED", *page.Jobs[0].Outcome)
	require.EqualValues(t, 1, page.Jobs[0].Revision)
	require.Equal(t, http.StatusAccepted, p.ask(http.MethodPost, "/api/jobs/"+ids[4]+"/retry", nil, &api.Retried{}))
	p.endedIn(ids[4], 2)
	var totals api.JobTotals
	require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/jobs/totals", nil, &totals))
	require.Equal(t, api.JobTotals{Jobs: 5, Status: map[string]int64{"COMPLETED": 4, "FAILED": 1}, Outcome: map[string]int64{"SUCCEEDED": 4, "FAILED": 1},
		Operations: map[string]api.Share{"avif": {Jobs: 1, Status: map[string]int64{"COMPLETED": 1}}, "jpg": {Jobs: 2, Status: map[string]int64{"COMPLETED": 2}},
			"webp": {Jobs: 3, Status: map[string]int64{"COMPLETED": 2, "FAILED": 1}}}}, totals)
	require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/jobs/totals?operation=avif", nil, &totals))
	require.EqualValues(t, 1, totals.Jobs)

	// As it was when the third was requested, and just before.
	then := third.CreatedAt.Add(time.Microsecond - 1).Truncate(time.Microsecond)
	require.Equal(t, ids[2:], p.pages("limit=2&at="+then.Format(time.RFC3339Nano)))
	require.Equal(t, ids[3:], p.pages("at="+then.Add(-time.Microsecond).Format(time.RFC3339Nano)))
	require.Equal(t, ids[2:3], p.pages("status=PENDING&operation=jpg&at="+then.Format(time.RFC3339Nano)))
	require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/jobs/totals?operation=jpg&at="+then.Format(time.RFC3339Nano), nil, &totals))
	require.EqualValues(t, 1, totals.Status["PENDING"])
	require.Equal(t, ids, p.pages("at="+url.QueryEscape(time.Now().Format(time.RFC3339Nano))))

	require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/jobs?limit=2", nil, &page))
	position := response.Header.Get(api.PositionHeader)
	nowhere, err := events.ParsePosition(position)
	require.NoError(t, err)
	nowhere.Partition = 12 // one more than there are
	for query, field := range map[string]string{
		"limit=0": "limit", "limit=4": "limit", "limit=x": "limit", "status=DONE": "status", "outcome=FOO": "outcome", "status=" + strings.Repeat("s", 2000): "status", "outcome=FAILED&status=" + strings.Repeat("COMPLETED,", 200) + "COMPLETED": "outcome", "status=FAILED,": "status", "outcome=FAILED&status=COMPLETED": "outcome",
		"operation=gif": "operation", "since=yesterday": "since", "until=2026-11-24": "until", "q=x": "q", "q=" + ids[0] + "0": "q", "q=01234567f": "q",
		"cursor=x": "cursor", "cursor=" + *page.Next + "&operation=webp": "cursor", "after=x": "after", "after=" + nowhere.Token(): "after", "at=" + position: "at", "at=yesterday": "at", "at=2100-01-01T00:00:00Z": "at",
		"at=2026-01-01T00:00:00Z&after=" + position: "at", "cursor=" + *page.Next + "&at=2026-01-01T00:00:00Z": "cursor", "page=2": "page", "status=FAILED&status=PENDING": "status",
	} {
		var problem api.Problem
		require.Equal(t, http.StatusUnprocessableEntity, p.ask(http.MethodGet, "/api/jobs?"+query, nil, &problem), query)
		require.Equal(t, field, problem.Errors[0].Field, query)
		require.Less(t, len(problem.Detail), 400, query)
		switch field {
		case "status":
			require.Regexp(t, "COMPLETED, COMPLETED_WEBHOOK_FAILED, FAILED, PENDING, PROCESSING$|more than once", problem.Detail)
		case "outcome":
			require.Regexp(t, "CANCELLED, FAILED, PARTIAL, SUCCEEDED$|no job has", problem.Detail)
		}
		if field != "limit" && field != "cursor" {
			require.Equal(t, http.StatusUnprocessableEntity, p.ask(http.MethodGet, "/api/jobs/totals?"+query, nil, &problem), query)
		}
	}
}

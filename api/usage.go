package api

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-fuego/fuego"

	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/projections"
)

// mostUsageDays is how many USAGE_MAX_DAYS may allow: each has some rows in one answer.
const mostUsageDays = 3660

// Usage is what was used from one UTC day to another, both included.
type Usage struct {
	From  string     `json:"from"`
	To    string     `json:"to"`
	Usage []UsageRow `json:"usage" description:"Days and operations without any are left out"`
	Total Used       `json:"total"`
}

// UsageRow is what was used on a day and by an operation, or by all of them.
type UsageRow struct {
	Day       *string `json:"day" description:"UTC; null where days are not told apart"`
	Operation *string `json:"operation" description:"null where operations are not told apart"`
	Used
}

// Used are sums over operations that have completed or failed; each outcome counts once.
type Used struct {
	Operations  int64   `json:"operations" description:"That have completed or failed"`
	Failures    int64   `json:"failures" description:"Of these, that have failed"`
	InputBytes  int64   `json:"input_bytes"`
	OutputBytes int64   `json:"output_bytes"`
	CPUSeconds  float64 `json:"cpu_seconds" description:"Of those that have completed"`
}

// usage answers GET /api/usage.
func (s *Server) usage(c fuego.ContextNoBody) (Usage, error) {
	given := c.Request().URL.Query()
	known := []string{"from", "to", "operation", "group", "after"}
	for name, values := range given {
		if !slices.Contains(known, name) || len(values) > 1 {
			return Usage{}, invalid(name, fmt.Sprintf("%s is none of %s, or is given more than once", name, strings.Join(known, ", ")))
		}
	}
	f := projections.UsageFilter{Tenant: tenantOf(c.Context()), Operation: given.Get("operation"), ByDay: true, ByOperation: true}
	var err error
	if f.First, err = day("from", given.Get("from")); err != nil {
		return Usage{}, err
	}
	if f.Last, err = day("to", given.Get("to")); err != nil {
		return Usage{}, err
	}
	days := int(f.Last.Sub(f.First)/(24*time.Hour)) + 1
	switch {
	case days < 1:
		return Usage{}, invalid("to", "to must be the day of from, or a later one")
	case days > s.cfg.UsageMaxDays:
		return Usage{}, invalid("to", fmt.Sprintf("from and to are %d days apart, both included; the limit is %d days (USAGE_MAX_DAYS): ask for a part of them at a time", days, s.cfg.UsageMaxDays))
	}
	if _, known := operations.Find(f.Operation); f.Operation != "" && !known {
		return Usage{}, invalid("operation", fmt.Sprintf("operation must be one of %s", strings.Join(operations.Names(), ", ")))
	}
	switch given.Get("group") {
	case "":
	case "day":
		f.ByOperation = false
	case "operation":
		f.ByDay = false
	case "total":
		f.ByDay, f.ByOperation = false, false
	default:
		return Usage{}, invalid("group", "group must be day, operation or total; without it, each operation of each day has a row")
	}
	ctx, stop := context.WithTimeout(c.Context(), s.cfg.WaitTimeout)
	defer stop()
	if after := given.Get("after"); after != "" {
		if err := s.waitFor(ctx, after); err != nil {
			return Usage{}, err
		}
	}
	rows, err := s.Reader.Usage(ctx, f)
	if err != nil {
		return Usage{}, unlisted(err)
	}
	answer := Usage{From: given.Get("from"), To: given.Get("to"), Usage: []UsageRow{}}
	var total projections.Used
	for _, row := range rows {
		total = total.Add(row.Used)
		shown := UsageRow{Used: usedOf(row.Used)}
		if f.ByDay {
			on := row.Day.Format(time.DateOnly)
			shown.Day = &on
		}
		if f.ByOperation {
			shown.Operation = &row.Operation
		}
		answer.Usage = append(answer.Usage, shown)
	}
	answer.Total = usedOf(total)
	return answer, nil
}

func usedOf(u projections.Used) Used {
	return Used{Operations: u.Operations, Failures: u.Failures, InputBytes: u.InputBytes, OutputBytes: u.OutputBytes, CPUSeconds: u.CPU.Seconds()}
}

func day(field, text string) (time.Time, error) {
	on, err := time.Parse(time.DateOnly, text)
	if err != nil {
		return on, invalid(field, field+" must be a UTC day such as 2026-11-24")
	}
	return on, nil
}

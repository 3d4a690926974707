package api

import (
	"math"
	"time"

	"github.com/go-fuego/fuego"

	"github.com/pixtools/pixtools/projections"
)

// ReadModels are those that there are in the database.
type ReadModels struct {
	AsOf       time.Time   `json:"as_of"`
	ReadModels []ReadModel `json:"read_models" description:"By name"`
}

// ReadModel is one of them.
type ReadModel struct {
	Name  string `json:"name" description:"The schema in PostgreSQL"`
	State string `json:"state" description:"live; previous: it was live before; building; built: it may be promoted; past: it shows a past state; cut_off: its replay ended before it was whole; discarded; unknown"`
	Bytes int64  `json:"bytes" description:"On disk"`
	Until string `json:"until,omitempty" description:"What a past state was asked for by"`
	// Made is when it was begun, Since when it has its state. The live one that nobody rebuilt has neither.
	Made     *time.Time      `json:"made"`
	Since    *time.Time      `json:"since"`
	Progress *ReplayProgress `json:"progress" description:"Of the replay that is at work on it, or was cut off; else null"`
}

// ReplayProgress is how far a replay is with its present phase.
type ReplayProgress struct {
	Phase   string     `json:"phase"`
	Records int64      `json:"records"`
	Total   *int64     `json:"total" description:"Records of the log, for this phase; null where they are not counted"`
	Rate    *float64   `json:"records_per_second" description:"Null where it cannot be told"`
	Started time.Time  `json:"started" description:"When the phase began"`
	Updated time.Time  `json:"updated" description:"When this was told"`
	Ends    *time.Time `json:"estimated_end" description:"Of the phase; null where it cannot be told, and of what was cut off"`
}

// readModels answers GET /api/read-models.
func (s *Server) readModels(c fuego.ContextNoBody) (ReadModels, error) {
	all, err := s.Reader.ReadModels(c.Context())
	if err != nil {
		return ReadModels{}, unavailable("The database does not tell of the read models now.", err)
	}
	answer := ReadModels{AsOf: time.Now().UTC(), ReadModels: []ReadModel{}}
	for _, info := range all {
		answer.ReadModels = append(answer.ReadModels, readModelOf(info))
	}
	return answer, nil
}

func readModelOf(info projections.SchemaInfo) ReadModel {
	m := ReadModel{Name: info.Name, State: stateOf(info), Bytes: info.Bytes, Until: info.Until, Made: timeOrNil(info.Made), Since: timeOrNil(info.Since)}
	// Of one that is whole, a note of a replay that is over means nothing.
	if n := info.Progress; n != nil && (info.AtWork || info.CutOff()) {
		m.Progress = &ReplayProgress{Phase: n.Phase, Records: n.Done, Started: n.Began, Updated: n.At}
		if n.Total > 0 {
			m.Progress.Total = &n.Total
		}
		if rate := math.Round(n.Rate()); rate > 0 {
			m.Progress.Rate = &rate
		}
		if info.AtWork {
			m.Progress.Ends = timeOrNil(n.Ends().Round(time.Second))
		}
	}
	return m
}

func stateOf(info projections.SchemaInfo) string {
	switch {
	case info.Name == projections.Schema:
		return "live"
	case info.Name == projections.Previous:
		return "previous"
	case info.CutOff():
		return "cut_off"
	}
	switch info.State {
	case projections.StateReady:
		return "built"
	case projections.StateBuilding, projections.StatePast, projections.StateDiscarded:
		return info.State
	}
	return "unknown" // somebody else's schema, under a name of ours
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

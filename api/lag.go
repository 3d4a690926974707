package api

import (
	"time"

	"github.com/go-fuego/fuego"
)

// Lag is how far the groups that follow the log are behind.
type Lag struct {
	AsOf   time.Time           `json:"as_of"`
	Groups map[string]GroupLag `json:"groups" description:"By consumer group"`
}

// GroupLag is that of one group.
type GroupLag struct {
	Records *int64   `json:"records" description:"At most so many records are not passed; null where it is not known"`
	Seconds *float64 `json:"seconds" description:"The age of the oldest of them, 0 where there are none; null where it is not known"`
	Error   string   `json:"error,omitempty" description:"Why it is not known"`
}

// lag answers GET /api/lag.
func (s *Server) lag(c fuego.ContextNoBody) (Lag, error) {
	lags, err := s.Lags(c.Context())
	if err != nil {
		return Lag{}, unavailable("Kafka does not tell of the consumer groups now.", err)
	}
	answer := Lag{AsOf: lags.At, Groups: map[string]GroupLag{}}
	for name, lag := range lags.Groups {
		if lag.Err != nil {
			answer.Groups[name] = GroupLag{Error: "It could not be asked for; pixtools' log has the reason."}
			continue
		}
		age := lag.Age.Round(time.Millisecond).Seconds()
		answer.Groups[name] = GroupLag{Records: &lag.Records, Seconds: &age}
	}
	return answer, nil
}

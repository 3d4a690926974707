package commands

import (
	"fmt"
	"time"
)

// Admit asks whether more work may be queued. Operations are queued apart from one another,
// so one whose queue stands still is no reason to refuse another.
type Admit struct {
	Operations []string
	// Oldest is since when the longest waiting work of an operation waits, as it was at the
	// time At; operations without waiting work are not in it.
	Oldest map[string]time.Time
	At     time.Time
	// MaxAge is how long work may have waited for more to be taken.
	MaxAge time.Duration
}

// Overdue says that work of an operation waits longer than it may.
type Overdue struct {
	Operation   string
	Age, MaxAge time.Duration
}

func (o Overdue) Error() string {
	return fmt.Sprintf("%s: the oldest work waits for %s, longer than QUEUE_MAX_AGE, %s", o.Operation, o.Age.Round(time.Second), o.MaxAge)
}

// Decide names the operations that take no more work, in the order of the request.
func (c Admit) Decide() []Overdue {
	var overdue []Overdue
	for _, name := range c.Operations {
		since, waits := c.Oldest[name]
		if age := c.At.Sub(since); waits && age > c.MaxAge {
			overdue = append(overdue, Overdue{name, age, c.MaxAge})
		}
	}
	return overdue
}

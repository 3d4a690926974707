package legacy

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

// KeyPlace stands for the idempotency key in a pattern.
const KeyPlace = "{key}"

// scanCount is how many keys Redis looks at for one answer.
const scanCount = 1000

// CheckPattern refuses a pattern that does not say where the key stands.
func CheckPattern(pattern string) error {
	if strings.Count(pattern, KeyPlace) != 1 {
		return fmt.Errorf("--key-pattern is %q: it must have %s once, for instance idempotency:%s", pattern, KeyPlace, KeyPlace)
	}
	return nil
}

// Keys gives the idempotency keys in Redis, with the id of the job that each leads to. id is
// empty where the value names no job. A key may come more than once.
func Keys(ctx context.Context, address, pattern string, timeout time.Duration, each func(key, id string) error) error {
	options, err := redis.ParseURL(address)
	if err != nil {
		return fmt.Errorf("--redis: %w", err)
	}
	options.DialTimeout, options.ReadTimeout = timeout, timeout
	client := redis.NewClient(options)
	defer client.Close()
	before, after, _ := strings.Cut(pattern, KeyPlace)
	for cursor := uint64(0); ; {
		var names []string
		if names, cursor, err = client.ScanType(ctx, cursor, globbed(before)+"*"+globbed(after), scanCount, "string").Result(); err != nil {
			return fmt.Errorf("look for idempotency keys in Redis: %w", err)
		}
		if len(names) > 0 {
			values, err := client.MGet(ctx, names...).Result()
			if err != nil {
				return fmt.Errorf("read idempotency keys in Redis: %w", err)
			}
			for i, name := range names {
				value, there := values[i].(string)
				if !there || len(name) < len(before)+len(after) {
					continue // it has ended meanwhile
				}
				if err := each(strings.TrimSuffix(strings.TrimPrefix(name, before), after), jobIn(value)); err != nil {
					return err
				}
			}
		}
		if cursor == 0 {
			return nil
		}
	}
}

// globbed takes a text for itself in a pattern of Redis.
func globbed(text string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`, "]", `\]`).Replace(text)
}

// jobIn is the job's id in a value: plain, as JSON text, or the member job_id of an object.
func jobIn(value string) string {
	var object struct {
		JobID string `json:"job_id"`
	}
	var text string
	switch {
	case json.Unmarshal([]byte(value), &object) == nil:
		value = object.JobID
	case json.Unmarshal([]byte(value), &text) == nil:
		value = text
	}
	id, err := uuid.Parse(strings.TrimSpace(value))
	if err != nil {
		return ""
	}
	return id.String()
}

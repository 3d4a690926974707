// Package grace gives what is under way some time when the process is to stop.
package grace

import (
	"context"
	"time"
)

// Outlast is ctx without its end: it ends when ctx has been done for that long, or by cancel,
// which must be called.
func Outlast(ctx context.Context, by time.Duration) (context.Context, context.CancelFunc) {
	outlasting, end := context.WithCancel(context.WithoutCancel(ctx))
	unwatch := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(by)
		defer timer.Stop()
		select {
		case <-timer.C:
			end()
		case <-outlasting.Done():
		}
	})
	return outlasting, func() {
		unwatch()
		end()
	}
}

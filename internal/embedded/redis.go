package embedded

import (
	"context"
	"fmt"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// redisTick is how exact expiry is: miniredis has a clock of its own, which moves when it is told to.
const redisTick = 100 * time.Millisecond

// startRedis starts an empty Redis. It listens on loopback and has no password, as a fresh Redis does.
func (p *Parts) startRedis(_ context.Context, _ Config, st state) error {
	server := miniredis.NewMiniRedis()
	if err := server.StartAddr(address(st.RedisPort)); err != nil {
		return portError(st.RedisPort, "PIXTOOLS_EMBEDDED_REDIS_PORT", err)
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(redisTick)
		defer tick.Stop()
		before := time.Now()
		for {
			select {
			case <-stop:
				return
			case now := <-tick.C:
				// What really went by: a busy machine drops ticks.
				server.FastForward(now.Sub(before))
				before = now
			}
		}
	}()
	p.onStop("redis", func(context.Context) error {
		close(stop)
		<-ended
		server.Close()
		return nil
	})
	p.RedisURL = fmt.Sprintf("redis://%s/0", address(st.RedisPort))
	return nil
}

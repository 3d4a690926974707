package progress

import (
	"context"
	"encoding/json"
	"net"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

func connect(t *testing.T) (*miniredis.Miniredis, *redis.Client) {
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1})
	t.Cleanup(func() { _ = client.Close() })
	return server, client
}

// deadline ends a test that hangs; nothing is measured by it.
func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestWhatIsReportedIsRead(t *testing.T) {
	server, client := connect(t)
	listener := client.Subscribe(t.Context(), Channel("job"))
	defer listener.Close()
	_, err := listener.Receive(t.Context())
	require.NoError(t, err)

	require.Empty(t, Read(t.Context(), client, "job", "denoise"))
	require.Empty(t, Read(t.Context(), client, "job"))
	report := Reporter(t.Context(), client, "job", "denoise", 2)
	want := State{Operation: "denoise", Attempt: 2, Done: 0, Total: 3}
	report(0, 3)
	require.Equal(t, map[string]State{"denoise": want}, Read(t.Context(), client, "job", "webp", "denoise"))
	require.Empty(t, Read(t.Context(), client, "other", "denoise"))

	message, err := listener.ReceiveMessage(deadline(t))
	require.NoError(t, err)
	var heard State
	require.NoError(t, json.Unmarshal([]byte(message.Payload), &heard))
	require.Equal(t, want, heard)

	server.FastForward(keptFor)
	require.Empty(t, Read(t.Context(), client, "job", "denoise"), "it does not stay for ever")
}

// Between the first state and the last there are no more than perSecond a second.
func TestReportsAreThrottled(t *testing.T) {
	_, client := connect(t)
	listener := client.Subscribe(t.Context(), Channel("job"))
	defer listener.Close()
	_, err := listener.Receive(t.Context())
	require.NoError(t, err)

	const total = 5000
	began := time.Now()
	report := Reporter(t.Context(), client, "job", "denoise", 1)
	for done := range total + 1 {
		report(done, total)
	}
	most := int(time.Since(began).Seconds()*perSecond) + 2
	heard := 0
	for state := (State{}); state.Done < total; heard++ {
		message, err := listener.ReceiveMessage(deadline(t))
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal([]byte(message.Payload), &state))
	}
	require.LessOrEqual(t, heard, most)
	require.Equal(t, 1.0, Read(t.Context(), client, "job", "denoise")["denoise"].Share())
}

func TestShare(t *testing.T) {
	for _, test := range []struct {
		done, total int
		want        float64
	}{{0, 0, 0}, {0, 4, 0}, {1, 4, 0.25}, {4, 4, 1}, {9, 4, 1}, {-1, 4, 0}} {
		require.InDelta(t, test.want, State{Done: test.done, Total: test.total}.Share(), 0)
	}
}

func TestWhatIsNotOursIsLeftOut(t *testing.T) {
	server, client := connect(t)
	require.NoError(t, server.Set(key("job", "denoise"), "no json"))
	require.Empty(t, Read(t.Context(), client, "job", "denoise"))
}

// A Redis that is gone, and one that takes connections and never answers.
func TestWithoutRedis(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer silent.Close()
	server, _ := connect(t)
	gone := server.Addr()
	server.Close()
	for _, address := range []string{gone, silent.Addr().String()} {
		const limit = 50 * time.Millisecond
		client := redis.NewClient(&redis.Options{Addr: address, MaxRetries: -1, DialTimeout: limit, ReadTimeout: limit, WriteTimeout: limit,
			PoolTimeout: limit, ContextTimeoutEnabled: true})
		Reporter(t.Context(), client, "job", "denoise", 1)(1, 1)
		require.Empty(t, Read(t.Context(), client, "job", "denoise"))
		require.NoError(t, client.Close())
	}
}

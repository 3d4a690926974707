package main

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/testenv"
)

// TestRolesStartWithoutTheOthersParts: each role alone, with nothing at the addresses of the parts that it does
// not need, and a job goes through all of them.
func TestRolesStartWithoutTheOthersParts(t *testing.T) {
	variables := realEnv(t)
	nothing := "127.0.0.1:" + freePort(t)
	away := map[string]map[string]string{
		"kafka":    {"KAFKA_BROKERS": nothing},
		"database": {"DATABASE_URL": "postgres://user:password@" + nothing + "/pixtools"},
		"s3":       {"AWS_ENDPOINT_URL": "http://" + nothing},
		"redis":    {"REDIS_URL": "redis://" + nothing},
	}
	var front *awayWorld
	for _, role := range allRoles {
		env := maps.Clone(variables)
		for part, address := range away {
			needs := false
			for _, name := range needed[role] {
				needs = needs || name == part
			}
			if !needs {
				maps.Copy(env, address)
			}
		}
		p := prepare(t, env, "--roles="+role)
		p.start()
		if role == "api" {
			front = &awayWorld{program: p}
		}
	}
	front.answering()
	front.projecting(t)
	job := front.ended(front.submit(file("a.png", "image/png", pngOf(t, picture(8, 8))), field("operations", `["webp","denoise"]`)))
	require.Equal(t, "SUCCEEDED", *job.Outcome)
}

// TestRefusedAtStart: a server that refuses what we are configured with is not waited for like one that is away.
func TestRefusedAtStart(t *testing.T) {
	postgres, err := testenv.StartPostgres()
	require.NoError(t, err)
	t.Cleanup(postgres.Stop)
	conn, err := pgx.Connect(within(t), postgres.URL)
	require.NoError(t, err)
	defer conn.Close(within(t))
	var rules string
	require.NoError(t, conn.QueryRow(within(t), "SHOW hba_file").Scan(&rules))
	for _, statement := range []string{
		"CREATE ROLE locked LOGIN PASSWORD 'right'",
		fmt.Sprintf("COPY (VALUES ('host all locked 127.0.0.1/32 scram-sha-256'), ('host all all 127.0.0.1/32 trust')) TO '%s'", rules),
		"SELECT pg_reload_conf()",
	} {
		_, err = conn.Exec(within(t), statement)
		require.NoError(t, err)
	}
	database := func(user *url.Userinfo, name string) string {
		address, err := url.Parse(postgres.URL)
		require.NoError(t, err)
		address.User, address.Path = user, "/"+name
		return address.String()
	}
	for name, c := range map[string]struct {
		variables map[string]string
		why, todo string
	}{
		"wrong password":   {map[string]string{"DATABASE_URL": database(url.UserPassword("locked", "wrong"), "postgres")}, "28P01", "set DATABASE_URL"},
		"unknown user":     {map[string]string{"DATABASE_URL": database(url.User("nobody"), "postgres")}, "28000", "set DATABASE_URL"},
		"unknown database": {map[string]string{"DATABASE_URL": database(url.User("postgres"), "nothing")}, "3D000", "create it, or set DATABASE_URL"},
		"wrong secret":     {map[string]string{"AWS_SECRET_ACCESS_KEY": "wrong"}, "403", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"},
		"unknown key":      {map[string]string{"AWS_ACCESS_KEY_ID": "nobody"}, "403", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"},
	} {
		t.Run(name, func(t *testing.T) {
			env := realEnv(t)
			maps.Copy(env, c.variables)
			// What is away besides is no reason to wait with it.
			env["KAFKA_BROKERS"] = "127.0.0.1:" + freePort(t)
			p := prepare(t, env)
			p.start()
			overdue := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
			defer overdue.Stop()
			require.Error(t, p.cmd.Wait())
			require.Positive(t, p.cmd.ProcessState.ExitCode(), "it ended by itself")
			require.Contains(t, p.log.String(), c.why)
			require.Contains(t, p.log.String(), c.todo)
			require.NotContains(t, p.log.String(), "password=")
			_, err := http.Get(p.base + "/api/livez")
			require.Error(t, err)
		})
	}
	// The same with what is right: it starts.
	env := realEnv(t)
	env["DATABASE_URL"] = database(url.UserPassword("locked", "right"), "postgres")
	_, err = conn.Exec(within(t), "GRANT ALL ON DATABASE postgres TO locked")
	require.NoError(t, err)
	run(t, env, "--roles=api,saga,projector")
}

// TestDoorIsClosing: from when the process is asked to stop, whoever keeps a connection is told
// to leave it, also where a balancer knows of connections only.
func TestDoorIsClosing(t *testing.T) {
	t.Parallel()
	closing := make(chan struct{})
	entrance := &door{closing: closing}
	entrance.leadTo(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	server := httptest.NewServer(entrance)
	t.Cleanup(server.Close)
	ask := func() *http.Response {
		response, err := server.Client().Get(server.URL)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, http.StatusNoContent, response.StatusCode)
		return response
	}
	require.False(t, ask().Close)
	close(closing)
	require.True(t, ask().Close)
}

package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/eventlog"
)

// jobAs is a job as the tenant of a key sees it.
func (p *program) jobAs(key, id string) (job api.Job) {
	p.t.Helper()
	a := p.demand(http.MethodGet, "/api/jobs/"+id, "X-API-Key", key)
	require.Equal(p.t, http.StatusOK, a.status, "%s", a.body)
	require.NoError(p.t, json.Unmarshal(a.body, &job))
	return job
}

func database(t *testing.T, url string) *pgxpool.Pool {
	pool, err := pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func execute(t *testing.T, pool *pgxpool.Pool, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		_, err := pool.Exec(within(t), statement)
		require.NoError(t, err)
	}
}

// another is what some other version has beside its secrets.
const another = "CREATE TABLE pixtools_secrets.tomorrow (id integer GENERATED ALWAYS AS IDENTITY, word text)"

// TestBackup: a back-up that is made while jobs run has all there was when it began, and what was
// accepted meanwhile whole or not at all; restored elsewhere, over kill -9, everything answers as
// it did, and what must not be restored is refused before anything is written.
func TestBackup(t *testing.T) {
	source := hookEnv(t)
	source["API_AUTH"], source["API_KEY_REFRESH_INTERVAL"] = "keys", "100ms"
	from := run(t, source, "--roles=api,convert,saga,projector,webhooks")
	key, _ := from.newKey("default", everyScope)
	revoked, id := from.newKey("default", "read")
	_, complaints, status := from.command("keys", "revoke", id)
	require.Zero(t, status, complaints)
	receiver := newReceiver(t, "127.0.0.2")
	_, complaints, status = from.command("webhooks", "address", "set", "--tenant", "default", receiver.server.URL+"/default")
	require.Zero(t, status, complaints)
	there := database(t, from.reach().Read.URL)
	execute(t, there, another, "INSERT INTO pixtools_secrets.tomorrow (word) VALUES ('xylophone')")

	image := pngOf(t, picture(60, 40))
	ops := field("operations", `["webp","jpg"]`)
	before := map[string]bool{}
	submit := func(name string, more ...part) string {
		a := from.submitAs(key, append([]part{file(name, "image/png", image), ops}, more...)...)
		require.Equal(t, http.StatusAccepted, a.status, "%s", a.body)
		return a.accepted
	}
	keyed := submit("naïve holiday.png", field("idempotency_key", "once"))
	for n := range 5 {
		before[submit(fmt.Sprintf("%d.png", n))] = true
	}
	before[keyed] = true
	for id := range before {
		from.endedAs(key, id)
	}
	eventually(t, "every webhook", func() error {
		if n := len(receiver.of("/default")); n != len(before) {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	_, signing := from.secrets()
	require.Len(t, signing, 1)

	// Jobs run all the while.
	var meanwhile []string
	stop, submitter := make(chan struct{}), sync.WaitGroup{}
	end := sync.OnceFunc(func() { close(stop); submitter.Wait() })
	defer end()
	var refusals []string
	submitter.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			request, err := from.form(file("meanwhile.png", "image/png", image), ops)
			if err != nil {
				refusals = append(refusals, err.Error())
				return
			}
			if a := from.answered(request, "X-API-Key", key); a.status == http.StatusAccepted {
				meanwhile = append(meanwhile, a.accepted)
			} else {
				refusals = append(refusals, string(a.body))
			}
		}
	})
	identity, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	keyFile := saved(t, "key.txt", []byte("# a comment\n"+identity.String()+"\n"))
	dir := filepath.Join(t.TempDir(), "set")
	out, complaints, status := from.command("backup", dir, "--recipient", identity.Recipient().String())
	require.Zero(t, status, complaints)
	end()
	require.NotEmpty(t, meanwhile)
	require.Empty(t, refusals)
	for _, line := range []string{"0 missing, 0 damaged", "secrets, api_keys: 2 rows", "secrets, tenant_keys: 1 rows", "secrets, tomorrow: 1 rows", "secrets, webhook_addresses: 1 rows"} {
		require.Contains(t, out, line)
	}
	noSecrets(t, dir, there, signing[0])

	passphraseFile, words := filepath.Join(t.TempDir(), "passphrase"), "correct horse battery"
	require.NoError(t, os.WriteFile(passphraseFile, []byte(words+"\n"), 0o600))
	second := dir + "-passphrase"
	_, complaints, status = from.command("backup", second, "--passphrase-file", passphraseFile)
	require.Zero(t, status, complaints)

	target := ownKafka(t)
	maps.Copy(target, map[string]string{"KAFKA_PARTITIONS": "5", "INSTANCE_ID": "target", "API_AUTH": "keys", "WEBHOOK_ALLOW_PRIVATE": source["WEBHOOK_ALLOW_PRIVATE"]})
	to := prepare(t, target)
	pool := database(t, strings.Replace(target["DATABASE_URL"], "postgresql+asyncpg://", "postgres://", 1))
	refused := func(dir string, args []string, words ...string) {
		t.Helper()
		_, complaints, status := to.command(append([]string{"restore", dir}, args...)...)
		require.NotZero(t, status)
		for _, word := range words {
			require.Contains(t, complaints, word)
		}
	}
	with := []string{"--identity", keyFile}
	t.Run("the wrong key", func(t *testing.T) {
		other, err := age.GenerateX25519Identity()
		require.NoError(t, err)
		refused(dir, nil, "give the identity, or the passphrase")
		refused(dir, []string{"--identity", saved(t, "other.txt", []byte(other.String()))}, "is not the one that belongs to it")
		refused(dir, []string{"--passphrase-file", passphraseFile}, "is not the one that belongs to it")
		refused(second, []string{"--passphrase-file", saved(t, "wrong", []byte(words+"!"))}, "is not the one that belongs to it")
		refused(second, with, "is not the one that belongs to it")
		out, complaints, status := to.command("restore", second, "--passphrase-file", passphraseFile, "--dry-run")
		require.Zero(t, status, complaints)
		require.Contains(t, out, "would import")
	})
	t.Run("damaged", func(t *testing.T) {
		files := []string{filepath.Join(dir, "secrets.json.age"), filepath.Join(dir, "objects.jsonl.zst"), filepath.Join(dir, "manifest.json")}
		for _, pattern := range []string{"blobs/*/*", events.Topic + "/*"} {
			found, err := filepath.Glob(filepath.Join(dir, pattern))
			require.NoError(t, err)
			files = append(files, found[len(found)-1])
		}
		for _, path := range files {
			whole, err := os.ReadFile(path)
			require.NoError(t, err)
			damaged := bytes.Clone(whole)
			damaged[len(damaged)/2] ^= 1
			require.NoError(t, os.WriteFile(path, damaged, 0o600))
			refused(dir, with, path, "damaged")
			require.NoError(t, os.WriteFile(path, whole, 0o600))
		}
	})
	_, err = ran(t, target, "cat")
	require.ErrorContains(t, err, "there is no such topic", "nothing was written")

	execute(t, pool, "CREATE SCHEMA pixtools_secrets", another) // as that other version makes it
	t.Run("not empty", func(t *testing.T) {
		to.newKey("stranger", "read")
		refused(dir, with, "api_keys has 1 rows", "restore into a database without it")
		execute(t, pool, "DELETE FROM pixtools_secrets.api_keys", "CREATE SCHEMA pixtools_read", "CREATE TABLE pixtools_read.jobs AS SELECT 1")
		refused(dir, with, "the read model in PostgreSQL has 1 jobs", "DROP SCHEMA pixtools_read")
		execute(t, pool, "DROP SCHEMA pixtools_read CASCADE")
		bucket := to.bucket()
		require.NoError(t, bucket.store.EnsureBucket(within(t)))
		foreign := bucket.put("raw/somebody/else", []byte("x"))
		refused(dir, with, "1 objects that are not of this back-up, such as "+foreign, "AWS_S3_BUCKET")
		require.NoError(t, bucket.store.Delete(within(t), foreign))
		require.Empty(t, bucket.keys())
	})

	t.Run("embedded", func(t *testing.T) {
		env := embeddedEnv(t)
		env["API_AUTH"] = "keys"
		here := prepare(t, env, "--roles=api,saga,projector")
		_, complaints, status := here.command("restore", second, "--passphrase-file", passphraseFile)
		require.NotZero(t, status, "this version has no such table")
		require.Contains(t, complaints, "no table pixtools_secrets.tomorrow: restore with the version that made the back-up")
		execute(t, there, "DROP TABLE pixtools_secrets.tomorrow")
		_, complaints, status = from.command("backup", second+"-again", "--passphrase-file", passphraseFile)
		require.Zero(t, status, complaints)
		_, complaints, status = here.command("restore", second+"-again", "--passphrase-file", passphraseFile)
		require.Zero(t, status, complaints)
		here.start()
		here.healthy()
		for id := range before {
			sameJob(t, from.jobAs(key, id), here.jobAs(key, id))
		}
		here.kill()
	})
	killedAtWork(t, to, pool, dir, with)
	out, complaints, status = to.command(append([]string{"restore", dir}, with...)...)
	require.Zero(t, status, complaints)
	require.Contains(t, out, "secrets, tomorrow: 1 rows")
	to.start()
	to.healthy()

	for id := range before {
		want, got := from.jobAs(key, id), to.jobAs(key, id)
		sameJob(t, want, got)
	}
	again := to.submitAs(key, file("naïve holiday.png", "image/png", image), ops, field("idempotency_key", "once"))
	require.Equal(t, keyed, again.accepted, "the key is still known")
	require.Equal(t, http.StatusUnauthorized, to.demand(http.MethodGet, "/api/jobs", "X-API-Key", revoked).status)
	restored := 0
	for _, id := range meanwhile {
		if a := to.demand(http.MethodGet, "/api/jobs/"+id, "X-API-Key", key); a.status == http.StatusNotFound {
			continue // accepted after the log's end
		}
		restored++
		to.endedAs(key, id)
		job := to.jobAs(key, id)
		require.Equal(t, "SUCCEEDED", *job.Outcome)
		_, name := fetch(t, job.ResultURLs["webp"])
		require.Contains(t, name, "pixtools_webp_meanwhile.webp")
	}
	t.Logf("%d of %d jobs that were accepted meanwhile are in the back-up", restored, len(meanwhile))
	require.Empty(t, to.verify(0).open)
	var word string
	require.NoError(t, pool.QueryRow(within(t), "SELECT word FROM pixtools_secrets.tomorrow").Scan(&word))
	require.Equal(t, "xylophone", word)
	out, complaints, status = to.command("webhooks", "address", "show", "--tenant", "default")
	require.Zero(t, status, complaints)
	require.Contains(t, out, receiver.server.URL+"/default")
	_, now := to.secrets()
	require.Equal(t, signing, now)
	// Whoever asks is still told, with the same secret, and nobody is told twice.
	fresh := to.submitAs(key, file("fresh.png", "image/png", image), ops).accepted
	to.endedAs(key, fresh)
	eventually(t, "the webhook of a job of after the restore", func() error {
		told := map[string]int{}
		for _, call := range receiver.of("/default") {
			var outcome api.Outcome
			require.NoError(t, json.Unmarshal(call.body, &outcome))
			require.True(t, verifies(t, call, signing[0]))
			told[outcome.JobID]++
		}
		for id := range before {
			require.Equal(t, 1, told[id])
		}
		if told[fresh] == 0 {
			return errors.New("none")
		}
		return nil
	})
	refused(dir, with, "has members")
}

// noSecrets: nobody who has the directory alone has a secret.
func noSecrets(t *testing.T, dir string, db *pgxpool.Pool, signing string) {
	var tenantKey []byte
	require.NoError(t, db.QueryRow(within(t), "SELECT key FROM pixtools_secrets.tenant_keys").Scan(&tenantKey))
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(signing, "whsec_"))
	require.NoError(t, err)
	var forms []string
	for _, secret := range [][]byte{tenantKey, raw} {
		forms = append(forms, string(secret), hex.EncodeToString(secret), base64.StdEncoding.EncodeToString(secret))
	}
	forms = append(forms, "xylophone", "127.0.0.2")
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		for _, form := range forms {
			require.NotContains(t, string(content), form, path)
		}
		return err
	}))
	info, err := os.Stat(filepath.Join(dir, "secrets.json.age"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
	_, err = os.Stat(filepath.Join(dir, "secrets.json"))
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// killedAtWork kills restores: one that has stored objects and is about to write secrets, and
// others once they have written to the log, if they are not done by then.
func killedAtWork(t *testing.T, to *program, pool *pgxpool.Pool, dir string, with []string) {
	restore := func() (cmd *exec.Cmd, ended chan error) {
		self, err := os.Executable()
		require.NoError(t, err)
		cmd = exec.Command(self, append([]string{"restore", dir}, with...)...)
		cmd.Env = slices.Clone(to.env)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		require.NoError(t, cmd.Start())
		ended = make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		return cmd, ended
	}
	tx, err := pool.Begin(within(t))
	require.NoError(t, err)
	defer tx.Rollback(t.Context())
	_, err = tx.Exec(within(t), "LOCK TABLE pixtools_secrets.tomorrow IN EXCLUSIVE MODE")
	require.NoError(t, err)
	cmd, ended := restore()
	eventually(t, "the restore waits for the table", func() error {
		var waits bool
		err := pool.QueryRow(within(t), "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'pixtools_secrets.tomorrow'::regclass)").Scan(&waits)
		if err == nil && !waits {
			err = errors.New("not yet")
		}
		return err
	})
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, <-ended)
	require.NotEmpty(t, to.bucket().keys(), "its objects were stored before")
	require.NoError(t, tx.Rollback(within(t)))
	for _, table := range []string{"api_keys", "tenant_keys", "tomorrow"} {
		var rows int
		require.NoError(t, pool.QueryRow(within(t), "SELECT count(*) FROM "+pgx.Identifier{"pixtools_secrets", table}.Sanitize()).Scan(&rows))
		require.Zero(t, rows, "all tables, or none")
	}
	for range 2 {
		was := written(t, to)
		cmd, ended := restore()
		for over := false; !over; {
			select {
			case err := <-ended: // it was quicker
				require.NoError(t, err)
				return
			case <-time.After(10 * time.Millisecond): // between two looks
				over = written(t, to) > was
			}
		}
		require.NoError(t, cmd.Process.Kill())
		if <-ended == nil {
			t.Log("it was done before it was killed")
		}
	}
}

// written is how many records the log has.
func written(t *testing.T, p *program) (n int64) {
	brokers, err := eventlog.Connect(within(t), p.config().Kafka, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer brokers.Close()
	topic, err := brokers.Topic(within(t), events.Topic)
	if errors.Is(err, eventlog.ErrNoTopic) {
		return 0
	}
	require.NoError(t, err)
	for _, end := range topic.Written {
		n += end
	}
	return n
}

// TestBackupKeys: who could never read a back-up again, or whose secrets all could read, is told
// before anything is done.
func TestBackupKeys(t *testing.T) {
	t.Parallel()
	identity, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	public := identity.Recipient().String()
	for want, c := range map[string]struct {
		to         []string
		passphrase string
		inClear    bool
	}{
		"say once how":                     {},
		"--secrets-in-clear not to":        {to: []string{public}, inClear: true},
		"it must be a public key":          {to: []string{public, "age1nobody"}},
		"has 11 bytes: it must have 12":    {passphrase: saved(t, "short", []byte("elevenbytes\n"))},
		"must hold one line":               {passphrase: saved(t, "lines", []byte("first line of it\nsecond\n"))},
		"has more than 65536 bytes":        {passphrase: saved(t, "long", bytes.Repeat([]byte("x"), longestKeyFile+1))},
		"no such file":                     {passphrase: filepath.Join(t.TempDir(), "none")},
		"":                                 {to: []string{public, public}},
		" ":                                {passphrase: saved(t, "least", []byte("twelve bytes\r\n"))},
		"  ":                               {inClear: true},
		"--passphrase-file, or --secrets-": {to: []string{public}, passphrase: saved(t, "both", []byte("twelve bytes\n"))},
	} {
		_, err := recipients(c.to, c.passphrase, c.inClear)
		if strings.TrimSpace(want) == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, want)
		}
	}
	_, err = identities("a", "b")
	require.ErrorContains(t, err, "both given")
	_, err = identities(saved(t, "public", []byte(public)), "")
	require.ErrorContains(t, err, "holds no keys as age-keygen writes them")
	text, err := passphrase(saved(t, "windows", []byte("twelve bytes\r\n\n")))
	require.NoError(t, err)
	require.Equal(t, "twelve bytes", text)
}

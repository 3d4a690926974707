package deploy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

// patience is for a loaded machine.
const patience = 3 * time.Minute

// TestComposeRuns runs each service of docker-compose.yml that a job needs, with its command
// line, its environment, its user, its volumes, its health check and the names that they find
// one another by, and has a job go through them.
func TestComposeRuns(t *testing.T) {
	if !inNetwork(t) {
		return
	}
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	project := compose(t)
	names := project.ServiceNames()
	n := newNetwork(t, names)
	at := func(service string) string { return n.address(slices.Index(names, service)) }
	program := buildProgram(t, root)
	parts := partsOfThisMachine(t, root)

	make := func(name string) spec {
		s := project.Services[name]
		made := spec{Name: name, Address: at(name) + "/24", ReadOnly: s.ReadOnly, Binds: map[string]string{}, Tmpfs: map[string]string{},
			NoNewPrivileges: slices.Contains(s.SecurityOpt, "no-new-privileges:true")}
		for key, value := range s.Environment {
			if value != nil {
				made.Env = append(made.Env, key+"="+*value)
			}
		}
		if s.User != "" {
			uid, gid, _ := strings.Cut(s.User, ":")
			made.UID, err = strconv.Atoi(uid)
			require.NoError(t, err)
			made.GID, err = strconv.Atoi(gid)
			require.NoError(t, err)
		}
		for _, place := range s.Tmpfs {
			inside, options, _ := strings.Cut(place, ":")
			made.Tmpfs[inside] = options
		}
		for _, v := range s.Volumes {
			source := v.Source
			if v.Type == types.VolumeTypeVolume { // one with nothing in it yet
				source = t.TempDir()
				require.NoError(t, os.Chown(source, made.UID, made.GID))
			}
			made.Binds[v.Target] = source
		}
		if s.Image == pixtools {
			made.Binds["/app"] = program
			made.Env = append(made.Env, "PATH=/app:/usr/bin:/bin")
			made.Argv = append([]string{"/app/pixtools"}, s.Command...) // the image's entry point
			return made
		}
		made.Env = append(made.Env, "PATH="+parts.path)
		made.Argv = parts.argv(t, name, s)
		return made
	}
	running := map[string]*container{}
	for _, name := range []string{"kafka", "postgres", "redis", "s3"} {
		running[name] = n.start(make(name))
	}
	healthy(t, "redis", running, project)
	healthy(t, "postgres", running, project)
	until(t, "s3", running, func(ctx context.Context) error { // there is no mc here
		return get(ctx, http.DefaultClient, "http://"+at("s3")+":9000/minio/health/ready", "", io.Discard)
	})
	until(t, "kafka", running, func(ctx context.Context) error { // nor the image's scripts
		client, err := kgo.NewClient(kgo.SeedBrokers(net.JoinHostPort(at("kafka"), "9092")))
		if err != nil {
			return err
		}
		defer client.Close()
		return client.Ping(ctx)
	})
	roles := ours(project)
	for _, s := range roles {
		running[s.Name] = n.start(make(s.Name))
	}
	for _, s := range roles {
		healthy(t, s.Name, running, project)
	}

	// docker compose run --rm api keys create ...
	creating := make("api")
	creating.Name, creating.Address = "keys", n.address(len(names))+"/24"
	creating.Argv = []string{"/app/pixtools", "keys", "create", "--tenant", "default", "--name", "test", "--scope", "submit,read,operate"}
	made := n.start(creating)
	require.NoError(t, made.wait(patience))
	key := strings.TrimSpace(made.stdout.String())
	for _, word := range strings.Fields(made.stdout.String()) {
		if strings.HasPrefix(word, "pixtools_") {
			key = word
		}
	}

	browser := &http.Client{Transport: &http.Transport{DialContext: dialer(published(project, at))}}
	id := submit(t, browser, key, `["webp","avif","denoise"]`)
	var job struct {
		Status     string            `json:"status"`
		ResultURLs map[string]string `json:"result_urls"`
		Error      *string           `json:"error_message"`
	}
	until(t, "the job's end", running, func(ctx context.Context) error {
		var body bytes.Buffer
		if err := get(ctx, browser, "http://localhost:8000/api/jobs/"+id, key, &body); err != nil {
			return err
		}
		if err := json.Unmarshal(body.Bytes(), &job); err != nil {
			return err
		}
		if job.Status == "PENDING" || job.Status == "PROCESSING" {
			return errors.New(job.Status)
		}
		return nil
	})
	require.Equal(t, "COMPLETED", job.Status)
	require.Nil(t, job.Error)
	require.Len(t, job.ResultURLs, 3)
	for op, link := range job.ResultURLs {
		var picture bytes.Buffer
		require.NoError(t, get(t.Context(), browser, link, "", &picture), op)
		require.NotZero(t, picture.Len(), op)
	}
	require.ErrorContains(t, get(t.Context(), browser, "http://localhost:8000/api/jobs/"+id, "", io.Discard), "401")

	for _, s := range roles {
		require.NoError(t, running[s.Name].stop(time.Duration(*s.StopGracePeriod)), s.Name)
	}
}

// buildProgram gives what the image has below /app.
func buildProgram(t *testing.T, root string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "pixtools"), "./cmd/pixtools")
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = exec.CommandContext(t.Context(), "cp", "-RL", filepath.Join(root, "build", "bin", "lib"), dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return dir
}

// machine is where this machine has the programs that are in the parts' images.
type machine struct{ root, path, java string }

func partsOfThisMachine(t *testing.T, root string) machine {
	t.Helper()
	postgres, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	require.NoError(t, err)
	require.NotEmpty(t, postgres, "make testdeps installs it")
	return machine{root: root, path: strings.Join([]string{filepath.Join(root, "build", "testenv", "bin"), postgres[len(postgres)-1], "/usr/local/bin", "/usr/bin", "/bin"}, ":"),
		java: "java -Xmx512m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp '" + filepath.Join(root, "build", "testenv", "kafka", "libs") + "/*' "}
}

// argv is the service's command, or where an image's own start script takes its environment
// and makes a command of it, what that does.
func (m machine) argv(t *testing.T, name string, s types.ServiceConfig) []string {
	t.Helper()
	switch name {
	case "kafka": // the image's wrapper makes server.properties of the environment, and formats
		return []string{"/bin/sh", "-c", "set -e; mkdir -p /etc/kafka/docker /mnt/shared/config /opt/kafka/config; " +
			"touch /etc/kafka/docker/server.properties; for f in log4j2 tools-log4j2; do echo 'Configuration: {Loggers: {Root: {level: WARN}}}' >/etc/kafka/docker/$f.yaml; done; " +
			m.java + "kafka.docker.KafkaDockerWrapper setup --default-configs-dir /etc/kafka/docker --mounted-configs-dir /mnt/shared/config --final-configs-dir /opt/kafka/config; " +
			"exec " + m.java + "kafka.Kafka /opt/kafka/config/server.properties"}
	case "postgres": // what its entry point does, as a user who is not root
		return []string{"/bin/sh", "-c", "set -e; mkdir -p /var/run/postgresql; chown -R nobody /var/run/postgresql /var/lib/postgresql/data; " +
			"printf '%s' \"$POSTGRES_PASSWORD\" >/tmp/pw; chmod 644 /tmp/pw; cd /tmp; exec setpriv --reuid nobody --clear-groups /bin/sh -c '" +
			"initdb -D /var/lib/postgresql/data -U $POSTGRES_USER --pwfile=/tmp/pw -A scram-sha-256 --auth-local=trust >/dev/null; " +
			"echo CREATE DATABASE $POSTGRES_DB | postgres --single -D /var/lib/postgresql/data postgres >/dev/null; " +
			"echo host all all all scram-sha-256 >>/var/lib/postgresql/data/pg_hba.conf; " +
			"exec postgres -D /var/lib/postgresql/data -c listen_addresses=*'"}
	}
	return slices.Clone(s.Command)
}

// healthy waits until a service's health check is passed.
func healthy(t *testing.T, name string, running map[string]*container, project *types.Project) {
	t.Helper()
	test := project.Services[name].HealthCheck.Test
	require.Equal(t, "CMD", test[0], name)
	until(t, name, running, func(ctx context.Context) error {
		out, err := running[name].execute(ctx, test[1:]...)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// until waits for a condition, as long as no container has ended.
func until(t *testing.T, what string, running map[string]*container, ask func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil {
			return
		}
		for name, c := range running {
			select {
			case ended := <-c.ended:
				t.Fatalf("%s ended: %v", name, ended)
			default:
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-time.After(200 * time.Millisecond): // before the next look
		}
	}
}

// published are the ports of this machine, and where they lead.
func published(project *types.Project, at func(string) string) map[string]string {
	leads := map[string]string{}
	for name, s := range project.Services {
		for _, port := range s.Ports {
			leads["localhost:"+port.Published] = net.JoinHostPort(at(name), strconv.Itoa(int(port.Target)))
		}
	}
	return leads
}

func get(ctx context.Context, client *http.Client, url, key string, into io.Writer) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if key != "" {
		request.Header.Set("Authorization", "Bearer "+key)
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	_, err = io.Copy(into, response.Body)
	return err
}

// submit sends a small picture, as a client does.
func submit(t *testing.T, client *http.Client, key, operations string) string {
	t.Helper()
	picture := image.NewRGBA(image.Rect(0, 0, 32, 32))
	for i := range 32 {
		picture.Set(i, i, color.RGBA{R: 200, A: 255})
	}
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	file, err := form.CreatePart(textproto.MIMEHeader{"Content-Disposition": {`form-data; name="file"; filename="red.png"`}, "Content-Type": {"image/png"}})
	require.NoError(t, err)
	require.NoError(t, png.Encode(file, picture))
	require.NoError(t, form.WriteField("operations", operations))
	require.NoError(t, form.Close())
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost:8000/api/process", &body)
	require.NoError(t, err)
	request.Header.Set("Content-Type", form.FormDataContentType())
	request.Header.Set("X-API-Key", key)
	response, err := client.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	told, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusAccepted, response.StatusCode, "%s", told)
	var accepted struct {
		JobID string `json:"job_id"`
	}
	require.NoError(t, json.Unmarshal(told, &accepted))
	return accepted.JobID
}

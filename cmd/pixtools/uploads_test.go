package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/internal/testenv"
)

// Limits of these programs, in bytes: of a file through the API, and of one that is stored directly.
const (
	throughAPI = 1 << 20
	direct     = 2 << 20
)

// TestDirectUploads: files that clients store themselves, on MinIO over two processes and on the embedded server.
func TestDirectUploads(t *testing.T) {
	limits := map[string]string{"MAX_UPLOAD_BYTES": fmt.Sprint(throughAPI), "MAX_DIRECT_UPLOAD_BYTES": fmt.Sprint(direct), "SPOOL_MAX_BYTES": "100000000"}
	for name, start := range map[string]func(t *testing.T) (a, b *program, store *storeOf){
		"minio": func(t *testing.T) (*program, *program, *storeOf) {
			env := realEnv(t)
			for variable, value := range limits {
				env[variable] = value
			}
			a := run(t, env)
			return a, run(t, env, "--roles=api"), &storeOf{env["AWS_ENDPOINT_URL"], env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], env["AWS_S3_BUCKET"]}
		},
		"embedded": func(t *testing.T) (*program, *program, *storeOf) {
			env := embeddedEnv(t)
			for variable, value := range limits {
				env[variable] = value
			}
			p := run(t, env)
			return p, p, embeddedStore(t, env["PIXTOOLS_DATA_DIR"])
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, store := start(t)
			t.Run("limits", func(t *testing.T) { directLimits(t, a, b) })
			t.Run("refused", func(t *testing.T) { directRefused(t, a) })
			t.Run("one key", func(t *testing.T) { directKeys(t, a, b) })
			t.Run("overwritten between", func(t *testing.T) { directRaces(t, a, store) })
			t.Run("boto3", func(t *testing.T) { directBoto3(t, b, store) })
			t.Run("command", func(t *testing.T) { directCommand(t, a) })
			t.Run("killed between", func(t *testing.T) { directKilled(t, b) })
		})
	}
}

// storeOf is how a client of the object storage gets in.
type storeOf struct{ endpoint, accessKey, secretKey, bucket string }

func (s *storeOf) client() *s3.Client {
	return s3.New(s3.Options{Region: "us-east-1", BaseEndpoint: &s.endpoint, UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(s.accessKey, s.secretKey, "")})
}

// embeddedStore reads where the embedded server is, and its keys.
func embeddedStore(t *testing.T, dir string) *storeOf {
	raw, err := os.ReadFile(filepath.Join(dir, "embedded.json"))
	require.NoError(t, err)
	var st struct {
		Port      int    `json:"s3_port"`
		AccessKey string `json:"s3_access_key"`
		SecretKey string `json:"s3_secret_key"`
	}
	require.NoError(t, json.Unmarshal(raw, &st))
	return &storeOf{fmt.Sprintf("http://127.0.0.1:%d", st.Port), st.AccessKey, st.SecretKey, "pixtools"}
}

// sized is a PNG of exactly that many bytes.
func sized(t *testing.T, width, size int) []byte {
	content := pngOf(t, picture(width, width))
	return append(content, make([]byte, size-len(content))...)
}

// wish posts JSON and returns the answer's status and body.
func (p *program) wish(path string, body any) (int, []byte) {
	p.t.Helper()
	raw, err := json.Marshal(body)
	require.NoError(p.t, err)
	response, err := http.Post(p.base+path, "application/json", bytes.NewReader(raw))
	require.NoError(p.t, err)
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	require.NoError(p.t, err)
	return response.StatusCode, answer
}

// sign asks where to store a picture.
func (p *program) sign(wish api.UploadRequest) api.Upload {
	p.t.Helper()
	status, body := p.wish("/api/uploads", wish)
	require.Equal(p.t, http.StatusOK, status, "%s", body)
	var signed api.Upload
	require.NoError(p.t, json.Unmarshal(body, &signed))
	return signed
}

// put sends a picture to where it was signed for.
func put(signed api.Upload, content []byte) (int, error) {
	request, err := http.NewRequest(signed.Method, signed.URL, bytes.NewReader(content))
	if err != nil {
		return 0, err
	}
	for name, value := range signed.Headers {
		request.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, err
}

// stored stores a picture and returns what stands for it.
func (p *program) stored(name string, content []byte, sum bool) api.Upload {
	p.t.Helper()
	wish := api.UploadRequest{ContentType: "image/png", Bytes: int64(len(content)), FileName: name}
	if sum {
		wish.SHA256 = fmt.Sprintf("%x", sha256.Sum256(content))
	}
	signed := p.sign(wish)
	status, err := put(signed, content)
	require.NoError(p.t, err)
	require.Equal(p.t, http.StatusOK, status)
	return signed
}

// directLimits: to the byte, and larger than what goes through the API; signed in one process, submitted in the other.
func directLimits(t *testing.T, a, b *program) {
	for _, size := range []int64{0, -1, 1, direct - 1, direct, direct + 1} {
		status, body := a.wish("/api/uploads", api.UploadRequest{ContentType: "image/png", Bytes: size})
		switch {
		case size < 1:
			require.Equal(t, http.StatusUnprocessableEntity, status)
			require.Contains(t, string(body), "bytes must be")
		case size > direct:
			require.Equal(t, http.StatusRequestEntityTooLarge, status)
			require.Contains(t, string(body), "MAX_DIRECT_UPLOAD_BYTES allows 2097152")
		default:
			require.Equal(t, http.StatusOK, status, "%s", body)
		}
	}
	for _, sum := range []bool{true, false} {
		for _, size := range []int{direct - 1, direct} {
			signed := a.stored("holiday.png", sized(t, 40, size), sum)
			job := b.ended(b.submit(field("upload", signed.Upload), field("operations", `["webp"]`)))
			require.Equal(t, "SUCCEEDED", *job.Outcome)
			_, disposition := fetch(t, job.ResultURLs["webp"])
			require.Contains(t, disposition, "pixtools_webp_holiday.webp")
		}
	}
	// One byte more or less than was announced does not get in, so no job can be made of it.
	signed := a.sign(api.UploadRequest{ContentType: "image/png", Bytes: 5000})
	for _, size := range []int{4999, 5001} {
		status, err := put(signed, sized(t, 8, size))
		require.NoError(t, err)
		require.Equal(t, http.StatusForbidden, status)
	}
	response, body, err := b.post(nil, field("upload", signed.Upload), field("operations", `["webp"]`))
	require.NoError(t, err)
	require.Equal(t, http.StatusNotFound, response.StatusCode)
	require.Contains(t, string(body), "nothing is stored for upload")
}

// directRefused: each fault is named by field.
func directRefused(t *testing.T, p *program) {
	good := p.stored("a.png", sized(t, 8, 3000), true)
	text := p.stored("a.png", bytes.Repeat([]byte("no picture "), 100), false)
	bomb := p.stored("a.png", bombPNG(20000, 20000), false)
	far := append([]byte{0xff, 0xd8}, bytes.Repeat(append([]byte{0xff, 0xfe, 0xff, 0xff}, make([]byte, 0xfffd)...), 20)...)
	comments := p.stored("a.jpg", append(far, jpegOf(t, picture(8, 8))[2:]...), false) // its size stands behind 1.3 MB
	ops, image := field("operations", `["webp"]`), file("a.png", "image/png", sized(t, 8, 2000))
	for name, c := range map[string]struct {
		parts       []part
		status      int
		field, says string
	}{
		"both":             {[]part{field("upload", good.Upload), image, ops}, 422, "upload", "send one of them"},
		"neither":          {[]part{ops}, 422, "file", "upload"},
		"empty":            {[]part{field("upload", ""), ops}, 422, "file", "file is missing"},
		"twice":            {[]part{field("upload", good.Upload), field("upload", good.Upload), ops}, 422, "upload", "more than once"},
		"unknown":          {[]part{field("upload", "uploads/"+uuid.NewString()), ops}, 404, "upload", "not known"},
		"changed":          {[]part{field("upload", "A"+good.Upload[1:]), ops}, 404, "upload", "not known"},
		"no picture":       {[]part{field("upload", text.Upload), ops}, 422, "upload", "not a JPEG"},
		"bomb":             {[]part{field("upload", bomb.Upload), ops}, 422, "upload", "limit"},
		"same format":      {[]part{field("upload", good.Upload), field("operations", `["png"]`)}, 422, "operations", "Cannot convert png to png"},
		"no operation":     {[]part{field("upload", good.Upload), field("operations", `[]`)}, 422, "operations", "At least one"},
		"far behind":       {[]part{field("upload", comments.Upload), ops}, 202, "", ""},
		"what is accepted": {[]part{field("upload", good.Upload), ops}, 202, "", ""},
		"and once more":    {[]part{field("upload", good.Upload), ops}, 202, "", ""},
	} {
		response, body, err := p.post(nil, c.parts...)
		require.NoError(t, err, name)
		require.Equal(t, c.status, response.StatusCode, "%s: %s", name, body)
		if c.status == http.StatusAccepted {
			continue
		}
		var problem api.Problem
		require.NoError(t, json.Unmarshal(body, &problem), name)
		require.Equal(t, c.field, problem.Errors[0].Field, name)
		require.Contains(t, problem.Detail, c.says, name)
	}
	sum := strings.Repeat("0", 64)
	for name, c := range map[string]struct {
		wish   any
		status int
		field  string
	}{
		"no type":       {api.UploadRequest{Bytes: 1}, 422, "content_type"},
		"text":          {api.UploadRequest{ContentType: "text/plain", Bytes: 1}, 400, "content_type"},
		"short sum":     {api.UploadRequest{ContentType: "image/png", Bytes: 1, SHA256: sum[1:]}, 422, "sha256"},
		"no hex":        {api.UploadRequest{ContentType: "image/png", Bytes: 1, SHA256: sum[1:] + "g"}, 422, "sha256"},
		"bytes in text": {map[string]any{"content_type": "image/png", "bytes": "1"}, 422, "bytes"},
	} {
		status, body := p.wish("/api/uploads", c.wish)
		require.Equal(t, c.status, status, name)
		var problem api.Problem
		require.NoError(t, json.Unmarshal(body, &problem), name)
		require.Equal(t, c.field, problem.Errors[0].Field, name)
	}
	for _, bytes := range []string{"5.5", "1e2", "99999999999999999999", strings.Repeat("9", 5000), `"1"`, "0", "-1"} {
		status, body := p.wish("/api/uploads", json.RawMessage(`{"content_type":"image/png","bytes":`+bytes+`}`))
		require.Equal(t, http.StatusUnprocessableEntity, status, bytes)
		var problem api.Problem
		require.NoError(t, json.Unmarshal(body, &problem), bytes)
		require.Equal(t, "bytes", problem.Errors[0].Field, bytes)
		require.Equal(t, fmt.Sprintf("bytes must be the file's size: a whole number of bytes from 1 to %d (MAX_DIRECT_UPLOAD_BYTES)", direct), problem.Detail, bytes)
	}
}

// directKeys: the same bytes under one key are one job, however they came; other bytes are refused.
func directKeys(t *testing.T, a, b *program) {
	content, ops, key := sized(t, 9, 4000), field("operations", `["webp"]`), field("idempotency_key", uuid.NewString())
	id := a.submit(file("a.png", "image/png", content), ops, key)
	require.Equal(t, id, b.submit(field("upload", a.stored("a.png", content, true).Upload), ops, key))
	require.Equal(t, id, a.submit(field("upload", b.stored("b.png", content, false).Upload), ops, key))
	response, body, err := b.post(nil, field("upload", a.stored("a.png", sized(t, 10, 4000), true).Upload), ops, key)
	require.NoError(t, err)
	require.Equal(t, http.StatusUnprocessableEntity, response.StatusCode)
	require.Contains(t, string(body), "idempotency_key")
}

// directRaces: somebody overwrites an upload all the time, while jobs are made of it. Each job is of one of the
// contents as a whole, and stays so.
func directRaces(t *testing.T, p *program, store *storeOf) {
	contents := [][]byte{sized(t, 11, 300_000), sized(t, 12, 300_000)}
	signed := p.stored("a.png", contents[0], false)
	var done atomic.Bool
	var all errgroup.Group
	all.Go(func() error {
		for i := 1; !done.Load(); i++ {
			if status, err := put(signed, contents[i%2]); err != nil || status != http.StatusOK {
				return fmt.Errorf("overwrite: %d %w", status, err)
			}
		}
		return nil
	})
	var accepted []string
	var refused int
	for len(accepted) < 10 || refused < 1 {
		response, body, err := p.post(nil, field("upload", signed.Upload), field("operations", `["webp"]`))
		require.NoError(t, err)
		switch response.StatusCode {
		case http.StatusAccepted:
			var job api.Accepted
			require.NoError(t, json.Unmarshal(body, &job))
			accepted = append(accepted, job.JobID)
		case http.StatusConflict:
			require.Contains(t, string(body), "overwritten")
			refused++
		default:
			require.Fail(t, "answered otherwise", "%s: %s", response.Status, body)
		}
		require.Less(t, len(accepted)+refused, 5000)
	}
	done.Store(true)
	require.NoError(t, all.Wait())
	client := store.client()
	for _, id := range accepted {
		listed, err := client.ListObjectsV2(within(t), &s3.ListObjectsV2Input{Bucket: &store.bucket, Prefix: aws.String("raw/" + id + "/")})
		require.NoError(t, err)
		require.Len(t, listed.Contents, 1)
		got, err := client.GetObject(within(t), &s3.GetObjectInput{Bucket: &store.bucket, Key: listed.Contents[0].Key})
		require.NoError(t, err)
		hash := sha256.New()
		_, err = io.Copy(hash, got.Body)
		require.NoError(t, err)
		got.Body.Close()
		require.Equal(t, *listed.Contents[0].Key, "raw/"+id+"/"+hex.EncodeToString(hash.Sum(nil)))
		require.Equal(t, "SUCCEEDED", *p.ended(id).Outcome)
	}
}

// directBoto3: Amazon's own client for Python uploads and downloads, and is refused what was tampered with.
func directBoto3(t *testing.T, p *program, store *storeOf) {
	cmd := exec.CommandContext(within(t), testenv.Boto3(t), "testdata/direct_upload.py", saved(t, "photo.png", sized(t, 30, throughAPI+1)))
	cmd.Env = append(os.Environ(), "PIXTOOLS="+p.base, "ENDPOINT="+store.endpoint, "BUCKET="+store.bucket,
		"AWS_ACCESS_KEY_ID="+store.accessKey, "AWS_SECRET_ACCESS_KEY="+store.secretKey, "AWS_DEFAULT_REGION=us-east-1")
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	require.NoError(t, err, "%s", complaints.String())
	var answered map[string]map[string]int
	require.NoError(t, json.Unmarshal(out, &answered), "%s", out)
	for name, status := range answered["taken"] {
		require.Equal(t, 200, status, name)
	}
	require.Len(t, answered["taken"], 3)
	for name, status := range answered["refused"] {
		require.Contains(t, []int{400, 403}, status, name)
	}
	require.Len(t, answered["refused"], 9)
}

// directCommand: pixtools submit --direct.
func directCommand(t *testing.T, p *program) {
	self, err := os.Executable()
	require.NoError(t, err)
	submit := func(flags ...string) (string, error) {
		cmd := exec.CommandContext(within(t), self, append([]string{"submit", "--server", p.base, "--ops", "webp", "--wait", "--quiet"}, flags...)...)
		cmd.Env = append(os.Environ(), mainVariable+"=1")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	large := saved(t, "large.png", sized(t, 20, throughAPI+1))
	out, err := submit(large)
	require.Error(t, err)
	require.Contains(t, out, "File exceeds 1MB limit")
	out, err = submit("--direct", large)
	require.NoError(t, err, out)
	require.Contains(t, out, "SUCCEEDED")
	out, err = submit("--direct", saved(t, "huge.png", sized(t, 20, direct+1)))
	require.Error(t, err)
	require.Contains(t, out, "MAX_DIRECT_UPLOAD_BYTES allows 2097152")
}

// directKilled: a process dies while jobs are made of uploads. What it signed is good in the next one, and each
// key is one job.
func directKilled(t *testing.T, p *program) {
	const uploads = 8
	signed := make([]api.Upload, uploads)
	for i := range signed {
		signed[i] = p.stored("a.png", sized(t, 13+i, 200_000), i%2 == 0)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	insist := func(i int) (string, error) {
		return p.insist(ctx, field("upload", signed[i].Upload), field("operations", `["webp"]`), field("idempotency_key", signed[i].Upload[:64]))
	}
	ids := make([]string, uploads)
	first := make(chan struct{}, uploads)
	var all errgroup.Group
	for i := range signed {
		all.Go(func() (err error) {
			ids[i], err = insist(i)
			first <- struct{}{}
			return err
		})
	}
	<-first
	p.kill()
	p.start()
	p.healthy()
	require.NoError(t, all.Wait())
	for i, id := range ids {
		again, err := insist(i)
		require.NoError(t, err)
		require.Equal(t, id, again)
		require.Equal(t, "SUCCEEDED", *p.ended(id).Outcome)
	}
}

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"image"
	"image/draw"
	"image/jpeg"
	"image/png"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"golang.org/x/image/webp"

	"github.com/pixtools/pixtools/internal/sniff"
	"github.com/pixtools/pixtools/internal/testenv"
)

// TestWholePath: every source to every target, on real servers and on embedded ones,
// checked as a client would: by downloading and decoding.
func TestWholePath(t *testing.T) {
	for name, env := range map[string]func(*testing.T) map[string]string{"real": realEnv, "embedded": embeddedEnv} {
		t.Run(name, func(t *testing.T) {
			p := run(t, env(t))
			everyPair(t, p)
			t.Run("camera", func(t *testing.T) { cameraPicture(t, p) })
		})
	}
}

func everyPair(t *testing.T, p *program) {
	original := picture(90, 60)
	sources := map[string][]byte{"png": pngOf(t, original), "jpg": jpegOf(t, original)}
	// The other two come out of the first, as a user might bring them back.
	first := p.ended(p.submit(file("a.png", "image/png", sources["png"]), field("operations", `["webp","avif"]`)))
	for _, format := range []string{"webp", "avif"} {
		sources[format], _ = fetch(t, first.ResultURLs[format])
	}
	types := map[string]string{"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "avif": "image/avif"}
	for source, content := range sources {
		var targets []string
		for target := range types {
			if target != source {
				targets = append(targets, fmt.Sprintf("%q", target))
			}
		}
		job := p.ended(p.submit(file("naïve photo."+source, types[source], content), field("operations", "["+strings.Join(targets, ",")+"]")))
		require.Equal(t, "COMPLETED", job.Status, source)
		require.Equal(t, "SUCCEEDED", *job.Outcome)
		require.Len(t, job.ResultURLs, 3)
		for target, link := range job.ResultURLs {
			made, disposition := fetch(t, link)
			require.Contains(t, disposition, "pixtools_"+target+"_na", "%s to %s", source, target)
			require.Contains(t, disposition, "."+target)
			checkPicture(t, made, target, 90, 60)
			require.EqualValues(t, len(made), job.OperationResults[target].Artifact.Bytes)
		}
	}
}

// checkPicture wants a picture of a format and size, that runs from dark to red to the
// right and to green downwards.
func checkPicture(t *testing.T, content []byte, format string, width, height int) {
	t.Helper()
	header, err := sniff.Read(bytes.NewReader(content), int64(len(content)), sniff.Limits{MaxPixels: 1e8, MaxSide: 30000})
	require.NoError(t, err)
	require.Equal(t, format, header.Format)
	require.Equal(t, []int{width, height}, []int{header.Width, header.Height})
	decode := map[string]func(io.Reader) (image.Image, error){"png": png.Decode, "jpg": jpeg.Decode, "webp": webp.Decode}[format]
	if decode == nil {
		return // AVIF: Go has no decoder; it is decoded where it is the source
	}
	m, err := decode(bytes.NewReader(content))
	require.NoError(t, err)
	red, green, _, _ := m.At(width-1, 0).RGBA()
	require.Greater(t, red>>8, uint32(200))
	require.Less(t, green>>8, uint32(60))
	red, green, _, _ = m.At(0, height-1).RGBA()
	require.Less(t, red>>8, uint32(60))
	require.Greater(t, green>>8, uint32(200))
}

// cameraPicture: 12 megapixels, stored sideways with a tag that says so, as a phone does.
func cameraPicture(t *testing.T, p *program) {
	upright := picture(3000, 4000)
	stored := image.NewNRGBA(image.Rect(0, 0, 4000, 3000))
	draw.Draw(stored, stored.Bounds(), image.Black, image.Point{}, draw.Src)
	for y := range 3000 {
		for x := range 4000 {
			// Orientation 6: to be turned clockwise; stored (x, y) shows at (2999-y, x).
			stored.Set(x, y, upright.At(2999-y, x))
		}
	}
	job := p.ended(p.submit(file("IMG_0001.JPG", "image/jpeg", withOrientation(jpegOf(t, stored), 6)), field("operations", `["png","webp","avif"]`)))
	require.Equal(t, "COMPLETED", job.Status)
	for format, link := range job.ResultURLs {
		made, _ := fetch(t, link)
		checkPicture(t, made, format, 3000, 4000)
	}
}

// withOrientation puts an EXIF block with the orientation tag behind the JPEG's start.
func withOrientation(content []byte, orientation byte) []byte {
	exif := []byte("Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00")
	exif[6+8+2+8+1] = orientation
	segment := binary.BigEndian.AppendUint16([]byte{0xff, 0xe1}, uint16(len(exif)+2))
	return append(append(append([]byte(nil), content[:2]...), append(segment, exif...)...), content[2:]...)
}

// bombPNG is a header that promises width x height pixels.
func bombPNG(width, height uint32) []byte {
	header := binary.BigEndian.AppendUint32([]byte("IHDR"), width)
	header = append(binary.BigEndian.AppendUint32(header, height), 8, 2, 0, 0, 0)
	out := append([]byte("\x89PNG\r\n\x1a\n"), 0, 0, 0, 13)
	out = append(out, header...)
	out = binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(header))
	return append(out, make([]byte, 100)...)
}

// TestKillDuringJobs: 200 accepted jobs, kill -9 while they run, start again: all end.
func TestKillDuringJobs(t *testing.T) {
	p := run(t, embeddedEnv(t))
	content := pngOf(t, picture(64, 64))
	const jobs, clients = 200, 8
	ids := make(chan string, jobs)
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for range jobs / clients {
				ids <- p.submit(file("a.png", "image/png", content), field("operations", `["webp","avif"]`))
			}
		})
	}
	all.Wait()
	p.kill()
	close(ids)
	p.start()
	p.healthy()
	for id := range ids {
		job := p.ended(id)
		require.Equal(t, "COMPLETED", job.Status, "job %s: %v", id, job.ErrorMessage)
		require.Len(t, job.ResultURLs, 2)
	}
	// The crash left transactions without an end; still the log's end is reached.
	eventually(t, "404 for an unknown job", func() error {
		response, err := http.Get(p.base + "/api/jobs/" + uuid.NewString())
		if err != nil {
			return err
		}
		response.Body.Close()
		if response.StatusCode != http.StatusNotFound {
			return errors.New(response.Status)
		}
		return nil
	})
}

// TestKillDuringSubmissions: kill -9 again and again while clients submit. Whoever was
// answered has a job that ends; whoever was not sends the same again, under its key.
func TestKillDuringSubmissions(t *testing.T) {
	p := run(t, embeddedEnv(t))
	content := pngOf(t, picture(64, 64))
	const jobs, clients, killEvery = 200, 8, 50
	ctx := within(t)
	ids, failures := make(chan string, jobs), make(chan error, clients)
	for client := range clients {
		go func() {
			for i := range jobs / clients {
				id, err := p.insist(ctx, file("a.png", "image/png", content), field("operations", `["webp","avif"]`),
					field("idempotency_key", fmt.Sprintf("%d of %d", i, client)))
				if err != nil {
					failures <- err
					return
				}
				ids <- id
			}
		}()
	}
	accepted := map[string]bool{}
	for len(accepted) < jobs {
		select {
		case id := <-ids:
			require.False(t, accepted[id], "job %s was given to two submissions", id)
			accepted[id] = true
		case err := <-failures:
			require.NoError(t, err)
		}
		if len(accepted)%killEvery == 0 {
			p.kill()
			p.start()
			p.healthy()
		}
	}
	for id := range accepted {
		job := p.ended(id)
		require.Equal(t, "COMPLETED", job.Status, "job %s: %v", id, job.ErrorMessage)
		require.Len(t, job.ResultURLs, 2)
	}
}

// TestStopsWithEveryChild: Ctrl-C, and nothing of it is left.
func TestStopsWithEveryChild(t *testing.T) {
	p := run(t, embeddedEnv(t))
	p.ended(p.submit(file("a.png", "image/png", pngOf(t, picture(8, 8))), field("operations", `["webp"]`)))
	children := descendants(p.cmd.Process.Pid)
	require.NotEmpty(t, children)
	require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
	require.NoError(t, p.cmd.Wait(), "a stop that was asked for is no failure")
	for _, pid := range children {
		eventually(t, fmt.Sprintf("end of child %d", pid), func() error {
			if alive(pid) {
				return fmt.Errorf("process %d is alive", pid)
			}
			return nil
		})
	}
}

// TestStopLetsConversionsFinish: what was begun is finished, and counts once.
func TestStopLetsConversionsFinish(t *testing.T) {
	variables := embeddedEnv(t)
	variables["KAFKA_CONSUMER_CLOSE_TIMEOUT"], variables["STOP_TIMEOUT"] = "80s", "90s"
	p := run(t, variables)
	id := p.submit(file("a.png", "image/png", pngOf(t, picture(1500, 1000))), field("operations", `["avif"]`), field("operation_params", `{"avif":{"effort":6}}`))
	eventually(t, "work on it", func() error {
		job, err := p.now(id)
		if err == nil && job.OperationResults["avif"].State == "PENDING" {
			err = errors.New("not begun")
		}
		return err
	})
	require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
	require.NoError(t, p.cmd.Wait())
	p.start()
	p.healthy()
	job := p.ended(id)
	require.Equal(t, "COMPLETED", job.Status)
	require.EqualValues(t, 1, job.OperationResults["avif"].Attempt)
}

// TestAsOrdinaryUser: root is not needed.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("every test of this run is by an ordinary user already")
	}
	const nobody = 65534
	dir, err := os.MkdirTemp("/var/tmp", "pixtools-test-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Chown(dir, nobody, nobody))
	self, err := os.Executable()
	require.NoError(t, err)
	binary, err := os.ReadFile(self)
	require.NoError(t, err)
	program := filepath.Join(dir, "pixtools")
	require.NoError(t, os.WriteFile(program, binary, 0o755))
	// The library lies beside the binary, as it does for one that was installed.
	libraries, err := filepath.Glob("../../build/bin/lib/*.so*")
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "lib"), 0o755))
	for _, library := range libraries {
		content, err := os.ReadFile(library)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "lib", filepath.Base(library)), content, 0o644))
	}
	p := prepare(t, map[string]string{"PIXTOOLS_DATA_DIR": filepath.Join(dir, "data"), "HOME": dir, "SPOOL_DIR": filepath.Join(dir, "spool")})
	p.log = &testenv.Buffer{}
	p.cmd = exec.Command(program, "serve")
	p.cmd.Dir, p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = dir, p.env, p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	require.NoError(t, p.cmd.Start())
	p.healthy()
	require.Equal(t, "COMPLETED", p.ended(p.submit(file("a.png", "image/png", pngOf(t, picture(8, 8))), field("operations", `["webp"]`))).Status)
}

// TestSubmitCommand: the tool's whole way, to the files on disk.
func TestSubmitCommand(t *testing.T) {
	p := run(t, embeddedEnv(t))
	dir := t.TempDir()
	source := filepath.Join(dir, "photo.jpg")
	require.NoError(t, os.WriteFile(source, jpegOf(t, picture(90, 60)), 0o600))
	self, err := os.Executable()
	require.NoError(t, err)
	submit := func(args ...string) (string, error) {
		cmd := exec.Command(self, append([]string{"submit", "--server", p.base}, args...)...)
		cmd.Env = append(os.Environ(), mainVariable+"=1")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := submit(source, "--ops", "webp,png", "--wait", "--out", dir)
	require.NoError(t, err, out)
	require.Contains(t, out, "SUCCEEDED")
	require.NotContains(t, out, "\r", "no bar where nobody looks")
	for _, format := range []string{"webp", "png"} {
		content, err := os.ReadFile(filepath.Join(dir, "pixtools_"+format+"_photo."+format))
		require.NoError(t, err)
		checkPicture(t, content, format, 90, 60)
	}
	out, err = submit(source, "--ops", "jpg", "--wait")
	require.Error(t, err)
	require.Contains(t, out, "Cannot convert jpg to jpg")
	out, err = submit(filepath.Join(dir, "absent.jpg"), "--ops", "webp")
	require.Error(t, err)
	require.Contains(t, out, "absent.jpg")

	// With a server that is not there: it says at once where it looks and that it goes on.
	out, err = submit(source, "--ops", "webp", "--server", "http://127.0.0.1:"+freePort(t), "--timeout", "3s")
	require.Error(t, err)
	require.Equal(t, 1, strings.Count(out, "trying again, for 3s in all (--timeout)"), out)
	require.Contains(t, out, "is PixTools running there? --server names another address")
	require.NotContains(t, out, "\r", "no bar where nobody looks")
}

// TestPortTaken: no other port is chosen silently.
func TestPortTaken(t *testing.T) {
	p := run(t, embeddedEnv(t))
	second := prepare(t, embeddedEnv(t))
	for i, v := range second.env {
		if strings.HasPrefix(v, "PORT=") {
			second.env[i] = "PORT=" + p.base[strings.LastIndex(p.base, ":")+1:]
		}
	}
	second.start()
	require.Error(t, second.cmd.Wait())
	require.Contains(t, second.log.String(), "set PORT")
	for _, host := range []string{"nosuch.invalid", "192.0.2.1"} { // no address of any machine
		nowhere := prepare(t, embeddedEnv(t))
		nowhere.env = append(nowhere.env, "HOST="+host)
		nowhere.start()
		require.Error(t, nowhere.cmd.Wait())
		require.Contains(t, nowhere.log.String(), "set HOST")
	}
}

// TestConfigurationFaultsAtOnce: every fault is named, in one go.
func TestConfigurationFaultsAtOnce(t *testing.T) {
	p := prepare(t, map[string]string{"MAX_UPLOAD_BYTES": "0", "SAGA_REMEMBER": "1s", "PROCESS_MAX_ATTEMPTS": "0", "CONVERT_CONCURRENCY": "-1",
		"STOP_TIMEOUT": "soon", "S3_RETENTION_DAYS": "x", "KAFKA_SUBMIT_TIMEOUT": "", "DATABASE_URL": "postgres//x", "REDIS_URL": "http://x", "LOG_LEVEL": "loud",
		"KAFKA_BROKERS": "kafka:9092,http://other:9092", "AWS_S3_BUCKET": "Bad!",
		"SCHEMA_REGISTRY_URL": "registry:8081", "JANITOR_ORPHAN_GRACE": "1h0m14s", "TENANT_KEYS_HOLD": "9s"})
	p.start()
	require.Error(t, p.cmd.Wait())
	for _, name := range []string{"MAX_UPLOAD_BYTES", "SAGA_REMEMBER", "PROCESS_MAX_ATTEMPTS", "CONVERT_CONCURRENCY",
		"STOP_TIMEOUT", "S3_RETENTION_DAYS", "DATABASE_URL", "REDIS_URL", "LOG_LEVEL", "KAFKA_BROKERS", "AWS_S3_BUCKET", "SCHEMA_REGISTRY_URL",
		"JANITOR_ORPHAN_GRACE is 1h0m14s: it must be 1h0m15s or more", "TENANT_KEYS_HOLD"} {
		require.Contains(t, p.log.String(), name)
	}
	_, err := http.Get(p.base)
	require.Error(t, err)
}

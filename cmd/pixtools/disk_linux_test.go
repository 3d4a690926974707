package main

import (
	"fmt"
	"image"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/internal/disk"
)

// smallDisk mounts a disk of so many bytes, in memory.
func smallDisk(t *testing.T, bytes int64) string {
	t.Helper()
	dir := filepath.Dir(dataDir(t))
	mount := filepath.Join(dir, "disk")
	require.NoError(t, os.Mkdir(mount, 0o755))
	if err := syscall.Mount("tmpfs", mount, "tmpfs", 0, fmt.Sprintf("size=%d,mode=755", bytes)); err != nil {
		t.Skipf("a small disk cannot be mounted here, which takes root: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(mount, syscall.MNT_DETACH) })
	return mount
}

// fill has a disk left with so many bytes, or with none.
func fill(t *testing.T, mount string, left int64) (empty func()) {
	t.Helper()
	path := filepath.Join(mount, "filler")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(t, err)
	defer file.Close()
	chunk := make([]byte, 64<<10)
	for {
		free, err := disk.Free(mount)
		require.NoError(t, err)
		if free <= left {
			break
		}
		if _, err := file.Write(chunk[:min(int64(len(chunk)), free-left)]); err != nil {
			require.True(t, disk.IsFull(err), err)
			break
		}
	}
	return func() { require.NoError(t, os.Remove(path)) }
}

// noise is a picture that does not compress.
func noise(t *testing.T, side int) []byte {
	m := image.NewNRGBA(image.Rect(0, 0, side, side))
	for i := range m.Pix {
		m.Pix[i] = byte(rand.Uint32()) | 1
	}
	return pngOf(t, m)
}

// refusedFor wants 507, with what to do.
func (p *program) refusedFor(words string, parts ...part) {
	p.t.Helper()
	response, body, err := p.post(nil, parts...)
	require.NoError(p.t, err)
	require.Equal(p.t, http.StatusInsufficientStorage, response.StatusCode, "%s", body)
	require.NotEmpty(p.t, response.Header.Get("Retry-After"))
	require.Regexp(p.t, words, string(body))
}

// goesOn waits until a submission is accepted; of a program that has ended, after another start.
func (p *program) goesOn(parts ...part) (id string) {
	p.t.Helper()
	eventually(p.t, "a submission is accepted", func() (err error) {
		if strings.Contains(p.log.String(), "an embedded part ended") {
			p.t.Log("it ended, and is started again")
			p.kill()
			p.start()
		}
		response, body, err := p.post(nil, parts...)
		if err != nil {
			return err
		}
		if response.StatusCode != http.StatusAccepted {
			return fmt.Errorf("%s: %s", response.Status, body)
		}
		_, id, _ = strings.Cut(string(body), `"job_id":"`)
		id = id[:36]
		return nil
	})
	return id
}

// TestFullDisk: with its disk full, PixTools takes no new work and says what to do, and what it
// accepted comes to its end: in the room that is kept for it, or when there is room again.
func TestFullDisk(t *testing.T) {
	const reserve = 64 << 20
	data, spool := smallDisk(t, 448<<20), smallDisk(t, 64<<20)
	env := map[string]string{"PIXTOOLS_DATA_DIR": filepath.Join(data, "data"), "PIXTOOLS_DISK_RESERVE_BYTES": fmt.Sprint(reserve),
		"PRIVATE_ADDR": "127.0.0.1:" + freePort(t), "SPOOL_DIR": filepath.Join(spool, "spool")}
	p := run(t, env, "--roles=api,convert,saga,projector")
	small := []part{file("small.png", "image/png", pngOf(t, picture(64, 64))), field("operations", `["webp","jpg"]`)}
	large := []part{file("large.png", "image/png", noise(t, 400)), field("operations", `["webp","jpg"]`)}
	slow := []part{file("slow.png", "image/png", noise(t, 600)), field("operations", `["webp","jpg","avif"]`)}
	accepted := map[string]bool{}
	succeed := func() {
		t.Helper()
		for id := range accepted {
			require.Equal(t, "SUCCEEDED", *p.ended(id).Outcome)
		}
	}

	for range 3 {
		accepted[p.submit(small...)] = true
		accepted[p.submit(large...)] = true
	}
	empty := fill(t, data, reserve/2)
	p.refusedFor(`free [0-9]+ bytes at `+data, small...)
	status, body, err := p.private("/readyz")
	require.NoError(t, err)
	require.Equal(t, http.StatusServiceUnavailable, status)
	require.Contains(t, body, "bytes at "+data)
	status, _ = p.wish("/api/uploads", map[string]any{"content_type": "image/png", "bytes": 1 << 20})
	require.Equal(t, http.StatusInsufficientStorage, status)
	succeed() // in the room that is kept
	_, body, err = p.private("/metrics")
	require.NoError(t, err)
	require.Contains(t, body, `pixtools_disk_free_bytes{variable="PIXTOOLS_DATA_DIR"}`)
	empty()
	accepted[p.submit(small...)] = true
	status, _, err = p.private("/readyz")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)

	// To the last byte, by somebody else, with work under way.
	for range 8 {
		accepted[p.submit(slow...)] = true
	}
	empty = fill(t, data, 0)
	p.refusedFor(`free [0-9]+ bytes at `+data, small...)
	p.says("the embedded log takes nothing") // it was asked to
	empty()
	accepted[p.goesOn(small...)] = true
	succeed()
	require.NotContains(t, p.log.String(), "embedded kafka", "it has tried nothing, so it need not end")

	// A crash then: what was accepted is there when there is room for a start.
	for range 4 {
		accepted[p.submit(small...)] = true
	}
	empty = fill(t, data, 0)
	p.kill()
	p.start()
	p.says("start pixtools again")
	require.Regexp(t, `free [0-9]+ bytes at `+data, p.log.String())
	p.kill()
	empty()
	p.start()
	p.healthy()
	succeed()

	// The spool.
	empty = fill(t, spool, 0)
	p.refusedFor(`free [0-9]+ bytes at `+spool+`.*SPOOL_DIR`, large...)
	waiting := p.submit(small...) // small enough for memory
	p.says("fetch the source of job " + waiting)
	empty()
	accepted[waiting] = true
	accepted[p.submit(large...)] = true
	succeed()
	for id := range accepted {
		job := p.ended(id)
		for _, result := range job.OperationResults {
			require.LessOrEqual(t, result.Attempt, int32(3), "waiting for room uses up no attempts")
		}
	}
	require.Empty(t, p.verify(0).open)

	// For too long: the job ends and says why, and a retry does it when there is room.
	p.kill()
	p.env = append(p.env, "PROCESS_GIVE_UP_AFTER=1s")
	p.start()
	p.healthy()
	empty = fill(t, spool, 0)
	waiting = p.submit(small...)
	job := p.ended(waiting)
	require.Equal(t, "FAILED", *job.Outcome)
	for operation, result := range job.OperationResults {
		require.Equal(t, []string{"WORLD", "disk_full"}, []string{result.Error.Kind, result.Error.Code}, operation)
	}
	empty()
	require.Equal(t, http.StatusAccepted, p.ask(http.MethodPost, "/api/jobs/"+waiting+"/retry", nil, &api.Retried{}))
	require.Equal(t, "SUCCEEDED", *p.endedIn(waiting, 2).Outcome)
}

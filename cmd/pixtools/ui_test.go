package main

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"io"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/testenv"
)

// largestFirstLoad is what the page may weigh at its first load, compressed, in bytes.
const largestFirstLoad = 150_000

// TestUI: what people do with the page, in a real browser.
func TestUI(t *testing.T) {
	variables := embeddedEnv(t)
	kafkaPort := freePort(t)
	variables["PIXTOOLS_EMBEDDED_KAFKA_PORT"] = kafkaPort
	variables["MAX_UPLOAD_BYTES"], variables["SPOOL_MAX_BYTES"], variables["MAX_DIRECT_UPLOAD_BYTES"] = "1048576", "100000000", "2097152"
	variables["MAX_IMAGE_SIDE"], variables["MAX_IMAGE_PIXELS"] = "17000", "10000000"
	variables["DENOISE_TILE"], variables["DENOISE_NICE"] = "216", "0"
	p := run(t, variables)
	for name, test := range map[string]func(*testing.T, *program){
		"from upload to download": uiDownloads, "checks before sending": uiChecks, "a large file": uiLargeFile, "ways in": uiWaysIn, "one of two fails": uiPartial,
		"timeline": uiTimeline, "compare": uiCompare, "history": uiHistory, "all jobs": uiServerHistory, "retry and cancel": uiRetryAndCancel,
		"phone": uiPhone, "keyboard": uiKeyboard, "first load": uiFirstLoad, "accessibility": uiAccessible, "parameters": uiParameters, "delete": uiDelete,
		"results expire": func(t *testing.T, p *program) { uiExpiry(t, p, "127.0.0.1:"+kafkaPort) },
	} {
		t.Run(name, func(t *testing.T) { test(t, p) })
	}
}

// uiDownloads: every operation, from choosing a file to its result on disk, alone and in a ZIP.
func uiDownloads(t *testing.T, p *program) {
	sources := map[string][]byte{"from png.png": pngOf(t, picture(90, 60)), "from jpg.jpg": jpegOf(t, picture(90, 60))}
	for name, ops := range map[string][]string{"from png.png": {"jpg", "webp", "avif", "denoise"}, "from jpg.jpg": {"png"}} {
		b := openTab(t, p, "/")
		b.choose(saved(t, name, sources[name]))
		b.want(ops...)
		b.start()
		b.state("#status .badge", "SUCCEEDED")
		base := strings.TrimSuffix(name, path.Ext(name))
		whole := map[string][]byte{}
		for _, op := range ops {
			b.state("[data-operation="+op+"]", "COMPLETED")
			b.shows("[data-operation="+op+"] .size", "%")
			format := map[string]string{"denoise": "png"}[op]
			if format == "" {
				format = op
			}
			file := fmt.Sprintf("pixtools_%s_%s.%s", op, base, format)
			b.click("[data-operation=" + op + "] .download")
			whole[file] = b.downloaded(file)
			checkPicture(t, whole[file], format, 90, 60)
		}
		b.until(`[...document.querySelectorAll(".result img")].every(i => i.complete && i.naturalWidth === 90)`)
		b.click(".actions button") // all
		b.shows("#message", "Saved.")
		archive := b.downloaded("pixtools_" + base + ".zip")
		z, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
		require.NoError(t, err)
		require.Len(t, z.File, len(whole))
		for _, entry := range z.File {
			r, err := entry.Open()
			require.NoError(t, err)
			content, err := io.ReadAll(r)
			require.NoError(t, err)
			require.Equal(t, whole[entry.Name], content, entry.Name)
		}
	}
}

// uiLargeFile: what is too large for the API goes to the object storage, and is a job all the same.
func uiLargeFile(t *testing.T, p *program) {
	b := openTab(t, p, "/")
	b.choose(saved(t, "large.png", append(pngOf(t, picture(40, 30)), make([]byte, 1<<20)...)))
	b.want("webp")
	id := b.start()
	require.Equal(t, "SUCCEEDED", *p.ended(id).Outcome)
	require.Contains(t, p.ended(id).ResultURLs["webp"], "pixtools_webp_large.webp")
}

// uiChecks: what cannot be sent is told at once, in the words in which the server would refuse it.
func uiChecks(t *testing.T, p *program) {
	content := pngOf(t, picture(40, 30))
	b := openTab(t, p, "/")
	for _, c := range []struct {
		name, contentType string
		content           []byte
	}{
		{"notes.txt", "text/plain", []byte("text")},
		{"empty.png", "image/png", nil},
		{"text.png", "image/png", []byte("this is a text that is long enough")},
		{"wide.png", "image/png", pngOf(t, picture(17001, 1))},
		{"many.png", "image/png", pngOf(t, image.NewGray(image.Rect(0, 0, 4000, 4000)))},
	} {
		response, body, err := p.post(nil, file(c.name, c.contentType, c.content), field("operations", `["webp"]`))
		require.NoError(t, err)
		require.GreaterOrEqual(t, response.StatusCode, 400, c.name)
		var problem api.Problem
		require.NoError(t, json.Unmarshal(body, &problem))
		b.choose(saved(t, c.name, c.content))
		b.shows(fmt.Sprintf(".picture[data-name=%q] .error", c.name), problem.Detail)
		b.click(fmt.Sprintf(".picture[data-name=%q] button", c.name))
		b.until(`document.querySelectorAll(".picture").length === 0`)
	}
	b.click("button[type=submit]")
	b.shows("#message.error", "Choose a picture first.")
	b.choose(saved(t, "large.png", append(slices.Clone(content), make([]byte, 2<<20)...)))
	b.shows(`.picture[data-name="large.png"] .error`, "File exceeds 2MB limit")
	b.click(`.picture[data-name="large.png"] button`)
	b.until(`document.querySelectorAll(".picture").length === 0`)

	// The largest that is allowed, to the byte and the pixel, is not refused.
	b.choose(saved(t, "just.png", append(slices.Clone(content), make([]byte, 1<<20-len(content))...)), saved(t, "long.png", pngOf(t, picture(17000, 1))))
	require.Empty(t, evaluate[[]string](b, `[...document.querySelectorAll(".picture .error")].map(e => e.textContent)`))
	b.shows("#about-png", "Cannot convert png to png — source and target formats are the same")
	require.True(t, evaluate[bool](b, `document.querySelector("input[value=png]").disabled`))
	b.want()
	b.click("button[type=submit]")
	b.shows("#message.error", "At least one operation is required")

	b.want("webp", "avif")
	for _, c := range []struct{ field, typed, says string }{
		{"webp-quality", "0", "webp.quality must be a whole number from 1 to 100"},
		{"webp-quality", "101", "webp.quality must be a whole number from 1 to 100"},
		{"avif-effort", "1.5", "avif.effort must be a whole number from 1 to 9"},
	} {
		b.until(fmt.Sprintf(`(e => { e.closest("details").open = true; e.value = %q; return true })(document.getElementById(%q))`, c.typed, c.field))
		b.click("button[type=submit]")
		b.shows("#message.error", c.says)
		require.Equal(t, c.field, evaluate[string](b, "document.activeElement.id"))
		b.until(fmt.Sprintf(`(e => { e.value = ""; return true })(document.getElementById(%q))`, c.field))
	}
}

// uiParameters: what is set is what the job is asked for with.
func uiParameters(t *testing.T, p *program) {
	b := openTab(t, p, "/")
	b.choose(saved(t, "a.png", pngOf(t, picture(40, 30))))
	b.want("webp", "avif")
	b.click("summary[aria-label='Settings of webp']")
	b.do(chromedp.SendKeys(chromedp.CSS("#webp-quality"), "33"))
	b.click("#webp-lossless")
	b.click("summary[aria-label='Settings of avif']")
	b.do(chromedp.SendKeys(chromedp.CSS("#avif-effort"), "1"))
	id := b.start()
	b.state("#status .badge", "SUCCEEDED")
	var history api.JobHistory
	require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/jobs/"+id+"/events", nil, &history))
	var requested struct {
		Operations []struct {
			Name       string
			Parameters map[string]any
		}
	}
	require.NoError(t, json.Unmarshal(history.Events[0].Event, &requested))
	require.Equal(t, map[string]any{"quality": 33.0, "lossless": true}, requested.Operations[0].Parameters)
	require.Equal(t, map[string]any{"effort": 1.0}, requested.Operations[1].Parameters)
}

// uiWaysIn: pictures are dropped, pasted and chosen, several at once, each a job of its own, and an
// operation that is not possible for one is asked for of the others.
func uiWaysIn(t *testing.T, p *program) {
	b := openTab(t, p, "/")
	b.choose(saved(t, "a.png", pngOf(t, picture(40, 30))), saved(t, "b.jpg", jpegOf(t, picture(41, 30))))
	for i, event := range []string{`new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true })`, `new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })`} {
		evaluate[bool](b, fmt.Sprintf(`new Promise(done => { const c = document.createElement("canvas"); c.width = 20; c.height = 10; c.toBlob(blob => {
			const data = new DataTransfer(); data.items.add(new File([blob], "in%d.png", { type: "image/png" }));
			document.querySelector("#drop").dispatchEvent(%s); done(true) }) })`, i, event))
		b.until(fmt.Sprintf(`document.querySelectorAll(".picture").length === %d`, 3+i))
	}
	b.shows(".picture[data-name='in0.png']", "20 × 10")
	b.shows("#about-jpg", "Not for all of them: Cannot convert jpg to jpg")
	b.want("jpg", "webp")
	b.shows("button[type=submit]", "Start 4 jobs")
	b.click("button[type=submit]")
	b.until(`document.querySelectorAll(".picture [data-state=SUCCEEDED]").length === 4`)
	id := evaluate[string](b, `document.querySelector(".picture[data-name='b.jpg'] a").hash.split("/").pop()`)
	require.Equal(t, []string{"webp"}, p.ended(id).Operations)
	id = evaluate[string](b, `document.querySelector(".picture[data-name='a.png'] a").hash.split("/").pop()`)
	require.Equal(t, []string{"jpg", "webp"}, p.ended(id).Operations)
}

// uiPartial: of two operations one fails; the other's result is there, and the reason is told.
func uiPartial(t *testing.T, p *program) {
	b := openTab(t, p, "/")
	b.choose(saved(t, "long.png", pngOf(t, picture(16600, 2)))) // longer than WebP can be
	b.want("webp", "jpg")
	id := b.start()
	b.state("#status .badge", "PARTIAL")
	b.shows("[data-operation=webp][data-state=FAILED] .error", p.ended(id).OperationResults["webp"].Error.Message)
	b.shows("[data-operation=webp]", "The picture is the reason (side_too_long)")
	b.shows("#message", "Done in part")
	b.click("[data-operation=jpg] .download")
	made, err := jpeg.DecodeConfig(bytes.NewReader(b.downloaded("pixtools_jpg_long.jpg")))
	require.NoError(t, err)
	require.Equal(t, 16600, made.Width)
}

// uiTimeline: the job at each of its events is what the API says it was.
func uiTimeline(t *testing.T, p *program) {
	b := openTab(t, p, "/")
	b.choose(saved(t, "a.png", pngOf(t, picture(40, 30))))
	b.want("webp", "jpg")
	id := b.start()
	b.click(".timeline summary") // while it runs: what comes is added
	b.state("#status .badge", "SUCCEEDED")
	b.until(`document.querySelectorAll(".events li").length === 6`)
	var history api.JobHistory
	require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/jobs/"+id+"/events", nil, &history))
	for i, e := range history.Events {
		evaluate[bool](b, fmt.Sprintf(`(s => { s.value = %d; s.dispatchEvent(new Event("input")); return true })(document.getElementById("moment"))`, i))
		b.until(fmt.Sprintf(`document.querySelector(".snapshot").dataset.at === "%d"`, i))
		b.shows(".moment output", fmt.Sprintf("%d of 6: %s", i+1, e.Type))
		for op, result := range e.Job.OperationResults {
			b.until(fmt.Sprintf(`document.querySelector(".snapshot [data-operation=%s]").dataset.state === %q`, op, result.State))
		}
	}
	b.click("button.event[data-type=JobRequested]")
	b.state(".snapshot-title .badge", "PENDING")
	b.shows(".events", "after JobRequested")
}

// uiCompare: the line between original and result moves with the slider, and zoom makes both larger.
func uiCompare(t *testing.T, p *program) {
	b := openTab(t, p, "/")
	b.choose(saved(t, "a.png", pngOf(t, picture(400, 300))))
	b.want("jpg")
	b.start()
	b.click("[data-operation=jpg] button.quiet")
	b.until(`[...document.querySelectorAll("dialog.compare img")].every(i => i.complete && i.naturalWidth === 400)`)
	line := `document.querySelector("dialog .line").getBoundingClientRect().left - document.querySelector("dialog .frame").getBoundingClientRect().left`
	before := evaluate[float64](b, line)
	b.keys(kb.ArrowRight + kb.ArrowRight + kb.ArrowRight) // the slider has the focus
	b.until(fmt.Sprintf("%s > %f", line, before+5))
	width := evaluate[float64](b, `document.querySelector("dialog .stage").clientWidth`)
	b.do(chromedp.Focus(chromedp.CSS("#zoom")))
	b.keys(kb.ArrowRight + kb.ArrowRight)
	b.until(fmt.Sprintf(`document.querySelector("dialog .stage").clientWidth > %f`, width*1.9))
	b.shows("dialog output", "2×")
	b.accessible("compare")
	b.keys(kb.Escape)
	b.until(`!document.querySelector("dialog")`)
}

// uiHistory: it survives a reload, tells of jobs that are gone, and lets entries go.
func uiHistory(t *testing.T, p *program) {
	b := openTab(t, p, "/history")
	b.shows(".notice", "No jobs yet")
	b.goTo("/")
	b.choose(saved(t, "kept.png", pngOf(t, picture(40, 30))))
	b.want("webp")
	id := b.start()
	zone, err := time.LoadLocation("Asia/Tokyo")
	require.NoError(t, err)
	_, err = chromedp.Call(b.ctx, emulation.SetTimezoneOverride, emulation.SetTimezoneOverrideParams{TimezoneID: zone.String()})
	require.NoError(t, err)
	b.do(chromedp.Reload())
	b.shows(".facts time", p.ended(id).CreatedAt.In(zone).Format("3:04"))
	b.goTo("/history")
	b.do(chromedp.Reload())
	b.state(".job-row", "SUCCEEDED")
	b.shows(".job-row[data-job='"+id+"']", "kept.png")
	gone := uuid.NewString()
	evaluate[bool](b, fmt.Sprintf(`(all => { all.push({ ...all[0], id: %q, name: "gone.png", position: "" }); localStorage.setItem("pixtools.jobs", JSON.stringify(all)); return true })(JSON.parse(localStorage.getItem("pixtools.jobs")))`, gone))
	b.excused = aJobThatIsGone
	b.do(chromedp.Reload())
	b.state(".job-row[data-job='"+gone+"']", "GONE")
	b.shows(".job-row[data-job='"+gone+"']", "does not know it any more")
	b.click(".job-row[data-job='" + gone + "'] a")
	b.shows(".notice", "There is no such job")
	b.goTo("/history")
	b.click(".job-row[data-job='" + gone + "'] [data-action=remove]")
	b.until(`document.querySelectorAll(".job-row").length === 1`)
	b.do(chromedp.Reload())
	b.shows(".job-row", "kept.png")
	b.click(".job-row a")
	b.shows("#job-id", id)
}

// uiServerHistory: the server's list, in pages, searched and picked from.
func uiServerHistory(t *testing.T, p *program) {
	content, broken := pngOf(t, picture(20, 20)), jpegOf(t, picture(300, 200))
	var ids []string
	for range 21 {
		ids = append(ids, p.submit(file("a.png", "image/png", content), field("operations", `["jpg"]`)))
	}
	failed := p.submit(file("b.jpg", "image/jpeg", broken[:len(broken)/2]), field("operations", `["png"]`))
	p.ended(failed)
	b := openTab(t, p, "/history")
	b.click(".tabs a[href='#/history/all']")
	b.until(`document.querySelectorAll(".job-row").length === 20`)
	b.state(".job-row[data-job='"+failed+"']", "FAILED")
	b.accessible("all jobs")
	b.click(".view > div > .actions button:nth-of-type(2)") // older
	b.until(`document.querySelector(".job-row[data-job='` + ids[0] + `']")`)
	b.click(".view > div > .actions button:nth-of-type(1)") // newer
	b.until(`document.querySelector(".job-row[data-job='` + failed + `']")`)

	b.do(chromedp.SendKeys(chromedp.CSS("#search"), strings.ToUpper(ids[3][:23])))
	b.until(`document.querySelectorAll(".job-row").length === 1 && document.querySelector(".job-row[data-job='` + ids[3] + `']")`)
	b.state(".job-row", "SUCCEEDED")
	b.do(chromedp.SendKeys(chromedp.CSS("#search"), "x"))
	b.excused = regexp.MustCompile("status of 422")
	b.shows("#message.error", "q must be the beginning of a job's id")
	b.until(`(s => { s.value = ""; s.dispatchEvent(new Event("input")); return true })(document.querySelector("#search"))`)
	for _, c := range []struct{ state, operation string }{{"outcome=FAILED", "png"}, {"outcome=SUCCEEDED", "jpg"}} {
		b.until(fmt.Sprintf(`(s => { s.value = %q; s.dispatchEvent(new Event("change")); return true })(document.querySelector("#state"))`, c.state))
		b.until(fmt.Sprintf(`(s => { s.value = %q; s.dispatchEvent(new Event("change")); return s.value })(document.querySelector("#operation"))`, c.operation))
		b.until(fmt.Sprintf(`(rows => rows.length > 0 && rows.every(r => r.dataset.state === %q && r.textContent.includes(%q)))([...document.querySelectorAll(".job-row")])`, strings.TrimPrefix(c.state, "outcome="), c.operation))
	}
	b.until(`(s => { s.value = "outcome=CANCELLED"; s.dispatchEvent(new Event("change")); return true })(document.querySelector("#state"))`)
	b.until(`(s => { s.value = "png"; s.dispatchEvent(new Event("change")); return true })(document.querySelector("#operation"))`)
	b.shows(".notice", "No such jobs")
	b.until(`(s => { s.value = "outcome=FAILED"; s.dispatchEvent(new Event("change")); return true })(document.querySelector("#state"))`)
	b.click(".job-row[data-job='" + failed + "'] [data-action=retry]")
	p.endedIn(failed, 2)
	b.shows(".job-row[data-job='"+failed+"']", "revision 2")
}

// uiDelete: a job is deleted on the server from its own page, from this browser's list and from
// the server's, after a question; until then the page says how long its pictures are kept.
func uiDelete(t *testing.T, p *program) {
	b := openTab(t, p, "/")
	b.excused = aJobThatIsGone
	var ids []string
	for _, name := range []string{"one.png", "two.png", "three.png"} {
		b.goTo("/")
		b.choose(saved(t, name, pngOf(t, picture(40, 30))))
		b.want("webp")
		ids = append(ids, b.start())
		b.state("#status .badge", "SUCCEEDED")
		b.shows("[data-operation=webp] .expires", "expires in")
		b.shows(".original .expires", "expires in")
	}
	gone := func(id string) {
		t.Helper()
		eventually(t, "404", func() error {
			var problem api.Problem
			if status := p.ask(http.MethodGet, "/api/jobs/"+id, nil, &problem); status != http.StatusNotFound {
				return fmt.Errorf("%d", status)
			}
			return nil
		})
	}
	row := func(id, rest string) string { return ".job-row[data-job='" + id + "']" + rest }

	b.click(".actions [data-action=delete]")
	b.shows("dialog", "Delete this job?")
	b.accessible("the question before a job is deleted")
	b.click("dialog button[value=no]")
	b.until(`!document.querySelector("dialog")`)
	b.click(".actions [data-action=delete]")
	b.click("dialog button[value=yes]")
	b.until(`location.hash === "#/history"`)
	gone(ids[2])
	b.until(fmt.Sprintf("document.querySelector(%q) && !document.querySelector(%q)", row(ids[1], ""), row(ids[2], "")))

	b.click(row(ids[1], " [data-action=delete]"))
	b.click("dialog button[value=yes]")
	b.shows("#message", "two.png deleted")
	gone(ids[1])
	b.until(fmt.Sprintf("document.querySelector(%q) && !document.querySelector(%q)", row(ids[0], ""), row(ids[1], "")))
	b.accessible("history after a deletion")

	b.click(".tabs a[href='#/history/all']")
	b.click(row(ids[0], " [data-action=delete]"))
	b.click("dialog button[value=yes]")
	b.until(fmt.Sprintf("document.querySelector('#message').textContent.includes('deleted') && !document.querySelector(%q)", row(ids[0], "")))
	gone(ids[0])
}

// uiExpiry: a job whose pictures are not kept any more says so, in the history and by itself.
func uiExpiry(t *testing.T, p *program, broker string) {
	b := openTab(t, p, "/")
	b.choose(saved(t, "old.png", pngOf(t, picture(40, 30))))
	b.want("webp")
	id := b.start()
	b.state("#status .badge", "SUCCEEDED")
	expired := events.New(id, time.Now(), "pixtools/test", "", &events.ArtifactsExpired{Operations: []string{"webp"}, Source: true})
	record, err := expired.Record()
	require.NoError(t, err)
	client, err := kgo.NewClient(kgo.SeedBrokers(broker))
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, client.ProduceSync(t.Context(), record).FirstErr())
	eventually(t, "expiry", func() error {
		job, err := p.now(id)
		if err == nil && len(job.ResultURLs) > 0 {
			err = errors.New("its results have links")
		}
		return err
	})
	b.goTo("/history")
	b.do(chromedp.Reload())
	b.state(".job-row", "EXPIRED")
	b.shows(".job-row", "not kept any more")
	b.accessible("history with an expired job")
	b.click(".job-row a")
	b.shows("[data-operation=webp] .expired", "Expired")
	b.shows(".original", "Expired")
	require.False(t, evaluate[bool](b, `Boolean(document.querySelector(".download"))`))
}

// uiRetryAndCancel: from the job's page and from the list.
func uiRetryAndCancel(t *testing.T, p *program) {
	broken := jpegOf(t, picture(300, 200))
	b := openTab(t, p, "/")
	b.choose(saved(t, "broken.jpg", broken[:len(broken)/2]))
	b.want("webp", "png")
	id := b.start()
	b.state("#status .badge", "FAILED")
	b.shows("[data-operation=png]", "The picture is the reason (truncated)")
	b.click("[data-operation=png] .actions button")
	b.shows(".facts", "revision 2")
	b.state("#status .badge", "FAILED")
	b.goTo("/history")
	b.click(".job-row [data-action=retry]")
	require.Equal(t, "FAILED", *p.endedIn(id, 3).Outcome)
	b.state(".job-row", "FAILED")

	slow := saved(t, "slow.png", pngOf(t, picture(3000, 2000)))
	for _, place := range []string{"job", "list"} {
		b.goTo("/")
		b.choose(slow)
		b.want("denoise")
		id = b.start()
		if place == "list" {
			b.goTo("/history")
			b.click(".job-row[data-job='" + id + "'] [data-action=cancel]")
		} else {
			b.until(`document.querySelector("[data-operation=denoise] progress")?.value > 0`)
			b.click(".facts + .actions button.quiet:not([hidden])")
		}
		b.shows("dialog h2", "Cancel this job?")
		b.click("dialog button[value=yes]")
		require.Equal(t, "CANCELLED", *p.ended(id).Outcome)
		b.state(map[string]string{"job": "#status .badge", "list": ".job-row[data-job='" + id + "']"}[place], "CANCELLED")
	}
}

// uiPhone: everything fits a small window, and works there.
func uiPhone(t *testing.T, p *program) {
	b := openTab(t, p, "/")
	b.size(360, 740)
	b.fits("new")
	b.choose(saved(t, strings.Repeat("a long name ", 12)+".png", pngOf(t, picture(90, 60))))
	b.want("webp", "jpg")
	b.fits("new, with a picture")
	b.start()
	b.state("#status .badge", "SUCCEEDED")
	b.fits("job")
	b.click(".timeline summary")
	b.until(`document.querySelector(".snapshot")?.dataset.at`)
	b.fits("timeline")
	b.click("[data-operation=jpg] button.quiet")
	b.until(`document.querySelector("dialog .after").complete`)
	b.fits("compare")
	b.keys(kb.Escape)
	for _, at := range []string{"/history", "/history/all", "/operations"} {
		b.goTo(at)
		b.fits(at)
	}
}

// tabTo presses Tab until an element has the focus.
func (b *tab) tabTo(selector string) {
	b.t.Helper()
	for range 60 {
		if evaluate[bool](b, fmt.Sprintf("document.activeElement.matches(%q)", selector)) {
			return
		}
		b.keys(kb.Tab)
	}
	require.Fail(b.t, "the Tab key does not reach it", selector)
}

// uiKeyboard: from the first key to a result, without a mouse.
func uiKeyboard(t *testing.T, p *program) {
	b := openTab(t, p, "/")
	b.tabTo(".skip")
	b.keys(kb.Enter)
	require.Equal(t, "main", evaluate[string](b, "document.activeElement.id"))
	b.tabTo("#file")
	b.do(chromedp.SetUploadFiles(chromedp.CSS("#file"), []string{saved(t, "keys.png", pngOf(t, picture(90, 60)))})) // what the file picker answers
	b.until(`document.querySelector(".picture")`)
	b.tabTo("input[value=jpg]")
	b.keys(" ")
	b.tabTo("button[type=submit]")
	b.keys(kb.Enter)
	b.until(`document.querySelector("#status [data-state=SUCCEEDED]")`)
	require.Equal(t, "main", evaluate[string](b, "document.activeElement.id"), "the focus is where the new view begins")
	b.tabTo("[data-operation=webp] button.quiet")
	b.keys(kb.Enter)
	b.until(`document.activeElement.id === "split"`)
	b.keys(kb.Escape)
	b.until(`document.activeElement.matches("[data-operation=webp] button.quiet")`)
	b.tabTo(".timeline summary")
	b.keys(kb.Enter)
	b.until(`document.querySelectorAll(".events li").length === 6`)
	b.tabTo("#moment")
	b.keys(kb.Home)
	b.shows(".moment output", "1 of 6: JobRequested")
	evaluate[bool](b, "document.activeElement.blur(), scrollTo(0, 0), true")
	b.tabTo(".bar a[href='#/history']")
	b.keys(kb.Enter)
	b.shows("h1", "History")
	b.tabTo(".job-row [data-action=remove]")
	b.keys(kb.Enter)
	b.shows(".notice", "No jobs yet")
}

// uiFirstLoad: small, from one origin, under a strict policy.
func uiFirstLoad(t *testing.T, p *program) {
	b := openTab(t, p, "/")
	weight := evaluate[float64](b, `performance.getEntriesByType("resource").concat(performance.getEntriesByType("navigation")).reduce((sum, e) => sum + e.transferSize, 0)`)
	require.Greater(t, weight, 10_000.0)
	require.Less(t, weight, float64(largestFirstLoad))
	b.goTo("/history")
	b.goTo("/operations")
	b.until(`document.querySelector(".uplot")`)
	b.mu.Lock()
	require.NotEmpty(t, b.requests)
	for _, address := range b.requests {
		if !strings.HasPrefix(address, "blob:") && address != "about:blank" {
			require.Equal(t, p.base, originOf(t, address), address)
		}
	}
	b.mu.Unlock()
	response, err := http.Get(p.base + "/")
	require.NoError(t, err)
	response.Body.Close()
	policy := response.Header.Get("Content-Security-Policy")
	require.Contains(t, policy, "default-src 'none'")
	require.NotContains(t, policy, "unsafe")
	request, err := http.NewRequest(http.MethodGet, p.base+"/app.js", nil)
	require.NoError(t, err)
	request.Header.Set("If-None-Match", `W/"other", `+etag(t, p.base+"/app.js"))
	response, err = http.DefaultClient.Do(request)
	require.NoError(t, err)
	response.Body.Close()
	require.Equal(t, http.StatusNotModified, response.StatusCode)
	b.excused = regexp.MustCompile("scalar") // it probes for eval, which it does not need
	b.do(chromedp.Navigate(p.base + "/docs"))
	b.until(`document.body.textContent.includes("Submit a picture")`)
}

func originOf(t *testing.T, address string) string {
	parsed, err := url.Parse(address)
	require.NoError(t, err)
	return parsed.Scheme + "://" + parsed.Host
}

func etag(t *testing.T, address string) string {
	response, err := http.Get(address)
	require.NoError(t, err)
	response.Body.Close()
	return response.Header.Get("ETag")
}

// uiAccessible: axe-core finds nothing, in any view and state, light and dark.
func uiAccessible(t *testing.T, p *program) {
	b := openTab(t, p, "/history")
	b.accessible("empty history")
	b.goTo("/")
	b.accessible("new")
	broken := jpegOf(t, picture(300, 200))
	b.choose(saved(t, "a.png", pngOf(t, picture(90, 60))), saved(t, "broken.jpg", broken[:len(broken)/2]), saved(t, "notes.txt", []byte("text")))
	b.click("summary[aria-label='Settings of webp']")
	b.accessible("new, with pictures")
	b.want("webp", "avif")
	b.click("button[type=submit]")
	b.until(`document.querySelectorAll(".picture [data-state=SUCCEEDED], .picture [data-state=FAILED]").length === 2`)
	b.accessible("new, accepted")
	for _, name := range []string{"a.png", "broken.jpg"} {
		b.click(".picture[data-name='" + name + "'] a, .job-row a[aria-label='" + name + "']")
		b.until(`document.querySelector("#job-id")`)
		b.click(".timeline summary")
		b.until(`document.querySelector(".snapshot")?.dataset.at`)
		b.accessible("job " + name)
		b.goTo("/history")
		b.accessible("history")
		if name == "a.png" {
			b.until(`(a => { a.setAttribute("aria-label", "broken.jpg"); return true })([...document.querySelectorAll(".job-row a")].find(a => a.textContent === "broken.jpg"))`)
		}
	}
	b.goTo("/operations")
	b.until(`document.querySelector(".uplot") && document.querySelector(".letters .notice, [data-letter]") && document.querySelector(".tile")`)
	b.accessible("operations")
	b.goTo("/nowhere")
	b.shows(".notice", "There is no such page")
	b.accessible("no such page")
}

// slowJob submits a picture that takes minutes to denoise, on whatever machine, and waits until that runs.
func (b *tab) slowJob() (id string) {
	b.t.Helper()
	b.choose(saved(b.t, "slow.png", pngOf(b.t, picture(3000, 2000))))
	b.want("denoise", "webp")
	id = b.start()
	b.state("[data-operation=webp]", "COMPLETED")
	b.until(`document.querySelector("[data-operation=denoise] progress")?.value > 0`)
	return id
}

// cancelled cancels the job that is shown, and waits until the page shows its end.
func (b *tab) cancelled() {
	b.t.Helper()
	b.click(".facts + .actions button.quiet:not([hidden])")
	b.click("dialog button[value=yes]")
	b.state("[data-operation=denoise]", "CANCELLED")
	b.state("#status .badge", "PARTIAL")
}

// TestUIServerAway: what is on the page goes on by itself when the server is back.
func TestUIServerAway(t *testing.T) {
	variables := embeddedEnv(t)
	variables["DENOISE_TILE"], variables["DENOISE_THREADS"] = "216", "1"
	p := run(t, variables)
	b := openTab(t, p, "/")
	b.excused = aServerThatIsAway
	id := b.slowJob()
	b.shows(".connection", "Live")

	// In mid-job: what was there before is there again.
	b.do(chromedp.Reload())
	b.shows("#job-id", id)
	b.shows("h1", "slow.png")
	b.state("[data-operation=webp]", "COMPLETED")
	b.shows(".connection", "Live")
	b.state("[data-operation=denoise]", "RUNNING")

	p.kill()
	b.until(`!document.querySelector("#offline").hidden`)
	b.accessible("job, while the server is away")
	b.state("[data-operation=denoise]", "RUNNING") // what is known stays
	p.start()
	b.until(`document.querySelector("#offline").hidden`)
	b.shows("[data-operation=denoise]", "attempt 2")
	b.shows(".connection", "Live")
	b.cancelled()

	// A submission waits for the server, under one key. The next has another.
	b.goTo("/")
	b.choose(saved(t, "patient.png", pngOf(t, picture(40, 30))))
	b.want("webp")
	evaluate[bool](b, `(send => { window.keys = []; XMLHttpRequest.prototype.send = function (form) { window.keys.push(form.get("idempotency_key")); send.call(this, form) }; return true })(XMLHttpRequest.prototype.send)`)
	p.kill()
	b.click("button[type=submit]")
	b.shows(".picture-state", "Trying again")
	b.until(`window.keys.length > 2`)
	p.start()
	b.until(`location.hash.startsWith("#/jobs/")`)
	b.state("#status .badge", "SUCCEEDED")
	require.Equal(t, 1, evaluate[int](b, `new Set(window.keys).size`))
	b.goTo("/")
	b.choose(saved(t, "patient.png", pngOf(t, picture(40, 30))))
	b.start()
	require.Equal(t, 2, evaluate[int](b, `new Set(window.keys).size`))

	// Views that cannot be filled say why, and go on when the server is back.
	b.goTo("/operations")
	b.until(`document.querySelector(".tile")`)
	p.kill()
	b.shows(".notice.error", "cannot be reached")
	b.accessible("operations, while the server is away")
	p.start()
	b.until(`document.querySelector("[data-group]")`)
}

// TestUIPolls: without a stream the page asks.
func TestUIPolls(t *testing.T) {
	variables := embeddedEnv(t)
	variables["MAX_STREAMS"], variables["DENOISE_TILE"], variables["DENOISE_THREADS"] = "1", "216", "1"
	p := run(t, variables)
	next := p.follow(p.submit(file("a.png", "image/png", pngOf(t, picture(40, 30))), field("operations", `["webp"]`))) // takes the one stream
	_, err := next()
	require.NoError(t, err)
	b := openTab(t, p, "/")
	b.excused = aStreamTooMany
	b.slowJob()
	b.shows(".connection", "Asking every second")
	b.cancelled()
}

// TestUIOperations: an operator sees what was given up, looks at what a redrive would do, and does it.
func TestUIOperations(t *testing.T) {
	variables := realEnv(t)
	cluster, err := testenv.StartKafka("", 1) // of its own: these are all dead letters that there are
	require.NoError(t, err)
	t.Cleanup(cluster.Stop)
	variables["KAFKA_BROKERS"], variables["INSTANCE_ID"] = strings.Join(cluster.Brokers(), ","), "one"
	p := run(t, variables, "--roles=api,saga,projector")
	content := pngOf(t, picture(40, 30))
	poisoned := p.submit(file("c.png", "image/png", content), field("operations", `["webp","jpg"]`))
	waiting := p.submit(file("w.png", "image/png", content), field("operations", `["webp"]`))
	b := openTab(t, p, "/operations")
	b.until(`document.querySelector("[data-group='pixtools.op.webp'] td").textContent === "2"`)
	b.shows("[data-group='pixtools.op.webp']", "s")
	b.shows(".letters .notice", "No dead letters")
	uiLag(b, variables["DATABASE_URL"])

	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.Brokers()...))
	require.NoError(t, err)
	defer client.Close()
	for _, key := range []string{poisoned, uuid.NewString()} {
		require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: events.Topic, Key: []byte(key), Value: []byte{0xff, 0xff}}).FirstErr())
	}
	require.Equal(t, "FAILED", *p.ended(poisoned).Outcome)
	eventually(t, "dead letters", func() error {
		var page api.DeadLetterPage
		if p.ask(http.MethodGet, "/api/dead-letters", nil, &page); len(page.DeadLetters) < 2 {
			return fmt.Errorf("%+v", page)
		}
		return nil
	})
	b.click(".toolbar button")
	b.until(`document.querySelectorAll("[data-letter]").length === 2`)
	b.shows(".charts figure:last-child", "INTERNAL 2")
	b.shows(".tile.warn", "Failed in the last hour2")
	b.accessible("operations with dead letters")

	workers := variables
	workers["PORT"] = freePort(t)
	prepare(t, workers, "--roles=convert").start()
	require.Equal(t, "SUCCEEDED", *p.ended(waiting).Outcome)
	b.shows(".charts figure", "webp 1")
	b.shows("[data-lag='pixtools.op.webp'] td:last-child", "none")

	b.click(".letters thead input")
	b.shows(".toolbar", "Preview redrive (2)")
	b.click(".toolbar button:nth-of-type(2)")
	b.until(`document.querySelectorAll("dialog .preview li").length === 2`)
	b.shows("dialog [data-action=retry]", "revision 2 begins: webp, jpg")
	b.shows("dialog [data-action=none]", "cannot be read")
	b.accessible("preview of a redrive")
	b.click("dialog button[value=no]")
	require.EqualValues(t, 1, p.ended(poisoned).Revision, "a preview does nothing")
	b.click(".toolbar button:nth-of-type(2)")
	b.click("dialog button[value=yes]")
	b.shows("#letters-message", "1 redriven, 1 left as they were")
	require.Equal(t, "SUCCEEDED", *p.endedIn(poisoned, 2).Outcome)
	b.until(`document.querySelectorAll("[data-letter]").length === 1`)
	b.click("tbody [data-letter] input")
	b.click(".toolbar button:nth-of-type(3)")
	b.do(chromedp.SendKeys(chromedp.CSS("#discard-reason"), "not ours"))
	b.click("dialog button[value=yes]")
	b.shows("#letters-message", "1 discarded.")
	b.shows(".letters .notice", "No dead letters")
	b.until(`(s => { s.value = "all"; s.dispatchEvent(new Event("change")); return true })(document.querySelector("#letters-state"))`)
	b.until(`document.querySelectorAll("[data-letter]").length === 2`)
	b.shows(".letters tbody", "discarded")
	uiReadModels(b, variables["DATABASE_URL"])
}

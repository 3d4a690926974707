package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"
)

// TestConsumerThatIsNotOurs: librdkafka and protobuf's reflection read a job's events,
// from Apache Kafka and from the embedded broker.
func TestConsumerThatIsNotOurs(t *testing.T) {
	for name, env := range map[string]func(*testing.T) map[string]string{"real": realEnv, "embedded": embeddedEnv} {
		t.Run(name, func(t *testing.T) {
			variables := env(t)
			brokers := variables["KAFKA_BROKERS"]
			if brokers == "" {
				port := freePort(t)
				variables["PIXTOOLS_EMBEDDED_KAFKA_PORT"], brokers = port, "127.0.0.1:"+port
			}
			p := run(t, variables)
			id := p.submit(file("secret name.png", "image/png", pngOf(t, picture(8, 8))), field("operations", `["webp","jpg"]`))
			require.Equal(t, "COMPLETED", p.ended(id).Status)
			out := consume(t, "python", []string{"KAFKA_BROKERS=" + brokers, "CONSUMER_GROUP=not-ours-" + id}, "--until-end", "--events")
			require.NotContains(t, out, "secret name", "personal data is sealed")
			seen := map[string]int{}
			ids := map[string]bool{}
			for line := range strings.Lines(out) {
				var e struct {
					Headers map[string]string
					Data    map[string]any
				}
				require.NoError(t, json.Unmarshal([]byte(line), &e))
				if e.Headers["ce_subject"] != id {
					continue // of another test's job; the last line is the counts
				}
				require.Equal(t, []string{"1.0", "application/protobuf"}, []string{e.Headers["ce_specversion"], e.Headers["content-type"]})
				require.NotEmpty(t, e.Headers["ce_correlationid"])
				require.False(t, ids[e.Headers["ce_id"]], "two events of one id")
				ids[e.Headers["ce_id"]] = true
				kind := strings.TrimPrefix(e.Headers["ce_type"], "pixtools.events.v1.")
				require.Equal(t, kind == "JobRequested", e.Headers["ce_causationid"] == "")
				seen[kind]++
				if kind == "JobFinalized" {
					require.Equal(t, "OUTCOME_SUCCEEDED", e.Data["outcome"])
				}
			}
			require.Equal(t, map[string]int{"JobRequested": 1, "OperationStarted": 2, "OperationCompleted": 2, "JobFinalized": 1}, seen)
		})
	}
}

// TestPage: the first page in a real browser, from choosing a file to its result, with
// nothing from elsewhere and no complaint in the console.
func TestPage(t *testing.T) {
	browser, err := exec.LookPath("chromium")
	require.NoError(t, err, "run: sh internal/testenv/install.sh chromium")
	p := run(t, embeddedEnv(t))
	source := filepath.Join(t.TempDir(), "photo.png")
	require.NoError(t, os.WriteFile(source, pngOf(t, picture(90, 60)), 0o600))

	allocator, stop := chromedp.NewExecAllocator(within(t), chromedp.ExecPath(browser), chromedp.NoSandbox,
		chromedp.Flag("headless", true), chromedp.Flag("disable-gpu", true), chromedp.Flag("no-first-run", true),
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true))
	defer stop()
	ctx, cancel := chromedp.NewContext(allocator)
	defer cancel()
	do(t, ctx, chromedp.Navigate("about:blank"))
	var complaints []string
	require.NoError(t, chromedp.Listen(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			complaints = append(complaints, fmt.Sprintf("%+v", e.ExceptionDetails))
		case *runtime.EventConsoleAPICalled:
			if slices.Contains([]string{"error", "warning"}, string(e.Type)) {
				complaints = append(complaints, fmt.Sprint(e.Args))
			}
		}
	}))
	do(t, ctx, chromedp.Navigate(p.base))
	do(t, ctx, chromedp.SetUploadFiles("#file", []string{source}))
	do(t, ctx, chromedp.Click("input[value=avif]"))
	do(t, ctx, chromedp.Click("input[value=denoise]"))
	do(t, ctx, chromedp.Click("button[type=submit]"))
	do(t, ctx, chromedp.WaitVisible(`li[data-operation=webp] a`))
	do(t, ctx, chromedp.WaitVisible(`li[data-operation=avif] a`))
	do(t, ctx, chromedp.WaitVisible(`li[data-operation=denoise] a`))
	do(t, ctx, chromedp.Poll[bool](`document.querySelector("#status").textContent === "SUCCEEDED"`, chromedp.WithPollingTimeout(time.Minute)))
	do(t, ctx, chromedp.Poll[bool](`document.querySelector("#message").textContent === "Done."`, chromedp.WithPollingTimeout(time.Minute)))
	origins := do(t, ctx, chromedp.Evaluate[[]string](`[...new Set(performance.getEntriesByType("resource").map(e => new URL(e.name).origin))]`))
	require.Equal(t, []string{p.base}, origins)
	link := do(t, ctx, chromedp.Evaluate[string](`document.querySelector("li[data-operation=webp] a").href`))
	made, _ := fetch(t, link)
	checkPicture(t, made, "webp", 90, 60)
	require.Empty(t, complaints)

	do(t, ctx, chromedp.Navigate(p.base+"/docs"))
	do(t, ctx, chromedp.Poll[bool](`document.body.textContent.includes("Submit a picture")`, chromedp.WithPollingTimeout(time.Minute)))
}

func do[T any](t *testing.T, ctx context.Context, action chromedp.Action[T]) T {
	t.Helper()
	value, err := chromedp.Run(ctx, action)
	require.NoError(t, err)
	return value
}

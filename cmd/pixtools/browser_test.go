package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/testenv"
)

// tab is the page in a real browser of its own.
type tab struct {
	t   *testing.T
	ctx context.Context
	p   *program
	// downloads is where what is downloaded goes.
	downloads string

	mu sync.Mutex
	// complaints are what the console says; requests are the addresses that were asked for.
	complaints, requests []string
	// excused are complaints that a test causes, such as those about a server that is away.
	excused *regexp.Regexp
}

// openTab opens the program's page at an address behind #. At the test's end the console must
// not have complained.
func openTab(t *testing.T, p *program, at string) *tab {
	t.Helper()
	ctx, stop, err := testenv.Browser(context.Background()) // the test's ends before its cleanups
	require.NoError(t, err)
	b := &tab{t: t, ctx: ctx, p: p, downloads: t.TempDir()}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the page shows:\n%s", b.text("body"))
		}
		stop()
	})
	require.NoError(t, chromedp.Listen(ctx, b.hear))
	_, err = chromedp.CallBrowser(ctx, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{Behavior: browser.SetDownloadBehaviorBehaviorAllow, DownloadPath: b.downloads})
	require.NoError(t, err)
	b.size(1280, 900)
	b.goTo(at)
	t.Cleanup(func() { require.Empty(t, b.heard(), "the console complains") })
	return b
}

func (b *tab) hear(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		b.complaints = append(b.complaints, fmt.Sprintf("%+v", e.ExceptionDetails))
	case *runtime.EventConsoleAPICalled:
		if e.Type == "error" || e.Type == "warning" {
			b.complaints = append(b.complaints, fmt.Sprint(e.Args))
		}
	case *cdplog.EventEntryAdded:
		if e.Entry.Level == "error" || e.Entry.Level == "warning" {
			b.complaints = append(b.complaints, e.Entry.Text+" "+e.Entry.URL)
		}
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, e.Request.URL)
	}
}

func (b *tab) heard() (complaints []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.complaints {
		if b.excused == nil || !b.excused.MatchString(c) {
			complaints = append(complaints, c)
		}
	}
	return complaints
}

// aServerThatIsAway are the browser's own lines about requests without an answer.
var aServerThatIsAway = regexp.MustCompile(`^Failed to load resource: (net::ERR_|the server responded with a status of 503)`)

// aJobThatIsGone and aStreamTooMany are the browser's lines about 404 and 429, which the page takes as they are meant.
var (
	aJobThatIsGone = regexp.MustCompile(`^Failed to load resource: the server responded with a status of 404`)
	aStreamTooMany = regexp.MustCompile(`^Failed to load resource: the server responded with a status of 429`)
)

func (b *tab) do(action chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, stop := context.WithTimeout(b.ctx, patience)
	defer stop()
	require.NoError(b.t, chromedp.Do(ctx, action))
}

// evaluate is an expression's value; of a promise, what it comes to.
func evaluate[T any](b *tab, expression string) T {
	b.t.Helper()
	value, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	require.NoError(b.t, err, "%s", expression)
	return value
}

// until waits for a condition of the page.
func (b *tab) until(condition string) {
	b.t.Helper()
	_, err := chromedp.Run(b.ctx, chromedp.Poll[bool]("Boolean("+condition+")", chromedp.WithPollingTimeout(patience)))
	require.NoError(b.t, err, "waiting for: %s", condition)
}

// shows waits until an element's text has something in it.
func (b *tab) shows(selector, text string) {
	b.t.Helper()
	b.until(fmt.Sprintf("document.querySelector(%q)?.textContent.includes(%q)", selector, text))
}

func (b *tab) text(selector string) string {
	text, err := chromedp.Run(b.ctx, chromedp.Evaluate[string](fmt.Sprintf("document.querySelector(%q)?.innerText ?? ''", selector)))
	if err != nil {
		return err.Error()
	}
	return text
}

// click clicks what is there, is seen, and may be clicked; the first of several.
func (b *tab) click(selector string) {
	b.t.Helper()
	b.until(fmt.Sprintf("(e => e && !e.disabled && e.checkVisibility())(document.querySelector(%q))", selector))
	b.do(chromedp.Click(chromedp.CSS(selector)))
}

func (b *tab) keys(keys string, options ...chromedp.KeyOption) {
	b.t.Helper()
	b.do(chromedp.KeyEvent(keys, options...))
}

func (b *tab) goTo(at string) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.p.base + "/#" + at))
	b.until(fmt.Sprintf(`document.getElementById("main").dataset.at === %q && !document.querySelector(".loading")`, at))
}

func (b *tab) size(width, height int64) {
	b.t.Helper()
	b.do(chromedp.EmulateViewport(width, height))
}

func (b *tab) colours(scheme string) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}})
	require.NoError(b.t, err)
}

// choose picks files as in the file picker, and waits until the page shows them.
func (b *tab) choose(files ...string) {
	b.t.Helper()
	before := evaluate[int](b, `document.querySelectorAll(".picture").length`)
	b.do(chromedp.SetUploadFiles(chromedp.CSS("#file"), files))
	b.until(fmt.Sprintf(`document.querySelectorAll(".picture").length === %d`, before+len(files)))
}

// want makes the checked operations those.
func (b *tab) want(names ...string) {
	b.t.Helper()
	for _, name := range evaluate[[]string](b, `[...document.querySelectorAll("input[name=op]:checked")].map(e => e.value)`) {
		b.click("input[value=" + name + "]")
	}
	for _, name := range names {
		b.click("input[value=" + name + "]")
	}
}

// start sends what was chosen, and returns the id of its job, whose page is then shown.
func (b *tab) start() string {
	b.t.Helper()
	b.click("button[type=submit]")
	b.until(`location.hash.startsWith("#/jobs/") && document.querySelector("#job-id")`)
	return evaluate[string](b, `document.querySelector("#job-id").textContent`)
}

// state waits for the job's, or an operation's.
func (b *tab) state(selector, state string) {
	b.t.Helper()
	b.until(fmt.Sprintf(`document.querySelector(%q)`, selector+fmt.Sprintf("[data-state=%s]", state)))
}

// downloaded waits for a file and reads it.
func (b *tab) downloaded(name string) []byte {
	b.t.Helper()
	var content []byte
	eventually(b.t, "the download of "+name, func() (err error) {
		content, err = os.ReadFile(filepath.Join(b.downloads, name))
		if unfinished, _ := filepath.Glob(filepath.Join(b.downloads, "*.crdownload")); len(unfinished) > 0 {
			return fmt.Errorf("%v", unfinished)
		}
		return err
	})
	return content
}

// saved writes a file that can be chosen.
func saved(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, content, 0o600))
	return path
}

// accessible runs axe-core over what is shown, in both colour schemes.
func (b *tab) accessible(what string) {
	b.t.Helper()
	script, err := os.ReadFile("../../build/npm/node_modules/axe-core/axe.min.js")
	require.NoError(b.t, err, "run: make native")
	for _, scheme := range []string{"light", "dark"} {
		b.colours(scheme)
		_ = evaluate[bool](b, string(script)+"; true")
		found := evaluate[string](b, `document.fonts.ready.then(() => axe.run()).then(r => JSON.stringify(r.violations.map(v => [v.id, v.help, v.nodes.map(n => n.html.slice(0, 160) + " " + n.any.map(a => a.message))])))`)
		var violations []any
		require.NoError(b.t, json.Unmarshal([]byte(found), &violations))
		require.Empty(b.t, violations, "%s, %s: %s", what, scheme, strings.ReplaceAll(found, `],[`, "],\n["))
	}
	b.colours("light")
}

// fits wants nothing to be wider than the window.
func (b *tab) fits(what string) {
	b.t.Helper()
	wide := evaluate[[]string](b, `[...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && e.checkVisibility() && !e.closest(".scroll, .hidden-text, .u-wrap")).map(e => e.outerHTML.slice(0, 120))`)
	require.Empty(b.t, wide, "%s is wider than the window", what)
	require.LessOrEqual(b.t, evaluate[int](b, "document.documentElement.scrollWidth"), evaluate[int](b, "innerWidth"), what)
}

package testenv

import (
	"context"
	"errors"
	"fmt"
	"os/exec"

	"github.com/chromedp/chromedp"
)

// Browser starts Chromium without a window, and returns the context of its one tab: one, since
// pages in other tabs count as hidden. It ends with ctx or by stop.
func Browser(ctx context.Context) (tab context.Context, stop context.CancelFunc, err error) {
	path, err := exec.LookPath("chromium")
	if err != nil {
		return nil, nil, errors.New("chromium is not installed: run sh internal/testenv/install.sh chromium")
	}
	allocator, end := chromedp.NewExecAllocator(ctx, chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.Headless, chromedp.DisableGPU,
		chromedp.NoFirstRun, chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("force-color-profile", "srgb"), chromedp.Flag("lang", "en-GB"))
	tab, closeTab := chromedp.NewContext(allocator)
	if err := chromedp.Do(tab, chromedp.Navigate("about:blank")); err != nil {
		closeTab()
		end()
		return nil, nil, fmt.Errorf("start Chromium: %w", err)
	}
	return tab, func() { closeTab(); end() }, nil
}

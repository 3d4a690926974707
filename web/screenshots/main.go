// Command screenshots makes the pictures of the page that the README shows: it starts the given
// binary in embedded mode in a directory of its own, submits pictures that it draws, and takes
// the main views, light, dark and as on a phone, into docs/images.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"io"
	"log"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/pixtools/pixtools/internal/testenv"
)

// patience bounds all of it.
const patience = 10 * time.Minute

func main() {
	binary := flag.String("binary", "build/bin/pixtools", "what to show")
	out := flag.String("out", "docs/images", "where the pictures go")
	flag.Parse()
	if err := run(*binary, *out); err != nil {
		log.Fatal("screenshots: ", err)
	}
}

func run(binary, out string) error {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	dir, err := os.MkdirTemp("/var/tmp", "pixtools-screenshots-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(os.Chmod(dir, 0o755), os.MkdirAll(out, 0o755)); err != nil { // embedded Postgres runs as another user where we are root
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	binary, err = filepath.Abs(binary)
	if err != nil {
		return err
	}
	server := exec.Command(binary, "serve")
	server.Env = append(os.Environ(), "PORT="+port, "PIXTOOLS_DATA_DIR="+filepath.Join(dir, "data"), "LOG_LEVEL=error")
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		return err
	}
	defer func() {
		_ = server.Process.Signal(syscall.SIGTERM)
		_ = server.Wait()
	}()
	tab, closeTab, err := testenv.Browser(ctx)
	if err != nil {
		return err
	}
	defer closeTab()
	s := shooting{tab: tab, base: "http://127.0.0.1:" + port, out: out}
	if err := s.healthy(); err != nil {
		return err
	}
	files, err := pictures(dir)
	if err != nil {
		return err
	}
	return s.all(files)
}

type shooting struct {
	tab       context.Context
	base, out string
}

// all goes through the views as a user does, and takes each of them.
func (s shooting) all(files []string) error {
	steps := []func() error{
		func() error { return s.look("light", 1280, 800) },
		func() error { return s.do(chromedp.Navigate(s.base)) },
		func() error { return s.do(chromedp.SetUploadFiles(chromedp.CSS("#file"), files)) },
		func() error { return s.until(`document.querySelectorAll(".picture").length === 3`) },
		func() error { return s.do(chromedp.Click(chromedp.CSS("input[value=avif]"))) },
		func() error { return s.do(chromedp.Click(chromedp.CSS("input[value=denoise]"))) },
		func() error { return s.shots("new") },
		func() error { return s.look("light", 1280, 800) },
		func() error { return s.do(chromedp.Click(chromedp.CSS("button[type=submit]"))) },
		func() error {
			return s.until(`document.querySelectorAll(".picture [data-state=SUCCEEDED]").length === 3`)
		},
		func() error { return s.do(chromedp.Click(chromedp.CSS(".picture a"))) },
		func() error {
			return s.until(`document.querySelectorAll(".result[data-state=COMPLETED]").length === 3`)
		},
		func() error { return s.do(chromedp.Click(chromedp.CSS(".timeline summary"))) },
		func() error { return s.until(`document.querySelectorAll(".events li").length >= 8`) },
		func() error { return s.until(`document.querySelector(".snapshot").dataset.at !== undefined`) },
		func() error { return s.shots("job") },
		func() error { return s.do(chromedp.Click(chromedp.CSS(`[data-operation=denoise] button.quiet`))) },
		func() error {
			return s.until(`document.querySelector("dialog.compare .after").complete && document.querySelector("dialog.compare .before").complete`)
		},
		func() error {
			return s.evaluate(`zoom.value = 3; zoom.dispatchEvent(new Event("input")); document.querySelector(".frame").scrollTo(500, 500)`)
		},
		func() error { return s.shot("compare-light", 1280, 800, "light") },
		func() error { return s.do(chromedp.Navigate(s.base + "/#/history")) },
		func() error { return s.do(chromedp.Reload()) },
		func() error {
			return s.until(`document.querySelectorAll(".job-row [data-state=SUCCEEDED]").length >= 3`)
		},
		func() error { return s.shots("history") },
		func() error { return s.do(chromedp.Navigate(s.base + "/#/operations")) },
		func() error {
			return s.until(`document.querySelector(".uplot") && document.querySelector(".tile") && document.querySelector(".letters .notice")`)
		},
		func() error { return s.shots("operations") },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return nil
}

func (s shooting) do(action chromedp.Action[chromedp.Void]) error { return chromedp.Do(s.tab, action) }

func (s shooting) until(condition string) error {
	_, err := chromedp.Run(s.tab, chromedp.Poll[bool]("Boolean("+condition+")", chromedp.WithPollingTimeout(2*time.Minute)))
	if err != nil {
		return fmt.Errorf("waiting for %s: %w", condition, err)
	}
	return nil
}

func (s shooting) evaluate(expression string) error {
	_, err := chromedp.Run(s.tab, chromedp.Evaluate[int](expression+"; 0"))
	return err
}

// look sets colours and size.
func (s shooting) look(scheme string, width, height int64) error {
	if _, err := chromedp.Call(s.tab, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}}); err != nil {
		return err
	}
	scale := chromedp.EmulateScale(1)
	if width < 600 {
		scale = chromedp.EmulateScale(2)
	}
	return s.do(chromedp.EmulateViewport(width, height, scale))
}

// shots takes a view in each of its looks.
func (s shooting) shots(name string) error {
	return errors.Join(s.shot(name+"-light", 1280, 800, "light"), s.shot(name+"-dark", 1280, 800, "dark"), s.shot(name+"-phone", 390, 844, "light"))
}

func (s shooting) shot(name string, width, height int64, scheme string) error {
	if err := s.look(scheme, width, height); err != nil {
		return err
	}
	// Two frames: what is drawn anew for the other look is drawn.
	if _, err := chromedp.Run(s.tab, chromedp.Evaluate[bool](`new Promise(done => { scrollTo(0, 0); requestAnimationFrame(() => requestAnimationFrame(() => done(true))) })`, chromedp.EvalAwaitPromise)); err != nil {
		return err
	}
	taken, err := chromedp.Run(s.tab, chromedp.CaptureScreenshot())
	if err != nil {
		return err
	}
	file := filepath.Join(s.out, name+".png")
	fmt.Println(file)
	return os.WriteFile(file, taken, 0o644)
}

func (s shooting) healthy() error {
	for {
		request, err := http.NewRequestWithContext(s.tab, http.MethodGet, s.base+"/api/health", nil)
		if err != nil {
			return err
		}
		if response, err := http.DefaultClient.Do(request); err == nil {
			var health struct{ Status string }
			err = json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&health)
			response.Body.Close()
			if err == nil && health.Status == "healthy" {
				return nil
			}
		}
		select {
		case <-s.tab.Done():
			return s.tab.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// pictures draws three landscapes, as a camera would take them at dusk: with noise.
func pictures(dir string) ([]string, error) {
	var files []string
	for i, name := range []string{"harbour at dusk.jpg", "ridge.jpg", "first snow.jpg"} {
		var encoded bytes.Buffer
		if err := jpeg.Encode(&encoded, landscape(i), &jpeg.Options{Quality: 95}); err != nil {
			return nil, err
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, encoded.Bytes(), 0o600); err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

func landscape(i int) image.Image {
	const width, height = 1200, 800
	random := rand.New(rand.NewPCG(7, uint64(i)))
	skies := [][2][3]float64{{{38, 32, 84}, {255, 150, 96}}, {{28, 90, 150}, {226, 236, 244}}, {{60, 70, 92}, {206, 214, 226}}}
	hills := [][3]float64{{30, 28, 60}, {24, 74, 66}, {120, 132, 152}}
	m := image.NewNRGBA(image.Rect(0, 0, width, height))
	for x := range width {
		var ridge [4]float64
		for k := range ridge {
			phase := float64(i*9 + k*5)
			ridge[k] = float64(height) * (0.5 + 0.12*float64(k) + 0.06*math.Sin(float64(x)/(180+30*float64(k))+phase) + 0.025*math.Sin(float64(x)/47+2*phase))
		}
		for y := range height {
			var c [3]float64
			share := float64(y) / float64(height) * 1.5
			for b := range c {
				c[b] = skies[i][0][b]*(1-share) + skies[i][1][b]*share
			}
			if d := math.Hypot(float64(x-820), float64(y-300)); d < 200 {
				glow := math.Pow(1-d/200, 1.5)
				if d < 52 {
					glow = 1
				}
				for b, sun := range [3]float64{255, 236, 200} {
					c[b] += (sun - c[b]) * glow
				}
			}
			for k, line := range ridge {
				if float64(y) > line {
					for b := range c {
						far := 0.62 - 0.2*float64(k)
						c[b] = hills[i][b]*(1-far) + skies[i][1][b]*far*0.8
					}
				}
			}
			grain := func(v float64) uint8 { return uint8(min(max(v+random.NormFloat64()*14, 0), 255)) }
			m.SetNRGBA(x, y, color.NRGBA{grain(c[0]), grain(c[1]), grain(c[2]), 255})
		}
	}
	return m
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

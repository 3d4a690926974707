// Command denoise measures the operation denoise, in one run: CPU-seconds and time of a
// picture of 512 x 512, by our model and by a network of DnCNN's shape, both through a child
// of the picture engine, from PNG to PNG; by the same two networks in PyTorch, which gets
// the pixels ready made; and the memory of a child over 12 megapixels.
//
// Run it in the repository's root. For DnCNN and PyTorch it needs the training's Python.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"image"
	"image/jpeg"
	"image/png"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"

	"github.com/pixtools/pixtools/processors"
	"github.com/pixtools/pixtools/processors/denoiser"
	"github.com/pixtools/pixtools/processors/engine"
)

const (
	side   = 512 // pixels
	python = "build/training/venv/bin/python"
)

func main() {
	engine.ChildMain()
	runs := flag.Int("runs", 5, "runs of each, after one that does not count; medians are shown")
	threads := flag.Int("threads", runtime.NumCPU(), "threads of each network")
	peers := flag.Bool("peers", true, "measure DnCNN and PyTorch beside it")
	flag.Parse()
	if *runs < 1 || *threads < 1 {
		log.Fatal("bench: -runs and -threads must be 1 or more")
	}
	if err := run(*runs, *threads, *peers); err != nil {
		log.Fatal("bench: ", err)
	}
}

// row is one line of the result.
type row struct {
	name      string
	cpu, wall []float64 // seconds
}

func run(runs, threads int, peers bool) error {
	dir, err := os.MkdirTemp("", "pixtools-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	machine()
	ours, err := newSubject("PixTools' model, ONNX Runtime, PNG to PNG", "", threads)
	if err != nil {
		return err
	}
	defer ours.pool.Close()
	if err := memory(dir, ours); err != nil {
		return err
	}
	subjects := []*subject{ours}
	trained := peers
	if _, err := os.Stat(python); err != nil {
		trained = false
	}
	if trained {
		model := filepath.Join(dir, "dncnn")
		if out, err := exec.Command(python, "models/training/dncnn.py", "random", model).CombinedOutput(); err != nil {
			return fmt.Errorf("dncnn.py random: %w: %s", err, out)
		}
		dncnn, err := newSubject("DnCNN's shape,  ONNX Runtime, PNG to PNG", model, threads)
		if err != nil {
			return err
		}
		defer dncnn.pool.Close()
		subjects = append(subjects, dncnn)
	}
	rows, err := race(dir, subjects, runs)
	if err != nil {
		return err
	}
	if trained {
		torch, err := pytorch(runs, threads)
		if err != nil {
			return err
		}
		rows = append(rows, torch...)
	}
	show(rows, runs, threads)
	if peers && !trained {
		fmt.Printf("\nno DnCNN and no PyTorch: %s is missing; models/training/venv.sh makes it (about 7 GB)\n", python)
	}
	return nil
}

// machine says what the figures hold for.
func machine() {
	name := "unknown CPU"
	if file, err := os.Open("/proc/cpuinfo"); err == nil {
		defer file.Close()
		for lines := bufio.NewScanner(file); lines.Scan(); {
			if key, value, _ := strings.Cut(lines.Text(), ":"); strings.TrimSpace(key) == "model name" {
				name = strings.TrimSpace(value)
				break
			}
		}
	}
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("machine: %d cores of %s; load before the run %s\n", runtime.NumCPU(), name, strings.Join(strings.Fields(string(load))[:min(3, len(strings.Fields(string(load))))], " "))
}

// subject is a model in a child of its own.
type subject struct {
	name string
	pool *engine.Pool
	tile int
}

func newSubject(name, model string, threads int) (*subject, error) {
	cfg, err := env.ParseAsWithOptions[engine.Config](env.Options{Environment: map[string]string{}})
	if err != nil {
		return nil, err
	}
	denoise, err := env.ParseAs[denoiser.Config]() // DENOISE_TILE and others may be tried
	if err != nil {
		return nil, err
	}
	denoise.Threads, denoise.Nice = threads, 0
	if model != "" {
		denoise.Model = model
	}
	cfg.Denoise = &denoise
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &subject{name, engine.New(cfg, 1, slog.New(slog.NewTextHandler(os.Stderr, nil))), denoise.Tile}, nil
}

func (s *subject) denoise(source string) (engine.Result, error) {
	return s.pool.Convert(context.Background(), processors.Denoise.Request(source, source+".out", nil))
}

// race has the subjects take turns, so that a machine that becomes busy slows all.
func race(dir string, subjects []*subject, runs int) ([]row, error) {
	source := filepath.Join(dir, "picture.png")
	if err := write(source, func(w io.Writer) error { return png.Encode(w, noisy(side, side)) }); err != nil {
		return nil, err
	}
	rows := make([]row, len(subjects))
	for n := range runs + 1 {
		for i, s := range subjects {
			began := time.Now()
			result, err := s.denoise(source)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			rows[i].name = s.name
			if n > 0 {
				rows[i].cpu = append(rows[i].cpu, result.CPUTime.Seconds())
				rows[i].wall = append(rows[i].wall, time.Since(began).Seconds())
			}
		}
	}
	return rows, nil
}

// pytorch runs the same networks in PyTorch.
func pytorch(runs, threads int) ([]row, error) {
	cmd := exec.Command(python, "models/training/bench_torch.py", "--runs", strconv.Itoa(runs), "--side", strconv.Itoa(side), "--threads", strconv.Itoa(threads))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("bench_torch.py: %w: %s", err, stderr.Bytes())
	}
	var rows []row
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var line struct {
			Model   string  `json:"model"`
			Version string  `json:"engine_version"`
			CPU     float64 `json:"cpu_s"`
			Wall    float64 `json:"wall_s"`
		}
		if err := decoder.Decode(&line); errors.Is(err, io.EOF) {
			return rows, nil
		} else if err != nil {
			return nil, fmt.Errorf("bench_torch.py: %w", err)
		}
		name := map[string]string{"dncnn": "DnCNN's shape,  PyTorch ", "denoiser": "PixTools' model, PyTorch "}[line.Model] + line.Version + ", network alone"
		rows = append(rows, row{name, []float64{line.CPU}, []float64{line.Wall}})
	}
}

func median(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	return values[len(values)/2]
}

func show(rows []row, runs, threads int) {
	fmt.Printf("\n%d x %d pixels, %d threads, medians of %d runs:\n", side, side, threads, runs)
	fmt.Printf("%-50s %10s %10s %12s\n", "", "CPU, s", "wall, s", "CPU, ours=1")
	for _, r := range rows {
		fmt.Printf("%-50s %10.3f %10.3f %12.1f\n", r.name, median(r.cpu), median(r.wall), median(r.cpu)/median(rows[0].cpu))
	}
}

// memory denoises 12 megapixels twice, and shows the most memory that the child has had.
func memory(dir string, s *subject) error {
	source := filepath.Join(dir, "large.jpg")
	picture := noisy(4000, 3000)
	if err := write(source, func(w io.Writer) error { return jpeg.Encode(w, picture, &jpeg.Options{Quality: 90}) }); err != nil {
		return err
	}
	for range 2 {
		began := time.Now()
		result, err := s.denoise(source)
		if err != nil {
			return err
		}
		peak, err := peakOfChildren()
		if err != nil {
			return err
		}
		fmt.Printf("4000 x 3000 pixels, tile %d: %.1f CPU-s, %.1f s, peak memory of the child %d MB\n",
			s.tile, result.CPUTime.Seconds(), time.Since(began).Seconds(), peak)
	}
	return nil
}

// peakOfChildren is the most resident memory that any child of this process has had, in
// megabytes, as Linux tells.
func peakOfChildren() (int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		return 0, err
	}
	peak := 0
	for _, path := range files {
		content, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		values := map[string]int{}
		for line := range strings.Lines(string(content)) {
			if key, value, _ := strings.Cut(line, ":"); key == "PPid" || key == "VmHWM" {
				values[key], _ = strconv.Atoi(strings.Fields(value)[0])
			}
		}
		if values["PPid"] == os.Getpid() {
			peak = max(peak, values["VmHWM"]/1000)
		}
	}
	if peak == 0 {
		return 0, errors.New("no child's memory in /proc: this needs Linux")
	}
	return peak, nil
}

// noisy is a gradient with noise, the same in every run.
func noisy(width, height int) image.Image {
	const sigma = 25
	random := rand.New(rand.NewPCG(1, 2))
	m := image.NewNRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		for x := range width {
			at := m.PixOffset(x, y)
			for c, value := range []float64{float64(x) * 255 / float64(width), float64(y) * 255 / float64(height), 100} {
				m.Pix[at+c] = uint8(min(max(value+sigma*random.NormFloat64()+0.5, 0), 255))
			}
			m.Pix[at+3] = 255
		}
	}
	return m
}

func write(path string, encode func(io.Writer) error) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(encode(file), file.Close())
}

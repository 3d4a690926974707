// Command faults runs PixTools' roles as processes of their own, on real Apache Kafka,
// PostgreSQL, redis-server and MinIO, has clients work with them, breaks things meanwhile
// at random (from a seed), and then judges: what the clients were told, the log, the read
// model and the bucket must tell one story. See docs/ARCHITECTURE.md, "Fault runs".
//
//	go run ./bench/faults -scenario=kills -kills=300 -seed=7
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// options are what the command line says.
type options struct {
	scenario string
	bug      string
	seed     uint64
	kills    int
	rounds   int
	poison   int
	outage   time.Duration
	changing time.Duration
	clients  int
	patience time.Duration
	binary   string
	dir      string // for what is built
	logLevel string
	keep     bool
	out      io.Writer
}

func (o options) settings() settings {
	return settings{binary: o.binary, seed: o.seed, clients: o.clients, logLevel: o.logLevel, patience: o.patience, brokers: 1, roles: everyRole, out: o.out, keep: o.keep}
}

func main() {
	o := options{out: os.Stdout}
	flag.StringVar(&o.scenario, "scenario", "all", "which faults: all, or one of those that are listed at the start")
	flag.StringVar(&o.bug, "bug", "", "of the scenario bugs only this one, beside none")
	flag.Uint64Var(&o.seed, "seed", 0, "of everything that is random; 0 draws one")
	flag.IntVar(&o.kills, "kills", 300, "kills of the scenario kills")
	flag.IntVar(&o.rounds, "rounds", 5, "of the scenarios brokers (each broker once) and keys (each way for Redis to be)")
	flag.DurationVar(&o.outage, "outage", 30*time.Second, "how long a part is away in the scenario parts")
	flag.DurationVar(&o.changing, "changing", 5*time.Minute, "how long the membership changes in the scenario membership")
	flag.IntVar(&o.poison, "poison", 100, "records of the scenario poison")
	flag.IntVar(&o.clients, "clients", 6, "clients at once")
	flag.DurationVar(&o.patience, "patience", 90*time.Second, "how long nothing may happen before what is open counts as stuck")
	flag.StringVar(&o.binary, "binary", "", "the pixtools to run; empty builds it")
	flag.StringVar(&o.logLevel, "log", "warn", "LOG_LEVEL of the roles")
	flag.BoolVar(&o.keep, "keep", false, "keep the roles' logs also where nothing is violated")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if o.dir, err = os.MkdirTemp("", "pixtools-faults-binary-"); err == nil {
		err = errors.Join(play(ctx, o), os.RemoveAll(o.dir))
	}
	stop()
	if err != nil {
		log.Fatal("faults: ", err)
	}
}

// errViolated says that a promise was broken; the report tells which.
var errViolated = errors.New("promises were broken")

func play(ctx context.Context, o options) error {
	if o.seed == 0 {
		o.seed = rand.Uint64N(1_000_000) + 1
	}
	var chosen []scenario
	var takes time.Duration
	for _, s := range scenarios() {
		if o.scenario == s.name || o.scenario == "all" && !s.apart {
			chosen = append(chosen, s)
			takes += s.takes(o)
		}
		fmt.Fprintf(o.out, "scenario %-10s  about %3.0f min  %s\n", s.name, s.takes(o).Minutes(), s.what)
	}
	if len(chosen) == 0 {
		return fmt.Errorf("-scenario=%s: there is none of that name", o.scenario)
	}
	if o.binary == "" {
		var err error
		if o.binary, err = build(ctx, o.dir, ""); err != nil {
			return err
		}
	}
	fmt.Fprintf(o.out, "seed %d; this will take about %.0f minutes\n", o.seed, takes.Minutes())
	violated := false
	for _, s := range chosen {
		fmt.Fprintf(o.out, "\n=== %s: %s\n", s.name, s.what)
		done, err := s.play(ctx, o)
		if err != nil {
			return fmt.Errorf("scenario %s, seed %d: %w", s.name, o.seed, err)
		}
		violated = violated || done.failed()
	}
	if violated {
		return errViolated
	}
	fmt.Fprintln(o.out, "\nno promise was broken")
	return nil
}

// buggy is the program with its deliberate bugs built in, all of them off.
func (o options) buggy(ctx context.Context) (string, error) { return build(ctx, o.dir, "bugs") }

// build makes the program that is put to the test.
func build(ctx context.Context, dir, tags string) (string, error) {
	binary := filepath.Join(dir, "pixtools"+tags)
	args := []string{"build", "-o", binary}
	if tags != "" {
		args = append(args, "-tags", tags)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "github.com/pixtools/pixtools/cmd/pixtools")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return binary, nil
}

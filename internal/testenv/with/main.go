// Command with starts what tests need once, announces it in the environment, runs a
// command, and ends everything with it: go test starts a process per package, and
// each would otherwise start its own broker.
//
//	go run ./internal/testenv/with go test ./...
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/pixtools/pixtools/internal/testenv"
)

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "with:", err)
		code = 1
	}
	os.Exit(code)
}

func run(args []string) (int, error) {
	if len(args) == 0 {
		return 0, errors.New("name a command to run")
	}
	kafka, err := testenv.StartKafka("", 1)
	if err != nil {
		return 0, err
	}
	defer kafka.Stop()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), testenv.KafkaVariable+"="+strings.Join(kafka.Brokers(), ","))
	var ended *exec.ExitError
	if err := cmd.Run(); errors.As(err, &ended) {
		return ended.ExitCode(), nil
	} else if err != nil {
		return 0, err
	}
	return 0, nil
}

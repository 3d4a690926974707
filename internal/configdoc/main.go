// Command configdoc writes docs/configuration.md and .env.example, from the comments and
// tags at the fields of the program's configuration: the one place where a variable is
// described.
//
//	go run ./internal/configdoc            write them
//	go run ./internal/configdoc -check     fail where they are not as they would be written
//
// A field of a Config has, beside env and envDefault, these tags, all of them optional:
//
//	derived   what an unset one becomes, in words
//	range     what Validate accepts; cmd/pixtools.TestRanges tries "A to B" and "A or more"
//	unit      of a number
//	secret    value, or url for an address with a password in it: it is never shown, and may
//	          come from a file that NAME_FILE names
//	example   a value for the first part of .env.example, which has what is set first
//
// and a comment, which must be there: what it is, and on a line of its own what happens
// beyond its limit ("Beyond it: ..."). The struct is a field of cmd/pixtools's config, whose
// comment is the heading.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	check := flag.Bool("check", false, "write nothing; fail where something is stale")
	flag.Parse()
	root, err := moduleRoot()
	if err == nil {
		err = run(root, *check)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "configdoc: %v\n", err)
		os.Exit(1)
	}
}

func run(root string, check bool) error {
	sections, err := read(root)
	if err != nil {
		return fmt.Errorf("the configuration is not described:\n%w", err)
	}
	for path, content := range map[string][]byte{"docs/configuration.md": document(sections), ".env.example": example(sections)} {
		path = filepath.Join(root, path)
		if !check {
			if err := os.WriteFile(path, content, 0o644); err != nil {
				return err
			}
			continue
		}
		there, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("%w; run make generate", err)
		}
		if !bytes.Equal(there, content) {
			return fmt.Errorf("%s is stale: a Config has changed; run make generate", path)
		}
	}
	return nil
}

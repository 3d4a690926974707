package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/agnivade/levenshtein"
	"github.com/caarlos0/env/v11"
	"github.com/spf13/cobra"
)

func configCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print the configuration in effect, where each value comes from, and what is wrong with it",
		Long: "Print each variable with its value and where that comes from: default, environment, file\n" +
			"(NAME_FILE names one that holds NAME's value), derived (of other variables, or of the machine),\n" +
			"or embedded (that part runs embedded). Secrets are not shown, nor passwords in addresses.\n\n" +
			"The exit status is 1 where something is wrong; all faults are told at once. Nothing is\n" +
			"started, and no part is asked.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l := load(env.ToMap(os.Environ()))
			show := l.print
			if asJSON {
				show = l.printJSON
			}
			if err := show(cmd.OutOrStdout()); err != nil {
				return err
			}
			return l.fault()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object: variables (variable, value, source, secret), warnings, faults")
	return cmd
}

// shownVariable is a variable as it may be shown.
type shownVariable struct {
	Variable string `json:"variable"`
	Value    string `json:"value"`
	Source   string `json:"source"`
	// Secret says that Value is not, or not in full, what is in effect.
	Secret bool `json:"secret"`
}

func (l loaded) shown() []shownVariable {
	var all []shownVariable
	eachVariable(reflect.ValueOf(l.config), func(field reflect.StructField, value reflect.Value) {
		name, text := field.Tag.Get("env"), plainText(value)
		safe := redacted(text, field.Tag.Get("secret"))
		all = append(all, shownVariable{Variable: name, Value: safe, Source: l.sources[name], Secret: safe != text})
	})
	return all
}

func (l loaded) print(out io.Writer) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "VARIABLE\tVALUE\tSOURCE")
	for _, v := range l.shown() {
		fmt.Fprintf(table, "%s\t%s\t%s\n", v.Variable, v.Value, v.Source)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, doubt := range l.unknown {
		fmt.Fprintln(out, "warning:", doubt)
	}
	return nil
}

func (l loaded) printJSON(out io.Writer) error {
	faults := []string{}
	for _, fault := range l.faults {
		faults = append(faults, strings.Split(fault.Error(), "\n")...)
	}
	lines := json.NewEncoder(out)
	lines.SetIndent("", "  ")
	return lines.Encode(map[string]any{"variables": l.shown(), "warnings": append([]string{}, l.unknown...), "faults": faults})
}

// hidden is what stands in the place of a secret.
const hidden = "xxxxx" // as in url.URL.Redacted

// secretParameter is a parameter of an address that must not be shown.
var secretParameter = regexp.MustCompile(`(?i)pass|secret|token`)

// redacted is a value without its secrets. kind is the field's tag: value, url, or none,
// and then it is looked at all the same.
func redacted(text, kind string) string {
	if text == "" {
		return ""
	}
	if kind == "value" {
		return hidden
	}
	address, err := url.Parse(text)
	if err != nil || address.Scheme == "" || address.Host == "" {
		if kind == "url" || strings.Contains(text, "@") { // such as PostgreSQL's "host=... password=..."
			return hidden
		}
		return text
	}
	parameters, changed := address.Query(), false
	for name := range parameters {
		if secretParameter.MatchString(name) {
			parameters.Set(name, hidden)
			changed = true
		}
	}
	if _, with := address.User.Password(); !with && !changed {
		return text
	}
	if changed {
		address.RawQuery = parameters.Encode()
	}
	return address.Redacted()
}

// misspeltWithin is how many letters a variable may be away from one of ours to be taken
// for it, and misspeltFrom how long its name must be: between short ones little lies.
const (
	misspeltWithin = 2
	misspeltFrom   = 8
)

// misspelt tells of variables that are not ours and nearly are. Others pass: an environment
// has many, and Kubernetes makes some that begin as ours do.
func misspelt(environment map[string]string) []string {
	known := map[string]bool{}
	eachVariable(reflect.ValueOf(config{}), func(field reflect.StructField, _ reflect.Value) {
		known[field.Tag.Get("env")] = true
		if field.Tag.Get("secret") != "" {
			known[field.Tag.Get("env")+fileSuffix] = true
		}
	})
	var doubts []string
	for _, name := range slices.Sorted(maps.Keys(environment)) {
		if known[name] || len(name) < misspeltFrom || !strings.Contains(name, "_") {
			continue
		}
		for _, ours := range slices.Sorted(maps.Keys(known)) {
			if levenshtein.ComputeDistance(name, ours) <= misspeltWithin {
				doubts = append(doubts, fmt.Sprintf("%s is set, and means nothing to PixTools; is it %s that is meant?", name, ours))
				break
			}
		}
	}
	return doubts
}

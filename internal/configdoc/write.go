package main

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
)

const intro = `# Configuration

Made by ` + "`make generate`" + ` from the fields of the Config types, their tags and comments; edit those. ` + "`make schemas`" + ` fails where this page is stale.

Everything is set by variables of the environment; [.env.example](../.env.example) has all of them. Bad values end the program at its start, every fault listed. ` + "`pixtools config`" + ` prints what is in effect, where each value comes from, and what is wrong with it.

- Times are Go durations (` + "`300ms`, `5m`, `24h`" + `). "Range" is what is accepted.
- A variable with † holds a secret, or an address that may have a password in it. It is never printed. In place of NAME, NAME_FILE may name a file that holds the value, as Docker's and Kubernetes' secrets do; a line break at its end does not count.
- What is fixed is in [ARCHITECTURE.md](ARCHITECTURE.md#limits).

Beside these: the AWS SDK's own variables and files, where no ` + "`AWS_ACCESS_KEY_ID`" + ` is set; pgx's (` + "`PGPASSFILE`" + ` and others), where ` + "`DATABASE_URL`" + ` does not say it; ` + "`GOGC`, `GOMEMLIMIT`" + ` and the like.

The tools that ask a running PixTools (those with ` + "`--server`" + `: ` + "`submit`, `job`, `dlq`, `usage`, `webhooks list` and `redeliver`" + `) read one variable, ` + "`PIXTOOLS_API_KEY`" + `: the API key that they send, where it asks for one.
`

// document is docs/configuration.md.
func document(sections []section) []byte {
	known := map[string]bool{}
	for _, s := range sections {
		for _, v := range s.Settings {
			known[v.Variable] = true
		}
	}
	code := func(text string) string { return cell(coded(text, known)) }
	var out bytes.Buffer
	out.WriteString(intro)
	for _, s := range sections {
		fmt.Fprintf(&out, "\n## %s (`%s`)\n\n| variable | default | range | what it is | beyond it |\n|---|---|---|---|---|\n", s.Title, s.File)
		for _, v := range s.Settings {
			name := "`" + v.Variable + "`"
			if v.Secret {
				name += " †"
			}
			fmt.Fprintf(&out, "| %s | %s | %s | %s | %s |\n", name, code(v.shownDefault()), code(v.Range), code(v.What), code(v.Beyond))
		}
	}
	return out.Bytes()
}

func (v setting) shownDefault() string {
	switch {
	case v.Derived != "":
		return v.Derived
	case v.Default == "":
		return "none"
	}
	return strings.TrimSpace(v.Default + " " + v.Unit)
}

func cell(text string) string {
	if text == "" {
		return "–"
	}
	return strings.ReplaceAll(text, "|", `\|`)
}

var codeOrName = regexp.MustCompile("`[^`]*`|\\b[A-Z][A-Z0-9]*(_[A-Z0-9]+)*\\b")

// coded sets variables as code where the comment does not.
func coded(text string, known map[string]bool) string {
	return codeOrName.ReplaceAllStringFunc(text, func(w string) string {
		if known[w] {
			return "`" + w + "`"
		}
		return w
	})
}

const exampleIntro = `# PixTools reads its configuration from the environment. This is all of it, with the
# defaults; docs/configuration.md says more. Made by make generate.
#
# Copy it to .env, take the # from what you set, and start:
#
#	set -a; . ./.env; set +a; build/bin/pixtools serve
#
# Nothing need be set: Kafka, PostgreSQL, Redis and S3 run embedded unless their
# addresses are named.
`

const exampleWidth = 90

// example is .env.example: what is set first, then the rest by section.
func example(sections []section) []byte {
	var out bytes.Buffer
	out.WriteString(exampleIntro)
	out.WriteString("\n# ---- To begin with\n")
	for _, s := range sections {
		for _, v := range s.Settings {
			if v.Example != "" {
				v.entry(&out, v.Example)
			}
		}
	}
	for _, s := range sections {
		var rest bytes.Buffer
		for _, v := range s.Settings {
			if v.Example == "" {
				v.entry(&rest, v.Default)
			}
		}
		if rest.Len() > 0 {
			fmt.Fprintf(&out, "\n# ---- %s\n%s", s.Title, rest.String())
		}
	}
	return out.Bytes()
}

func (v setting) entry(out *bytes.Buffer, value string) {
	text := v.What
	if v.Derived != "" {
		text += " Unset: " + v.Derived + "."
	}
	if v.Range != "" {
		text += " Range: " + v.Range + "."
	}
	if v.Secret {
		text += " Or " + v.Variable + "_FILE, a file that holds it."
	}
	out.WriteString("\n")
	line := "#"
	for _, w := range strings.Fields(strings.ReplaceAll(text, "`", "")) {
		if len(line)+1+len(w) > exampleWidth {
			out.WriteString(line + "\n")
			line = "#"
		}
		line += " " + w
	}
	if strings.ContainsAny(value, " &;'") { // for a shell
		value = `"` + value + `"`
	}
	fmt.Fprintf(out, "%s\n#%s=%s\n", line, v.Variable, value)
}

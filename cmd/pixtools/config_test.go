package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/stretchr/testify/require"
)

// tagged are the fields that variables set, by variable.
func tagged() map[string]reflect.StructField {
	all := map[string]reflect.StructField{}
	eachVariable(reflect.ValueOf(config{}), func(field reflect.StructField, _ reflect.Value) { all[field.Tag.Get("env")] = field })
	return all
}

// TestDocumentHasEveryVariable: what the program reads is what docs/configuration.md and
// .env.example tell of, and nothing else. That their text is not stale, internal/configdoc
// checks.
func TestDocumentHasEveryVariable(t *testing.T) {
	t.Parallel()
	params, err := env.GetFieldParams(&config{})
	require.NoError(t, err)
	read := map[string]bool{}
	for _, p := range params {
		if p.Key != "" {
			read[p.Key] = true
		}
	}
	require.ElementsMatch(t, slices.Collect(maps.Keys(read)), slices.Collect(maps.Keys(tagged())))
	for path, line := range map[string]string{"../../docs/configuration.md": "(?m)^\\| `([A-Z0-9_]+)`", "../../.env.example": `(?m)^#([A-Z0-9_]+)=`} {
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		told := map[string]bool{}
		for _, match := range regexp.MustCompile(line).FindAllSubmatch(content, -1) {
			require.False(t, told[string(match[1])], "%s: %s twice", path, match[1])
			told[string(match[1])] = true
		}
		require.Equal(t, read, told, path)
	}
}

// TestEnvExampleIsTheDefaults: with all of .env.example taken in, the program is configured
// as without it; but for what comes first there, which is made up.
func TestEnvExampleIsTheDefaults(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("../../.env.example")
	require.NoError(t, err)
	environment := map[string]string{}
	fields := tagged()
	for _, match := range regexp.MustCompile(`(?m)^#([A-Z0-9_]+)=(.*)$`).FindAllSubmatch(content, -1) {
		name, value := string(match[1]), strings.Trim(string(match[2]), `"`)
		if example := fields[name].Tag.Get("example"); example != "" {
			require.Equal(t, example, value)
			continue
		}
		environment[name] = value
	}
	l, plain := load(environment), load(nil)
	require.Empty(t, l.faults)
	require.Equal(t, plain.shown(), func() (all []shownVariable) {
		for i, v := range l.shown() { // those are named, if only as what they are anyway
			v.Source = plain.shown()[i].Source
			all = append(all, v)
		}
		return all
	}())
}

var (
	between = regexp.MustCompile(`^(\S+(?: [KMG]iB)?) to (\S+(?: [KMG]iB)?)$`)
	atLeast = regexp.MustCompile(`^(\S+(?: [KMG]iB)?) or more$`)
)

// TestRanges tries each variable just below, at and just above the range that its field
// tells: a fault names the variable, and there is none within. So the document is right.
func TestRanges(t *testing.T) {
	t.Parallel()
	// Others that must be out of the way.
	beside := map[string]map[string]string{
		"KAFKA_CONSUMER_CLOSE_TIMEOUT":         {"STOP_TIMEOUT": "1h"},
		"STOP_TIMEOUT":                         {"KAFKA_CONSUMER_CLOSE_TIMEOUT": "10ms"},
		"MAX_UPLOAD_BYTES":                     {"SPOOL_MAX_BYTES": fmt.Sprint(int64(1) << 62)},
		"KAFKA_CONSUMER_DRAIN_TIMEOUT":         {"KAFKA_CONSUMER_REBALANCE_TIMEOUT": "1h"},
		"KAFKA_CONSUMER_WORKERS_PER_PARTITION": {"KAFKA_CONSUMER_MAX_PENDING_RECORDS": "10000"},
		"PROCESS_MAX_ATTEMPTS":                 {"PROCESS_MAX_STARTS": "1000"},
	}
	step := map[string]int64{"DENOISE_TILE": 8}
	tried := 0
	for name, field := range tagged() {
		low, high := "", ""
		if match := between.FindStringSubmatch(field.Tag.Get("range")); match != nil {
			low, high = match[1], match[2]
		} else if match := atLeast.FindStringSubmatch(field.Tag.Get("range")); match != nil {
			low = match[1]
		}
		try := func(value string, valid bool) {
			environment := map[string]string{name: value}
			maps.Copy(environment, beside[name])
			var told []string
			for _, fault := range load(environment).faults {
				for line := range strings.Lines(fault.Error()) {
					if strings.HasPrefix(line, name+" ") {
						told = append(told, line)
					}
				}
			}
			require.Equal(t, valid, len(told) == 0, "%s=%s, whose range is told to be %q: %q", name, value, field.Tag.Get("range"), told)
		}
		for _, edge := range []struct {
			bound   string
			outward int64
		}{{low, -1}, {high, 1}} {
			at, of, ok := bounded(edge.bound, field.Type)
			if !ok {
				continue
			}
			tried++
			try(of(at), true)
			if edge.outward < 0 && field.Tag.Get("derived") != "" {
				continue // 0 stands for what is derived
			}
			try(of(at+edge.outward*max(step[name], 1)), false)
		}
	}
	require.Greater(t, tried, 150, "ranges are no longer read")
}

// bounded reads a bound in the smallest steps of its kind, and gives what writes one.
func bounded(text string, kind reflect.Type) (at int64, of func(int64) string, ok bool) {
	if text == "" {
		return 0, nil, false
	}
	if kind == reflect.TypeFor[time.Duration]() {
		d, err := time.ParseDuration(text)
		return int64(d), func(n int64) string { return time.Duration(n).String() }, err == nil
	}
	const hundredths = 100
	if kind.Kind() == reflect.Float64 {
		f, err := strconv.ParseFloat(text, 64)
		return int64(f*hundredths + 0.5), func(n int64) string { return fmt.Sprint(float64(n) / hundredths) }, err == nil
	}
	number, unit, _ := strings.Cut(text, " ")
	n, err := strconv.ParseInt(number, 10, 64)
	shift := map[string]int{"": 0, "KiB": 10, "MiB": 20, "GiB": 30}[unit]
	if kind.Kind() == reflect.Int32 && n<<shift >= 1<<31-1 {
		return 0, nil, false
	}
	return n << shift, func(n int64) string { return fmt.Sprint(n) }, err == nil
}

// TestEveryPartIsChecked: a part that brings variables has a Validate, which is called.
func TestEveryPartIsChecked(t *testing.T) {
	t.Parallel()
	for i := range reflect.TypeFor[config]().NumField() {
		field := reflect.TypeFor[config]().Field(i)
		if field.Type.Kind() != reflect.Struct {
			continue
		}
		_, checked := reflect.Zero(field.Type).Interface().(interface{ Validate() error })
		require.True(t, checked, "%s (%s) has no method Validate() error", field.Name, field.Type)
	}
}

// TestSecretsAreNotShown: of no variable that may hold a secret, a value is shown: not by
// `pixtools config`, nor in a fault.
func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	const marker = "hunter2"
	notSecret := []string{ // their names look like it
		"AWS_ACCESS_KEY_ID", // a name; the secret is AWS_SECRET_ACCESS_KEY
		"AWS_ENDPOINT_URL",  // addresses without a password, and looked at all the same
		"AWS_PUBLIC_ENDPOINT_URL",
		"IMPORT_LEGACY_AWS_ACCESS_KEY_ID",                // likewise
		"KAFKA_CLIENT_KEY_FILE", "REDIS_CLIENT_KEY_FILE", // where it lies
	}
	looks := regexp.MustCompile(`PASSWORD|SECRET|TOKEN|KEY|CREDENTIAL|PASSPHRASE|SALT|_URL$|_DSN$|_URI$`)
	for name, field := range tagged() {
		kind := field.Tag.Get("secret")
		if kind == "" {
			require.True(t, field.Type.Kind() != reflect.String || !looks.MatchString(name) || slices.Contains(notSecret, name),
				"%s looks like a secret: give its field the tag secret, value or url, or say in this test why it is none", name)
			if !strings.HasSuffix(name, "_URL") {
				continue
			}
		}
		for _, value := range []string{
			marker,
			"postgres://user:" + marker + "@host:5432/x?sslmode=require",
			"postgres://host/x?user=u&password=" + marker + "&sslpassword=" + marker,
			"host=x user=u password=" + marker,
			"rediss://:" + marker + "@host:6379/0",
			"https://user:" + marker + "@host:port", // whose port is none
			"https://user:" + marker + "@host/%zz",
			"redis://:" + marker + "@host:6379/none",
		} {
			if kind == "" && !strings.Contains(value, "://") {
				continue // an address that is none
			}
			environment := map[string]string{name: value}
			if name == "KAFKA_SASL_PASSWORD" {
				environment["KAFKA_SASL_MECHANISM"] = "NONE"
			}
			l := load(environment)
			var out bytes.Buffer
			require.NoError(t, l.print(&out))
			require.NoError(t, l.printJSON(&out))
			for _, fault := range l.faults {
				fmt.Fprintln(&out, fault)
			}
			for line := range strings.Lines(out.String()) {
				require.NotContains(t, line, marker, "%s=%s", name, value)
			}
		}
	}
}

func TestSecretsFromFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(content string) string {
		path := filepath.Join(dir, fmt.Sprint(len(content)))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	for name, field := range tagged() {
		if field.Tag.Get("secret") == "" {
			continue
		}
		l := load(map[string]string{name + "_FILE": write("postgres://u:p@host/x\r\n")})
		require.Equal(t, fromFile, l.sources[name], name)
		eachVariable(reflect.ValueOf(l.config), func(f reflect.StructField, value reflect.Value) {
			if f.Tag.Get("env") == name {
				require.Equal(t, "postgres://u:p@host/x", value.String())
			}
		})
		for _, c := range []struct {
			environment map[string]string
			says        string
		}{
			{map[string]string{name + "_FILE": write("a"), name: "b"}, "are both set"},
			{map[string]string{name + "_FILE": filepath.Join(dir, "missing")}, "can be read"},
			{map[string]string{name + "_FILE": dir}, "can be read"},
			{map[string]string{name + "_FILE": write("\n")}, "is empty"},
			{map[string]string{name + "_FILE": write(strings.Repeat("x", maxSecretBytes+1))}, "larger than 65536 bytes"},
		} {
			require.True(t, slices.ContainsFunc(load(c.environment).faults, func(fault error) bool {
				return strings.Contains(fault.Error(), name+"_FILE") && strings.Contains(fault.Error(), c.says)
			}), "%s: %s", name, c.says)
		}
	}
	largest := strings.Repeat("x", maxSecretBytes)
	require.Equal(t, largest, load(map[string]string{"AWS_SECRET_ACCESS_KEY_FILE": write(largest)}).Blob.SecretAccessKey)
	// Only of secrets.
	require.Empty(t, load(map[string]string{"PORT_FILE": filepath.Join(dir, "missing")}).faults)
}

// TestSources: `pixtools config` tells where each value comes from, and all faults at once.
func TestSources(t *testing.T) {
	t.Parallel()
	l := load(map[string]string{"PORT": "9000", "KAFKA_BROKERS": "a:1,b:2", "REDIS_URL": "redis://:hunter2@cache", "KAFKA_BROKER": "c:3", "LOG_LEVEL": ""})
	require.Empty(t, l.faults)
	var out bytes.Buffer
	require.NoError(t, l.print(&out))
	for _, line := range []string{
		`PORT +9000 +environment`, `KAFKA_BROKERS +a:1,b:2 +environment`, `KAFKA_PARTITIONS +48 +derived`, `DATABASE_URL +embedded`,
		`REDIS_URL +redis://:xxxxx@cache +environment`, `HOST +127.0.0.1 +derived`, `LOG_LEVEL +warn +default`, `MAX_UPLOAD_BYTES +10485760 +default`,
		`warning: KAFKA_BROKER is set, and means nothing to PixTools; is it KAFKA_BROKERS that is meant\?`,
	} {
		require.Regexp(t, `(?m)^`+line+`$`, out.String())
	}

	p := prepare(t, map[string]string{"PORT": "0", "MAX_STREAMS": "many", "KAFKA_BROKERS": "a:1", "REDIS_URL_FILE": "/missing"})
	p.env = append(p.env, "PORT=0")
	p.args = []string{"config", "--json"}
	p.start()
	require.Error(t, p.cmd.Wait())
	require.Equal(t, 1, p.cmd.ProcessState.ExitCode())
	object, faults, found := strings.Cut(p.log.String(), "pixtools: configuration:")
	require.True(t, found)
	var told struct {
		Variables []shownVariable
		Faults    []string
	}
	require.NoError(t, json.Unmarshal([]byte(object), &told))
	require.Len(t, told.Variables, len(tagged()))
	for _, name := range []string{"PORT", "MAX_STREAMS", "REDIS_URL_FILE"} {
		require.Contains(t, faults, name+" is ")
		require.True(t, slices.ContainsFunc(told.Faults, func(f string) bool { return strings.HasPrefix(f, name+" is ") }))
	}
}

func TestMisspelt(t *testing.T) {
	t.Parallel()
	doubts := strings.Join(misspelt(map[string]string{"DATABASE_URI": "x", "KAFKA_BROKER": "x", "DENOISE_TILES": "x", "KAFKA_SASL_PASSWORDFILE": "x"}), "\n")
	for _, meant := range []string{"DATABASE_URL ", "KAFKA_BROKERS ", "DENOISE_TILE ", "KAFKA_SASL_PASSWORD_FILE "} {
		require.Contains(t, doubts, "is it "+meant)
	}
	// What machines, images, the AWS SDK and Kubernetes set is nobody's mistake.
	others := map[string]string{}
	for _, name := range []string{"HOSTNAME", "HOSTS", "PORTS", "KAFKA_PORT", "KAFKA_SERVICE_HOST", "REDIS_PORT", "REDIS_SERVICE_PORT", "PIXTOOLS_SERVICE_HOST",
		"PIXTOOLS_PORT_8000_TCP", "POSTGRES_PORT", "PGHOST", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3", "AWS_ROLE_ARN",
		"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SHARED_CREDENTIALS_FILE", "KAFKA_HOME", "KAFKA_OPTS", "KAFKA_HEAP_OPTS", "LOG_DIR", "SSL_CERT_FILE",
		"PIXTOOLS_TEST_KAFKA", "PIXTOOLS_TEST_S3", "DATABASE_URL_FILE", "KAFKA_BROKERS"} {
		others[name] = "x"
	}
	require.Empty(t, misspelt(others))
}

// TestRefusedFlags: what cannot be meant is refused before anything is looked for.
func TestRefusedFlags(t *testing.T) {
	p := prepare(t, nil)
	picture, empty := saved(t, "a.png", pngOf(t, picture(8, 8))), saved(t, "empty.png", nil)
	const tenant = "letters, digits, dots, dashes and underscores"
	for _, test := range []struct {
		args []string
		told string
	}{
		{[]string{"webhooks", "address", "set", "https://example.org", "--tenant", ""}, tenant},
		{[]string{"webhooks", "address", "clear", "--tenant", "Foo Bar!"}, tenant},
		{[]string{"webhooks", "address", "show", "--tenant", "Foo Bar!"}, tenant},
		{[]string{"webhooks", "secret", "create", "--tenant", "-a"}, tenant},
		{[]string{"webhooks", "secret", "list", "--tenant", "Foo Bar!"}, tenant},
		{[]string{"keys", "create", "--tenant", "Foo Bar!", "--scope", "read", "--name", "x"}, tenant},
		{[]string{"keys", "create", "--tenant", "a", "--scope", "read", "--name", "x", "--expires", "0s"}, "--expires is 0s"},
		{[]string{"keys", "create", "--tenant", "a", "--scope", "read", "--name", "x", "--expires", "-1h"}, "--expires is -1h"},
		{[]string{"events", "cat", "--operation", "nosuch"}, "there are jpg, png, webp, avif, denoise"},
		{[]string{"events", "tail", "--operation", "nosuch"}, "there are jpg, png, webp, avif, denoise"},
		{[]string{"submit", picture, "--ops", "webp", "--out", t.TempDir()}, "needs --wait"},
		{[]string{"submit", picture, "--ops", "webp", "--wait", "--out", picture}, "that is a file"},
		{[]string{"submit", empty, "--ops", "webp"}, "is empty"},
		{[]string{"submit", t.TempDir(), "--ops", "webp"}, "is a directory"},
	} {
		out, complaints, status := p.command(test.args...)
		require.Equal(t, 1, status, "%s: %s", test.args, complaints)
		require.Contains(t, complaints, test.told, test.args)
		require.Empty(t, out)
	}
}

// TestWrongUse: who calls a command wrongly is told how it is called.
func TestWrongUse(t *testing.T) {
	p := prepare(t, nil)
	for _, test := range []struct {
		args   []string
		told   string
		usage  string
		status int
	}{
		{[]string{"submit"}, "received 0", "Usage: pixtools submit FILE", 1},
		{[]string{"job", "history", "x"}, `"x" is no job id`, "Usage: pixtools job history JOB_ID", 1},
		{[]string{"keys", "revoke", "a", "b"}, "received 2", "Usage: pixtools keys revoke ID", 1},
		{[]string{"serve", "--nope"}, "--nope", "Usage: pixtools serve", 1},
		{[]string{"verify", "--nope"}, "--nope", "Usage: pixtools verify", 2}, // 1 is for what it finds
		{[]string{"verify", "x"}, `"x"`, "Usage: pixtools verify", 2},
	} {
		_, complaints, status := p.command(test.args...)
		require.Equal(t, test.status, status, "%s: %s", test.args, complaints)
		require.Contains(t, complaints, test.told)
		require.Equal(t, 1, strings.Count(complaints, test.usage), complaints)
	}
}

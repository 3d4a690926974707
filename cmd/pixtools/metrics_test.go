package main

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/require"
)

const deployDir = "../../internal/deploy"

// exported are names of series, each with its labels, and what a scrape adds to all.
type exported map[string]map[string]bool

var (
	scraped = []string{"job", "instance"}
	promQL  = parser.NewParser(parser.Options{})
)

func (e exported) add(families map[string]*dto.MetricFamily) {
	for name, family := range families {
		for _, metric := range family.GetMetric() {
			with := []string{}
			for _, pair := range metric.GetLabel() {
				with = append(with, pair.GetName())
			}
			switch family.GetType() {
			case dto.MetricType_HISTOGRAM:
				e.has(name+"_bucket", append(with, "le")...)
				e.has(name+"_sum", with...)
				e.has(name+"_count", with...)
			case dto.MetricType_SUMMARY:
				e.has(name, append(with, "quantile")...)
				e.has(name+"_sum", with...)
				e.has(name+"_count", with...)
			default:
				e.has(name, with...)
			}
		}
	}
}

func (e exported) has(name string, with ...string) {
	if e[name] == nil {
		e[name] = map[string]bool{}
	}
	for _, label := range append(with, scraped...) {
		e[name][label] = true
	}
}

// scrape reads what all processes export on their private ports, and the API on its own.
func scrape(t *testing.T, roles map[string]*program) exported {
	all := exported{}
	all.has("up")
	read := func(text string) {
		t.Helper()
		p := expfmt.NewTextParser(model.UTF8Validation)
		families, err := p.TextToMetricFamilies(strings.NewReader(text))
		require.NoError(t, err)
		all.add(families)
	}
	for name, p := range roles {
		status, body, err := p.private("/metrics")
		require.NoError(t, err, name)
		require.Equal(t, http.StatusOK, status, name)
		read(body)
	}
	return all
}

// everyMetricIsThere: each expression of a dashboard and of a rule asks for series, and by
// labels, that processes export after a few jobs.
func everyMetricIsThere(t *testing.T, roles map[string]*program) {
	var all exported
	eventually(t, "the metrics that are looked at beside the requests", func() error {
		all = scrape(t, roles)
		for _, name := range []string{"pixtools_queue_waiting", "pixtools_group_lag_seconds"} {
			if all[name] == nil {
				return os.ErrNotExist
			}
		}
		return nil
	})
	asked := 0
	var lacking []string
	for where, expressions := range everyExpression(t) {
		for _, text := range expressions {
			expression, err := promQL.ParseExpr(strings.ReplaceAll(text, "$__rate_interval", "5m"))
			require.NoError(t, err, "%s: %s", where, text)
			missing, n := all.missingIn(expression)
			for _, name := range missing {
				lacking = append(lacking, where+": "+name+" in "+text)
			}
			asked += n
		}
	}
	require.Empty(t, lacking)
	require.Greater(t, asked, 50)
	// And the other way: a name that is not there is found.
	expression, err := promQL.ParseExpr(`sum by (nothing) (pixtools_jobs_ended_total{no="x"}) / pixtools_no_such_total`)
	require.NoError(t, err)
	missing, _ := all.missingIn(expression)
	require.ElementsMatch(t, []string{"pixtools_jobs_ended_total{no}", "by (nothing)", "pixtools_no_such_total"}, missing)

	response, err := http.Get(roles["api"].base + "/metrics")
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode)
}

// missingIn names what an expression asks for and nobody exports.
func (e exported) missingIn(expression parser.Expr) (missing []string, selectors int) {
	parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
		switch node := node.(type) {
		case *parser.VectorSelector:
			selectors++
			if e[node.Name] == nil {
				missing = append(missing, node.Name)
				break
			}
			for _, matcher := range node.LabelMatchers {
				if matcher.Name != model.MetricNameLabel && !e[node.Name][matcher.Name] {
					missing = append(missing, node.Name+"{"+matcher.Name+"}")
				}
			}
		case *parser.AggregateExpr:
			for _, label := range node.Grouping {
				if !node.Without && !e.below(node.Expr, label) {
					missing = append(missing, "by ("+label+")")
				}
			}
		}
		return nil
	})
	return missing, selectors
}

// below says whether a series that an expression asks for has a label.
func (e exported) below(expression parser.Expr, label string) (found bool) {
	parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok && e[selector.Name][label] {
			found = true
		}
		return nil
	})
	return found
}

// everyExpression is all PromQL of the dashboards, the rules and KEDA's triggers, by file.
func everyExpression(t *testing.T) map[string][]string {
	all := map[string][]string{}
	files, err := filepath.Glob(deployDir + "/grafana/dashboards/*.json")
	require.NoError(t, err)
	require.Len(t, files, 4)
	for _, path := range files {
		raw, err := os.ReadFile(path)
		require.NoError(t, err)
		var dashboard struct {
			Panels []struct {
				Title   string
				Targets []struct{ Expr string }
			}
		}
		require.NoError(t, json.Unmarshal(raw, &dashboard), path)
		for _, panel := range dashboard.Panels {
			require.NotEmpty(t, panel.Targets, "%s: %s", path, panel.Title)
			for _, target := range panel.Targets {
				all[filepath.Base(path)] = append(all[filepath.Base(path)], target.Expr)
			}
		}
	}
	rules, faults := rulefmt.ParseFile(deployDir+"/prometheus/rules.yml", false, model.UTF8Validation, promQL, slog.New(slog.DiscardHandler))
	require.Empty(t, faults)
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			all["rules.yml"] = append(all["rules.yml"], rule.Expr)
		}
	}
	all["kubernetes"] = metricsOfScalers(t)
	return all
}

// TestAlertsSayWhatToDo: each alert tells in a sentence what is the matter, and where it says
// what to do; and there it is.
func TestAlertsSayWhatToDo(t *testing.T) {
	t.Parallel()
	rules, faults := rulefmt.ParseFile(deployDir+"/prometheus/rules.yml", false, model.UTF8Validation, promQL, slog.New(slog.DiscardHandler))
	require.Empty(t, faults)
	var anchors []string
	guide, err := os.ReadFile("../../docs/operations.md")
	if err == nil {
		for _, heading := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(string(guide), -1) {
			anchors = append(anchors, strings.ToLower(strings.ReplaceAll(strings.Trim(heading[1], "`"), " ", "-")))
		}
	}
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			require.NotEmpty(t, rule.Annotations["summary"], rule.Alert)
			require.Contains(t, []string{"warning", "critical"}, rule.Labels["severity"], rule.Alert)
			require.Equal(t, "docs/operations.md#"+strings.ToLower(rule.Alert), rule.Annotations["runbook_url"])
			if err == nil {
				require.True(t, slices.Contains(anchors, strings.ToLower(rule.Alert)), "docs/operations.md has no heading %s", rule.Alert)
			}
		}
	}
}

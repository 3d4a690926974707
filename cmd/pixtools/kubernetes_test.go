package main

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	podsecurityapi "k8s.io/pod-security-admission/api"
	podsecurity "k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/embedded"
	"github.com/pixtools/pixtools/internal/telemetry"
	"github.com/pixtools/pixtools/processors"
)

// kustomizations are what is built here. internal/deploy/check.sh holds the same against
// the schemas of Kubernetes and KEDA.
var kustomizations = []string{"base", "overlays/example"}

const (
	componentLabel = "app.kubernetes.io/component"
	roomToStop     = 5 * time.Second // what an end takes beside all that has a limit
)

// manifests are the objects of a kustomization, as they would be applied.
type manifests struct {
	t         *testing.T
	namespace string
	workloads map[string]workload // by component: a role, or prepare
	services  map[string]corev1.Service
	settings  map[string]corev1.ConfigMap
	budgets   []policyv1.PodDisruptionBudget
	byCPU     []autoscalingv2.HorizontalPodAutoscaler
	byLag     []scaledObject
	logins    map[string]triggerAuthentication
	policies  []networkingv1.NetworkPolicy
	ingresses []networkingv1.Ingress
}

// workload is what Deployments, StatefulSets and Jobs have in common.
type workload struct {
	kind, name string
	service    string // of a StatefulSet
	replicas   *int32
	selector   *metav1.LabelSelector
	pod        corev1.PodTemplateSpec
}

// scaledObject and triggerAuthentication are as much of KEDA's as is looked at here.
type scaledObject struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		ScaleTargetRef                   struct{ Name, Kind string }
		MinReplicaCount, MaxReplicaCount *int32
		Triggers                         []struct {
			Type              string
			Metadata          map[string]string
			AuthenticationRef struct{ Name string }
		}
	}
}

type triggerAuthentication struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		ConfigMapTargetRef, SecretTargetRef []struct{ Parameter, Name, Key string }
	}
}

// kustomized builds one.
func kustomized(t *testing.T, name string) manifests {
	t.Helper()
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(deployDir, "kubernetes", name))
	require.NoError(t, err)
	m := manifests{t: t, workloads: map[string]workload{}, services: map[string]corev1.Service{}, settings: map[string]corev1.ConfigMap{}, logins: map[string]triggerAuthentication{}}
	for _, r := range built.Resources() {
		raw, err := r.AsYAML()
		require.NoError(t, err)
		where := r.GetKind() + " " + r.GetName()
		if r.GetKind() != "Namespace" {
			require.NotEmpty(t, r.GetNamespace(), where)
			if m.namespace == "" {
				m.namespace = r.GetNamespace()
			}
			require.Equal(t, m.namespace, r.GetNamespace(), where)
		}
		as := func(into any) { require.NoError(t, yaml.Unmarshal(raw, into), where) }
		add := func(w workload) {
			w.kind, w.name = r.GetKind(), r.GetName()
			component := w.pod.Labels[componentLabel]
			require.NotContains(t, m.workloads, component, where)
			m.workloads[component] = w
		}
		switch r.GetKind() {
		case "Deployment":
			var d appsv1.Deployment
			as(&d)
			add(workload{replicas: d.Spec.Replicas, selector: d.Spec.Selector, pod: d.Spec.Template})
		case "StatefulSet":
			var s appsv1.StatefulSet
			as(&s)
			add(workload{replicas: s.Spec.Replicas, selector: s.Spec.Selector, pod: s.Spec.Template, service: s.Spec.ServiceName})
		case "Job":
			var j batchv1.Job
			as(&j)
			add(workload{pod: j.Spec.Template})
			require.Greater(t, time.Duration(*j.Spec.ActiveDeadlineSeconds)*time.Second, time.Duration(*j.Spec.BackoffLimit+1)*load(nil).PrepareTimeout, where)
		case "Service":
			var s corev1.Service
			as(&s)
			m.services[s.Name] = s
		case "ConfigMap":
			var c corev1.ConfigMap
			as(&c)
			m.settings[c.Name] = c
		case "PodDisruptionBudget":
			var b policyv1.PodDisruptionBudget
			as(&b)
			m.budgets = append(m.budgets, b)
		case "HorizontalPodAutoscaler":
			var h autoscalingv2.HorizontalPodAutoscaler
			as(&h)
			m.byCPU = append(m.byCPU, h)
		case "ScaledObject":
			var s scaledObject
			as(&s)
			m.byLag = append(m.byLag, s)
		case "TriggerAuthentication":
			var a triggerAuthentication
			as(&a)
			m.logins[a.Name] = a
		case "NetworkPolicy":
			var p networkingv1.NetworkPolicy
			as(&p)
			m.policies = append(m.policies, p)
		case "Ingress":
			var i networkingv1.Ingress
			as(&i)
			m.ingresses = append(m.ingresses, i)
		case "ServiceAccount", "Namespace":
		default:
			t.Errorf("%s: nothing here looks at it", where)
		}
	}
	return m
}

// secretKeys are those that the Secret pixtools may have, with made-up values.
var secretKeys = map[string]string{
	"DATABASE_URL": "postgres://pixtools:change-me@postgres.example.org:5432/pixtools?sslmode=verify-full", "REDIS_URL": "redis://:change-me@redis.example.org:6379/0",
	"AWS_ACCESS_KEY_ID": "pixtools", "AWS_SECRET_ACCESS_KEY": "change-me", "KAFKA_SASL_PASSWORD": "change-me",
}

// environment is what the container of a workload is started with. The files of the Secret
// lie in a directory of this test.
func (m manifests) environment(component, secrets string) map[string]string {
	t, w := m.t, m.workloads[component]
	container, found := w.pod.Spec.Containers[0], map[string]string{}
	for _, from := range container.EnvFrom {
		require.Contains(t, m.settings, from.ConfigMapRef.Name, component)
		maps.Copy(found, m.settings[from.ConfigMapRef.Name].Data)
	}
	for _, variable := range container.Env {
		switch from := variable.ValueFrom; {
		case from == nil:
			found[variable.Name] = variable.Value
		case from.SecretKeyRef != nil:
			require.Equal(t, "pixtools", from.SecretKeyRef.Name)
			require.Contains(t, secretKeys, from.SecretKeyRef.Key)
			found[variable.Name] = secretKeys[from.SecretKeyRef.Key]
		default:
			require.Equal(t, "metadata.name", from.FieldRef.FieldPath, "%s: %s", component, variable.Name)
			found[variable.Name] = w.name + "-0"
		}
	}
	fields := tagged()
	for name, value := range found {
		base, file := strings.CutSuffix(name, fileSuffix)
		if _, ours := fields[name]; !ours {
			require.True(t, file && fields[base].Tag.Get("secret") != "", "%s: %s is no variable of PixTools", component, name)
		}
		if key, below := strings.CutPrefix(value, "/secrets/"); below {
			require.Contains(t, secretKeys, key, component)
			path := filepath.Join(secrets, key)
			require.NoError(t, os.WriteFile(path, []byte(secretKeys[key]), 0o600))
			found[name] = path
		}
	}
	return found
}

// TestKubernetes holds the manifests against the program: what no schema of Kubernetes knows.
func TestKubernetes(t *testing.T) {
	t.Parallel()
	for _, name := range kustomizations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := kustomized(t, name)
			require.ElementsMatch(t, append(slices.Clone(allRoles), "prepare"), slices.Collect(maps.Keys(m.workloads)))
			secrets := t.TempDir()
			configs := map[string]config{}
			for component, w := range m.workloads {
				l := load(m.environment(component, secrets))
				require.NoError(t, l.fault(), component)
				require.Empty(t, l.unknown, component)
				require.Equal(t, embedded.Needs{}, l.needs(), "%s: a part would run embedded", component)
				configs[component] = l.config
				pod(t, component, w, l.config)
			}
			m.onePodOfEach()
			m.scaling(configs)
			m.network(configs)
		})
	}
}

// pod holds one against what its role is configured with.
func pod(t *testing.T, component string, w workload, cfg config) {
	spec := w.pod.Spec
	require.Len(t, spec.Containers, 1, component)
	c := spec.Containers[0]
	if component == "prepare" {
		require.Equal(t, []string{prepareCommand().Name()}, c.Args)
		require.Equal(t, "Job", w.kind)
	} else {
		require.Equal(t, []string{serveCommand().Name(), "--roles=" + component}, c.Args)
		selector, err := metav1.LabelSelectorAsSelector(w.selector)
		require.NoError(t, err)
		require.True(t, selector.Matches(labels.Set(w.pod.Labels)), component)
		// Killed at the end of this time, whatever it does.
		grace := time.Duration(*spec.TerminationGracePeriodSeconds) * time.Second
		require.Greater(t, grace, cfg.DrainDelay+cfg.StopTimeout+flushTimeout+roomToStop, component)
		probes(t, component, c, cfg)
	}
	// Those whose instance's name is in a transactional id need one that stays.
	stays := component == "saga" || component == "webhooks"
	require.Equal(t, stays, w.kind == "StatefulSet", component)
	require.Contains(t, cfg.InstanceID, w.name, component)

	require.False(t, *spec.AutomountServiceAccountToken, component)
	require.False(t, *spec.EnableServiceLinks, component)
	require.True(t, *c.SecurityContext.ReadOnlyRootFilesystem, component)
	admission, err := podsecurity.NewEvaluator(podsecurity.DefaultChecks(), nil)
	require.NoError(t, err)
	for _, result := range admission.EvaluatePod(podsecurityapi.LevelVersion{Level: podsecurityapi.LevelRestricted, Version: podsecurityapi.LatestVersion()}, &w.pod.ObjectMeta, &spec) {
		require.True(t, result.Allowed, "%s: a namespace that is restricted refuses it: %s %s", component, result.ForbiddenReason, result.ForbiddenDetail)
	}

	// What is written lies in volumes that end somewhere.
	volumes := map[string]corev1.Volume{}
	for _, v := range spec.Volumes {
		volumes[v.Name] = v
		if v.EmptyDir != nil {
			require.NotNil(t, v.EmptyDir.SizeLimit, "%s: %s", component, v.Name)
		}
	}
	var disk int64
	for _, mount := range c.VolumeMounts {
		require.Contains(t, volumes, mount.Name, component)
		if empty := volumes[mount.Name].EmptyDir; empty != nil && empty.Medium == corev1.StorageMediumDefault {
			disk += empty.SizeLimit.Value()
		}
	}
	spool := slices.IndexFunc(c.VolumeMounts, func(mount corev1.VolumeMount) bool {
		// Not the volume itself: that is root's, and the process takes none of another's.
		return filepath.Dir(cfg.API.SpoolDir) == mount.MountPath
	})
	require.GreaterOrEqual(t, spool, 0, "%s: SPOOL_DIR is %s, which is not just below a volume", component, cfg.API.SpoolDir)
	room := volumes[c.VolumeMounts[spool].Name].EmptyDir.SizeLimit.Value()
	needs := map[string]int64{"api": cfg.API.MaxSpoolBytes, "ml": cfg.Processor.SpoolBytes, "convert": cfg.Processor.SpoolBytes * int64(len(processors.Conversions()))}[component]
	require.Greater(t, room, needs+needs/8, "%s: what is on the disk, and what is being written there", component)
	require.Greater(t, c.Resources.Limits.StorageEphemeral().Value(), disk, component)
	require.GreaterOrEqual(t, c.Resources.Requests.StorageEphemeral().Value(), disk, component)

	memory := c.Resources.Limits.Memory().Value()
	require.Positive(t, memory, component)
	require.Positive(t, c.Resources.Requests.Cpu().MilliValue(), component)
	require.LessOrEqual(t, c.Resources.Requests.Memory().Value(), memory, component)
	switch component {
	case "convert": // without a limit of its own, the machine's cores would decide
		require.Positive(t, cfg.Workers)
		require.LessOrEqual(t, cfg.Engine.MemoryBytes, memory/2, "one child's limit before that of all")
	case "ml":
		require.Equal(t, c.Resources.Limits.Cpu().Value(), int64(cfg.Denoise.Threads*cfg.Denoise.Concurrency))
		require.LessOrEqual(t, cfg.Engine.MemoryBytes, memory/2)
	}
}

// probes are answered by the private port.
func probes(t *testing.T, component string, c corev1.Container, cfg config) {
	ports := map[string]int32{}
	for _, p := range c.Ports {
		ports[p.Name] = p.ContainerPort
	}
	address, err := netip.ParseAddrPort(cfg.Telemetry.Address())
	require.NoError(t, err)
	want := map[string]int32{"private": int32(address.Port())}
	if component == "api" {
		want["http"] = int32(cfg.Port)
	}
	require.Equal(t, want, ports, component)
	require.True(t, address.Addr().IsUnspecified(), "whoever probes comes from outside of the pod")
	private := telemetry.Private(func() map[string]string { return map[string]string{component: telemetry.Ready} })
	for _, asked := range []struct {
		probe *corev1.Probe
		path  string
	}{{c.StartupProbe, "/livez"}, {c.LivenessProbe, "/livez"}, {c.ReadinessProbe, "/readyz"}} {
		probe := asked.probe
		require.NotNil(t, probe, "%s: %s", component, asked.path)
		require.Equal(t, asked.path, probe.HTTPGet.Path, component)
		require.Equal(t, intstr.FromString("private"), probe.HTTPGet.Port, component)
		answer := httptest.NewRecorder()
		private.ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, probe.HTTPGet.Path, nil))
		require.Equal(t, http.StatusOK, answer.Code, probe.HTTPGet.Path)
	}
}

// selected are the components whose pods a selector selects.
func (m manifests) selected(selector metav1.LabelSelector) (components []string) {
	s, err := metav1.LabelSelectorAsSelector(&selector)
	require.NoError(m.t, err)
	for component, w := range m.workloads {
		if s.Matches(labels.Set(w.pod.Labels)) {
			components = append(components, component)
		}
	}
	return components
}

// onePodOfEach: budgets, Services and the ingress lead to workloads that are there.
func (m manifests) onePodOfEach() {
	t := m.t
	var bounded []string
	for _, b := range m.budgets {
		selected := m.selected(*b.Spec.Selector)
		require.Len(t, selected, 1, b.Name)
		require.Equal(t, "pixtools-"+selected[0], b.Name)
		// minAvailable of a role that has one process would hold up every drained node.
		require.Equal(t, intstr.FromInt32(1), *b.Spec.MaxUnavailable, b.Name)
		bounded = append(bounded, selected...)
	}
	require.ElementsMatch(t, allRoles, bounded)
	for name, s := range m.services {
		selected := m.selected(metav1.LabelSelector{MatchLabels: s.Spec.Selector})
		require.Len(t, selected, 1, name)
		for _, p := range s.Spec.Ports {
			require.True(t, slices.ContainsFunc(m.workloads[selected[0]].pod.Spec.Containers[0].Ports, func(c corev1.ContainerPort) bool { return c.Name == p.TargetPort.StrVal }), "%s: %s", name, p.Name)
		}
	}
	for component, w := range m.workloads {
		if w.kind == "StatefulSet" {
			require.Equal(t, corev1.ClusterIPNone, m.services[w.service].Spec.ClusterIP, component)
		}
	}
	for _, i := range m.ingresses {
		for _, rule := range i.Spec.Rules {
			for _, path := range rule.HTTP.Paths {
				to := path.Backend.Service
				require.True(t, slices.ContainsFunc(m.services[to.Name].Spec.Ports, func(p corev1.ServicePort) bool { return p.Name == to.Port.Name }), i.Name)
			}
		}
	}
}

// whatKEDATakes are the members of triggers that KEDA's scalers read, of those in use. It
// passes over others, and a misspelt one would be its default.
var whatKEDATakes = map[string][]string{
	"kafka":       {"bootstrapServersFromEnv", "topic", "consumerGroup", "lagThreshold", "offsetResetPolicy", "version"},
	"metrics-api": {"url", "format", "valueLocation", "targetValue"},
}

// scaling: by groups and metrics that are there, within what the partitions allow.
func (m manifests) scaling(configs map[string]config) {
	t := m.t
	scaled := map[string]bool{}
	target := func(kind, name string) string {
		for component, w := range m.workloads {
			if w.name != name || w.kind != kind {
				continue
			}
			require.False(t, scaled[component], "%s is scaled twice", name)
			require.Nil(t, w.replicas, "%s: an apply would undo what the scaler did", name)
			scaled[component] = true
			return component
		}
		require.Fail(t, "nothing to scale", "%s %s", kind, name)
		return ""
	}
	for _, h := range m.byCPU {
		component := target(h.Spec.ScaleTargetRef.Kind, h.Spec.ScaleTargetRef.Name)
		require.Equal(t, "api", component)
		require.GreaterOrEqual(t, *h.Spec.MinReplicas, int32(2))
		require.Greater(t, h.Spec.MaxReplicas, *h.Spec.MinReplicas)
	}
	groups := map[string][]string{}
	for _, s := range m.byLag {
		kind := s.Spec.ScaleTargetRef.Kind
		if kind == "" {
			kind = "Deployment" // as KEDA takes it
		}
		component := target(kind, s.Spec.ScaleTargetRef.Name)
		cfg := configs[component]
		require.GreaterOrEqual(t, *s.Spec.MinReplicaCount, int32(1), "%s: from none, nobody would see a lag of one", s.Name)
		require.Greater(t, *s.Spec.MaxReplicaCount, *s.Spec.MinReplicaCount, s.Name)
		require.LessOrEqual(t, *s.Spec.MaxReplicaCount, cfg.Partitions, "%s: more members than partitions have nothing to do", s.Name)
		require.NotEmpty(t, s.Spec.Triggers, s.Name)
		for _, trigger := range s.Spec.Triggers {
			require.ElementsMatch(t, whatKEDATakes[trigger.Type], slices.Collect(maps.Keys(trigger.Metadata)), "%s: a trigger of type %q", s.Name, trigger.Type)
			switch trigger.Type {
			case "kafka":
				groups[component] = append(groups[component], trigger.Metadata["consumerGroup"])
				m.byOffsets(s.Name, component, trigger.Metadata, trigger.AuthenticationRef.Name, cfg)
			case "metrics-api":
				groups[component] = append(groups[component], m.byMetric(s.Name, trigger.Metadata, cfg))
			}
		}
	}
	var conversions []string
	for _, op := range processors.Conversions() {
		conversions = append(conversions, events.OperationGroup+op.Name)
	}
	require.ElementsMatch(t, conversions, groups["convert"])
	require.Equal(t, []string{events.OperationGroup + processors.Denoise.Name}, groups["ml"])
	require.Equal(t, []string{events.ProjectorGroup}, groups["projector"])
	require.Len(t, groups, 3)
	for component, w := range m.workloads {
		if !scaled[component] && w.kind != "Job" {
			require.Positive(t, *w.replicas, component)
		}
	}
}

// byOffsets is a trigger by what a group has committed to Kafka.
func (m manifests) byOffsets(name, component string, metadata map[string]string, login string, cfg config) {
	t := m.t
	require.Equal(t, events.Topic, metadata["topic"], name)
	require.Equal(t, "earliest", metadata["offsetResetPolicy"], "%s: where the groups begin", name)
	threshold, err := strconv.Atoi(metadata["lagThreshold"])
	require.NoError(t, err)
	require.Greater(t, threshold, 2*int(cfg.Partitions), "%s: behind what is committed there may be a transaction's mark in each partition", name)
	require.NotEmpty(t, m.environment(component, t.TempDir())[metadata["bootstrapServersFromEnv"]], name)
	require.Equal(t, "KAFKA_BROKERS", metadata["bootstrapServersFromEnv"])

	require.Contains(t, m.logins, login, name)
	said := map[string]string{}
	for _, from := range m.logins[login].Spec.ConfigMapTargetRef {
		require.Contains(t, m.settings[from.Name].Data, from.Key, "%s: %s", login, from.Name)
		said[from.Parameter] = m.settings[from.Name].Data[from.Key]
	}
	for _, from := range m.logins[login].Spec.SecretTargetRef {
		require.Equal(t, "pixtools", from.Name)
		require.Contains(t, secretKeys, from.Key)
		said[from.Parameter] = secretKeys[from.Key]
	}
	want := map[string]string{"tls": map[bool]string{true: "enable", false: "disable"}[cfg.Kafka.TLS],
		"sasl": map[string]string{"": "none", "PLAIN": "plaintext", "SCRAM-SHA-256": "scram_sha256", "SCRAM-SHA-512": "scram_sha512"}[cfg.Kafka.SASLMechanism]}
	if cfg.Kafka.SASLMechanism != "" {
		want["username"], want["password"] = cfg.Kafka.SASLUsername, cfg.Kafka.SASLPassword
	}
	require.Equal(t, want, said, "KEDA logs in as we do")
}

// byMetric is a trigger by what the api tells of a group.
func (m manifests) byMetric(name string, metadata map[string]string, cfg config) (group string) {
	t := m.t
	require.Equal(t, "prometheus", metadata["format"])
	address, err := url.Parse(metadata["url"])
	require.NoError(t, err)
	require.Equal(t, telemetry.MetricsPath, address.Path, name)
	service, namespace, _ := strings.Cut(address.Hostname(), ".")
	require.Equal(t, m.namespace+".svc", namespace, name)
	require.Equal(t, []string{"api"}, m.selected(metav1.LabelSelector{MatchLabels: m.services[service].Spec.Selector}), name)
	require.True(t, slices.ContainsFunc(m.services[service].Spec.Ports, func(p corev1.ServicePort) bool {
		return strconv.Itoa(int(p.Port)) == address.Port() && p.TargetPort.StrVal == "private"
	}), name)
	target, err := strconv.ParseFloat(metadata["targetValue"], 64)
	require.NoError(t, err)
	require.Positive(t, target)
	expression, err := promQL.ParseExpr(metadata["valueLocation"])
	require.NoError(t, err)
	selector, ok := expression.(*parser.VectorSelector)
	require.True(t, ok, "%s: KEDA takes one series", name)
	for _, matcher := range selector.LabelMatchers {
		switch matcher.Name {
		case "group":
			group = matcher.Value
		case "operation":
			require.Contains(t, operations.Names(), matcher.Value)
			group = events.OperationGroup + matcher.Value
		}
	}
	return group
}

// metricsOfScalers are what KEDA asks the api for, as PromQL.
func metricsOfScalers(t *testing.T) (expressions []string) {
	for _, s := range kustomized(t, "base").byLag {
		for _, trigger := range s.Spec.Triggers {
			if trigger.Type == "metrics-api" {
				expressions = append(expressions, trigger.Metadata["valueLocation"])
			}
		}
	}
	require.NotEmpty(t, expressions)
	return expressions
}

// reaches says whether policies let the pods of a component send to an address.
func (m manifests) reaches(component string, to netip.Addr, port int32, protocol corev1.Protocol) bool {
	bounded, allowed := false, false
	for _, p := range m.policies {
		if !slices.Contains(m.selected(p.Spec.PodSelector), component) || !slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress) {
			continue
		}
		bounded = true
		for _, rule := range p.Spec.Egress {
			there := len(rule.To) == 0
			for _, peer := range rule.To {
				there = there || peer.IPBlock != nil && contains(peer.IPBlock.CIDR, to) && !slices.ContainsFunc(peer.IPBlock.Except, func(not string) bool { return contains(not, to) })
			}
			allowed = allowed || there && opens(rule.Ports, port, protocol)
		}
	}
	return !bounded || allowed
}

func contains(cidr string, address netip.Addr) bool {
	return netip.MustParsePrefix(cidr).Contains(address)
}

func opens(ports []networkingv1.NetworkPolicyPort, port int32, protocol corev1.Protocol) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		end := p.Port.IntVal
		if p.EndPort != nil {
			end = *p.EndPort
		}
		return p.Port.IntVal <= port && port <= end && *p.Protocol == protocol
	})
}

// network: each role reaches the parts that it needs, at the ports that they are configured
// with, and no other; and only who should reaches it.
func (m manifests) network(configs map[string]config) {
	t := m.t
	inside := netip.MustParseAddr("10.1.2.3")
	for component := range m.workloads {
		cfg := configs[component]
		needs := needed[component]
		switch component {
		case "api", "ml":
			needs = append(slices.Clone(needs), "redis")
		case "prepare":
			needs = []string{"kafka", "database", "s3"}
		}
		for part, addresses := range map[string][]string{"kafka": cfg.Kafka.Brokers, "database": {cfg.Read.URL}, "redis": {cfg.RedisURL}, "s3": {cfg.Blob.Endpoint}} {
			for _, address := range addresses {
				require.Equal(t, slices.Contains(needs, part), m.reaches(component, inside, portOf(t, address), corev1.ProtocolTCP), "%s to %s at %s", component, part, address)
			}
		}
		require.True(t, m.reaches(component, inside, 53, corev1.ProtocolUDP), "%s: names", component)
		for _, address := range []string{cfg.Telemetry.Endpoint, cfg.Telemetry.TracesEndpoint} {
			if address != "" {
				require.True(t, m.reaches(component, inside, portOf(t, address), corev1.ProtocolTCP), "%s: traces", component)
			}
		}
		outside := netip.MustParseAddr("203.0.113.7")
		require.Equal(t, component == "webhooks", m.reaches(component, outside, 8443, corev1.ProtocolTCP), component)
		for _, private := range []string{"10.1.2.3", "172.20.0.1", "192.168.1.1", "169.254.169.254", "127.0.0.1", "fd00::1", "::ffff:10.1.2.3"} {
			require.False(t, m.reaches(component, netip.MustParseAddr(private), 8443, corev1.ProtocolTCP), "%s to %s", component, private)
		}
	}
	// Who comes in.
	for component := range m.workloads {
		from := map[int32][]string{} // namespaces by port
		closed := false
		for _, p := range m.policies {
			if !slices.Contains(m.selected(p.Spec.PodSelector), component) || !slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress) {
				continue
			}
			closed = true
			for _, rule := range p.Spec.Ingress {
				for _, port := range rule.Ports {
					for _, peer := range rule.From {
						for _, requirement := range peer.NamespaceSelector.MatchExpressions {
							from[port.Port.IntVal] = append(from[port.Port.IntVal], requirement.Values...)
						}
						from[port.Port.IntVal] = slices.AppendSeq(from[port.Port.IntVal], maps.Values(peer.NamespaceSelector.MatchLabels))
					}
					if len(rule.From) == 0 {
						from[port.Port.IntVal] = append(from[port.Port.IntVal], "any")
					}
				}
			}
		}
		require.True(t, closed, component)
		require.ElementsMatch(t, []string{"keda", "monitoring"}, from[9090], component)
		delete(from, 9090)
		if component == "api" {
			require.Len(t, from[int32(configs[component].Port)], 1)
			delete(from, int32(configs[component].Port))
		}
		require.Empty(t, from, component)
	}
}

// portOf is the port of host:port, or of a URL.
func portOf(t *testing.T, address string) int32 {
	t.Helper()
	if !strings.Contains(address, "://") {
		address = "any://" + address
	}
	u, err := url.Parse(address)
	require.NoError(t, err)
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	n, err := strconv.ParseInt(port, 10, 32)
	require.NoError(t, err, address)
	return int32(n)
}

// TestKubernetesRuns starts each container's command line in its environment: the Job first,
// then every role, and a job goes through all of them. Addresses are those of this machine,
// and there is one broker.
func TestKubernetesRuns(t *testing.T) {
	t.Parallel()
	m, variables := kustomized(t, "base"), realEnv(t)
	maps.Copy(variables, map[string]string{"KAFKA_REPLICATION_FACTOR": "1", "KAFKA_MIN_INSYNC_REPLICAS": "1", "HOST": "127.0.0.1"})
	container := func(component string) *program {
		environment := m.environment(component, t.TempDir())
		for name, value := range variables {
			file, fromFile := environment[name+fileSuffix]
			if !fromFile {
				environment[name] = value
				continue
			}
			require.NoError(t, os.WriteFile(file, []byte(value), 0o600))
		}
		for _, name := range []string{"PORT", "SPOOL_DIR"} { // prepare has free ones
			delete(environment, name)
		}
		environment["PRIVATE_ADDR"] = "127.0.0.1:" + freePort(t)
		p := prepare(t, environment)
		p.args = m.workloads[component].pod.Spec.Containers[0].Args
		return p
	}
	job := container("prepare")
	_, complaints, status := job.command(job.args...)
	require.Zero(t, status, complaints)

	pods := map[string]*program{}
	for _, role := range allRoles {
		pods[role] = container(role)
		pods[role].start()
	}
	for _, p := range pods {
		p.ready()
	}
	api := pods["api"]
	id := api.submit(file("a.png", "image/png", pngOf(t, picture(600, 400))), field("operations", `["jpg","webp","avif","denoise"]`))
	require.Equal(t, "SUCCEEDED", *api.ended(id).Outcome)
	for _, p := range pods {
		p.stopped()
	}
}

// TestKubernetesIsDocumented: the guide names every key of the Secret, and the versions that
// the manifests are checked against.
func TestKubernetesIsDocumented(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile("../../docs/operations.md")
	require.NoError(t, err)
	names := func(text string) { // the whole guide would be no help in a failure
		require.True(t, strings.Contains(string(guide), text), "docs/operations.md does not say %q", text)
	}
	for key := range secretKeys {
		names("--from-literal=" + key + "=")
	}
	install, err := os.ReadFile("../../internal/lint/install.sh")
	require.NoError(t, err)
	versions := regexp.MustCompile(`KUBERNETES="(\d+\.\d+)\.\d+ `).FindSubmatch(install)
	require.NotNil(t, versions)
	names("Kubernetes " + string(versions[1]) + " or later")
	keda := regexp.MustCompile(`KEDA=v(\d+\.\d+)\.`).FindSubmatch(install)
	require.NotNil(t, keda)
	names("KEDA " + string(keda[1]))
}

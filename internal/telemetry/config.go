// Package telemetry is what operators see of a process: log lines that name what they are
// about (log.go), traces that follow a job through the log (trace.go), metrics, and a port
// of its own for them (private.go).
//
// What goes with a job, its request's id and its trace, is taken from the event's envelope
// and put into the context (About); nothing of it is kept in memory between events. So it is
// the same after a restart, in another process, and at a redelivery.
package telemetry

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Config is where a process tells of itself. The variables of OpenTelemetry are its own, and
// more of them than these are heard: its SDK reads them.
type Config struct {
	// PrivateAddr is a host:port for metrics, probes and profiles of every role. Who reaches it reads
	// memory profiles, so it is not for the public. Empty: none.
	// Beyond it: a port that is taken ends the program.
	PrivateAddr string `env:"PRIVATE_ADDR" example:"0.0.0.0:9090"`
	// PprofAddr is the old name of PRIVATE_ADDR.
	// Beyond it: both, with different values, end the program.
	PprofAddr string `env:"PPROF_ADDR"`

	// Endpoint is the base address of an OTLP receiver, over HTTP. Traces are sent where this or
	// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set.
	// Beyond it: the program ends.
	Endpoint string `env:"OTEL_EXPORTER_OTLP_ENDPOINT" range:"http or https" example:"http://tempo:4318"`
	// TracesEndpoint is the whole address for traces, instead of that.
	// Beyond it: the program ends.
	TracesEndpoint string `env:"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" range:"http or https"`
	// Protocol is how OTLP is spoken.
	// Beyond it: the program ends.
	Protocol string `env:"OTEL_EXPORTER_OTLP_PROTOCOL" envDefault:"http/protobuf" range:"http/protobuf"`
	// TracesProtocol is that for traces alone.
	// Beyond it: the program ends.
	TracesProtocol string `env:"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL" range:"http/protobuf"`
	// TracesExporter is by what traces are sent; `none` is for no traces.
	// Beyond it: the program ends.
	TracesExporter string `env:"OTEL_TRACES_EXPORTER" envDefault:"otlp" range:"otlp, none"`
	// Disabled is for no traces.
	Disabled bool `env:"OTEL_SDK_DISABLED"`
	// Sampler is which traces are kept that do not come with a decision.
	// Beyond it: the program ends.
	Sampler string `env:"OTEL_TRACES_SAMPLER" envDefault:"parentbased_always_on" range:"OpenTelemetry's samplers"`
	// SamplerArg is the share of them where the sampler goes by a ratio.
	// Beyond it: the program ends.
	SamplerArg string `env:"OTEL_TRACES_SAMPLER_ARG" range:"0 to 1"`
}

var samplers = []string{"always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"}

// Validate names every value out of range.
func (c Config) Validate() error {
	var faults []error
	for variable, address := range map[string]string{"PRIVATE_ADDR": c.PrivateAddr, "PPROF_ADDR": c.PprofAddr} {
		if address == "" {
			continue
		}
		_, port, err := net.SplitHostPort(address)
		if number, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || number == 0 {
			faults = append(faults, fmt.Errorf("%s is %q: it must be host:port, such as 127.0.0.1:9090, or unset", variable, address))
		}
	}
	if c.PrivateAddr != "" && c.PprofAddr != "" && c.PrivateAddr != c.PprofAddr {
		faults = append(faults, fmt.Errorf("PRIVATE_ADDR is %q and PPROF_ADDR is %q: the second is the first's old name; unset it", c.PrivateAddr, c.PprofAddr))
	}
	for variable, address := range map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.Endpoint, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": c.TracesEndpoint} {
		if address == "" {
			continue
		}
		if parsed, err := url.Parse(address); err != nil || parsed.Host == "" || parsed.Scheme != "http" && parsed.Scheme != "https" {
			faults = append(faults, fmt.Errorf("%s is no http or https address, such as http://localhost:4318", variable))
		}
	}
	// The SDK would send over HTTP whatever is asked for.
	for variable, protocol := range map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": c.Protocol, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": c.TracesProtocol} {
		if protocol != "" && protocol != "http/protobuf" {
			faults = append(faults, fmt.Errorf("%s is %q: it must be http/protobuf (port 4318 of most receivers), or unset", variable, protocol))
		}
	}
	if c.TracesExporter != "" && c.TracesExporter != "otlp" && c.TracesExporter != "none" {
		faults = append(faults, fmt.Errorf("OTEL_TRACES_EXPORTER is %q: it must be otlp or none", c.TracesExporter))
	}
	if c.Sampler != "" && !slices.Contains(samplers, c.Sampler) {
		faults = append(faults, fmt.Errorf("OTEL_TRACES_SAMPLER is %q: it must be one of %s", c.Sampler, strings.Join(samplers, ", ")))
	}
	if c.SamplerArg != "" {
		if share, err := strconv.ParseFloat(c.SamplerArg, 64); err != nil || !(share >= 0 && share <= 1) {
			faults = append(faults, fmt.Errorf("OTEL_TRACES_SAMPLER_ARG is %q: it must be a share from 0 to 1", c.SamplerArg))
		}
	}
	return errors.Join(faults...)
}

// Address is where the private port is; empty: nowhere.
func (c Config) Address() string {
	if c.PrivateAddr != "" {
		return c.PrivateAddr
	}
	return c.PprofAddr
}

// Traces says whether spans are sent anywhere.
func (c Config) Traces() bool {
	return (c.Endpoint != "" || c.TracesEndpoint != "") && c.TracesExporter != "none" && !c.Disabled
}

package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/pixtools/pixtools/internal/disk"
	"github.com/pixtools/pixtools/internal/embedded"
	"github.com/pixtools/pixtools/processors"
)

var (
	diskFree = prometheus.NewDesc("pixtools_disk_free_bytes",
		"What is free on the disk of a directory; the variable names it.", []string{"variable"}, nil)
	diskNeeded = prometheus.NewDesc("pixtools_disk_needed_bytes",
		"What should be: PIXTOOLS_DISK_RESERVE_BYTES; SPOOL_MAX_BYTES of the role api, PROCESS_SPOOL_BYTES for each operation of convert and ml.", []string{"variable"}, nil)
)

// diskMetrics look at the disks that a process writes to.
type diskMetrics struct {
	cfg   config
	roles []string
}

// Describe is for prometheus.
func (m diskMetrics) Describe(to chan<- *prometheus.Desc) { to <- diskFree; to <- diskNeeded }

// Collect is for prometheus.
func (m diskMetrics) Collect(to chan<- prometheus.Metric) {
	tell := func(variable, dir string, needed int64) {
		free, err := disk.Free(dir)
		if err != nil {
			to <- prometheus.NewInvalidMetric(diskFree, err)
			return
		}
		to <- prometheus.MustNewConstMetric(diskFree, prometheus.GaugeValue, float64(free), variable)
		to <- prometheus.MustNewConstMetric(diskNeeded, prometheus.GaugeValue, float64(needed), variable)
	}
	if spools := m.cfg.spools(m.roles); spools > 0 {
		tell("SPOOL_DIR", m.cfg.API.SpoolDir, spools)
	}
	if onDisk(m.cfg.needs()) {
		tell("PIXTOOLS_DATA_DIR", m.cfg.Embedded.DataDir, m.cfg.Embedded.DiskReserve)
	}
}

// spools is how much roles may have in SPOOL_DIR at a time, in bytes.
func (c config) spools(roles []string) (most int64) {
	for _, role := range roles {
		switch role {
		case "api":
			most += c.API.MaxSpoolBytes
		case "convert":
			most += c.Processor.SpoolBytes * int64(len(processors.Conversions()))
		case "ml":
			most += c.Processor.SpoolBytes
		}
	}
	return most
}

// onDisk says whether any of these parts keeps its data below PIXTOOLS_DATA_DIR.
func onDisk(parts embedded.Needs) bool { return parts.Kafka || parts.Postgres || parts.S3 }

// room says that there is no disk left for new work. The disks of parts that are real servers
// are theirs to tell of.
func (s *services) room() error {
	if !onDisk(s.embedded) {
		return nil
	}
	return s.cfg.Embedded.Room()
}

package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/pixtools/pixtools/internal/disk"
	"github.com/pixtools/pixtools/internal/embedded"
)

var (
	diskFree = prometheus.NewDesc("pixtools_disk_free_bytes",
		"What is free on the disk of a directory; the variable names it.", []string{"variable"}, nil)
	diskNeeded = prometheus.NewDesc("pixtools_disk_needed_bytes",
		"What should be: PIXTOOLS_DISK_RESERVE_BYTES, and SPOOL_MAX_BYTES.", []string{"variable"}, nil)
)

// diskMetrics look at the disks that a process writes to.
type diskMetrics struct{ cfg config }

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
	tell("SPOOL_DIR", m.cfg.API.SpoolDir, m.cfg.API.MaxSpoolBytes)
	if onDisk(m.cfg.needs()) {
		tell("PIXTOOLS_DATA_DIR", m.cfg.Embedded.DataDir, m.cfg.Embedded.DiskReserve)
	}
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

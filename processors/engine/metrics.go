package engine

import (
	"fmt"
	"os"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var (
	childrenStarted = promauto.NewCounterVec(prometheus.CounterOpts{Name: "pixtools_engine_children_started_total",
		Help: "Children of the picture engine that were started; beyond the first ones, for those that were lost or used up."}, []string{"operation"})
	childrenLost = promauto.NewCounterVec(prometheus.CounterOpts{Name: "pixtools_engine_children_lost_total",
		Help: "Children of the picture engine that ended at work by themselves, or were ended for a time limit; not those that ended since their work was cancelled."}, []string{"operation"})
	running = &census{operations: map[*process]string{},
		children: prometheus.NewDesc("pixtools_engine_children", "Children of the picture engine that run.", []string{"operation"}, nil),
		memory:   prometheus.NewDesc("pixtools_engine_memory_bytes", "Resident memory of the picture engine's children, where /proc tells.", []string{"operation"}, nil)}
)

func init() { prometheus.MustRegister(running) }

// census knows the children of all pools, and looks at them when it is asked.
type census struct {
	children, memory *prometheus.Desc

	mu         sync.Mutex
	operations map[*process]string
}

func (c *census) add(child *process, operation string) {
	childrenStarted.WithLabelValues(operation).Inc()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.operations[child] = operation
	go func() {
		<-child.exited
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.operations, child)
	}()
}

// Describe is for the registry.
func (c *census) Describe(to chan<- *prometheus.Desc) { to <- c.children; to <- c.memory }

// Collect is for the registry.
func (c *census) Collect(to chan<- prometheus.Metric) {
	count, memory := map[string]float64{}, map[string]float64{}
	c.mu.Lock()
	for child, operation := range c.operations {
		count[operation]++
		memory[operation] += residentBytes(child.cmd.Process.Pid)
	}
	c.mu.Unlock()
	for operation, n := range count {
		to <- prometheus.MustNewConstMetric(c.children, prometheus.GaugeValue, n, operation)
		to <- prometheus.MustNewConstMetric(c.memory, prometheus.GaugeValue, memory[operation], operation)
	}
}

// residentBytes is 0 where nobody tells: another system, or a child that is gone.
func residentBytes(pid int) float64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	var size, resident int
	if _, err := fmt.Sscan(string(raw), &size, &resident); err != nil {
		return 0
	}
	return float64(resident * os.Getpagesize())
}

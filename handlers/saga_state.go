package handlers

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
)

// put takes in a record of the changelog: a state, or a tombstone.
func (m *memory) put(r *kgo.Record) error {
	id := string(r.Key)
	if r.Value == nil {
		delete(m.jobs, id)
		return nil
	}
	job := &events.Job{}
	if err := proto.Unmarshal(r.Value, job); err != nil {
		return fmt.Errorf("changelog %s/%d at offset %d: %w; delete the topic %s and the offsets of group %s to rebuild it from the log",
			r.Topic, r.Partition, r.Offset, err, events.SagaTopic, events.SagaGroup)
	}
	m.jobs[id] = job
	return nil
}

// order lists the ended jobs after a restore, by the time of their end.
func (m *memory) order() {
	m.ended = m.ended[:0]
	for id, job := range m.jobs {
		if job.GetPhase() != events.Phase_PHASE_OPEN {
			m.ended = append(m.ended, id)
		}
	}
	slices.SortFunc(m.ended, func(a, b string) int {
		if c := m.jobs[a].GetUpdatedAt().AsTime().Compare(m.jobs[b].GetUpdatedAt().AsTime()); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
}

// changeSet is what a batch changes in one partition's memory; nothing of it is in
// the memory before the transaction is committed.
type changeSet struct {
	memory *memory
	// jobs are the new states; nil is a job to forget.
	jobs    map[string]*events.Job
	emitted []events.Event
	// newest is the time of the newest event folded: the clock of expiry.
	newest time.Time
	// expired counts the entries of memory.ended that this batch looked at.
	expired int
}

func newChangeSet(m *memory) *changeSet {
	return &changeSet{memory: m, jobs: map[string]*events.Job{}}
}

func (c *changeSet) state(id string) *events.Job {
	if job, ok := c.jobs[id]; ok {
		return job
	}
	return c.memory.jobs[id]
}

// fold is the job's state after e.
func (c *changeSet) fold(e events.Event) *events.Job {
	if e.Time.After(c.newest) {
		c.newest = e.Time
	}
	before := c.state(e.JobID)
	after := events.Fold(before, e)
	if after != before {
		c.jobs[e.JobID] = after
	}
	return after
}

// expire forgets jobs that ended longer than remember before the newest event.
func (c *changeSet) expire(remember time.Duration) {
	for _, id := range c.memory.ended {
		job := c.state(id)
		// An entry is stale where the job was retried: it is listed again when it ends.
		if job != nil && job.GetPhase() != events.Phase_PHASE_OPEN {
			if c.newest.Sub(job.GetUpdatedAt().AsTime()) <= remember {
				return
			}
			c.jobs[id] = nil
		}
		c.expired++
	}
}

// records are the events to emit and the changelog's new states.
func (c *changeSet) records(partition int32) ([]*kgo.Record, error) {
	var records []*kgo.Record
	for _, e := range c.emitted {
		r, err := e.Record()
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	for id, job := range c.jobs {
		r := &kgo.Record{Topic: events.SagaTopic, Key: []byte(id), Partition: partition}
		if job != nil {
			value, err := proto.MarshalOptions{Deterministic: true}.Marshal(job)
			if err != nil {
				return nil, fmt.Errorf("encode the saga's state of job %s: %w", id, err)
			}
			r.Value = value
		}
		records = append(records, r)
	}
	return records, nil
}

// commit brings the changes into the memory.
func (c *changeSet) commit() {
	c.memory.ended = c.memory.ended[c.expired:]
	for id, job := range c.jobs {
		if job == nil {
			delete(c.memory.jobs, id)
			continue
		}
		before := c.memory.jobs[id]
		c.memory.jobs[id] = job
		if job.GetPhase() != events.Phase_PHASE_OPEN && (before == nil || before.GetPhase() == events.Phase_PHASE_OPEN) {
			c.memory.ended = append(c.memory.ended, id)
		}
	}
}

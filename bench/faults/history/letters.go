package history

import "github.com/pixtools/pixtools/events"

// deadLetters: of records by their places, of operations by their failures.
func (j *judge) deadLetters() {
	type failure struct {
		job, operation string
		revision       int32
	}
	ofRecords, ofOperations := map[Place]int{}, map[failure]map[string]bool{}
	for _, l := range j.Letters {
		if l.Operation == "" {
			if l.Origin == nil || !j.Poison[*l.Origin] {
				j.fault(DeadLetters, l.JobID, "a letter of a record that can be read, or of none: %+v", l)
				continue
			}
			ofRecords[*l.Origin]++
			continue
		}
		f := failure{l.JobID, l.Operation, l.Revision}
		if ofOperations[f] == nil {
			ofOperations[f] = map[string]bool{}
		}
		ofOperations[f][l.ID] = true
	}
	for at, unreadable := range j.Poison {
		if n := ofRecords[at]; unreadable && n != 1 {
			j.fault(DeadLetters, "", "the record at partition %d, offset %d cannot be read, and has %d letters", at.Partition, at.Offset, n)
		}
	}
	for f, ids := range ofOperations {
		if len(ids) > 1 {
			j.fault(DeadLetters, f.job, "%s of revision %d has %d letters with ids of their own", f.operation, f.revision, len(ids))
		}
	}
	for _, r := range j.Log {
		m, ok := r.Event.Message.(*events.OperationFailed)
		if !ok || m.GetKind() == events.FailureKind_FAILURE_KIND_INPUT || m.GetCode() == events.CodeUndecodable {
			continue
		}
		if len(ofOperations[failure{r.Event.JobID, m.GetOperation(), m.GetRevision()}]) == 0 {
			j.fault(DeadLetters, r.Event.JobID, "%s failed (offset %d): kind %s, code %s, and has no letter", m.GetOperation(), r.Offset, m.GetKind(), m.GetCode())
		}
	}
}

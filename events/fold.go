package events

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Fold is the state after e. A nil state is that of a job without events. It is
// total: an event that is illegal in a state, or a repeat, changes nothing, and
// then the very same pointer comes back. The given state is never changed.
//
// Kafka has no conditional append, so two writers may each believe their fact to
// be the next. Fold is where log order settles it: the first outcome of an
// operation, the first end of a revision, the first request of a job count.
func Fold(state *Job, e Event) *Job {
	next := fold(state, e)
	if next == nil {
		return state
	}
	next.UpdatedAt = timestamppb.New(e.Time)
	if state != nil && state.GetUpdatedAt().AsTime().After(e.Time) {
		next.UpdatedAt = state.GetUpdatedAt() // the clocks of those who tell differ; a job's time does not go back
	}
	return next
}

// fold is the changed copy, or nil where the event means nothing.
func fold(s *Job, e Event) *Job {
	switch m := e.Message.(type) {
	case *JobRequested:
		return foldRequested(s, e, m)
	case *OperationRetryRequested:
		return foldRetry(s, e, m)
	case *WebhookScheduled:
		return foldWebhookScheduled(s, e, m)
	}
	if s == nil || s.GetPhase() == Phase_PHASE_DELETED {
		return nil
	}
	switch m := e.Message.(type) {
	case *OperationStarted:
		return foldStarted(s, e, m)
	case *OperationCompleted:
		return foldCompleted(s, e, m)
	case *OperationFailed:
		return foldFailed(s, e, m)
	case *JobFinalized:
		return foldFinalized(s, e, m)
	case *JobCancelRequested:
		return foldCancel(s, e, m)
	case *ArtifactReplaced:
		return foldReplaced(s, e, m)
	case *WebhookDelivered:
		return foldWebhookDelivered(s, m)
	case *WebhookFailed:
		return foldWebhookFailed(s, m)
	case *ArtifactsExpired:
		return foldExpired(s, m)
	case *JobDeleted:
		return foldDeleted(s)
	}
	return nil
}

// copyOf is a copy whose fields, operations and webhook may be set. What lies deeper is
// never changed, only put in another's place, so it is shared: copying it too is most of
// what folding would cost.
func copyOf(s *Job) *Job {
	next := &Job{
		Id: s.Id, Tenant: s.Tenant, Phase: s.Phase, Revision: s.Revision, Outcome: s.Outcome, Source: s.Source,
		FileName: s.FileName, WebhookUrl: s.WebhookUrl, IdempotencyFingerprint: s.IdempotencyFingerprint,
		RequestedAt: s.RequestedAt, OpenedAt: s.OpenedAt, UpdatedAt: s.UpdatedAt, FinalizedAt: s.FinalizedAt, Totals: s.Totals,
		SourceExpired: s.SourceExpired, CancelReason: s.CancelReason, CorrelationId: s.CorrelationId, IdempotencyJobId: s.IdempotencyJobId,
	}
	next.ProtoReflect().SetUnknown(s.ProtoReflect().GetUnknown())
	if w := s.Webhook; w != nil {
		next.Webhook = &Webhook{Revision: w.Revision, Attempt: w.Attempt, Due: w.Due, Delivered: w.Delivered, Failed: w.Failed, FailureCode: w.FailureCode}
		next.Webhook.ProtoReflect().SetUnknown(w.ProtoReflect().GetUnknown())
	}
	if s.Operations != nil {
		next.Operations = make([]*OperationState, len(s.Operations))
	}
	for i, op := range s.Operations {
		next.Operations[i] = &OperationState{
			Name: op.Name, Parameters: op.Parameters, Phase: op.Phase, Attempt: op.Attempt, Artifact: op.Artifact, ArtifactExpired: op.ArtifactExpired,
			FailureKind: op.FailureKind, FailureCode: op.FailureCode, FailureMessage: op.FailureMessage,
			StartedAt: op.StartedAt, EndedAt: op.EndedAt, CpuTime: op.CpuTime, Engine: op.Engine, ModelSha256: op.ModelSha256, ReplacedAt: op.ReplacedAt,
		}
		next.Operations[i].ProtoReflect().SetUnknown(op.ProtoReflect().GetUnknown())
	}
	return next
}

func foldRequested(s *Job, e Event, m *JobRequested) *Job {
	if s != nil {
		return nil
	}
	next := &Job{
		Id: e.JobID, Tenant: m.GetTenant(), Phase: Phase_PHASE_OPEN, Revision: 1,
		Source: m.GetSource(), FileName: m.GetFileName(), WebhookUrl: m.GetWebhookUrl(),
		IdempotencyFingerprint: m.GetIdempotencyFingerprint(), IdempotencyJobId: m.GetIdempotencyJobId(),
		RequestedAt: timestamppb.New(e.Time), OpenedAt: timestamppb.New(e.Time), CorrelationId: e.CorrelationID,
	}
	phase := OperationPhase_OPERATION_PHASE_PENDING
	if e.Imported() {
		phase = OperationPhase_OPERATION_PHASE_RUNNING // begun elsewhere: it waits for nobody here
	}
	for _, op := range m.GetOperations() {
		next.Operations = append(next.Operations, &OperationState{Name: op.GetName(), Parameters: op.GetParameters(), Phase: phase})
	}
	return proto.Clone(next).(*Job) // shares nothing with the event
}

// openOperation finds an operation that still waits for its outcome in revision.
func openOperation(s *Job, revision int32, name string) int {
	if s.GetPhase() != Phase_PHASE_OPEN || revision != s.GetRevision() {
		return -1
	}
	for i, op := range s.GetOperations() {
		if op.GetName() == name && !op.Ended() {
			return i
		}
	}
	return -1
}

func foldStarted(s *Job, e Event, m *OperationStarted) *Job {
	i := openOperation(s, m.GetRevision(), m.GetOperation())
	if i < 0 || m.GetAttempt() <= s.GetOperations()[i].GetAttempt() {
		return nil
	}
	next := copyOf(s)
	op := next.Operations[i]
	op.Phase, op.Attempt = OperationPhase_OPERATION_PHASE_RUNNING, m.GetAttempt()
	op.StartedAt = timestamppb.New(e.Time)
	return next
}

func foldCompleted(s *Job, e Event, m *OperationCompleted) *Job {
	i := openOperation(s, m.GetRevision(), m.GetOperation())
	if i < 0 {
		return nil
	}
	next := copyOf(s)
	complete(next.Operations[i], m)
	next.Operations[i].EndedAt = timestamppb.New(e.Time)
	return next
}

func complete(op *OperationState, m *OperationCompleted) {
	op.Phase, op.Attempt = OperationPhase_OPERATION_PHASE_COMPLETED, m.GetAttempt()
	op.Artifact = proto.Clone(m.GetArtifact()).(*Artifact)
	op.CpuTime, op.Engine, op.ModelSha256 = m.GetCpuTime(), m.GetEngine(), m.GetModelSha256()
}

func foldFailed(s *Job, e Event, m *OperationFailed) *Job {
	i := openOperation(s, m.GetRevision(), m.GetOperation())
	if i < 0 {
		return nil
	}
	next := copyOf(s)
	fail(next.Operations[i], m)
	next.Operations[i].EndedAt = timestamppb.New(e.Time)
	return next
}

func fail(op *OperationState, m *OperationFailed) {
	// Who gives an operation up, and does not work at it, may know of no attempt.
	op.Phase, op.Attempt = OperationPhase_OPERATION_PHASE_FAILED, max(op.GetAttempt(), m.GetAttempt())
	op.FailureKind, op.FailureCode, op.FailureMessage = m.GetKind(), m.GetCode(), m.GetMessage()
}

func foldFinalized(s *Job, e Event, m *JobFinalized) *Job {
	if !s.Settled() || m.GetRevision() != s.GetRevision() {
		return nil
	}
	next := copyOf(s)
	next.Phase, next.Outcome, next.Totals = Phase_PHASE_ENDED, m.GetOutcome(), m.GetTotals()
	next.FinalizedAt = timestamppb.New(e.Time)
	return next
}

func foldRetry(s *Job, e Event, m *OperationRetryRequested) *Job {
	if s.GetPhase() == Phase_PHASE_DELETED || s.GetSourceExpired() || m.GetRevision() <= s.GetRevision() {
		return nil
	}
	if told := retold(e, m.GetRevision()-1, m); told != nil && !endedAs(s, told, m) {
		s = told
	}
	if s.GetPhase() != Phase_PHASE_ENDED || m.GetRevision() != s.GetRevision()+1 {
		return nil
	}
	next := copyOf(s)
	again := 0
	for i, op := range next.GetOperations() {
		if !slices.Contains(m.GetOperations(), op.GetName()) || op.GetPhase() == OperationPhase_OPERATION_PHASE_COMPLETED {
			continue
		}
		next.Operations[i] = &OperationState{
			Name: op.GetName(), Parameters: op.GetParameters(), Phase: OperationPhase_OPERATION_PHASE_PENDING,
		}
		again++
	}
	if again == 0 {
		return nil
	}
	next.Phase, next.Revision, next.OpenedAt = Phase_PHASE_OPEN, m.GetRevision(), timestamppb.New(e.Time)
	next.Outcome, next.FinalizedAt, next.Totals, next.CancelReason = Outcome_OUTCOME_UNSPECIFIED, nil, nil, ""
	return next
}

// telling is an event that tells the whole job once more.
type telling interface {
	GetRequest() *JobRequested
	GetRequestedAt() *timestamppb.Timestamp
	GetCompleted() []*OperationCompleted
	GetFailed() []*OperationFailed
	GetCancelled() []string
}

// retold is the job at the end of a revision, for who does not remember it: as a retry or
// a redelivery tells it. It is what the whole log makes of it in all that decides what
// follows, and lacks times and details. Nil where the event tells nothing, as the first
// retries did.
func retold(e Event, revision int32, m telling) *Job {
	if m.GetRequest() == nil {
		return nil
	}
	s := foldRequested(nil, e, m.GetRequest())
	s.Phase, s.Revision, s.RequestedAt = Phase_PHASE_ENDED, revision, m.GetRequestedAt()
	for _, op := range s.GetOperations() {
		op.Phase = OperationPhase_OPERATION_PHASE_FAILED
		for _, c := range m.GetCompleted() {
			if c.GetOperation() == op.GetName() {
				complete(op, c)
			}
		}
		for _, f := range m.GetFailed() {
			if f.GetOperation() == op.GetName() {
				fail(op, f)
			}
		}
		if slices.Contains(m.GetCancelled(), op.GetName()) {
			op.Phase = OperationPhase_OPERATION_PHASE_CANCELLED
		}
	}
	return s
}

// endedAs says whether the job ended as its retry tells. In the whole log it always did.
// It did not for who has forgotten it; or has forgotten it and then taken a late repeat of
// its beginning for a new job.
func endedAs(s, told *Job, m *OperationRetryRequested) bool {
	if s.GetPhase() != Phase_PHASE_ENDED || s.GetRevision() != told.GetRevision() || len(s.GetOperations()) != len(told.GetOperations()) {
		return false
	}
	const completed = OperationPhase_OPERATION_PHASE_COMPLETED
	for i, op := range told.GetOperations() {
		before := s.GetOperations()[i]
		switch {
		case before.GetName() != op.GetName():
			return false
		case slices.Contains(m.GetOperations(), op.GetName()): // it is not told whether that failed or was cancelled
			if (before.GetPhase() == completed) != (op.GetPhase() == completed) {
				return false
			}
		case before.GetPhase() != op.GetPhase(), op.GetPhase() == completed && !sameWork(before, op):
			return false
		}
	}
	return true
}

// sameWork says whether two completions are of the same attempt. Their artifacts do not
// say, nor what made them: one may have been replaced since.
func sameWork(a, b *OperationState) bool {
	return a.GetAttempt() == b.GetAttempt() && proto.Equal(a.GetCpuTime(), b.GetCpuTime())
}

func foldCancel(s *Job, e Event, m *JobCancelRequested) *Job {
	if s.GetPhase() != Phase_PHASE_OPEN || m.GetRevision() != s.GetRevision() || s.Settled() {
		return nil
	}
	next := copyOf(s)
	next.CancelReason = m.GetReason()
	for _, op := range next.GetOperations() {
		if !op.Ended() {
			op.Phase, op.EndedAt = OperationPhase_OPERATION_PHASE_CANCELLED, timestamppb.New(e.Time)
		}
	}
	return next
}

func foldReplaced(s *Job, e Event, m *ArtifactReplaced) *Job {
	if s.GetPhase() != Phase_PHASE_ENDED || m.GetRevision() != s.GetRevision() ||
		m.GetArtifact().GetSha256() == m.GetReplacedSha256() { // the same bytes: a repeat would count again
		return nil
	}
	for i, op := range s.GetOperations() {
		if op.GetName() != m.GetOperation() || op.GetPhase() != OperationPhase_OPERATION_PHASE_COMPLETED ||
			op.GetArtifact().GetSha256() != m.GetReplacedSha256() {
			continue
		}
		next := copyOf(s)
		next.Operations[i].Artifact = proto.Clone(m.GetArtifact()).(*Artifact)
		next.Operations[i].ArtifactExpired, next.Operations[i].ReplacedAt = false, timestamppb.New(e.Time)
		next.Operations[i].ModelSha256 = m.GetModelSha256()
		if m.GetEngine() != "" {
			next.Operations[i].Engine = m.GetEngine()
		}
		return next
	}
	return nil
}

// webhookOf is a copy to change for a webhook event of revision, or nil where that
// revision has not ended or a later one's webhook is already under way.
func webhookOf(s *Job, revision int32) *Job {
	ended := revision < s.GetRevision() || revision == s.GetRevision() && s.GetPhase() == Phase_PHASE_ENDED
	if !ended || s.GetWebhookUrl() == nil || revision < s.GetWebhook().GetRevision() {
		return nil
	}
	next := copyOf(s)
	if next.Webhook == nil || revision > next.Webhook.GetRevision() {
		next.Webhook = &Webhook{Revision: revision}
	}
	return next
}

func foldWebhookScheduled(s *Job, e Event, m *WebhookScheduled) *Job {
	if s.GetPhase() == Phase_PHASE_DELETED {
		return nil
	}
	// Who has forgotten the job; or has forgotten it and then taken a late repeat of its
	// beginning for a new one, which cannot have ended then.
	if s == nil || s.GetPhase() == Phase_PHASE_OPEN && s.GetRevision() <= m.GetRevision() {
		if s = retold(e, m.GetRevision(), m); s == nil {
			return nil
		}
		s.Outcome, s.FinalizedAt = m.GetOutcome(), m.GetFinalizedAt()
	}
	next := webhookOf(s, m.GetRevision())
	if next == nil || m.GetAttempt() <= next.Webhook.GetAttempt() {
		return nil
	}
	next.Webhook.Attempt, next.Webhook.Due = m.GetAttempt(), m.GetDue()
	next.Webhook.Failed = false
	return next
}

func foldWebhookDelivered(s *Job, m *WebhookDelivered) *Job {
	next := webhookOf(s, m.GetRevision())
	if next == nil || next.Webhook.GetDelivered() {
		return nil
	}
	w := next.Webhook
	w.Attempt, w.Due = max(w.GetAttempt(), m.GetAttempt()), nil
	w.Delivered, w.Failed, w.FailureCode = true, false, ""
	return next
}

func foldWebhookFailed(s *Job, m *WebhookFailed) *Job {
	next := webhookOf(s, m.GetRevision())
	// A failure told after a later attempt was scheduled, or after success, is old; so is
	// one of an attempt that is not due any more, since that has failed already.
	if next == nil || next.Webhook.GetDelivered() || next.Webhook.GetFailed() || m.GetAttempt() < next.Webhook.GetAttempt() ||
		m.GetAttempt() == next.Webhook.GetAttempt() && next.Webhook.GetDue() == nil {
		return nil
	}
	w := next.Webhook
	w.Attempt, w.Due, w.FailureCode, w.Failed = m.GetAttempt(), nil, m.GetCode(), m.GetFinal()
	return next
}

// foldExpired believes what is told of an ended revision only of that one: a retry that
// came first needs the source, and what an operation makes anew is young.
func foldExpired(s *Job, m *ArtifactsExpired) *Job {
	if m.GetRevision() > 0 && (s.GetPhase() != Phase_PHASE_ENDED || m.GetRevision() != s.GetRevision()) {
		return nil
	}
	next, changed := copyOf(s), false
	if m.GetSource() && !next.GetSourceExpired() {
		next.SourceExpired, changed = true, true
	}
	for _, op := range next.GetOperations() {
		if op.GetArtifact() != nil && !op.GetArtifactExpired() && expires(m, op) {
			op.ArtifactExpired, changed = true, true
		}
	}
	if !changed {
		return nil
	}
	return next
}

// expires says whether the event is about the artifact that the operation has now.
func expires(m *ArtifactsExpired, op *OperationState) bool {
	i := slices.Index(m.GetOperations(), op.GetName())
	return i >= 0 && (len(m.GetSha256()) == 0 || i < len(m.GetSha256()) && m.GetSha256()[i] == op.GetArtifact().GetSha256())
}

// foldDeleted keeps what tells that the job was there, and nothing of its content.
func foldDeleted(s *Job) *Job {
	return &Job{
		Id: s.GetId(), Tenant: s.GetTenant(), Phase: Phase_PHASE_DELETED, Revision: s.GetRevision(),
		IdempotencyFingerprint: append([]byte(nil), s.GetIdempotencyFingerprint()...), IdempotencyJobId: s.GetIdempotencyJobId(),
		RequestedAt: timestamppb.New(s.GetRequestedAt().AsTime()),
	}
}

// Ended says whether the operation has its outcome in this revision.
func (x *OperationState) Ended() bool {
	switch x.GetPhase() {
	case OperationPhase_OPERATION_PHASE_COMPLETED, OperationPhase_OPERATION_PHASE_FAILED,
		OperationPhase_OPERATION_PHASE_CANCELLED:
		return true
	}
	return false
}

// Settled says whether the job is open with every operation ended: what is missing
// is JobFinalized.
func (x *Job) Settled() bool {
	if x.GetPhase() != Phase_PHASE_OPEN {
		return false
	}
	for _, op := range x.GetOperations() {
		if !op.Ended() {
			return false
		}
	}
	return true
}

// MadeAt is since when an operation has its artifact: when it completed, or when the
// artifact took another's place.
func (x *OperationState) MadeAt() time.Time {
	if at := x.GetReplacedAt(); at != nil {
		return at.AsTime()
	}
	return x.GetEndedAt().AsTime()
}

// Opened is when the job's revision began. States that were stored before it was kept
// have only their first revision.
func (x *Job) Opened() time.Time {
	if at := x.GetOpenedAt(); at != nil {
		return at.AsTime()
	}
	return x.GetRequestedAt().AsTime()
}

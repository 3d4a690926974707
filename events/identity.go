package events

import (
	"fmt"
	"strings"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
)

// Name spaces of the name-based UUIDs (RFC 9562, version 5). They are part of the
// log's format: changing one makes every repeat look like a new fact.
var (
	jobSpace   = uuid.MustParse("6f1d3a52-2f0e-5c55-9b0e-6a6f62732e76")
	eventSpace = uuid.MustParse("b8a5f0c4-7d0b-5b5e-8f3c-6576656e7473")
)

// JobID is the id of the job that a tenant requested under an idempotency key:
// equal for equal input, for as long as the log lives.
func JobID(tenant, idempotencyKey string) string {
	// The length keeps ("a", "b/c") and ("a/b", "c") apart.
	return uuid.NewSHA1(jobSpace, fmt.Appendf(nil, "%d/%s/%s", len(tenant), tenant, idempotencyKey)).String()
}

// eventID derives an event's id from (job, revision, operation, attempt, type),
// and from what else tells two facts of that kind apart.
func eventID(jobID string, m proto.Message) string {
	revision, operation, attempt, extra := identity(m)
	name := fmt.Appendf(nil, "%s/%d/%s/%d/%s/%s", jobID, revision, operation, attempt,
		m.ProtoReflect().Descriptor().FullName(), extra)
	return uuid.NewSHA1(eventSpace, name).String()
}

func identity(m proto.Message) (revision int32, operation string, attempt int32, extra string) {
	switch m := m.(type) {
	case *JobRequested:
		return 1, "", 0, ""
	case *OperationStarted:
		return m.GetRevision(), m.GetOperation(), m.GetAttempt(), ""
	case *OperationCompleted:
		return m.GetRevision(), m.GetOperation(), m.GetAttempt(), ""
	case *OperationFailed:
		return m.GetRevision(), m.GetOperation(), m.GetAttempt(), ""
	case *JobFinalized:
		return m.GetRevision(), "", 0, ""
	case *OperationRetryRequested:
		return m.GetRevision(), "", 0, ""
	case *JobCancelRequested:
		return m.GetRevision(), "", 0, ""
	case *ArtifactReplaced:
		return m.GetRevision(), m.GetOperation(), 0,
			m.GetCampaign() + "/" + m.GetReplacedSha256() + "/" + m.GetArtifact().GetSha256()
	case *WebhookScheduled:
		return m.GetRevision(), "", m.GetAttempt(), ""
	case *WebhookDelivered:
		return m.GetRevision(), "", m.GetAttempt(), ""
	case *WebhookFailed:
		return m.GetRevision(), "", m.GetAttempt(), ""
	case *ArtifactsExpired:
		extra = fmt.Sprintf("%s/%t", strings.Join(m.GetOperations(), ","), m.GetSource())
		if len(m.GetSha256()) > 0 {
			extra += "/" + strings.Join(m.GetSha256(), ",")
		}
		return m.GetRevision(), "", 0, extra
	case *JobDeleted:
		return 0, "", 0, ""
	}
	panic(fmt.Sprintf("events: %T is no event: add it to identity, Fold and the corpus", m))
}

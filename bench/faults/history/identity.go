package history

import (
	"fmt"
	"strings"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
)

// eventSpace is that of the log's format, written down a second time: should the
// derivation change, old and new events would no longer be seen to be the same.
var eventSpace = uuid.MustParse("b8a5f0c4-7d0b-5b5e-8f3c-6576656e7473")

// derive is the id that an event must have, and what it tells, in words. Empty for types
// that the fault runs do not make.
func derive(jobID string, m proto.Message) (id, fact string) {
	var revision, attempt int32
	var operation, extra string
	switch m := m.(type) {
	case *events.JobRequested:
		revision = 1
	case *events.OperationStarted:
		revision, operation, attempt = m.GetRevision(), m.GetOperation(), m.GetAttempt()
	case *events.OperationCompleted:
		revision, operation, attempt = m.GetRevision(), m.GetOperation(), m.GetAttempt()
	case *events.OperationFailed:
		revision, operation, attempt = m.GetRevision(), m.GetOperation(), m.GetAttempt()
	case *events.JobFinalized:
		revision = m.GetRevision()
	case *events.JobCancelRequested:
		revision = m.GetRevision()
	case *events.OperationRetryRequested:
		revision = m.GetRevision()
	case *events.ArtifactsExpired:
		revision = m.GetRevision()
		extra = fmt.Sprintf("%s/%t/%s", strings.Join(m.GetOperations(), ","), m.GetSource(), strings.Join(m.GetSha256(), ","))
		if len(m.GetSha256()) == 0 {
			extra = strings.TrimSuffix(extra, "/")
		}
	case *events.WebhookScheduled:
		revision, attempt = m.GetRevision(), m.GetAttempt()
	case *events.WebhookDelivered:
		revision, attempt = m.GetRevision(), m.GetAttempt()
	case *events.WebhookFailed:
		revision, attempt = m.GetRevision(), m.GetAttempt()
	case *events.JobDeleted:
	default:
		return "", ""
	}
	fact = fmt.Sprintf("%s/%d/%s/%d/%s/%s", jobID, revision, operation, attempt, m.ProtoReflect().Descriptor().FullName(), extra)
	return uuid.NewSHA1(eventSpace, []byte(fact)).String(), fact
}

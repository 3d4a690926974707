package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// A large transfer over a slow way may take TransferTimeout; nobody should wait so long for a server that
// is away. So while a transfer is under way, watch looks whether anything of it moves. If nothing does, it
// asks the server something small. One that does not answer that in ProbeTimeout, either, is away: the
// transfer ends there. A slow one answers, and its transfer goes on.
//
// That something moves is not enough of a sign by itself: the kernel takes some megabytes before it waits
// for the server, and while they drain nothing is seen to move.

// errSilent ends a transfer with a server that is away.
var errSilent = errors.New("nothing moves, and the server does not answer another question")

// transfer is what watch knows of one.
type transfer struct {
	ctx   context.Context
	moved atomic.Int64 // bytes read of the source, or of the answer
	stop  context.CancelFunc
}

// watch begins a transfer; its stop must be called.
func (s *Store) watch(ctx context.Context) *transfer {
	limited, release := context.WithTimeout(ctx, s.cfg.TransferTimeout)
	call, end := context.WithCancelCause(limited)
	t := &transfer{ctx: call, stop: func() { end(nil); release() }}
	go func() {
		look := time.NewTicker(s.cfg.ProbeAfter)
		defer look.Stop()
		for last := int64(0); ; {
			select {
			case <-call.Done():
				return
			case <-look.C:
			}
			if now := t.moved.Load(); now != last {
				last = now
			} else if err := s.answers(call); err != nil {
				end(fmt.Errorf("%w: %s", errSilent, err.Error())) // its text: to others a context's end would be their own
				return
			}
		}
	}()
	return t
}

// verdict is err, or what watch found where it ended the transfer: err is then but the end of our context.
func (t *transfer) verdict(err error) error {
	if cause := context.Cause(t.ctx); err != nil && errors.Is(cause, errSilent) {
		return cause
	}
	return err
}

// answers asks once whether the server says anything but that it cannot. Who asks while another does gets
// that one's answer: many transfers that stand still are one question.
func (s *Store) answers(ctx context.Context) error {
	_, err, _ := s.probes.Do("", func() (any, error) {
		probe, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.ProbeTimeout)
		defer cancel()
		return s.client.HeadBucket(probe, &s3.HeadBucketInput{Bucket: &s.cfg.Bucket}, func(o *s3.Options) { o.Retryer = aws.NopRetryer{} })
	})
	if status := httpStatus(err); 0 < status && status < http.StatusInternalServerError {
		return nil
	}
	return err
}

// source is a body that is seen to move.
type source struct {
	io.ReadSeeker
	moved *atomic.Int64
}

func (s source) Read(b []byte) (int, error) {
	n, err := s.ReadSeeker.Read(b)
	s.moved.Add(int64(n))
	return n, err
}

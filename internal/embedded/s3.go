package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"

	"github.com/pixtools/pixtools/internal/disk"
)

const (
	// s3MaxConnections bounds the sockets, s3MaxRequests the work: each request under way holds a
	// buffer of s3IOBuffer bytes.
	s3MaxConnections = 1024
	s3MaxRequests    = 256
	s3IOBuffer       = 256 << 10
	// s3CopyLimit and s3MaxParts are Amazon's.
	s3CopyLimit = 5 << 30
	s3MaxParts  = 10000
	s3Health    = "/healthz"
)

type s3Spec struct {
	Dir       string `json:"dir"`
	Port      int    `json:"port"`
	AccessKey string `json:"access_key"`
	SecretKey string `json:"secret_key"`
	Bucket    string `json:"bucket"`
	Region    string `json:"region"`
	// Floor is below how many free bytes nothing is stored.
	Floor int64 `json:"floor"`
}

func (p *Parts) startS3(ctx context.Context, cfg Config, st state) error {
	spec := s3Spec{
		Dir: filepath.Join(cfg.DataDir, "s3"), Port: st.S3Port,
		AccessKey: st.S3AccessKey, SecretKey: st.S3SecretKey,
		Bucket: cfg.Bucket, Region: cfg.Region, Floor: cfg.floor(),
	}
	c, err := startChild(ctx, "s3", childSpec{S3: &spec}, nil, p.log)
	if err != nil {
		return err
	}
	p.watch("s3", c)
	p.useS3(cfg, st)
	return nil
}

func (p *Parts) useS3(cfg Config, st state) {
	p.S3Endpoint = "http://" + address(st.S3Port)
	p.S3AccessKey, p.S3SecretKey = st.S3AccessKey, st.S3SecretKey
	p.S3Bucket, p.S3Region = cfg.Bucket, cfg.Region
}

// durableS3 syncs an object before the client hears that it is stored. The gateway writes to a nameless
// file and then links it, so a kill -9 leaves a whole object or none. A power cut could take it away
// again, behind an event that says it is there. One sync after the link covers content and name:
// journalling file systems write both at once. What is not yet synced nobody was promised.
//
// Uploads in several requests are not synced; we do not use them.
type durableS3 struct {
	*posix.Posix
	root string
	// floor is what stays free on the disk.
	floor int64
	// coming is what requests are about to write, in bytes.
	coming *atomic.Int64
}

// room refuses what would take the last of the disk, which is the log's. What others are about
// to write counts as written: of two that look at once, each sees the other's.
func (d durableS3) room(size int64) (done func(), err error) {
	coming := d.coming.Add(size)
	done = func() { d.coming.Add(-size) }
	if err := disk.Check(d.root, d.floor+coming); err != nil {
		done()
		return nil, s3err.APIError{Code: "InsufficientStorage", Description: err.Error(), HTTPStatusCode: http.StatusInsufficientStorage}
	}
	return done, nil
}

func (d durableS3) PutObject(ctx context.Context, in s3response.PutObjectInput) (s3response.PutObjectOutput, error) {
	done, err := d.room(aws.ToInt64(in.ContentLength))
	if err != nil {
		return s3response.PutObjectOutput{}, err
	}
	defer done()
	out, err := d.Posix.PutObject(ctx, in)
	if err != nil {
		return out, err
	}
	return out, d.sync(*in.Bucket, *in.Key)
}

// CopyObject is how a source comes to its place that a client has stored itself.
func (d durableS3) CopyObject(ctx context.Context, in s3response.CopyObjectInput) (s3response.CopyObjectOutput, error) {
	done, err := d.room(d.sizeOf(aws.ToString(in.CopySource)))
	if err != nil {
		return s3response.CopyObjectOutput{}, err
	}
	defer done()
	out, err := d.Posix.CopyObject(ctx, in)
	if err != nil {
		return out, err
	}
	return out, d.sync(*in.Bucket, *in.Key)
}

// sizeOf is how many bytes a copy takes: none of what is not there.
func (d durableS3) sizeOf(source string) int64 {
	bucket, key, _, err := backend.ParseCopySource(source)
	if err != nil {
		return 0 // the copy says why
	}
	info, err := os.Stat(filepath.Join(d.root, bucket, key))
	if err != nil {
		return 0
	}
	return info.Size()
}

func (d durableS3) sync(bucket, key string) error {
	f, err := os.Open(filepath.Join(d.root, bucket, key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // deleted since then, by somebody who knew its key
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// runS3 is the child's part.
func runS3(ctx context.Context, spec s3Spec, report func(error) error) error {
	gateway, err := openS3(ctx, spec)
	if err != nil {
		return report(err)
	}
	served := make(chan error, 1)
	go func() {
		served <- embedgw.RunVersityGW(ctx, gateway, &embedgw.Config{
			RootUserAccess: spec.AccessKey, RootUserSecret: spec.SecretKey, Region: spec.Region,
			Ports:          []string{address(spec.Port)},
			MaxConnections: s3MaxConnections, MaxRequests: s3MaxRequests, MultipartMaxParts: s3MaxParts,
			KeepAlive: true, Quiet: true, HealthPath: s3Health, DisableACLs: true,
			// The page in the browser fetches results straight from here.
			CORSAllowOrigin: "*",
		})
	}()
	select {
	case err = <-served:
		return report(fmt.Errorf("the server ended: %w", err))
	case err = <-s3Answers(ctx, spec.Port):
		if err := errors.Join(err, report(err)); err != nil {
			return err
		}
	}
	return <-served
}

func openS3(ctx context.Context, spec s3Spec) (durableS3, error) {
	objects := filepath.Join(spec.Dir, "objects")
	if err := os.MkdirAll(filepath.Join(objects, spec.Bucket), 0o700); err != nil {
		return durableS3{}, err
	}
	if err := holdPart(ctx, filepath.Join(spec.Dir, lockFile)); err != nil {
		return durableS3{}, err
	}
	if err := checkPort(spec.Port, "PIXTOOLS_EMBEDDED_S3_PORT"); err != nil {
		return durableS3{}, err
	}
	opts := posix.PosixOpts{
		CopyObjectThreshold: s3CopyLimit, IOBufferSize: s3IOBuffer,
		ForceNoObjLockFile: true, // against other gateways on the same files; there is none
	}
	opts.SetNewDirPerm(0o700)
	opts.SetNewFilePerm(0o600)
	attributes, err := attributeStore(spec.Dir, &opts)
	if err != nil {
		return durableS3{}, err
	}
	store, err := posix.New(objects, attributes, opts)
	return durableS3{Posix: store, root: objects, floor: spec.Floor, coming: &atomic.Int64{}}, err
}

// attributeStore says where content types and checksums are kept: with the file itself where the file
// system has extended attributes, so that an object and its attributes appear in the same moment, else
// in files beside it. Those are six more files and directories an object, which cost more than all the
// rest of storing a small one. What a data directory began with it keeps.
func attributeStore(dir string, opts *posix.PosixOpts) (meta.MetadataStorer, error) {
	sidecar := filepath.Join(dir, "meta")
	if !exists(sidecar) {
		const probe = "pixtools-probe"
		attributes := meta.XattrMeta{}
		if err := attributes.StoreAttribute(nil, dir, "objects", probe, []byte("1")); err == nil {
			return attributes, attributes.DeleteAttribute(dir, "objects", probe)
		}
		if err := os.Mkdir(sidecar, 0o700); err != nil {
			return nil, err
		}
	}
	opts.SideCarDir = sidecar
	return meta.NewSideCar(sidecar)
}

// s3Answers waits until the server takes requests. There is no deadline here: the parent has one.
func s3Answers(ctx context.Context, port int) <-chan error {
	done := make(chan error, 1)
	go func() {
		client := http.Client{Transport: &http.Transport{DialContext: (&net.Dialer{}).DialContext, DisableKeepAlives: true}, Timeout: time.Second}
		for {
			resp, err := client.Get("http://" + address(port) + s3Health)
			if err == nil {
				_ = resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					done <- nil
					return
				}
			}
			select {
			case <-ctx.Done():
				done <- ctx.Err()
				return
			case <-time.After(pollInterval):
			}
		}
	}()
	return done
}

package engine

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/davidbyttow/govips/v2/vips"

	"github.com/pixtools/pixtools/internal/sniff"
)

// OtherShape is the code of two pictures that cannot be compared: of other sizes, or one
// grey and one not.
const OtherShape = "other_shape"

// Compare says how like two pictures are that lie at absolute paths: the peak signal-to-
// noise ratio of their pixels in decibels, as 8 bits of sRGB or grey, upright, transparency
// included. It is infinite where all are equal. An *InputError says that one of them is no
// picture, or that they are of different shapes (OtherShape).
func (p *Pool) Compare(ctx context.Context, a, b string, timeout time.Duration) (decibels float64, err error) {
	result, err := p.Convert(ctx, Request{Source: a, Against: b, Timeout: timeout})
	if err != nil {
		return 0, err
	}
	const peak = 255
	return 10 * math.Log10(peak*peak/result.Squares), nil
}

// compare is the child's part. Both pictures are held decoded, by libvips.
func compare(req Request) (Result, error) {
	a, err := plain(req)
	if err != nil {
		return Result{}, err
	}
	defer a.Close()
	req.Source = req.Against
	b, err := plain(req)
	if err != nil {
		return Result{}, err
	}
	defer b.Close()
	if a.Width() != b.Width() || a.Height() != b.Height() || a.Bands() != b.Bands() {
		return Result{}, &InputError{Code: OtherShape, Message: fmt.Sprintf("the pictures are %dx%d with %d bands and %dx%d with %d bands",
			a.Width(), a.Height(), a.Bands(), b.Width(), b.Height(), b.Bands())}
	}
	sum, row := 0.0, a.Width()*a.Bands()
	rows := max(stripBytes/row, 1)
	for top := 0; top < a.Height(); top += rows {
		n := min(rows, a.Height()-top)
		one, err := region(a, top, n)
		if err != nil {
			return Result{}, fmt.Errorf("comparing: %s", message(err))
		}
		other, err := region(b, top, n)
		if err != nil {
			return Result{}, fmt.Errorf("comparing: %s", message(err))
		}
		squares := uint64(0)
		for i := range one {
			d := int64(one[i]) - int64(other[i])
			squares += uint64(d * d)
		}
		sum += float64(squares)
	}
	return Result{Width: a.Width(), Height: a.Height(), Engine: engineVersion(), Squares: sum / float64(row*a.Height())}, nil
}

// plain opens req's source as 8 bits of sRGB or grey.
func plain(req Request) (*vips.ImageRef, error) {
	image, source, header, err := open(req)
	if err != nil {
		return nil, err
	}
	if err := normalise(image, sniff.JPG); err != nil { // as for a target that has 8 bits
		image.Close()
		return nil, blame(source, header.Format, req, message(err))
	}
	return image, nil
}

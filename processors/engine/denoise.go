package engine

import (
	"fmt"
	"os"
	"runtime/debug"

	"github.com/davidbyttow/govips/v2/vips"

	"github.com/pixtools/pixtools/models"
	"github.com/pixtools/pixtools/processors/denoiser"
)

// collectAtPercent has a child that denoises collect its garbage early: what it holds is
// a few large pieces, which take no time to look through.
const collectAtPercent = 10

// openNetwork prepares the network, once in a child's life; nil where the child needs none.
func openNetwork(cfg *denoiser.Config) (*denoiser.Network, error) {
	if cfg == nil {
		return nil, nil
	}
	debug.SetGCPercent(collectAtPercent)
	model, err := models.Load(cfg.Model)
	if err != nil {
		return nil, err
	}
	network, err := denoiser.Open(*cfg, model)
	if err != nil {
		return nil, err
	}
	debug.FreeOSMemory() // the weights among others
	return network, nil
}

// denoise makes req's target with the noise taken out. The picture is held twice while it is
// decoded, by libvips and by us, and once from then on: the network works in place, and the
// PNG goes to the file as it comes.
func denoise(image *vips.ImageRef, source []byte, format string, req Request, network *denoiser.Network,
	tell func(done, total int)) (Result, error) {
	if err := normalise(image, req.Format); err != nil {
		return Result{}, blame(source, format, req, message(err))
	}
	picture, err := decode(image)
	if err != nil {
		return Result{}, blame(source, format, req, "") // govips leaves out what libvips said
	}
	image.Close()
	if err := network.Denoise(picture, tell); err != nil {
		return Result{}, fmt.Errorf("denoising: %w", err)
	}
	if err := savePNG(picture, req); err != nil {
		return Result{}, err
	}
	info, err := os.Stat(req.Target)
	if err != nil {
		return Result{}, fmt.Errorf("writing the result: %w", err)
	}
	return Result{Width: picture.Width, Height: picture.Height, Bytes: info.Size(),
		Engine: engineVersion() + ", " + network.Version(), ModelSHA256: network.Model()}, nil
}

// stripBytes is about how much of a picture passes from libvips to us at once.
const stripBytes = 1 << 20

// decode takes a picture's pixels out of libvips, a strip at a time, for each is copied
// twice on its way.
func decode(image *vips.ImageRef) (denoiser.Picture, error) {
	p := denoiser.Picture{Width: image.Width(), Height: image.Height(), Bands: image.Bands()}
	row := p.Width * p.Bands
	switch image.BandFormat() {
	case vips.BandFormatUchar:
	case vips.BandFormatUshort:
		p.Deep = true
		row *= 2
	default:
		return p, fmt.Errorf("samples of libvips' format %d", image.BandFormat())
	}
	p.Pixels = make([]byte, 0, p.Height*row)
	rows := max(stripBytes/row, 1)
	for top := 0; top < p.Height; top += rows {
		pixels, err := region(image, top, min(rows, p.Height-top))
		if err != nil {
			return p, err
		}
		p.Pixels = append(p.Pixels, pixels...)
	}
	return p, nil
}

func region(image *vips.ImageRef, top, rows int) ([]byte, error) {
	part, err := image.Copy()
	if err != nil {
		return nil, err
	}
	defer part.Close()
	if err := part.ExtractArea(0, top, image.Width(), rows); err != nil {
		return nil, err
	}
	return part.ToBytes()
}

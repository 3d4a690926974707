package denoiser

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Picture is decoded: rows from the top, without gaps, a sample for each band.
type Picture struct {
	Width, Height int
	// Bands are 1 (grey) or 3 (red, green, blue), and one more where there is alpha.
	Bands int
	// Deep says that samples have 16 bits, in the machine's byte order, and not 8.
	Deep   bool
	Pixels []byte
}

func (p Picture) sampleBytes() int {
	if p.Deep {
		return 2
	}
	return 1
}

// colours are the bands without alpha.
func (p Picture) colours() int {
	if p.Bands >= channels {
		return channels
	}
	return 1
}

func (p Picture) rowBytes() int { return p.Width * p.Bands * p.sampleBytes() }

func (p Picture) check() error {
	if p.Width < 1 || p.Height < 1 || p.Bands < 1 || p.Bands > channels+1 {
		return fmt.Errorf("a picture of %d x %d pixels with %d bands cannot be denoised", p.Width, p.Height, p.Bands)
	}
	if want := p.Height * p.rowBytes(); len(p.Pixels) != want {
		return fmt.Errorf("a picture of %d x %d pixels came with %d bytes, not %d", p.Width, p.Height, len(p.Pixels), want)
	}
	return nil
}

// Denoise works on the picture in place, and leaves alpha as it is. It tells how many
// tiles are done, of how many, before the first and after each.
//
// Results overwrite pixels that tiles to come must still see as they were: those to the
// right, and those below. So the rows that a row of tiles sees are copied first. What the
// next row of tiles sees of them is kept, the rest is copied again, not yet overwritten.
func (n *Network) Denoise(p Picture, tell func(done, total int)) error {
	if err := p.check(); err != nil {
		return err
	}
	rows := spans(p.Height, n.tile, n.model.Halo, n.model.Multiple)
	columns := spans(p.Width, n.tile, n.model.Halo, n.model.Multiple)
	done, total := 0, len(rows)*len(columns)
	tell(done, total)
	original := strip{picture: p}
	for _, row := range rows {
		original.moveTo(row.from, min(row.to, p.Height))
		for _, column := range columns {
			n.fill(&original, row, column)
			if err := n.run(column.to-column.from, row.to-row.from); err != nil {
				return err
			}
			if err := n.keep(p, row, column); err != nil {
				return err
			}
			done++
			tell(done, total)
		}
	}
	return nil
}

// strip holds rows of a picture as they were.
type strip struct {
	picture  Picture
	from, to int
	pixels   []byte
}

// moveTo goes on to other rows, further down. Those that it has, it keeps.
func (s *strip) moveTo(from, to int) {
	row := s.picture.rowBytes()
	if need := (to - from) * row; cap(s.pixels) < need {
		s.pixels = append(make([]byte, 0, need), s.pixels...)
	}
	kept := 0
	if s.to > from {
		kept = copy(s.pixels[:cap(s.pixels)], s.pixels[(from-s.from)*row:])
	}
	s.pixels = append(s.pixels[:kept], s.picture.Pixels[from*row+kept:to*row]...)
	s.from, s.to = from, to
}

// fill puts a tile into the network's input. Beyond the picture it is mirrored.
func (n *Network) fill(s *strip, row, column span) {
	p := s.picture
	width, height := column.to-column.from, row.to-row.from
	for y := range height {
		line := s.pixels[(reflected(row.from+y, p.Height)-s.from)*p.rowBytes():][:p.rowBytes()]
		for c := range channels {
			target := n.in[(c*height+y)*width:][:width]
			band := min(c, p.colours()-1)
			for x := range target {
				at := column.from + x
				if at >= p.Width {
					at = reflected(at, p.Width)
				}
				target[x] = p.sample(line, at*p.Bands+band)
			}
		}
	}
}

// keep puts the part of the network's output that counts into the picture.
func (n *Network) keep(p Picture, row, column span) error {
	width, height := column.to-column.from, row.to-row.from
	for y := row.keepFrom; y < row.keepTo; y++ {
		line := p.Pixels[y*p.rowBytes():][:p.rowBytes()]
		for x := column.keepFrom; x < column.keepTo; x++ {
			at := (y-row.from)*width + x - column.from
			red, green, blue := n.out[at], n.out[at+width*height], n.out[at+2*width*height]
			sum := red + green + blue
			if math.IsNaN(float64(sum)) {
				return fmt.Errorf("the model gives no number for the pixel at %d, %d", x, y)
			}
			if p.colours() == 1 {
				p.setSample(line, x*p.Bands, sum/channels)
				continue
			}
			p.setSample(line, x*p.Bands, red)
			p.setSample(line, x*p.Bands+1, green)
			p.setSample(line, x*p.Bands+2, blue)
		}
	}
	return nil
}

func (p Picture) sample(line []byte, at int) float32 {
	if p.Deep {
		return float32(binary.NativeEndian.Uint16(line[2*at:])) / math.MaxUint16
	}
	return float32(line[at]) / math.MaxUint8
}

// setSample rounds to the nearest.
func (p Picture) setSample(line []byte, at int, value float32) {
	value = min(max(value, 0), 1)
	if p.Deep {
		binary.NativeEndian.PutUint16(line[2*at:], uint16(value*math.MaxUint16+0.5))
		return
	}
	line[at] = uint8(value*math.MaxUint8 + 0.5)
}

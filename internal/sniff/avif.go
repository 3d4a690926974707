package sniff

import (
	"encoding/binary"
	"io"

	"golang.org/x/crypto/cryptobyte"
)

// AVIF is a tree of boxes (ISO 14496-12), each a length, four letters and content. The
// size stands in `meta`: `pitm` names the primary item, `iprp/ipma` the properties that
// each item has, and `iprp/ipco` holds them, `ispe` among them.
const (
	maxTopBoxes  = 64
	maxMetaBytes = 1 << 20 // kilobytes in practice
	maxFtypBytes = 4 << 10
)

func badAVIF(what string) error {
	return fault(CorruptHeader, "the avif header is damaged: %s", what)
}

// readAVIF walks the outermost boxes up to `meta`.
func readAVIF(file io.ReaderAt, size int64, limits Limits) (Header, error) {
	header := Header{Format: AVIF}
	for at, n := int64(0), 0; at < size; n++ {
		if n == maxTopBoxes {
			return Header{}, badAVIF("no meta box among the first ones")
		}
		kind, content, length, err := topBox(file, at, size)
		if err != nil {
			return Header{}, err
		}
		switch kind {
		case "ftyp":
			body, err := load(file, content, at+length, maxFtypBytes, kind)
			if err != nil {
				return Header{}, err
			}
			still, sequence := brands(body)
			if !still && !sequence {
				return Header{}, unsupported() // HEIC and videos begin alike
			}
			header.Animated = sequence
		case "meta":
			body, err := load(file, content, at+length, maxMetaBytes, kind)
			if err != nil {
				return Header{}, err
			}
			primary, largest, err := sizes(body)
			if err != nil {
				return Header{}, err
			}
			header.Width, header.Height = primary.width, primary.height
			if err := limits.Check(largest.width, largest.height); err != nil {
				return header, err
			}
			return header, pixelsPresent(file, at+length, size)
		}
		at += length
	}
	return Header{}, badAVIF("it has no meta box")
}

// topBox reads one box header. Content begins at content; the box takes length bytes.
func topBox(file io.ReaderAt, at, size int64) (kind string, content, length int64, err error) {
	var head [16]byte
	n, _ := file.ReadAt(head[:min(int64(len(head)), size-at)], at)
	if n < 8 {
		return "", 0, 0, fault(Truncated, "the avif file ends within a box header")
	}
	content, length = 8, int64(binary.BigEndian.Uint32(head[:]))
	switch length {
	case 0: // the box runs to the end of the file
		length = size - at
	case 1: // the length did not fit into 32 bits
		if n < 16 {
			return "", 0, 0, fault(Truncated, "the avif file ends within a box header")
		}
		content, length = 16, int64(binary.BigEndian.Uint64(head[8:]))
	}
	kind = string(head[4:8])
	if length < content {
		return kind, 0, 0, badAVIF("a box is shorter than its own header")
	}
	if length > size-at {
		return kind, 0, 0, fault(Truncated, "the avif file is %d bytes long, but a box in it ends later", size)
	}
	return kind, at + content, length, nil
}

// pixelsPresent looks behind `meta` for a box of pixels that the file is too short for.
// Whatever else follows there does not matter.
func pixelsPresent(file io.ReaderAt, at, size int64) error {
	for n := 0; at < size && n < maxTopBoxes; n++ {
		kind, _, length, err := topBox(file, at, size)
		if kind == "mdat" {
			return err
		}
		if err != nil {
			return nil
		}
		at += length
	}
	return nil
}

func load(file io.ReaderAt, from, to, limit int64, kind string) (cryptobyte.String, error) {
	if to-from > limit {
		return nil, badAVIF("its " + kind + " box is too large")
	}
	body := make([]byte, to-from)
	if n, _ := file.ReadAt(body, from); n < len(body) {
		return nil, fault(Truncated, "the avif file ends within its header")
	}
	return body, nil
}

// brands looks for AVIF's brands, for still pictures and for sequences. An encoder may
// name a more general one first, so the compatible ones count as well.
func brands(ftyp cryptobyte.String) (still, sequence bool) {
	for i := 0; len(ftyp) >= 4; i++ {
		var brand []byte
		ftyp.ReadBytes(&brand, 4)
		switch {
		case i == 1: // the major brand's version
		case string(brand) == "avif":
			still = true
		case string(brand) == "avis":
			sequence = true
		}
	}
	return still, sequence
}

// box takes the next inner box off s.
func box(s *cryptobyte.String) (kind string, content cryptobyte.String, ok bool) {
	var length uint32
	var name []byte
	if !s.ReadUint32(&length) || !s.ReadBytes(&name, 4) {
		return "", nil, false
	}
	switch {
	case length == 0:
		content, *s = *s, nil
		return string(name), content, true
	case length < 8: // 1 would be a 64-bit length: not within maxMetaBytes
		return "", nil, false
	}
	ok = s.ReadBytes((*[]byte)(&content), int(length)-8)
	return string(name), content, ok
}

// fullBox takes the version and flags off a box that has them.
func fullBox(s *cryptobyte.String) (version uint8, flags uint32, ok bool) {
	ok = s.ReadUint8(&version) && s.ReadUint24(&flags)
	return version, flags, ok
}

type dimensions struct{ width, height int }

// sizes finds the primary item's size, and the longest sides that any item has: a
// picture of tiles has several, and each is somebody's memory.
func sizes(meta cryptobyte.String) (primary, largest dimensions, err error) {
	if _, _, ok := fullBox(&meta); !ok {
		return primary, largest, badAVIF("its meta box is too short")
	}
	var item uint32
	var named bool
	var properties []dimensions
	var owners map[uint32][]int
	for !meta.Empty() {
		kind, content, ok := box(&meta)
		if !ok {
			return primary, largest, badAVIF("a box in meta does not fit")
		}
		switch kind {
		case "pitm":
			item, named = itemID(&content)
		case "iprp":
			if properties, owners, ok = itemProperties(content); !ok {
				return primary, largest, badAVIF("its item properties do not fit")
			}
		}
	}
	if !named {
		return primary, largest, badAVIF("it names no primary item")
	}
	for _, index := range owners[item] {
		if index >= 1 && index <= len(properties) && properties[index-1].width > 0 {
			primary = properties[index-1]
		}
	}
	if primary.width == 0 || primary.height == 0 {
		return primary, largest, badAVIF("its primary item has no size")
	}
	for _, p := range properties {
		largest.width, largest.height = max(largest.width, p.width), max(largest.height, p.height)
	}
	return primary, largest, nil
}

func itemID(s *cryptobyte.String) (id uint32, ok bool) {
	version, _, ok := fullBox(s)
	if !ok {
		return 0, false
	}
	if version > 0 {
		ok = s.ReadUint32(&id)
		return id, ok
	}
	var short uint16
	ok = s.ReadUint16(&short)
	return uint32(short), ok
}

// itemProperties reads `iprp`: the sizes among the properties, and by item the numbers
// (from 1) of its own properties. Properties of other kinds are kept as zero, for their
// place in the count.
func itemProperties(iprp cryptobyte.String) (all []dimensions, owners map[uint32][]int, ok bool) {
	owners = map[uint32][]int{}
	for !iprp.Empty() {
		kind, content, ok := box(&iprp)
		if !ok {
			return nil, nil, false
		}
		switch kind {
		case "ipco":
			all, ok = propertyList(content)
		case "ipma":
			ok = associations(content, owners)
		}
		if !ok {
			return nil, nil, false
		}
	}
	return all, owners, true
}

func propertyList(ipco cryptobyte.String) (all []dimensions, ok bool) {
	for !ipco.Empty() {
		kind, content, ok := box(&ipco)
		if !ok {
			return nil, false
		}
		var width, height uint32
		if kind == "ispe" {
			if _, _, ok := fullBox(&content); !ok || !content.ReadUint32(&width) || !content.ReadUint32(&height) {
				return nil, false
			}
		}
		all = append(all, dimensions{int(width), int(height)})
	}
	return all, true
}

func associations(ipma cryptobyte.String, owners map[uint32][]int) bool {
	version, flags, ok := fullBox(&ipma)
	var count uint32
	if !ok || !ipma.ReadUint32(&count) {
		return false
	}
	for ; count > 0; count-- { // each turn takes bytes off, so the box's length bounds it
		var id uint32
		var short uint16
		var n uint8
		if version == 0 {
			ok = ipma.ReadUint16(&short)
			id = uint32(short)
		} else {
			ok = ipma.ReadUint32(&id)
		}
		if !ok || !ipma.ReadUint8(&n) {
			return false
		}
		for ; n > 0; n-- {
			index, ok := propertyIndex(&ipma, flags&1 != 0)
			if !ok {
				return false
			}
			owners[id] = append(owners[id], index)
		}
	}
	return true
}

// propertyIndex is a number of 15 or 7 bits, below the bit that says "essential".
func propertyIndex(s *cryptobyte.String, wide bool) (int, bool) {
	if wide {
		var v uint16
		ok := s.ReadUint16(&v)
		return int(v &^ 0x8000), ok
	}
	var v uint8
	ok := s.ReadUint8(&v)
	return int(v &^ 0x80), ok
}

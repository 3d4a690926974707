package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"image"
	"image/jpeg"
	"image/png"
	"math/rand/v2"
	"mime/multipart"
	"net/textproto"
	"slices"

	"github.com/pixtools/pixtools/bench/faults/history"
)

// submission is a form that may be sent as often as one likes.
type submission struct {
	asked       history.Asked
	contentType string
	body        []byte
}

// Sides of pictures, in pixels. Most are small; a few take so long that kills meet them at
// work.
const (
	smallestSide = 24
	smallSide    = 96
	largeSide    = 480
)

// draw makes a picture that no other submission has: of noise, so that its hash is its own.
func draw(random *rand.Rand) (content []byte, asked history.Asked) {
	side := smallSide
	if random.IntN(6) == 0 {
		side = largeSide
	}
	w, h := smallestSide+random.IntN(side-smallestSide+1), smallestSide+random.IntN(side-smallestSide+1)
	format := "png"
	if random.IntN(3) == 0 {
		format = "jpg"
	}
	return drawn(random, w, h, format)
}

// drawn is one of that size and format.
func drawn(random *rand.Rand, w, h int, format string) (content []byte, asked history.Asked) {
	asked.Format, asked.Width, asked.Height = format, w, h
	m := image.NewNRGBA(image.Rect(0, 0, w, h))
	for i := range m.Pix {
		m.Pix[i] = uint8(random.UintN(256)) | uint8(i%4/3*255) // opaque
	}
	var b bytes.Buffer
	var err error
	if format == "jpg" {
		err = jpeg.Encode(&b, m, nil)
	} else {
		err = png.Encode(&b, m)
	}
	if err != nil {
		panic(err) // into memory
	}
	return b.Bytes(), asked
}

// conversions that are asked for; denoise comes on top now and then.
var conversions = []string{"webp", "jpg", "png", "avif"}

// compose makes a submission of a new picture, whose outcome is posted to hook if that is not
// empty. most is how many operations at most.
func compose(random *rand.Rand, key, hook string, most int, denoise, broken bool) *submission {
	content, asked := draw(random)
	asked.Key, asked.Hook, asked.Broken = key, hook, broken
	if broken {
		content = content[:len(content)/2]
	}
	possible := slices.DeleteFunc(slices.Clone(conversions), func(name string) bool { return name == asked.Format })
	random.Shuffle(len(possible), func(a, b int) { possible[a], possible[b] = possible[b], possible[a] })
	asked.Operations = possible[:1+random.IntN(min(most, len(possible)))]
	if denoise {
		asked.Operations = append(asked.Operations, "denoise")
	}
	return sent(asked, content)
}

// composed makes a submission of a new PNG of that size.
func composed(random *rand.Rand, w, h int, operations ...string) *submission {
	content, asked := drawn(random, w, h, "png")
	asked.Operations = operations
	return sent(asked, content)
}

func sent(asked history.Asked, content []byte) *submission {
	sum := sha256.Sum256(content)
	asked.SHA256 = hex.EncodeToString(sum[:])
	s := &submission{asked: asked}
	s.contentType, s.body = form(asked, content)
	return s
}

func form(asked history.Asked, content []byte) (contentType string, body []byte) {
	operations, err := json.Marshal(asked.Operations)
	if err != nil {
		panic(err) // of strings
	}
	media := map[string]string{"png": "image/png", "jpg": "image/jpeg"}[asked.Format]
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	part, err := w.CreatePart(textproto.MIMEHeader{"Content-Disposition": {`form-data; name="file"; filename="night.` + asked.Format + `"`}, "Content-Type": {media}})
	if err == nil {
		_, err = part.Write(content)
	}
	err = errors.Join(err, w.WriteField("operations", string(operations)))
	if asked.Key != "" {
		err = errors.Join(err, w.WriteField("idempotency_key", asked.Key))
	}
	if asked.Hook != "" {
		err = errors.Join(err, w.WriteField("webhook_url", asked.Hook))
	}
	if err = errors.Join(err, w.Close()); err != nil {
		panic(err) // into memory
	}
	return w.FormDataContentType(), b.Bytes()
}

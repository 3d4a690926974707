package engine

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"image"
	"image/color"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/image/webp"

	"github.com/pixtools/pixtools/internal/sniff"
)

var formats = []string{sniff.JPG, sniff.PNG, sniff.WebP, sniff.AVIF}

func headerOf(t *testing.T, path string) sniff.Header {
	t.Helper()
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	info, err := file.Stat()
	require.NoError(t, err)
	header, err := sniff.Read(file, info.Size(), testConfig.Limits)
	require.NoError(t, err)
	return header
}

func TestEveryFormatToEveryFormat(t *testing.T) {
	pool := newPool(t, testConfig, 2)
	want := [4]color.NRGBA{red, green, blue, yellow}
	original := write(t, "original.png", pngBytes(t, quadrants(96, 64, want)))
	for _, from := range formats {
		first := request(t, original, from)
		mustConvert(t, pool, first)
		for _, to := range formats {
			t.Run(from+" to "+to, func(t *testing.T) {
				req := request(t, first.Target, to)
				result := mustConvert(t, pool, req)
				info, err := os.Stat(req.Target)
				require.NoError(t, err)
				require.Equal(t, info.Size(), result.Bytes)
				require.Equal(t, [2]int{96, 64}, [2]int{result.Width, result.Height})
				require.Positive(t, result.CPUTime)
				require.True(t, strings.HasPrefix(result.Engine, "libvips 8."), result.Engine)
				require.Equal(t, sniff.Header{Format: to, Width: 96, Height: 64}, headerOf(t, req.Target))
				requireQuadrants(t, pixels(t, pool, req.Target, to), want, 12)
			})
		}
	}
}

// withOrientation puts an Exif block of one entry behind a JPEG's first marker.
func withOrientation(jpg []byte, orientation uint16) []byte {
	exif := []byte("Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01")
	exif = binary.BigEndian.AppendUint16(exif, orientation)
	exif = append(exif, make([]byte, 6)...)
	segment := binary.BigEndian.AppendUint16([]byte{0xff, 0xe1}, uint16(len(exif)+2))
	return bytes.Join([][]byte{jpg[:2], segment, exif, jpg[2:]}, nil)
}

// upright says how the quadrants of red green / blue yellow lie when a picture that was
// stored with an orientation is shown, by the definition in Exif 2.3.
var upright = map[uint16][4]color.NRGBA{
	1: {red, green, blue, yellow},
	2: {green, red, yellow, blue},
	3: {yellow, blue, green, red},
	4: {blue, yellow, red, green},
	5: {red, blue, green, yellow},
	6: {blue, red, yellow, green},
	7: {yellow, green, blue, red},
	8: {green, yellow, red, blue},
}

func TestOrientationIsApplied(t *testing.T) {
	pool := newPool(t, testConfig, 2)
	stored := jpegBytes(t, quadrants(64, 48, upright[1]))
	for orientation, want := range upright {
		size := [2]int{64, 48}
		if orientation >= 5 {
			size = [2]int{48, 64}
		}
		source := write(t, "turned.jpg", withOrientation(stored, orientation))
		for _, to := range []string{sniff.PNG, sniff.JPG, sniff.WebP} {
			t.Run(fmt.Sprintf("%d to %s", orientation, to), func(t *testing.T) {
				req := request(t, source, to)
				result := mustConvert(t, pool, req)
				require.Equal(t, size, [2]int{result.Width, result.Height})
				requireQuadrants(t, pixels(t, pool, req.Target, to), want, 12)
				content, err := os.ReadFile(req.Target)
				require.NoError(t, err)
				require.NotContains(t, string(content), "Exif", "a viewer would turn it again")
			})
		}
	}
	for _, source := range []string{"turned.webp", "turned.png"} {
		t.Run(source, func(t *testing.T) {
			req := request(t, filepath.Join("testdata", source), sniff.JPG)
			result := mustConvert(t, pool, req)
			require.Equal(t, [2]int{48, 64}, [2]int{result.Width, result.Height})
			requireQuadrants(t, pixels(t, pool, req.Target, sniff.JPG), upright[6], 12)
		})
	}
}

// Metadata may name the place where a picture was taken, and a profile is applied.
func TestMetadataIsDropped(t *testing.T) {
	pool := newPool(t, testConfig, 1)
	for _, to := range formats {
		for _, source := range []string{"testdata/p3.jpg", "testdata/p3.png", write(t, "x.jpg", withOrientation(jpegBytes(t, noise(16, 16)), 1))} {
			req := request(t, source, to)
			mustConvert(t, pool, req)
			content, err := os.ReadFile(req.Target)
			require.NoError(t, err)
			for _, mark := range []string{"Exif", "EXIF", "eXIf", "ICC_PROFILE", "ICCP", "iCCP", "acsp", "XMP"} {
				require.NotContains(t, string(content), mark, "%s to %s", source, to)
			}
		}
	}
}

func TestColoursBecomeSRGB(t *testing.T) {
	pool := newPool(t, testConfig, 2)
	for _, to := range formats {
		for _, test := range []struct {
			source    string
			want      [4]color.NRGBA
			tolerance int
		}{
			// 200 100 50 in Display P3 is this in sRGB, by Pillow's littlecms
			{"p3.png", [4]color.NRGBA{p3, p3, p3, p3}, 5},
			{"p3.jpg", [4]color.NRGBA{p3, p3, p3, p3}, 5},
			{"broken-profile.png", [4]color.NRGBA{raw, raw, raw, raw}, 5},
			// Inks have no one true colour; these are what libvips' standard press gives.
			{"cmyk.jpg", [4]color.NRGBA{{0, 160, 225, 255}, {225, 0, 125, 255}, {255, 240, 0, 255}, {35, 30, 30, 255}}, 30},
		} {
			t.Run(test.source+" to "+to, func(t *testing.T) {
				req := request(t, filepath.Join("testdata", test.source), to)
				mustConvert(t, pool, req)
				requireQuadrants(t, pixels(t, pool, req.Target, to), test.want, test.tolerance)
			})
		}
	}
}

var (
	p3  = color.NRGBA{216, 93, 24, 255}
	raw = color.NRGBA{200, 100, 50, 255}
)

func TestGreyStaysGrey(t *testing.T) {
	pool := newPool(t, testConfig, 1)
	req := request(t, "testdata/grey.jpg", sniff.PNG)
	mustConvert(t, pool, req)
	picture := pixels(t, pool, req.Target, sniff.PNG)
	require.IsType(t, &image.Gray{}, picture)
	requireColour(t, picture.At(100, 200), color.NRGBA{200, 200, 200, 255}, 6)
}

func TestSixteenBits(t *testing.T) {
	pool := newPool(t, testConfig, 1)
	deep := image.NewNRGBA64(image.Rect(0, 0, 32, 32))
	for y := range 32 {
		for x := range 32 {
			deep.SetNRGBA64(x, y, color.NRGBA64{0xc8c8, 0x6464, 0x3232, 0xffff})
		}
	}
	source := write(t, "deep.png", pngBytes(t, deep))
	for _, to := range formats {
		req := request(t, source, to)
		mustConvert(t, pool, req)
		picture := pixels(t, pool, req.Target, to)
		requireColour(t, picture.At(16, 16), raw, 5)
		if to == sniff.PNG {
			require.Contains(t, []color.Model{color.NRGBA64Model, color.RGBA64Model}, picture.ColorModel(), "png keeps the depth")
		}
		if to == sniff.AVIF {
			require.NotContains(t, []color.Model{color.NRGBA64Model, color.RGBA64Model}, picture.ColorModel())
		}
	}
}

func TestAlpha(t *testing.T) {
	pool := newPool(t, testConfig, 1)
	clear, half := color.NRGBA{30, 200, 30, 0}, color.NRGBA{30, 30, 230, 128}
	source := write(t, "alpha.png", pngBytes(t, quadrants(64, 48, [4]color.NRGBA{red, clear, half, yellow})))
	for _, from := range []string{source, "testdata/alpha.webp"} {
		req := request(t, from, sniff.JPG)
		mustConvert(t, pool, req)
		requireQuadrants(t, pixels(t, pool, req.Target, sniff.JPG), [4]color.NRGBA{red, white, {142, 142, 242, 255}, yellow}, 12)
	}
	for _, to := range []string{sniff.WebP, sniff.AVIF, sniff.PNG} {
		req := request(t, source, to)
		mustConvert(t, pool, req)
		picture := pixels(t, pool, req.Target, to)
		require.Zero(t, color.NRGBAModel.Convert(picture.At(48, 12)).(color.NRGBA).A, to)
		requireColour(t, picture.At(16, 36), half, 12)
	}
}

func TestGreyWithAlphaOnWhite(t *testing.T) {
	pool := newPool(t, testConfig, 1)
	// colour type 4, which Go's encoder never writes
	source := write(t, "ga.png", greyAlphaPNG(t, 8, 8, 100, 0))
	req := request(t, source, sniff.JPG)
	mustConvert(t, pool, req)
	requireColour(t, pixels(t, pool, req.Target, sniff.JPG).At(4, 4), white, 3)
}

func TestAnimationsGiveTheirFirstFrame(t *testing.T) {
	pool := newPool(t, testConfig, 1)
	for _, source := range []string{"animated.webp", "animated.png", "animated.avif"} {
		for _, to := range formats {
			t.Run(source+" to "+to, func(t *testing.T) {
				path := filepath.Join("testdata", source)
				require.True(t, headerOf(t, path).Animated)
				req := request(t, path, to)
				result := mustConvert(t, pool, req)
				require.Equal(t, [2]int{48, 32}, [2]int{result.Width, result.Height})
				requireColour(t, pixels(t, pool, req.Target, to).At(20, 20), red, 12)
				require.False(t, headerOf(t, req.Target).Animated)
			})
		}
	}
}

func TestWebPLossless(t *testing.T) {
	pool := newPool(t, testConfig, 1)
	picture := noise(40, 30)
	req := request(t, write(t, "noise.png", pngBytes(t, picture)), sniff.WebP)
	req.Lossless = true
	mustConvert(t, pool, req)
	file, err := os.Open(req.Target)
	require.NoError(t, err)
	defer file.Close()
	got, err := webp.Decode(file)
	require.NoError(t, err)
	for y := range 30 {
		for x := range 40 {
			require.Equal(t, picture.NRGBAAt(x, y), color.NRGBAModel.Convert(got.At(x, y)))
		}
	}
}

// Of zlib-ng's levels 6 and 9 neither is the better one for every picture.
func TestPNGEffort(t *testing.T) {
	pool := newPool(t, testConfig, 1)
	for name, picture := range map[string]image.Image{"noise": noise(200, 200), "drawing": quadrants(400, 300, upright[1])} {
		source := request(t, write(t, "source.png", pngBytes(t, picture)), sniff.WebP)
		source.Lossless = true
		mustConvert(t, pool, source)
		bytes := func(effort int) int64 {
			req := request(t, source.Target, sniff.PNG)
			req.Effort = effort
			return mustConvert(t, pool, req).Bytes
		}
		require.LessOrEqual(t, bytes(9), bytes(6), name)
	}
}

// A file cut anywhere ends as the input's fault, with a reason, and leaves no result.
func TestTruncatedPictures(t *testing.T) {
	pool := newPool(t, testConfig, 2)
	whole := map[string][]byte{
		sniff.JPG: jpegBytes(t, noise(200, 150)),
		sniff.PNG: pngBytes(t, noise(200, 150)),
	}
	for _, made := range []string{sniff.WebP, sniff.AVIF} {
		req := request(t, write(t, "noise.png", whole[sniff.PNG]), made)
		mustConvert(t, pool, req)
		content, err := os.ReadFile(req.Target)
		require.NoError(t, err)
		whole[made] = content
	}
	for from, content := range whole {
		for _, percent := range []int{1, 30, 60, 95} {
			for _, to := range formats {
				t.Run(fmt.Sprintf("%s at %d%% to %s", from, percent, to), func(t *testing.T) {
					req := request(t, write(t, "cut", content[:len(content)*percent/100]), to)
					_, err := pool.Convert(deadline(t), req)
					var fault *InputError
					require.ErrorAs(t, err, &fault)
					require.Equal(t, sniff.Truncated, fault.Code, fault.Message)
					require.Contains(t, fault.Message, from)
					require.NotContains(t, fault.Message, filepath.Dir(req.Source), "paths are ours")
					require.NoFileExists(t, req.Target)
				})
			}
		}
	}
}

func TestRefusedPictures(t *testing.T) {
	pool := newPool(t, testConfig, 1)
	damaged := pngBytes(t, noise(64, 64))
	copy(damaged[len(damaged)/2:], make([]byte, 200))
	for _, test := range []struct {
		name, code string
		content    []byte
	}{
		{"empty", sniff.EmptyFile, nil},
		{"text", sniff.UnsupportedFormat, []byte("hello, this is no picture at all")},
		{"svg", sniff.UnsupportedFormat, []byte(`<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>`)},
		{"gif", sniff.UnsupportedFormat, []byte("GIF89a\x01\x00\x01\x00\x00\x00\x00;        ")},
		{"bomb", sniff.SideTooLong, pngHeader(20000, 20000)},
		{"many pixels", sniff.TooManyPixels, pngHeader(12000, 12000)},
		{"header only", sniff.Truncated, pngHeader(100, 100)},
		{"damaged png", Corrupt, damaged},
	} {
		t.Run(test.name, func(t *testing.T) {
			req := request(t, write(t, "source", test.content), sniff.WebP)
			_, err := pool.Convert(deadline(t), req)
			var fault *InputError
			require.ErrorAs(t, err, &fault)
			require.Equal(t, test.code, fault.Code, fault.Message)
			require.NotEmpty(t, fault.Message)
		})
	}
}

// A picture within MAX_IMAGE_SIDE may be longer than a format holds.
func TestSidesOfFormats(t *testing.T) {
	config := testConfig
	config.Limits.MaxSide = 65535
	pool := newPool(t, config, 1)
	for format, most := range longestSide {
		for side, fits := range map[int]bool{most: true, most + 1: false} {
			if side > config.Limits.MaxSide {
				continue
			}
			t.Run(fmt.Sprintf("%s of %d", format, side), func(t *testing.T) {
				req := request(t, write(t, "long.png", pngBytes(t, image.NewGray(image.Rect(0, 0, side, 1)))), format)
				req.Limits = config.Limits
				_, err := pool.Convert(deadline(t), req)
				if fits {
					require.NoError(t, err)
					return
				}
				var fault *InputError
				require.ErrorAs(t, err, &fault)
				require.Equal(t, sniff.SideTooLong, fault.Code)
				require.Contains(t, fault.Message, strconv.Itoa(most))
			})
		}
	}
}

// What one picture makes the library complain of must not be told of another.
func TestMessagesAreOfOnePicture(t *testing.T) {
	damaged := pngBytes(t, noise(64, 64))
	copy(damaged[len(damaged)/2:], make([]byte, 200))
	complaint := func(pool *Pool) string {
		_, err := pool.Convert(deadline(t), request(t, write(t, "source", damaged), sniff.WebP))
		var fault *InputError
		require.ErrorAs(t, err, &fault)
		return fault.Message
	}
	pool := newPool(t, testConfig, 1)
	plain := jpegBytes(t, noise(64, 64))
	profile := append([]byte("ICC_PROFILE\x00\x01\x01"), bytes.Repeat([]byte("garbage"), 50)...)
	segment := append(binary.BigEndian.AppendUint16([]byte{0xff, 0xe2}, uint16(len(profile)+2)), profile...)
	complaining := slices.Concat(plain[:2], segment, plain[2:])
	for range 3 { // each is converted, with a complaint about its profile
		mustConvert(t, pool, request(t, write(t, "complaining", complaining), sniff.WebP))
	}
	require.Equal(t, complaint(newPool(t, testConfig, 1)), complaint(pool))
}

// What is not the picture's fault must not be called so: it would never be tried again.
func TestOtherFaultsAreNotTheInputs(t *testing.T) {
	pool := newPool(t, testConfig, 1)
	good := write(t, "good.png", pngBytes(t, noise(16, 16)))
	for name, change := range map[string]func(*Request){
		"no source":       func(r *Request) { r.Source += ".missing" },
		"no target":       func(r *Request) { r.Target = filepath.Join(r.Target, "missing", "x") },
		"full disk":       func(r *Request) { require.NoError(t, os.Symlink("/dev/full", r.Target)) },
		"unknown format":  func(r *Request) { r.Format = "gif" },
		"quality 0":       func(r *Request) { r.Quality = 0 },
		"effort too high": func(r *Request) { r.Effort = 7 },
	} {
		t.Run(name, func(t *testing.T) {
			req := request(t, good, sniff.WebP)
			change(&req)
			_, err := pool.Convert(deadline(t), req)
			require.Error(t, err)
			var fault *InputError
			require.NotErrorAs(t, err, &fault)
		})
	}
}

func chunk(kind string, data []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	b = append(append(b, kind...), data...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[4:]))
}

// pngHeader is a PNG that promises pixels and has none.
func pngHeader(width, height uint32) []byte {
	data := binary.BigEndian.AppendUint32(nil, width)
	data = append(binary.BigEndian.AppendUint32(data, height), 8, 2, 0, 0, 0)
	return append([]byte("\x89PNG\r\n\x1a\n"), chunk("IHDR", data)...)
}

func greyAlphaPNG(t *testing.T, width, height int, grey, alpha byte) []byte {
	header := binary.BigEndian.AppendUint32(nil, uint32(width))
	header = append(binary.BigEndian.AppendUint32(header, uint32(height)), 8, 4, 0, 0, 0)
	var packed bytes.Buffer
	z := zlib.NewWriter(&packed)
	row := append([]byte{0}, bytes.Repeat([]byte{grey, alpha}, width)...)
	for range height {
		_, err := z.Write(row)
		require.NoError(t, err)
	}
	require.NoError(t, z.Close())
	return bytes.Join([][]byte{[]byte("\x89PNG\r\n\x1a\n"), chunk("IHDR", header), chunk("IDAT", packed.Bytes()), chunk("IEND", nil)}, nil)
}

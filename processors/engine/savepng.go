package engine

// #cgo pkg-config: vips
// #include <stdlib.h>
// #include <vips/vips.h>
//
// // save_png writes pixels as they lie in memory, which govips has no way to do without
// // copying them.
// static int save_png(void *pixels, size_t size, int width, int height, int bands, VipsBandFormat format,
// 		VipsInterpretation interpretation, int compression, const char *path) {
// 	VipsImage *raw = vips_image_new_from_memory(pixels, size, width, height, bands, format);
// 	if (!raw) return -1;
// 	VipsImage *image = NULL;
// 	int failed = vips_copy(raw, &image, "interpretation", interpretation, NULL);
// 	if (!failed)
// 		failed = vips_pngsave(image, path, "compression", compression, "filter", VIPS_FOREIGN_PNG_FILTER_ALL,
// 				"keep", VIPS_FOREIGN_KEEP_NONE, NULL);
// 	if (image) g_object_unref(image);
// 	g_object_unref(raw);
// 	return failed;
// }
import "C"

import (
	"errors"
	"unsafe"

	"github.com/pixtools/pixtools/processors/denoiser"
)

// forgetErrors empties libvips' list of errors. What a picture that succeeded complained of
// would otherwise be told of the next one.
func forgetErrors() { C.vips_error_clear() }

// savePNG writes the picture to the target, without metadata.
func savePNG(p denoiser.Picture, req Request) error {
	// Of grey the number of bands tells.
	format, colours := C.VipsBandFormat(C.VIPS_FORMAT_UCHAR), C.VipsInterpretation(C.VIPS_INTERPRETATION_sRGB)
	if p.Deep {
		format, colours = C.VIPS_FORMAT_USHORT, C.VIPS_INTERPRETATION_RGB16
	}
	path := C.CString(req.Target)
	defer C.free(unsafe.Pointer(path))
	if C.save_png(unsafe.Pointer(&p.Pixels[0]), C.size_t(len(p.Pixels)), C.int(p.Width), C.int(p.Height), C.int(p.Bands),
		format, colours, C.int(req.Effort), path) != 0 {
		text := C.GoString(C.vips_error_buffer())
		C.vips_error_clear()
		return errors.New("encoding " + req.Format + ": " + clean(text, req))
	}
	return nil
}

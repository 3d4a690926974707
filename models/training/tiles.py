"""What tiling costs: a picture in tiles against the same picture whole.

    python tiles.py [MODEL_DIR] [--side 1216] [--core 512] [--halo 96 64 48 32]

Each tile is cut with the halo around its core, denoised, and cropped to the
core. At the picture's own edges there is no halo. Prints the largest and the
mean difference, in 8-bit steps, and how much more work the halo makes.
"""

import argparse
import pathlib

import numpy as np

import data
import onnx_file

SEED, SIGMA = 3, 25


def sample(side):
    """A photograph with noise, mirrored out to side x side; any content would do for exactness."""
    data.prepare()
    largest = max(data.load_set("validation"), key=lambda p: p.size)
    pad = [(0, max(0, side - n)) for n in largest.shape[:2]] + [(0, 0)]
    clean = np.pad(largest, pad, "symmetric")[:side, :side].astype(np.float32) / 255
    return data.add_8bit_noise(clean, SIGMA, np.random.default_rng(SEED)).transpose(2, 0, 1)[None]


def tiled(run, picture, core, halo):
    """Denoises in tiles; also gives the pixels computed."""
    out, work = np.empty_like(picture), 0
    h, w = picture.shape[2:]
    for y in range(0, h, core):
        for x in range(0, w, core):
            y0, x0 = max(0, y - halo), max(0, x - halo)
            tile = np.ascontiguousarray(picture[:, :, y0:y + core + halo, x0:x + core + halo])
            done = run(tile)
            work += tile.shape[2] * tile.shape[3]
            out[:, :, y:y + core, x:x + core] = done[:, :, y - y0:y - y0 + core, x - x0:x - x0 + core]
    return out, work


def difference(a, b):
    d = np.abs(a.astype(np.float64) - b) * 255
    return d.max(), d.mean()


def main():
    here = pathlib.Path(__file__).resolve().parent
    ap = argparse.ArgumentParser()
    ap.add_argument("model_dir", nargs="?", type=pathlib.Path, default=here.parent)
    ap.add_argument("--side", type=int, default=1216)
    ap.add_argument("--core", type=int, default=512)
    ap.add_argument("--halo", type=int, nargs="*")
    args = ap.parse_args()
    model, card = onnx_file.read(args.model_dir)
    s = onnx_file.session(model)
    run = lambda picture: onnx_file.run(s, picture)
    picture = sample(args.side)
    whole = run(picture)
    for halo in args.halo or (card["halo"], 64, 48, 32, 16, 0):
        out, work = tiled(run, picture, args.core, halo)
        most, mean = difference(out, whole)
        changed = (np.rint(out * 255) != np.rint(whole * 255)).mean()
        print(f"core {args.core}, halo {halo}: largest difference {most:.2e} of 255, mean {mean:.2e}, "
              f"{changed:.2%} of 8-bit values differ, {work / picture[0, 0].size:.2f} times the work", flush=True)


if __name__ == "__main__":
    main()

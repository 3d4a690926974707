"""Measures a checkpoint: PSNR and SSIM on pictures with 8-bit noise.

    python evaluate.py                    the validation photographs
    python evaluate.py FOLDER             every picture in a folder
    python evaluate.py FOLDER --sigma 25  one noise level
"""

import argparse
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import data
from model import Denoiser, denoise, load_fp16, macs_per_pixel

SIGMAS = (0, 15, 25, 50)
NOISE_SEED = 20240607


def psnr(a, b):
    mse = (a - b).double().square().mean().item()
    return 10 * np.log10(1 / max(mse, 1e-10))


def ssim(a, b):
    """SSIM as published: an 11 x 11 Gaussian window, mean over the channels."""
    x = torch.arange(11.0) - 5
    g = torch.exp(-(x**2) / (2 * 1.5**2))
    g = (g / g.sum()).outer(g / g.sum()).expand(3, 1, 11, 11)
    mean = lambda t: F.conv2d(t, g, groups=3)
    ma, mb = mean(a), mean(b)
    va, vb, ab = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * ma * mb + c1) * (2 * ab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean().item()


@torch.no_grad()
def measure(denoiser, pictures, sigma, with_ssim=False):
    """Mean PSNR (and SSIM) with the result rounded to 8 bits, as users get it.

    denoiser takes and gives a picture as a tensor, 1 x 3 x H x W in 0..1.
    """
    rng = np.random.default_rng((NOISE_SEED, int(sigma)))
    p, s = [], []
    for pic in pictures:
        clean = pic.astype(np.float32) / 255
        noisy = data.add_8bit_noise(clean, sigma, rng)
        clean, noisy = (torch.from_numpy(a).permute(2, 0, 1)[None] for a in (clean, noisy))
        out = denoiser(noisy).mul(255).round() / 255
        p.append(psnr(out, clean))
        if with_ssim:
            s.append(ssim(out, clean))
    # Plain floats: a NumPy scalar in last.pt would not load again.
    return (float(np.mean(p)), float(np.mean(s))) if with_ssim else float(np.mean(p))


def with_model(model):
    device = next(model.parameters()).device
    return lambda noisy: denoise(model, noisy.to(device)).cpu()


def validate(model):
    model.eval()
    result = {s: measure(with_model(model), data.load_set("validation"), s) for s in SIGMAS}
    model.train()
    return result


def main():
    here = pathlib.Path(__file__).resolve().parent
    ap = argparse.ArgumentParser()
    ap.add_argument("folder", nargs="?", type=pathlib.Path)
    ap.add_argument("--checkpoint", default=here / "checkpoint.fp16.npz")
    ap.add_argument("--sigma", type=float, nargs="*", default=SIGMAS)
    args = ap.parse_args()
    torch.set_num_threads(2)
    model = Denoiser().eval()
    state, meta = load_fp16(args.checkpoint)
    model.load_state_dict(state)
    print(f"step {meta['step']}, {sum(p.numel() for p in model.parameters()):,} parameters, "
          f"{macs_per_pixel(model) / 1e3:.1f} kMAC a pixel")
    if args.folder:
        pictures = [np.asarray(Image.open(f).convert("RGB")) for f in sorted(args.folder.iterdir())]
    else:
        data.prepare()
        pictures = list(data.load_set("validation"))
    for s in args.sigma:
        p, q = measure(with_model(model), pictures, s, with_ssim=True)
        print(f"sigma {s:g}: PSNR {p:.2f} dB, SSIM {q:.4f}, {len(pictures)} pictures", flush=True)


if __name__ == "__main__":
    main()

"""Writes the checkpoint as models/denoise.onnx and describes it in models/model.json.

    python export.py                          the committed checkpoint, into models/
    python export.py --checkpoint F --out D   another one, elsewhere

The same checkpoint gives the same bytes. Nothing is written unless the file
agrees with PyTorch. The metrics are measured here, with the file, in ONNX
Runtime; the model card (README.md beside model.json) gets the same figures.
"""

import argparse
import hashlib
import io
import pathlib
import re
import sys

import torch
from torch import nn

import data
import evaluate
import onnx_file
import train
from model import BLOCKS, MULTIPLE, Denoiser, denoise, load_fp16, macs_per_pixel, write_whole

HERE = pathlib.Path(__file__).resolve().parent
NAME = "pixtools-denoise"
RECIPE = 2  # raise it with another network or other training data; the second number is the step
HALO_FIELD = 512  # pixels; wider than anything one output pixel can depend on
TABLE = re.compile(r"(<!-- metrics: written by training/export.py -->\n).*?(<!-- end -->)", re.S)


def build(state):
    """The graph of model.Denoiser, half floats in the file."""
    g = onnx_file.Graph()
    w = {k: v.to(torch.float16).numpy() for k, v in state.items()}

    def conv(name, x, **options):
        return g.conv(name, x, w[f"{name}.weight"], w.get(f"{name}.bias"), **options)

    def blocks(name, x):
        for i in range(BLOCKS):
            y = g.op("Relu", [conv(f"{name}.{i}.a", x)], f"{name}.{i}.relu")
            x = g.op("Add", [x, conv(f"{name}.{i}.b", y)], f"{name}.{i}")
        return x

    def shuffled(name, x):
        return g.op("DepthToSpace", [conv(name, x)], f"{name}.shuffled", blocksize=2, mode="CRD")

    # SpaceToDepth puts the position before the colour, PixelUnshuffle after it.
    head = w["head.weight"]
    w["head.weight"] = head.reshape(head.shape[0], 3, 4, 3, 3).swapaxes(1, 2).reshape(head.shape)

    x = g.op("SpaceToDepth", [onnx_file.INPUT], "unshuffled", blocksize=2)
    x0 = blocks("enc0", conv("head", x))
    x1 = blocks("enc1", conv("down0", x0, stride=2))
    x2 = blocks("mid", conv("down1", x1, stride=2))
    x1 = blocks("dec1", g.op("Add", [x1, shuffled("up1", x2)], "skip1"))
    x0 = blocks("dec0", g.op("Add", [x0, shuffled("up0", x1)], "skip0"))
    return g.finish(shuffled("tail", x0), "PixTools' denoiser")


def reach():
    """How far, in pixels, an output pixel's farthest input pixel lies, at most.

    Found by differentiating: in a copy of the network with positive weights and
    input nothing cancels and every ReLU is open, so the gradient is not zero at
    just the pixels that count. One output pixel after the other along a
    diagonal, since the reach depends on the place within a cell of MULTIPLE.
    """
    net = Denoiser().double()
    for p in net.parameters():
        nn.init.constant_(p, 1 / p[0].numel() if p.dim() > 1 else 0)
    x = torch.full((1, 3, HALO_FIELD, MULTIPLE), 1.0, dtype=torch.float64, requires_grad=True)
    out, worst = net(x), 0
    for at in range(HALO_FIELD // 2, HALO_FIELD // 2 + MULTIPLE):
        grad, = torch.autograd.grad(out[0, 0, at, 0], x, retain_graph=True)
        rows = grad.abs().sum((0, 1, 3)).nonzero().flatten()
        if rows[0] == 0 or rows[-1] == HALO_FIELD - 1:
            raise onnx_file.Refused("HALO_FIELD is too small for this network")
        worst = max(worst, at - int(rows[0]), int(rows[-1]) - at)
    return worst


def halo(far):
    """The reach, rounded up to what tiles are cut at."""
    return -(-far // MULTIPLE) * MULTIPLE


def packages():
    """What photos.csv says about the photographs, per package."""
    found = {}
    for row in data.photos():
        if row["split"] == "font":
            continue
        p = found.setdefault(row["package"], {"package": row["package"], "training": 0, "validation": 0,
                                              "training_licences": set(), "validation_licences": set()})
        kind = "training" if row["split"] == "train" else "validation"
        p[kind] += 1
        p[f"{kind}_licences"].add(row["licence"])
    return [{k: sorted(v) if isinstance(v, set) else v for k, v in p.items()} for p in found.values()]


def metrics(onnx_bytes):
    """PSNR and SSIM of the file, in ONNX Runtime, on the validation photographs."""
    s = onnx_file.session(onnx_bytes)

    def in_runtime(noisy):
        return denoise(lambda t: torch.from_numpy(onnx_file.run(s, t.numpy())), noisy)

    data.prepare()
    pictures, rows = list(data.load_set("validation")), []
    for sigma in evaluate.SIGMAS:
        before = evaluate.measure(lambda noisy: noisy, pictures, sigma, with_ssim=True)
        after = evaluate.measure(in_runtime, pictures, sigma, with_ssim=True)
        rows.append({"sigma": sigma, "noisy_psnr": round(before[0], 3) if sigma else None, "noisy_ssim": round(before[1], 4),
                     "psnr": round(after[0], 3), "ssim": round(after[1], 4)})
        print(f"sigma {sigma}: PSNR {before[0]:.2f} -> {after[0]:.2f} dB, SSIM {before[1]:.4f} -> {after[1]:.4f}", flush=True)
    return {"pictures": len(pictures), "noise": "Gaussian, clipped and rounded to 8 bits",
            "noise_seed": evaluate.NOISE_SEED, "validation": rows}


def table(card):
    """The metrics in Markdown, for the model card."""
    t, m = card["training"], card["metrics"]
    lines = [f"Version {card['version']}: {t['steps']} of {t['steps_planned']} steps, {t['cpu_hours']} CPU-hours. "
             f"{m['pictures']} validation photographs, {m['noise']}.", "",
             "| sigma | PSNR before, dB | PSNR after, dB | SSIM before | SSIM after |", "|---|---|---|---|---|"]
    for r in m["validation"]:
        before = "equal" if r["noisy_psnr"] is None else f"{r['noisy_psnr']:.2f}"
        lines.append(f"| {r['sigma']} | {before} | {r['psnr']:.2f} | {r['noisy_ssim']:.4f} | {r['ssim']:.4f} |")
    return "\n".join(lines) + "\n"


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--checkpoint", type=pathlib.Path, default=HERE / "checkpoint.fp16.npz")
    ap.add_argument("--out", type=pathlib.Path, default=HERE.parent)
    args = ap.parse_args()
    torch.set_num_threads(onnx_file.THREADS)
    raw = args.checkpoint.read_bytes()  # once: a running training may replace it
    state, meta = load_fp16(io.BytesIO(raw))
    net = Denoiser().eval()
    net.load_state_dict(state)
    try:
        onnx_bytes = build(state)
        worst = onnx_file.check(onnx_bytes, net)
        print(f"step {meta['step']} of {meta['total']}: {len(onnx_bytes)} bytes, sha256 {onnx_file.sha256(onnx_bytes)}")
        print(f"largest difference from PyTorch {torch.__version__.split('+')[0]}: {worst:.1e} "
              f"(at most {onnx_file.BOUND:.0e} is allowed)")
        far = reach()
        around = halo(far)
        print(f"an output pixel depends on input up to {far} pixels away; halo {around}", flush=True)
        card = {
            "name": NAME, "version": f"{RECIPE}.{meta['step']}",
            **onnx_file.common_fields(onnx_bytes, sum(p.numel() for p in net.parameters()), round(macs_per_pixel(net)),
                                      MULTIPLE, around),
            "training": {"steps": meta["step"], "steps_planned": meta["total"], "cpu_hours": round(meta["cpu_hours"], 2),
                         "seeds": {"weights_and_batches": train.SEED, "drawn_pictures": data.DRAWN_SEED},
                         "drawn_pictures": data.LEAVES_PICTURES + data.PAGES, "code": "models/training",
                         "checkpoint": args.checkpoint.name, "checkpoint_sha256": hashlib.sha256(raw).hexdigest()},
            "data": packages(),
            "licence": "same as the project",
            "credits": "models/training/CREDITS.md",
            "metrics": metrics(onnx_bytes),
        }
        onnx_file.write(args.out, onnx_bytes, card)
    except onnx_file.Refused as e:
        sys.exit(f"export.py: refused, nothing written: {e}")
    readme = args.out / "README.md"
    if readme.exists():
        text = readme.read_text()
        write_whole(readme, TABLE.sub(lambda m: m[1] + table(card) + m[2], text).encode())
    print(f"wrote {onnx_file.ONNX_NAME} and {onnx_file.CARD_NAME}")


if __name__ == "__main__":
    main()

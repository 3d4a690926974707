"""DnCNN, colour, blind: from KAIR's state dict to a model directory.

    python dncnn.py import WEIGHTS.pth OUT_DIR   users' own weights
    python dncnn.py random OUT_DIR               random weights of that shape, for benchmarks

The state dict is that of KAIR's models with batch normalisation merged, such as
dncnn_color_blind.pth: 20 convolutions of 3 x 3 with biases, 64 channels, a ReLU
after each but the last, named model.0, model.2, ... model.38. The network gives
the noise. Weights stay 32-bit floats, as they came.
"""

import argparse
import hashlib
import pathlib
import sys

import numpy as np
import torch
from torch import nn

import onnx_file
from model import macs_per_pixel
from onnx_file import Refused

LAYERS, CHANNELS = 20, 64
RANDOM_SEED = 5
# One 3 x 3 convolution sees one pixel further in every direction.
HALO = LAYERS


class DnCNN(nn.Module):
    def __init__(self):
        super().__init__()
        widths = [3] + [CHANNELS] * (LAYERS - 1) + [3]
        layers = []
        for a, b in zip(widths, widths[1:]):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1])

    def forward(self, noisy):
        return noisy - self.model(noisy)


def validate(state):
    """Refuses what is not this network, naming the entry that is wrong."""
    if not isinstance(state, dict):
        raise Refused(f"the file holds a {type(state).__name__}, not a state dict")
    wanted = {k: tuple(v.shape) for k, v in DnCNN().state_dict().items()}
    if norm := next((k for k in state if str(k).endswith("running_mean")), None):
        raise Refused(f"{norm}: batch normalisation is not merged into the convolutions; merge it first")
    if missing := [k for k in wanted if k not in state]:
        raise Refused(f"{missing[0]} is missing ({len(missing)} of {len(wanted)} are)")
    if extra := [k for k in state if k not in wanted]:
        raise Refused(f"{extra[0]} does not belong to this network ({len(extra)} such)")
    for key, shape in wanted.items():
        t = state[key]
        if not isinstance(t, torch.Tensor) or t.dtype != torch.float32:
            raise Refused(f"{key} is {getattr(t, 'dtype', type(t).__name__)}, not torch.float32")
        if tuple(t.shape) != shape:
            raise Refused(f"{key} has the shape {list(t.shape)}, not {list(shape)}")
        if not torch.isfinite(t).all():
            raise Refused(f"{key} holds values that are not finite")


def load(path):
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises whatever the unpickler met, and its advice is to trust the file
        raise Refused(f"{path} is no state dict: no PyTorch file, a damaged one, "
                      f"or one that holds more than plain weights ({type(e).__name__})") from e
    validate(state)
    return state


def random_state():
    """He's initialisation, so that values neither die out nor overflow: speed could depend on that."""
    rng, state = np.random.default_rng(RANDOM_SEED), {}
    for key, t in DnCNN().state_dict().items():
        scale = (2 / t[0].numel()) ** 0.5 if key.endswith("weight") else 0.01
        if key.startswith(f"model.{2 * (LAYERS - 1)}."):
            scale *= 0.02  # about as much noise as there is in a picture
        state[key] = torch.from_numpy(rng.standard_normal(tuple(t.shape), np.float32) * np.float32(scale))
    return state


def network(state):
    net = DnCNN().eval()
    net.load_state_dict(state)
    return net


def build(state):
    g, x = onnx_file.Graph(), onnx_file.INPUT
    for i in range(LAYERS):
        name = f"model.{2 * i}"
        x = g.conv(name, x, state[f"{name}.weight"].numpy(), state[f"{name}.bias"].numpy())
        if i < LAYERS - 1:
            x = g.op("Relu", [x], f"model.{2 * i + 1}")
    return g.finish(x, "DnCNN, colour, blind")


def write(folder, state, name, version, source, licence):
    net, data = network(state), build(state)
    worst = onnx_file.check(data, net)
    card = {"name": name, "version": version,
            **onnx_file.common_fields(data, sum(p.numel() for p in net.parameters()), int(macs_per_pixel(net)), 1, HALO),
            "source": source, "data": [], "licence": licence, "metrics": {"validation": []}}
    onnx_file.write(folder, data, card)
    print(f"{pathlib.Path(folder) / onnx_file.ONNX_NAME}: {len(data)} bytes, sha256 {card['sha256']}")
    print(f"largest difference from PyTorch {torch.__version__.split('+')[0]}: {worst:.1e} (at most {onnx_file.BOUND:.0e} is allowed)")


def import_weights(weights, folder):
    raw = pathlib.Path(weights).read_bytes()
    state, digest = load(weights), hashlib.sha256(raw).hexdigest()
    write(folder, state, pathlib.Path(weights).stem, digest[:12],
          {"file": pathlib.Path(weights).name, "sha256": digest}, "that of the imported weights")


def write_random(folder):
    write(folder, random_state(), "dncnn-random", str(RANDOM_SEED),
          {"file": "random weights, for benchmarks only", "sha256": ""}, "same as the project")


def main():
    ap = argparse.ArgumentParser()
    sub = ap.add_subparsers(dest="what", required=True)
    one = sub.add_parser("import")
    one.add_argument("weights", type=pathlib.Path)
    one.add_argument("out_dir", type=pathlib.Path)
    sub.add_parser("random").add_argument("out_dir", type=pathlib.Path)
    args = ap.parse_args()
    torch.set_num_threads(onnx_file.THREADS)
    try:
        if args.what == "random":
            write_random(args.out_dir)
        else:
            import_weights(args.weights, args.out_dir)
    except (Refused, OSError) as e:
        sys.exit(f"dncnn.py: refused: {e}")
    print(f"DENOISE_MODEL={args.out_dir.resolve()}")


if __name__ == "__main__":
    main()

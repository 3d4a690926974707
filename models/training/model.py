"""The network: a small U-Net that predicts the noise and subtracts it.

Why this shape. PixelUnshuffle(2) makes the first convolution work on a quarter
of the positions, so that the whole network costs 111 kMAC a pixel, a sixth of
DnCNN's 667, and still sees a neighbourhood of about 200 pixels.

Why (nearly) no biases. Without biases the network scales with its input, which
is what lets one network serve every noise level. The one exception is the first
convolution: noise that was clipped to 0..255 is one-sided near white, and only
a network that knows where 255 is can undo the shift this causes. A bias there
is the same as a constant input channel.
"""

import io
import json
import os

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

WIDTHS = (48, 96, 192)  # channels at 1/2, 1/4 and 1/8 of the input's size
BLOCKS = 2  # residual blocks per level, on the way down and on the way up
MULTIPLE = 8  # width and height that the network takes are multiples of this


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.b = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        # Starting as the identity makes the high learning rate safe from step 1.
        nn.init.kaiming_normal_(self.a.weight, nonlinearity="relu")
        nn.init.normal_(self.b.weight, std=1e-3)

    def forward(self, x):
        return x + self.b(F.relu(self.a(x)))


def blocks(channels):
    return nn.Sequential(*[Block(channels) for _ in range(BLOCKS)])


class Denoiser(nn.Module):
    """Takes and gives N x 3 x H x W in 0..1, H and W multiples of MULTIPLE."""

    def __init__(self):
        super().__init__()
        w0, w1, w2 = WIDTHS
        self.head = nn.Conv2d(12, w0, 3, padding=1)
        self.enc0 = blocks(w0)
        self.down0 = nn.Conv2d(w0, w1, 2, 2, bias=False)
        self.enc1 = blocks(w1)
        self.down1 = nn.Conv2d(w1, w2, 2, 2, bias=False)
        self.mid = blocks(w2)
        self.up1 = nn.Conv2d(w2, 4 * w1, 1, bias=False)
        self.dec1 = blocks(w1)
        self.up0 = nn.Conv2d(w1, 4 * w0, 1, bias=False)
        self.dec0 = blocks(w0)
        self.tail = nn.Conv2d(w0, 12, 3, padding=1, bias=False)
        nn.init.normal_(self.tail.weight, std=1e-3)

    def forward(self, noisy):
        x0 = self.enc0(self.head(F.pixel_unshuffle(noisy, 2)))
        x1 = self.enc1(self.down0(x0))
        x2 = self.mid(self.down1(x1))
        x1 = self.dec1(x1 + F.pixel_shuffle(self.up1(x2), 2))
        x0 = self.dec0(x0 + F.pixel_shuffle(self.up0(x1), 2))
        return noisy - F.pixel_shuffle(self.tail(x0), 2)


def denoise(model, picture):
    """Denoises a picture of any size: pads by reflection, crops again."""
    h, w = picture.shape[-2:]
    padded = F.pad(picture, (0, -w % MULTIPLE, 0, -h % MULTIPLE), mode="reflect")
    return model(padded)[..., :h, :w].clamp(0, 1)


def macs_per_pixel(model):
    """Counts multiply-adds of the convolutions on a picture, per input pixel."""
    side, total, hooks = 64, [0], []

    def count(conv, _, out):
        total[0] += conv.weight.numel() * out.shape[-1] * out.shape[-2]

    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            hooks.append(m.register_forward_hook(count))
    with torch.no_grad():
        p = next(model.parameters())
        model(torch.zeros(1, 3, side, side, device=p.device))
    for h in hooks:
        h.remove()
    return total[0] / side**2


def write_whole(path, data):
    """Writes beside the target and renames, so that no reader sees half a file."""
    tmp = f"{path}.tmp"
    with open(tmp, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)


def save_fp16(path, state, meta):
    """Weights as half floats, with what a resumed run must know, in one npz."""
    arrays = {k: v.detach().cpu().to(torch.float16).numpy() for k, v in state.items()}
    buf = io.BytesIO()
    np.savez(buf, meta=np.array(json.dumps(meta)), **arrays)
    write_whole(path, buf.getvalue())


def load_fp16(path):
    with np.load(path) as z:
        meta = json.loads(str(z["meta"]))
        state = {k: torch.from_numpy(z[k].astype(np.float32)) for k in z.files if k != "meta"}
    return state, meta

"""What export.py and dncnn.py share: writing a graph, checking it, model.json.

A model directory holds denoise.onnx and model.json. The service reads the
second first and refuses the first unless its sha256 is the one stated there.
"""

import hashlib
import json
import pathlib

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from model import write_whole

ONNX_NAME, CARD_NAME = "denoise.onnx", "model.json"
INPUT, OUTPUT, UNCLAMPED = "noisy", "clean", "unclamped"
OPSET, IR_VERSION = 17, 8  # no newer than the few operators need
THREADS = 2

# Largest difference from PyTorch, as a share of the picture's range 0..1 (and
# of the values themselves where they leave it). Half a step of 8 bits is 2e-3.
BOUND = 2e-5
CHECK_SIZES = ((64, 96), (184, 136))  # height, width
CHECK_SEED = 11


class Refused(Exception):
    """A model that must not be written or used, and why."""


class Graph:
    """Collects nodes and weights in a fixed order: same weights, same bytes."""

    def __init__(self):
        self.nodes, self.weights = [], []

    def op(self, kind, inputs, output, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def weight(self, name, array):
        """Adds a weight. Half floats stay so in the file: the runtime widens them once, when it loads."""
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        if array.dtype != np.float16:
            return name
        return self.op("Cast", [name], f"{name}.f32", to=TensorProto.FLOAT)

    def conv(self, name, x, weight, bias=None, stride=1):
        side = weight.shape[-1]
        pad = 1 if side == 3 else 0
        inputs = [x, self.weight(f"{name}.weight", weight)]
        if bias is not None:
            inputs.append(self.weight(f"{name}.bias", bias))
        return self.op("Conv", inputs, name, kernel_shape=[side, side], strides=[stride, stride], pads=[pad] * 4)

    def finish(self, noise, description):
        """Subtracts the noise from the input, clamps, and gives the file's bytes."""
        self.op("Sub", [INPUT, noise], UNCLAMPED)
        limits = [self.weight("zero", np.float32(0)), self.weight("one", np.float32(1))]
        self.op("Clip", [UNCLAMPED, *limits], OUTPUT)
        ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, "height", "width"]) for n in (INPUT, OUTPUT)]
        graph = helper.make_graph(self.nodes, "denoise", ports[:1], ports[1:], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
                                  producer_name="PixTools", doc_string=description)
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString(deterministic=True)


def session(data, threads=THREADS):
    o = onnxruntime.SessionOptions()
    o.intra_op_num_threads = threads
    o.log_severity_level = 3
    return onnxruntime.InferenceSession(data, o, providers=["CPUExecutionProvider"])


def run(s, picture, output=OUTPUT):
    return s.run([output], {INPUT: picture})[0]


def _with_unclamped(data):
    """The same graph with the values before clamping as a second output."""
    model = onnx.load_from_string(data)
    model.graph.output.append(helper.make_tensor_value_info(UNCLAMPED, TensorProto.FLOAT, [1, 3, "height", "width"]))
    return model.SerializeToString()


@torch.no_grad()
def check(data, net):
    """Compares with PyTorch on random pictures; gives the largest difference.

    Before clamping too: a network that is wildly wrong may be clamped to the
    same black and white.
    """
    rng, worst = np.random.default_rng(CHECK_SEED), 0.0
    plain, open_ended = session(data), session(_with_unclamped(data))
    for h, w in CHECK_SIZES:
        picture = rng.random((1, 3, h, w), np.float32)
        want = net(torch.from_numpy(picture)).numpy()
        for got, wanted in ((run(plain, picture), want.clip(0, 1)), (run(open_ended, picture, UNCLAMPED), want)):
            if got.shape != wanted.shape:
                raise Refused(f"at {w} x {h} it gives the shape {got.shape}, PyTorch {wanted.shape}")
            off = float((np.abs(got - wanted) / np.maximum(1, np.abs(wanted))).max())
            if not off <= BOUND:  # so that NaN is refused as well
                raise Refused(f"at {w} x {h} it differs from PyTorch by {off:.2e}, more than {BOUND:.0e}")
            worst = max(worst, off)
    return worst


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def common_fields(data, parameters, macs_per_pixel, multiple, halo):
    """The part of model.json that the service needs."""
    return {"file": ONNX_NAME, "sha256": sha256(data), "bytes": len(data), "parameters": parameters,
            "macs_per_pixel": macs_per_pixel, "input": INPUT, "output": OUTPUT, "multiple": multiple, "halo": halo,
            "opset": OPSET}


def write(folder, data, card):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / ONNX_NAME, data)
    write_whole(folder / CARD_NAME, (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode())


def read(folder):
    """The bytes and the card of a model directory, if they belong together."""
    folder = pathlib.Path(folder)
    card = json.loads((folder / CARD_NAME).read_text())
    data = (folder / card["file"]).read_bytes()
    if sha256(data) != card["sha256"]:
        raise Refused(f"{folder / card['file']} has the sha256 {sha256(data)}, {CARD_NAME} says {card['sha256']}")
    return data, card

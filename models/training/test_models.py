"""Tests of export, import and the committed model; under a minute.

    build/training/venv/bin/python models/training/test_models.py
"""

import collections
import contextlib
import io
import json
import pathlib
import platform
import subprocess
import sys
import tempfile
import unittest

import numpy as np
import onnx
import onnxruntime
import torch

import dncnn
import export
import onnx_file
import tiles
from model import Denoiser, load_fp16, write_whole

HERE = pathlib.Path(__file__).resolve().parent
MODELS = HERE.parent
LIMIT = 5_000_000  # bytes, of the file that goes into the repository

torch.set_num_threads(onnx_file.THREADS)


def quietly(f, *args):
    with contextlib.redirect_stdout(io.StringIO()):
        return f(*args)


class InFolder(unittest.TestCase):
    def setUp(self):
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.folder = pathlib.Path(made.name)


class Export(InFolder):
    @classmethod
    def setUpClass(cls):
        # Random weights through the same rounding as a checkpoint: all of a
        # size that matters, where a young checkpoint's last layers are small.
        # 0.7 keeps the result near 0..1: at 1 it reaches 30, and float32's
        # rounding grows with it, beyond a bound meant for pictures.
        torch.manual_seed(2)
        cls.net = Denoiser().eval()
        with torch.no_grad():
            for p in cls.net.parameters():
                p.normal_(std=0.7 * (1 / p[0].numel()) ** 0.5).copy_(p.half().float())
        cls.state = cls.net.state_dict()
        cls.data = export.build(cls.state)

    def test_same_bytes_twice(self):
        self.assertEqual(self.data, export.build(self.state))
        again = dict(reversed(self.state.items()))
        self.assertEqual(self.data, export.build(again))

    def test_same_bytes_in_another_process(self):
        script = ("import export, onnx_file; from model import load_fp16; "
                  "print(onnx_file.sha256(export.build(load_fp16('checkpoint.fp16.npz')[0])))")
        here = onnx_file.sha256(export.build(load_fp16(HERE / "checkpoint.fp16.npz")[0]))
        there = subprocess.run([sys.executable, "-B", "-c", script], cwd=HERE, capture_output=True, text=True, check=True)
        self.assertEqual(here, there.stdout.strip())

    def test_equals_pytorch(self):
        self.assertLessEqual(onnx_file.check(self.data, self.net), onnx_file.BOUND)

    def test_another_network_is_refused(self):
        other = Denoiser().eval()
        other.load_state_dict(self.state)
        with torch.no_grad():
            # Two channels swapped: what a wrong order of channels would do.
            other.head.weight[:, [1, 2]] = other.head.weight[:, [2, 1]]
        with self.assertRaisesRegex(onnx_file.Refused, "differs from PyTorch"):
            onnx_file.check(self.data, other)

    def test_small_and_widened_once(self):
        self.assertLess(len(self.data), LIMIT)
        o = onnxruntime.SessionOptions()
        o.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        o.optimized_model_filepath = str(self.folder / "optimised.onnx")
        onnxruntime.InferenceSession(self.data, o, providers=["CPUExecutionProvider"])
        kinds = collections.Counter(n.op_type for n in onnx.load(o.optimized_model_filepath).graph.node)
        self.assertEqual(kinds["Cast"], 0)
        self.assertEqual(kinds["Conv"], 26)

    def test_result_is_clamped(self):
        out = onnx_file.run(onnx_file.session(self.data), np.ones((1, 3, 64, 64), np.float32))
        self.assertTrue(0 <= out.min() and out.max() <= 1)

    def test_halo(self):
        self.assertEqual(export.reach(), reach_by_arithmetic())
        self.assertEqual(export.halo(export.reach()), 96)


def reach_by_arithmetic():
    """The same as export.reach, from kernel sizes and strides alone."""
    grow = lambda span, by: (span[0] - by, span[1] + by)  # [first, last + 1)
    fine = lambda span: (2 * span[0], 2 * span[1])
    coarse = lambda span: (span[0] // 2, -(-span[1] // 2))
    worst = 0
    for at in range(8):
        span = grow(coarse((at, at + 1)), 1)  # tail
        for _ in range(2):
            span = coarse(grow(span, 4))  # dec0 and up0, dec1 and up1
        for _ in range(2):
            span = fine(grow(span, 4))  # mid and down1, enc1 and down0
        span = fine(grow(span, 4 + 1))  # enc0 and head
        worst = max(worst, at - span[0], span[1] - 1 - at)
    return worst


class Tiles(unittest.TestCase):
    """Whether tiles with the halo equal the whole picture.

    On x86-64 they did, bit for bit, at every size tried. Elsewhere ONNX Runtime
    may sum in an order that depends on the width, so less is asked for there.
    """

    def exact(self, data, halo, sizes):
        s, rng = onnx_file.session(data), np.random.default_rng(4)
        for height, width, core in sizes:
            picture = rng.random((1, 3, height, width), np.float32)
            run = lambda p: onnx_file.run(s, p)
            out, _ = tiles.tiled(run, picture, core, halo)
            most, _ = tiles.difference(out, run(picture))
            print(f"  {width} x {height}, core {core}, halo {halo}: largest difference {most:.1e} of 255", flush=True)
            self.assertLessEqual(most, 0 if platform.machine() == "x86_64" else 0.01)

    def test_ours(self):
        data = export.build(load_fp16(HERE / "checkpoint.fp16.npz")[0])
        self.exact(data, export.halo(export.reach()), ((416, 400, 200), (360, 512, 120), (1216, 232, 512)))

    def test_dncnn(self):
        self.exact(dncnn.build(dncnn.random_state()), dncnn.HALO, ((190, 203, 90),))

    def test_threads_do_not_matter(self):
        data = export.build(load_fp16(HERE / "checkpoint.fp16.npz")[0])
        picture = np.random.default_rng(5).random((1, 3, 264, 328), np.float32)
        one, two = (onnx_file.run(onnx_file.session(data, n), picture) for n in (1, 2))
        self.assertTrue((one == two).all())


class Directory(InFolder):
    def test_tampering_is_seen(self):
        quietly(dncnn.write_random, self.folder)
        data, card = onnx_file.read(self.folder)
        self.assertEqual(card["bytes"], len(data))
        changed = bytearray(data)
        changed[len(changed) // 2] ^= 1
        write_whole(self.folder / onnx_file.ONNX_NAME, changed)
        with self.assertRaisesRegex(onnx_file.Refused, "sha256"):
            onnx_file.read(self.folder)

    def test_the_committed_model(self):
        data, card = onnx_file.read(MODELS)
        self.assertLess(len(data), LIMIT)
        self.assertEqual((card["multiple"], card["halo"], card["parameters"]), (8, 96, 2_351_280))
        self.assertEqual([r["sigma"] for r in card["metrics"]["validation"]], [0, 15, 25, 50])
        self.assertIn(export.table(card), (MODELS / "README.md").read_text())
        checkpoint = HERE / "checkpoint.fp16.npz"
        if onnx_file.sha256(checkpoint.read_bytes()) == card["training"]["checkpoint_sha256"]:
            self.assertEqual(data, export.build(load_fp16(checkpoint)[0]))
        else:
            print("  the checkpoint is newer than denoise.onnx: export.py would update it", flush=True)


class Import(InFolder):
    def save(self, state):
        path = self.folder / "dncnn_color_blind.pth"
        torch.save(state, path)
        return path

    def test_equals_pytorch(self):
        state = dncnn.random_state()
        quietly(dncnn.import_weights, self.save(state), self.folder / "out")
        data, card = onnx_file.read(self.folder / "out")
        self.assertEqual((card["multiple"], card["halo"], card["parameters"]), (1, 20, 668_227))
        self.assertEqual(card["name"], "dncnn_color_blind")
        # Written out here once more, not by way of dncnn.DnCNN.
        noisy = torch.rand(1, 3, 37, 50)
        x = noisy
        for i in range(20):
            x = torch.nn.functional.conv2d(x, state[f"model.{2 * i}.weight"], state[f"model.{2 * i}.bias"], padding=1)
            x = x.relu() if i < 19 else x
        want = (noisy - x).clamp(0, 1).numpy()
        got = onnx_file.run(onnx_file.session(data), noisy.numpy())
        self.assertLessEqual(np.abs(got - want).max(), onnx_file.BOUND)

    def refused(self, state, message):
        with self.assertRaisesRegex(onnx_file.Refused, message):
            dncnn.import_weights(self.save(state), self.folder / "out")
        self.assertFalse((self.folder / "out").exists())

    def test_a_wrong_one_is_refused_by_name(self):
        def change(**changes):
            state = dncnn.random_state()
            for key, value in changes.items():
                key = key.replace("_", ".")
                if value is None:
                    del state[key]
                else:
                    state[key] = value
            return state

        self.refused(change(model_12_bias=None), r"model\.12\.bias is missing")
        self.refused(change(model_40_weight=torch.zeros(1)), r"model\.40\.weight does not belong")
        self.refused(change(model_4_weight=torch.zeros(64, 64, 5, 5)), r"model\.4\.weight has the shape \[64, 64, 5, 5\]")
        self.refused(change(model_6_weight=torch.zeros(64, 64, 3, 3).half()), r"model\.6\.weight is torch\.float16")
        self.refused(change(model_8_bias=torch.full((64,), float("nan"))), r"model\.8\.bias .*not finite")
        self.refused(change() | {"model.1.running_mean": torch.zeros(64)},
                     r"model\.1\.running_mean: batch normalisation")
        self.refused([1, 2], "list")

    def test_code_in_a_file_is_not_run(self):
        self.refused({"model.0.weight": pathlib.PurePosixPath("x")}, "no state dict")

    def test_no_pytorch_file(self):
        path = self.folder / "text.pth"
        path.write_text("hello")
        with self.assertRaisesRegex(onnx_file.Refused, "no state dict"):
            dncnn.load(path)

    def test_command(self):
        out = self.folder / "out"
        done = subprocess.run([MODELS / "import.sh", self.save(dncnn.random_state()), out], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.splitlines()[-1], f"DENOISE_MODEL={out}")
        self.assertEqual(json.loads((out / "model.json").read_text())["file"], "denoise.onnx")


if __name__ == "__main__":
    unittest.main(verbosity=2)

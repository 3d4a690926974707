"""Trains the denoiser; may be stopped at any time and started again.

It resumes from build/training/last.pt, which has everything, or else from the
committed checkpoint.fp16.npz, which has the weights and the counters; the
optimizer then starts afresh under a short warm-up. Every batch depends on the
seed and the step alone, so a resumed run sees the batches it would have seen.
"""

import argparse
import copy
import csv
import io
import math
import os
import pathlib
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import torch

import data
from evaluate import SIGMAS, validate
from model import Denoiser, load_fp16, macs_per_pixel, save_fp16, write_whole

HERE = pathlib.Path(__file__).resolve().parent
LAST = HERE.parents[1] / "build" / "training" / "last.pt"
BEST = HERE / "checkpoint.fp16.npz"
LOG = HERE / "log.csv"

SEED = 4
PEAK_RATE = 1e-3
FLOOR = 0.005  # of the peak, at the end of the schedule
WARMUP = 500  # steps from any start without optimizer state
EMA_DECAY = 0.999
CLIP = 0.5  # largest gradient norm
SAVE_EVERY = 600  # seconds of wall clock between validations and checkpoints
REPORT_EVERY = 200  # steps between lines in train.log
SHARE_EVERY = 50  # steps between looks at the machine's load
BUSY = 0.7  # load beyond our own threads that counts as others wanting the cores
CLEAN_FLOOR = 38.0  # dB at sigma 0 below which a checkpoint is marked down

# Larger patches late: they cost the same per pixel but show more context, and
# the early steps need many different patches more than they need context.
STAGES = ((0.6, 64, 16), (0.85, 96, 7), (1.01, 128, 4))  # until, side, patches


def rate(step, total, since_fresh):
    """One cosine cycle over the whole run; a larger total stretches it."""
    t = min(step / total, 1)
    cosine = FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * t))
    return PEAK_RATE * cosine * min(1, (since_fresh + 1) / WARMUP)


def stage(step, total):
    t = min(step / total, 1)
    return next((side, count) for until, side, count in STAGES if t < until)


def loss_of(out, clean):
    """Mean over patches of the root of the squared error.

    Squared error inside a patch gives the mean, which is what PSNR asks for
    and what undoes clipping; the root keeps patches with strong noise from
    drowning those with little.
    """
    return ((out - clean).square().mean((1, 2, 3)) + 1e-7).sqrt().mean()


def score(psnr):
    return (psnr[15] + psnr[25] + psnr[50]) / 3 + min(0, psnr[0] - CLEAN_FLOOR)


def batches(sampler, step, total):
    """Batches from a step on, the next one being made while one is used."""
    def draw(n):
        side, count = stage(n, total)
        return sampler.batch(n, count, side)

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(draw, step)
        for n in range(step + 1, total + 1):
            now, coming = coming.result(), pool.submit(draw, n)
            yield now


def share_cores(threads):
    """Uses one thread while others want the cores.

    Two threads meet at a barrier hundreds of times in a step. When one of them
    has to wait for a core, so does the other: on a busy machine two threads
    did no more than one did.
    """
    torch.set_num_threads(threads if os.getloadavg()[0] < threads + BUSY else 1)


class Run:
    def __init__(self, args):
        self.total, self.device = args.total, torch.device(args.device)
        self.bf16 = args.bf16
        torch.manual_seed(SEED)
        model = Denoiser().to(self.device)
        self.model = model.to(memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.model)
        self.adam = torch.optim.AdamW(self.model.parameters(), PEAK_RATE, (0.9, 0.99), weight_decay=1e-4, fused=True)
        self.step, self.fresh_at, self.cpu_before, self.best = 0, 0, 0.0, -math.inf
        self._resume()

    def _resume(self):
        if LAST.exists():
            # Our own file, written below; the scores in early ones are NumPy scalars.
            s = torch.load(LAST, map_location=self.device, weights_only=False)
            self.model.load_state_dict(s["model"])
            self.ema.load_state_dict(s["ema"])
            self.adam.load_state_dict(s["adam"])
            self.step, self.fresh_at = s["step"], s["fresh_at"]
            self.cpu_before, self.best = s["cpu_hours"], float(s["best"])
            source = LAST
        elif BEST.exists():
            state, meta = load_fp16(BEST)
            self.model.load_state_dict(state)
            self.ema.load_state_dict(state)
            self.step = self.fresh_at = meta["step"]
            self.cpu_before, self.best = meta["cpu_hours"], meta["score"]
            source = BEST
        else:
            source = "nothing: a new run"
        print(f"from {source}, step {self.step} of {self.total}", flush=True)

    def cpu_hours(self):
        return self.cpu_before + time.process_time() / 3600

    def one_step(self, noisy, clean):
        # N x H x W x 3 seen as N x 3 x H x W is channels-last without a copy.
        noisy, clean = (torch.from_numpy(a).to(self.device).permute(0, 3, 1, 2) for a in (noisy, clean))
        for g in self.adam.param_groups:
            g["lr"] = rate(self.step, self.total, self.step - self.fresh_at)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            out = self.model(noisy)
        loss = loss_of(out.float(), clean)
        self.adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        if torch.isfinite(norm):
            self.adam.step()
            self._average()
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def _average(self):
        # From a cold start the average must forget the untrained weights soon.
        n = self.step - self.fresh_at
        decay = EMA_DECAY if self.fresh_at else min(EMA_DECAY, (1 + n) / (10 + n))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)

    def save(self):
        buf = io.BytesIO()
        torch.save({"model": self.model.state_dict(), "ema": self.ema.state_dict(), "adam": self.adam.state_dict(),
                    "step": self.step, "fresh_at": self.fresh_at, "cpu_hours": self.cpu_hours(), "best": self.best}, buf)
        write_whole(LAST, buf.getvalue())

    def checkpoint(self, loss):
        psnr = validate(self.ema)
        if score(psnr) > self.best:
            self.best = float(score(psnr))
            save_fp16(BEST, self.ema.state_dict(), {
                "step": self.step, "total": self.total, "cpu_hours": round(self.cpu_hours(), 4), "score": self.best,
                "psnr": {str(k): round(v, 3) for k, v in psnr.items()}})
        self.save()
        new = not LOG.exists()
        with open(LOG, "a", newline="") as f:
            w = csv.writer(f, lineterminator="\n")
            if new:
                w.writerow(["step", "cpu_hours", "rate", "loss"] + [f"psnr_{s}" for s in SIGMAS])
            r = rate(self.step, self.total, self.step - self.fresh_at)
            w.writerow([self.step, f"{self.cpu_hours():.3f}", f"{r:.2e}", f"{loss:.5f}"] + [f"{psnr[s]:.3f}" for s in SIGMAS])
        print(f"step {self.step} validation " + " ".join(f"{s}:{psnr[s]:.2f}" for s in SIGMAS), flush=True)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--total", type=int, default=int(os.environ.get("TOTAL_STEPS", 80_000)))
    ap.add_argument("--threads", type=int, default=int(os.environ.get("TRAIN_THREADS", 2)))
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--save-every", type=float, default=SAVE_EVERY, help="seconds")
    ap.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    data.prepare()
    sampler, run = data.Sampler(SEED), Run(args)
    print(f"{sum(p.numel() for p in run.model.parameters()):,} parameters, "
          f"{macs_per_pixel(run.model) / 1e3:.1f} kMAC a pixel, {args.device}, bf16 {args.bf16}", flush=True)

    stop = []
    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, lambda *_: stop.append(1))
    saved = reported = time.monotonic()
    mean = recent = None
    for noisy, clean in batches(sampler, run.step, run.total):
        if stop:
            break
        if run.step % SHARE_EVERY == 0:
            share_cores(args.threads)
        loss = run.one_step(noisy, clean)
        mean = loss if mean is None else 0.99 * mean + 0.01 * loss
        now = time.monotonic()
        if run.step % REPORT_EVERY == 0:
            per_s = (run.step - recent) / (now - reported) if recent else float("nan")
            print(f"step {run.step} loss {mean:.5f} {per_s:.2f} it/s {run.cpu_hours():.2f} CPU-h", flush=True)
            reported, recent = now, run.step
        if now - saved > args.save_every:
            run.checkpoint(mean)
            saved = reported = time.monotonic()
            recent = run.step
    if stop:
        run.save()  # no validation: whoever stops a run wants the processor now
        print(f"stopped and saved at step {run.step}", flush=True)
    elif mean is not None:
        run.checkpoint(mean)
        print("done; a larger TOTAL_STEPS goes on from here", flush=True)


if __name__ == "__main__":
    main()

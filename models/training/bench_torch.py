"""Times PyTorch (eager, float32) on DnCNN's shape and on our network.

    python bench_torch.py [--runs 5] [--side 512] [--threads 2] [--warm-up 1]

One line of JSON per network, medians over the runs:
    {"engine": "pytorch", "engine_version": "2.9.1", "model": "dncnn", "side": 512,
     "threads": 2, "runs": 5, "cpu_s": ..., "wall_s": ...}
The networks take turns, so that a machine that becomes busy slows both. DnCNN
has the random weights of `dncnn.py random`: speed does not depend on them.
"""

import argparse
import json
import pathlib
import statistics
import time

import torch

import dncnn
from model import Denoiser, load_fp16

SEED = 1


def networks():
    ours = Denoiser().eval()
    ours.load_state_dict(load_fp16(pathlib.Path(__file__).resolve().parent / "checkpoint.fp16.npz")[0])
    return {"dncnn": dncnn.network(dncnn.random_state()), "denoiser": ours}


@torch.no_grad()
def timed(net, picture):
    cpu, wall = time.process_time(), time.perf_counter()
    net(picture)
    return time.process_time() - cpu, time.perf_counter() - wall


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--runs", type=int, default=5)
    ap.add_argument("--side", type=int, default=512)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--warm-up", type=int, default=1, help="runs before those that count")
    args = ap.parse_args()
    if args.runs < 1 or args.warm_up < 0 or args.side < 8 or args.side % 8:
        ap.error("runs at least 1, side a multiple of 8")
    torch.set_num_threads(args.threads)
    picture = torch.rand(1, 3, args.side, args.side, generator=torch.Generator().manual_seed(SEED))
    nets = networks()
    times = {name: [] for name in nets}
    for n in range(args.warm_up + args.runs):
        for name, net in nets.items():
            t = timed(net, picture)
            if n >= args.warm_up:
                times[name].append(t)
    for name, seen in times.items():
        cpu, wall = (round(statistics.median(t), 4) for t in zip(*seen))
        print(json.dumps({"engine": "pytorch", "engine_version": torch.__version__.split("+")[0], "model": name,
                          "side": args.side, "threads": args.threads, "runs": args.runs, "cpu_s": cpu, "wall_s": wall}))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Peak memory of `tessera import ijepa` on a checkpoint of the published format at full size, made here with random weights.

    tests/perf/import_memory.py --model vit_base --json      (with the Python of ops/setup; needs about three times the file in /tmp and memory)

The goal: below the file's size + 1 GiB. Prints file and peak resident bytes.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import torch
from torch import nn

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZES = {"vit_tiny": (192, 12, 3), "vit_small": (384, 12, 6), "vit_base": (768, 12, 12), "vit_large": (1024, 24, 16)}


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)


def encoder(dim, depth, patches):
    net = nn.Module()
    net.pos_embed = nn.Parameter(torch.zeros(1, patches, dim), requires_grad=False)
    net.patch_embed = nn.Module()
    net.patch_embed.proj = nn.Conv2d(3, dim, 16, 16)
    net.blocks = nn.ModuleList(Block(dim) for _ in range(depth))
    net.norm = nn.LayerNorm(dim)
    return net


def predictor(dim, width, depth, patches):
    net = nn.Module()
    net.predictor_embed = nn.Linear(dim, width)
    net.mask_token = nn.Parameter(torch.zeros(1, 1, width))
    net.predictor_pos_embed = nn.Parameter(torch.zeros(1, patches, width), requires_grad=False)
    net.predictor_blocks = nn.ModuleList(Block(width) for _ in range(depth))
    net.predictor_norm = nn.LayerNorm(width)
    net.predictor_proj = nn.Linear(width, dim)
    return net


def make(model, path):
    dim, depth, _ = SIZES[model]
    nets = {"encoder": encoder(dim, depth, 196), "predictor": predictor(dim, 384, 6, 196), "target_encoder": encoder(dim, depth, 196)}
    trained = [nets["encoder"], nets["predictor"]]
    plain = lambda net, bias: [p for name, p in net.named_parameters() if ("bias" in name or p.ndim == 1) == bias]
    groups = [{"params": plain(net, False)} for net in trained] + [{"params": plain(net, True), "WD_exclude": True, "weight_decay": 0} for net in trained]
    optimizer = torch.optim.AdamW(groups)
    for net in trained:
        for p in net.parameters():
            if p.requires_grad:
                p.grad = torch.full_like(p, 1e-3)
    optimizer.step()
    wrap = lambda net: {"module." + name: value for name, value in net.state_dict().items()}
    torch.save({**{name: wrap(net) for name, net in nets.items()}, "opt": optimizer.state_dict(), "scaler": None, "epoch": 1, "loss": 0.5, "batch_size": 16, "world_size": 1, "lr": 1e-3}, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base", choices=SIZES)
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "published.pth.tar")
        if os.fork() == 0:  # what making it takes must not count
            make(o.model, file)
            os._exit(0)
        os.wait()
        script = ("import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode; "
                  "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024); sys.exit(code)")
        done = subprocess.run([sys.executable, "-c", script, ROOT / "build/release/bin/tessera-model", "import", "ijepa", file, "--out", pathlib.Path(folder, "checkpoint"), "--json"],
                              capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(done.stderr)
        size, peak = file.stat().st_size, int(done.stdout.splitlines()[-1])
    result = {"schema": 1, "model": o.model, "file_bytes": size, "peak_bytes": peak, "peak_over_file_bytes": peak - size, "ok": peak < size + (1 << 30)}
    print(json.dumps(result) if o.json else f"{o.model}: file {size / 2**30:.2f} GiB, peak {peak / 2**30:.2f} GiB")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())

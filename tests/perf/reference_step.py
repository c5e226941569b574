#!/usr/bin/env python3
"""The same training step in plain PyTorch beside `tessera bench step`, in one run: a ratio that a noisy machine cannot fake.

    tests/perf/reference_step.py --model vit_tiny --precision fp32 --threads 2 --json      (with the Python of ops/setup)

One step is: target encoder without gradients, context encoder, predictor, smooth-L1, backward, AdamW, EMA; published module
structure (nn.Linear, nn.LayerNorm, scaled_dot_product_attention, GELU), the same mask lengths as the benchmark. With --device cuda both run on the GPU (--tessera: the tessera-model that has CUDA). Runs of
the two alternate, `rounds` times; each round gives a ratio of medians, and the median of these is the result. bf16:
torch.autocast(bfloat16).
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZES = {"vit_tiny": (192, 12, 3), "vit_small": (384, 12, 6), "vit_base": (768, 12, 12), "vit_large": (1024, 24, 16), "vit_huge": (1280, 32, 16)}


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def gather(x, index):
    return torch.gather(x, 1, index.unsqueeze(-1).expand(-1, -1, x.size(-1)))


class Encoder(nn.Module):
    def __init__(self, patches, patch, dim, depth, heads, position=None):
        super().__init__()
        self.embed = nn.Conv2d(3, dim, patch, patch)
        self.position = nn.Parameter(torch.randn(1, patches, dim) * 0.5 if position is None else position, requires_grad=False)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, images, mask=None):
        x = self.embed(images).flatten(2).transpose(1, 2) + self.position
        if mask is not None:
            x = gather(x, mask)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Predictor(nn.Module):
    def __init__(self, patches, dim, width, depth, heads):
        super().__init__()
        self.embed, self.proj = nn.Linear(dim, width), nn.Linear(width, dim)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, patches, width) * 0.5, requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, context, context_mask, target_masks):
        b = context.size(0)
        x = self.embed(context) + gather(self.position.expand(b, -1, -1), context_mask)
        queries = torch.cat([gather(self.position.expand(b, -1, -1), mask) for mask in target_masks]) + self.token
        x = torch.cat([x.repeat(len(target_masks), 1, 1), queries], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.proj(self.norm(x)[:, context.size(1):])


class Step:
    def __init__(self, o):
        dim, depth, heads = SIZES[o.model]
        grid = o.size // o.patch
        patches = grid * grid
        self.device = o.device.split(":")[0]
        self.context, self.target = (Encoder(patches, o.patch, dim, depth, heads).to(o.device) for _ in range(2))
        self.target.load_state_dict(self.context.state_dict())
        self.predictor = Predictor(patches, dim, o.predictor_dim, o.predictor_depth, heads).to(o.device)
        self.trained = [p for m in (self.context, self.predictor) for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=0.04)
        kept, wanted = max(1, patches * 26 // 100), max(1, patches * 175 // 1000)
        mask = lambda first, count: torch.arange(first, first + count).expand(o.tile, -1).contiguous().to(o.device)
        self.images = torch.randint(0, 256, (o.tile, 3, o.size, o.size), dtype=torch.uint8).to(o.device)
        self.context_mask = mask(0, kept)
        self.target_masks = [mask(i * (patches - wanted) // 4, wanted) for i in range(4)]
        self.bf16 = o.precision != "fp32"

    def __call__(self):
        images = (self.images.float() / 255 - 0.45) / 0.226
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            with torch.no_grad():
                h = self.target(images)
                h = F.layer_norm(h.float(), (h.size(-1),))
                h = torch.cat([gather(h, mask) for mask in self.target_masks])
            z = self.predictor(self.context(images, self.context_mask), self.context_mask, self.target_masks)
            loss = F.smooth_l1_loss(z.float(), h)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for q, k in zip(self.context.parameters(), self.target.parameters()):
                k.mul_(0.996).add_(q, alpha=0.004)
        return loss.item()


def ours(o, repeats):
    command = [o.tessera, "bench", "step", "--model", o.model, "--patch", str(o.patch), "--size", str(o.size), "--tile", str(o.tile), "--precision", o.precision, "--device", o.device,
               "--threads", str(o.threads), "--predictor-dim", str(o.predictor_dim), "--predictor-depth", str(o.predictor_depth), "--repeats", str(repeats), "--json"]
    environment = {**os.environ, "GOMP_SPINCOUNT": "2000"}  # as a trainer has it (common/process.h)
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny", choices=SIZES)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "published"])
    for name, value in (("patch", 16), ("size", 224), ("tile", 16), ("threads", 2), ("predictor-dim", 384), ("predictor-depth", 6), ("rounds", 3), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--tessera", default=str(ROOT / "build/release/bin/tessera-model"), help="the program that is measured beside it")
    parser.add_argument("--compile", action="store_true", help="torch.compile the reference (needs a compiler at run time)")
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(o.threads)
    step = Step(o)
    if o.compile:
        step.context, step.target, step.predictor = (torch.compile(m) for m in (step.context, step.target, step.predictor))
    step()
    reference, tessera = [], []  # a median each round
    for _ in range(o.rounds):
        seconds = []
        for _ in range(o.repeats):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        reference.append(o.tile / statistics.median(seconds))
        tessera.append(ours(o, o.repeats)["images_per_second"]["median"])
    ratios = [ours_now / theirs for ours_now, theirs in zip(tessera, reference)]  # neighbours in time: the machine's speed drifts
    result = {"schema": 1, "model": o.model, "precision": o.precision, "device": o.device, "tile": o.tile, "threads": o.threads, "torch": torch.__version__, "compiled": o.compile,
              "reference_images_per_second": statistics.median(reference), "tessera_images_per_second": statistics.median(tessera)}
    result["ratio"], result["ratios"] = statistics.median(ratios), [round(ratio, 3) for ratio in ratios]
    print(json.dumps(result) if o.json else f"{o.model} {o.precision}: PyTorch {result['reference_images_per_second']:.1f}, Tessera {result['tessera_images_per_second']:.1f} images/s, ratio {result['ratio']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

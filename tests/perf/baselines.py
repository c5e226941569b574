#!/usr/bin/env python3
"""What else the same compute buys: the encoder of a configuration trained as a masked autoencoder or on labels, in plain PyTorch.

    tests/perf/baselines.py configs/results/scenes-multiblock.yaml --method mae --data SHARDS --seed 0 --out FOLDER

The network is the configuration's encoder (pre-norm ViT, fixed 2-D sin-cos positions, no class token), its batch, crops,
AdamW and warm-up with cosine. Length: as many floating-point operations as the configuration's run (`--equal compute`,
default) or as many images (`--equal images`), counted by the products of forward and backward passes.
  mae         a quarter of the patches encoded, a narrow decoder (the predictor's sizes) over all; loss: squared error of
              pixels normalised per patch, on hidden patches (He et al. 2022); AdamW betas .9, .95
  supervised  averaged tokens, linear layer, cross-entropy on the label --label of the shards' .cls or .json
FOLDER becomes a Hugging Face folder, so `tessera evaluate ... FOLDER` reads it as any other encoder. SHARDS is a folder of
tar shards (key.jpg or key.png, key.cls, key.json). Needs the Python of ops/setup with ops/requirements-test.txt.
"""
import argparse
import io
import json
import math
import pathlib
import random
import sys
import tarfile
import time

import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from reference_step import Block, Encoder, gather  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def positions(grid, dim):
    """The fixed 2-D sin-cos table [grid * grid, dim]: first half by column, second by row, as published."""
    def one(place, width):
        omega = 1.0 / 10000 ** (torch.arange(width // 2, dtype=torch.float64) / (width / 2))
        angle = place.reshape(-1, 1).double() * omega
        return torch.cat([angle.sin(), angle.cos()], 1)
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    return torch.cat([one(column, dim // 2), one(row, dim // 2)], 1).float()


class Decoder(nn.Module):
    def __init__(self, patches, patch, dim, width, depth, heads):
        super().__init__()
        self.embed, self.token = nn.Linear(dim, width), nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("position", positions(math.isqrt(patches), width).unsqueeze(0))
        self.blocks, self.norm = nn.ModuleList(Block(width, heads) for _ in range(depth)), nn.LayerNorm(width, eps=1e-6)
        self.pixels = nn.Linear(width, 3 * patch * patch)

    def forward(self, seen, back):
        b, n = back.shape
        x = self.embed(seen)
        x = gather(torch.cat([x, self.token.expand(b, n - x.size(1), -1)], 1), back) + self.position
        for block in self.blocks:
            x = block(x)
        return self.pixels(self.norm(x))


class MaskedAutoencoder(nn.Module):
    def __init__(self, encoder, patches, width, depth, heads):
        super().__init__()
        self.encoder = encoder
        self.decoder = Decoder(patches, encoder.embed.kernel_size[0], encoder.norm.normalized_shape[0], width, depth, heads)

    def forward(self, images, _labels):
        b, p = images.size(0), self.encoder.embed.kernel_size[0]
        wanted = F.unfold(images, p, stride=p).transpose(1, 2)
        wanted = (wanted - wanted.mean(-1, keepdim=True)) / (wanted.var(-1, keepdim=True) + 1e-6).sqrt()
        order = torch.rand(b, wanted.size(1)).argsort(1)
        seen = wanted.size(1) // 4
        answer = self.decoder(self.encoder(images, order[:, :seen]), order.argsort(1))
        hidden = order[:, seen:]
        return F.mse_loss(gather(answer.float(), hidden), gather(wanted, hidden))


class Supervised(nn.Module):
    def __init__(self, encoder, classes):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.norm.normalized_shape[0], classes)

    def forward(self, images, labels):
        return F.cross_entropy(self.head(self.encoder(images).mean(1)).float(), labels)


def block_flops(tokens, dim):
    return 2 * tokens * (12 * dim * dim + 2 * tokens * dim)


def flops_per_image(f, method, kept=None):
    """Products of one image: forward once, backward twice; patch embedding and heads are left out on both sides."""
    m, p = f["model"], f["predictor"]
    n = (m["image_size"] // m["patch_size"]) ** 2
    encoder = lambda tokens: m["depth"] * block_flops(tokens, m["embed_dim"])
    narrow = lambda tokens: p["depth"] * block_flops(tokens, p["embed_dim"])
    if method == "ijepa":  # four targets of about .171 of the grid
        return encoder(n) + 3 * encoder(kept) + 3 * 4 * narrow(kept + round(0.171 * n))
    if method == "mae":
        return 3 * encoder(n // 4) + 3 * narrow(n)
    return 3 * encoder(n)


def read_shards(pattern, label):
    folder = pathlib.Path(pattern)
    images, labels = [], []
    for shard in sorted(folder.glob("*.tar")) if folder.is_dir() else sorted(folder.parent.glob(folder.name)):
        parts = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, extension = member.name.split(".", 1)
                parts.setdefault(key, {})[extension] = tar.extractfile(member).read()
        for sample in parts.values():
            image = next(sample[e] for e in ("jpg", "jpeg", "png") if e in sample)
            images.append(Image.open(io.BytesIO(image)).convert("RGB"))
            labels.append(int(sample["cls"]) if label == "class" and "cls" in sample else json.loads(sample.get("json", b"{}")).get(label, 0))
    if not images:
        sys.exit(f"{pattern}: no tar shards with images")
    kinds = sorted(set(labels))
    return images, torch.tensor([kinds.index(value) for value in labels]), len(kinds)


def crop(image, size, scale, ratio, rng):
    """torchvision's RandomResizedCrop with Pillow's bilinear filter."""
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return image.resize((size, size), Image.BILINEAR, box=(left, top, left + w, top + h))
    side = min(width, height)
    return image.resize((size, size), Image.BILINEAR, box=((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2))


def hugging_face(encoder, f, out):
    m, dim = f["model"], f["model"]["embed_dim"]
    tensors = {"embeddings.position_embeddings": encoder.position, "embeddings.patch_embeddings.projection.weight": encoder.embed.weight,
               "embeddings.patch_embeddings.projection.bias": encoder.embed.bias, "layernorm.weight": encoder.norm.weight, "layernorm.bias": encoder.norm.bias}
    for i, block in enumerate(encoder.blocks):
        for kind in ("weight", "bias"):
            for part, value in zip(("query", "key", "value"), getattr(block.qkv, kind).chunk(3)):
                tensors[f"encoder.layer.{i}.attention.attention.{part}.{kind}"] = value
            for name, module in (("layernorm_before", block.norm1), ("layernorm_after", block.norm2), ("attention.output.dense", block.proj), ("intermediate.dense", block.fc1), ("output.dense", block.fc2)):
                tensors[f"encoder.layer.{i}.{name}.{kind}"] = getattr(module, kind)
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().contiguous().clone() for name, value in tensors.items()}, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps({"architectures": ["IJepaModel"], "model_type": "ijepa", "hidden_size": dim, "num_hidden_layers": m["depth"], "num_attention_heads": m["num_heads"],
                                                 "intermediate_size": 4 * dim, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "image_size": m["image_size"], "patch_size": m["patch_size"], "num_channels": 3, "qkv_bias": True}, indent=2) + "\n")
    (out / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": m["image_size"], "width": m["image_size"]}, "resample": 2, "do_rescale": True,
                                                              "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD}, indent=2) + "\n")


def initialise(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def build(f, method, classes):
    m, p = f["model"], f["predictor"]
    grid = m["image_size"] // m["patch_size"]
    encoder = Encoder(grid * grid, m["patch_size"], m["embed_dim"], m["depth"], m["num_heads"], positions(grid, m["embed_dim"]).unsqueeze(0))
    model = MaskedAutoencoder(encoder, grid * grid, p["embed_dim"], p["depth"], p["num_heads"]) if method == "mae" else Supervised(encoder, classes)
    model.apply(initialise)
    return encoder, model


def train(f, method, images, labels, classes, steps, seed):
    torch.manual_seed(seed)
    rng = random.Random(seed)
    encoder, model = build(f, method, classes)
    batch, o, size = f["batch"]["tile_size"] * f["batch"]["tiles"], f["optimizer"], f["model"]["image_size"]
    scale, ratio = f["data"].get("crop_scale", [0.3, 1.0]), f["data"].get("crop_ratio", [3 / 4, 4 / 3])
    decayed = [q for q in model.parameters() if q.ndim > 1 and q.requires_grad]
    plain = [q for q in model.parameters() if q.ndim <= 1 and q.requires_grad]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], lr=o["lr"], weight_decay=o["weight_decay"], betas=(0.9, 0.95) if method == "mae" else (0.9, 0.999))
    warmup = max(1, steps * f["warmup_steps"] // f["steps"])
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    order, at, losses = [], 0, []
    for step in range(steps):
        rate = o["start_lr"] + (o["lr"] - o["start_lr"]) * step / warmup if step < warmup else o["final_lr"] + (o["lr"] - o["final_lr"]) * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        if at + batch > len(order):
            order, at = rng.sample(range(len(images)), len(images)), 0
        chosen, at = order[at:at + batch], at + batch
        crops = b"".join(crop(images[i], size, scale, ratio, rng).tobytes() for i in chosen)
        pixels = torch.frombuffer(bytearray(crops), dtype=torch.uint8).view(batch, size, size, 3).permute(0, 3, 1, 2).float()
        loss = model((pixels / 255 - mean) / std, labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{steps}  loss {sum(losses[-100:]) / 100:.4f}", file=sys.stderr, flush=True)
    return encoder, sum(losses[-100:]) / len(losses[-100:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--method", required=True, choices=["mae", "supervised"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--label", default="class")
    parser.add_argument("--equal", default="compute", choices=["compute", "images"])
    parser.add_argument("--context-length", type=float, help="mean kept context of the run compared with (metrics.jsonl); default: a quarter of the patches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    f = yaml.safe_load(pathlib.Path(options.config).read_text())["function"]
    n = (f["model"]["image_size"] // f["model"]["patch_size"]) ** 2
    ratio = flops_per_image(f, "ijepa", options.context_length or n / 4) / flops_per_image(f, options.method)
    steps = round(f["steps"] * (ratio if options.equal == "compute" else 1))
    torch.set_num_threads(options.threads)
    images, labels, classes = read_shards(options.data, options.label)
    started = time.time()
    encoder, loss = train(f, options.method, images, labels, classes, steps, options.seed)
    hugging_face(encoder, f, pathlib.Path(options.out))
    print(json.dumps({"schema": 1, "method": options.method, "equal": options.equal, "steps": steps, "ijepa_steps": f["steps"], "flops_ratio": ratio, "seed": options.seed, "loss": loss, "seconds": time.time() - started, "out": options.out}))


if __name__ == "__main__":
    main()

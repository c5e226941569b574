#!/usr/bin/env python3
"""The published input recipe with torchvision and PyTorch's DataLoader beside `tessera bench loader`, in one run: a ratio.

    tests/perf/reference_loader.py --data FOLDER_OF_IMAGES --json      (with the Python of ops/setup --test)

Recipe: RandomResizedCrop (scale .3 to 1, bilinear, antialiased), ToTensor, Normalize, and a multi-block mask collator
(4 targets of .15 to .2, one context of .85 to 1, as the published sampler draws them). The DataLoader is tried with 0, 1 and 2 worker
processes; the best is compared with the loader service over TCP with as many threads as the machine has cores (the rest of
`--threads`), on the images as they are and repacked (tessera data repack, into a temporary folder), and repacked by shared memory. Rounds alternate; medians. Beside
it, per core and without transport: decode, crop and resize against a whole decode by libjpeg-turbo alone (pixels_bench).
"""
import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torchvision
from torchvision import transforms

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/release"
TESSERA_DATA = BUILD / "bin/tessera-data"


class Collator:
    """Masks of a batch: sizes drawn once a batch, places once an image, indices cut to the batch's shortest."""

    def __init__(self, grid):
        self.grid, self.count = grid, 0

    def size(self, generator, scale, aspect):
        share = scale[0] + torch.rand(1, generator=generator).item() * (scale[1] - scale[0])
        ratio = aspect[0] + torch.rand(1, generator=generator).item() * (aspect[1] - aspect[0])
        keep = int(self.grid * self.grid * share)
        h, w = int(round(math.sqrt(keep * ratio))), int(round(math.sqrt(keep / ratio)))
        return min(h, self.grid - 1), min(w, self.grid - 1)

    def place(self, h, w, allowed=None):
        while True:
            top, left = torch.randint(0, self.grid - h, (1,)), torch.randint(0, self.grid - w, (1,))
            mask = torch.zeros((self.grid, self.grid), dtype=torch.int32)
            mask[top:top + h, left:left + w] = 1
            free = 1 - mask
            if allowed is not None:
                mask = mask * allowed
            if mask.sum() > 4:
                return torch.nonzero(mask.flatten()).squeeze(1), free

    def __call__(self, batch):
        self.count += 1
        generator = torch.Generator().manual_seed(self.count)
        target, context = self.size(generator, (0.15, 0.2), (0.75, 1.5)), self.size(generator, (0.85, 1.0), (1.0, 1.0))
        targets, contexts = [], []
        for _ in batch:
            allowed, mine = torch.ones((self.grid, self.grid), dtype=torch.int32), []
            for _ in range(4):
                mask, free = self.place(*target)
                allowed = allowed * free
                mine.append(mask)
            targets.append(mine)
            contexts.append(self.place(*context, allowed)[0])
        shortest = min(len(c) for c in contexts)
        images = torch.utils.data.default_collate([image for image, _ in batch])
        return images, torch.stack([c[:shortest] for c in contexts]), [torch.stack([t[i] for t in targets]) for i in range(4)]


class Images(torch.utils.data.Dataset):
    """Any folder of images, repeated so that a pass is long enough to measure."""

    def __init__(self, folder, transform, length):
        self.files = sorted(p for p in pathlib.Path(folder).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        self.transform, self.length = transform, length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        image = torchvision.datasets.folder.default_loader(str(self.files[i % len(self.files)]))
        return self.transform(image), 0


def torch_rate(o, workers):
    transform = transforms.Compose([transforms.RandomResizedCrop(o.size, scale=(0.3, 1.0)), transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    data = Images(o.data, transform, 10**7)
    loader = torch.utils.data.DataLoader(data, batch_size=o.tile, shuffle=False, num_workers=workers, collate_fn=Collator(o.size // 16), drop_last=True)
    iterator = iter(loader)
    next(iterator)
    start, images = time.perf_counter(), 0
    while time.perf_counter() < start + o.seconds:
        images += next(iterator)[0].size(0)
    return images / (time.perf_counter() - start)


def run_json(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def tessera_rate(o, data, transport):
    return run_json(TESSERA_DATA, "bench", "loader", "--data", data, "--transport", transport, "--size", o.size, "--tile", o.tile, "--threads", o.threads, "--seconds", o.seconds, "--json")


def summary(runs, best):
    rate = statistics.median(r["images_per_second"]["median"] for r in runs)
    return {"images_per_second": rate, "ratio_to_best": rate / best, "in_process_one_thread": statistics.median(r["in_process_images_per_second"] for r in runs),
            "cpu_seconds_per_image": statistics.median(r["cpu_seconds_per_image"] for r in runs), "bytes_per_sample": runs[-1]["bytes_per_sample"],
            "rss_bytes": max(r["rss_bytes"] for r in runs), "split": runs[-1]["split"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    for name, value in (("size", 224), ("tile", 64), ("threads", 2), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    torch.set_num_threads(1)
    reference, ours = {0: [], 1: [], 2: []}, {"plain": [], "repacked": [], "repacked_shm": []}
    with tempfile.TemporaryDirectory() as folder:
        packed = pathlib.Path(folder) / "packed"
        ratio = run_json(TESSERA_DATA, "repack", o.data, "--out", packed, "--manifests", folder, "--json")["size_ratio"]
        for _ in range(o.rounds):
            for workers in reference:
                reference[workers].append(torch_rate(o, workers))
            for kind, data, transport in (("plain", o.data, "tcp"), ("repacked", packed, "tcp"), ("repacked_shm", packed, "shm")):
                ours[kind].append(tessera_rate(o, data, transport))
        core = run_json(BUILD / "tests/pixels_bench", o.data)
    rates = {workers: statistics.median(values) for workers, values in reference.items()}
    best = max(rates.values())
    result = {"schema": 2, "dataloader_images_per_second": rates, "plain": summary(ours["plain"], best), "repacked": {**summary(ours["repacked"], best), "size_ratio": ratio}, "repacked_shm": summary(ours["repacked_shm"], best),
              "per_core": {"whole_decode_images_per_second": core["whole_decode"], "pipeline_to_whole_decode": core["pipeline_to_whole_decode"],
                           "pipeline_to_whole_decode_repacked": core["pipeline_to_whole_decode_repacked"], "masks_microseconds": 1e6 / core["masks_uniform"]},
              "settings": {"size": o.size, "tile": o.tile, "threads": o.threads, "torch": torch.__version__, "torchvision": torchvision.__version__}}
    text = f"DataLoader {', '.join(f'{w} workers {r:.0f}' for w, r in rates.items())} images/s"
    for kind in ours:
        text += f"; {kind} {result[kind]['images_per_second']:.0f}, {result[kind]['ratio_to_best']:.2f} times the best"
    print(json.dumps(result) if o.json else text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

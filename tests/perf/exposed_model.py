#!/usr/bin/env python3
"""A MODEL, not a measurement: the share of a step in which GPUs wait for communication, by reduction and number of GPUs.

ViT-H/14 at 224 px, one tile of 128 images a GPU, 750 images/s a GPU; FLOP shares, bytes and rates (350 GB/s a GPU by NVLink, 50 GB/s by
InfiniBand, 8 GPUs a node) are assumptions that stand below. Buckets leave evenly while the context encoder's backward runs; what does not fit
under it is exposed, and so is one bucket's time at least. `tree` sends each slice straight to its rank; integers and plain floats go by
NCCL's all-reduce, whose rings cross a node's border once for all its GPUs.
"""
GB_GRADIENT, GB_TARGET = 654e6 * 4 / 1e9, 631e6 * 4 / 1e9
NVLINK, INFINIBAND, PER_NODE = 350.0, 50.0, 8
STEP_MS, BUCKETS = 128 / 750 * 1e3, 32
GFLOP = {"target forward": 333, "context forward": 88, "context backward": 175, "predictor forward": 20.3, "predictor backward": 40.7}
MS = {name: value / sum(GFLOP.values()) * STEP_MS for name, value in GFLOP.items()}


def milliseconds(gpus):
    """Of the tree, of an all-reduce, of the target's slices."""
    nodes = max(1, gpus // PER_NODE)
    if nodes == 1:
        share = (gpus - 1) / gpus / NVLINK * 1e3
        return 2 * GB_GRADIENT * share, 2 * GB_GRADIENT * share, GB_TARGET * share
    off_node = (gpus - PER_NODE) / gpus / INFINIBAND * 1e3
    rings = 2 * GB_GRADIENT * ((nodes - 1) / nodes / PER_NODE / INFINIBAND + (PER_NODE - 1) / PER_NODE / NVLINK) * 1e3
    return 2 * GB_GRADIENT * off_node, rings, GB_TARGET * off_node


def main():
    print("| GPUs | tree: ms, exposed | fixed32, fast: ms, exposed | target's slices: ms, exposed |\n|---|---|---|---|")
    for gpus in (2, 4, 8, 16, 32, 64):
        tree, ring, target = milliseconds(gpus)
        exposed = [max(ms - MS["context backward"] * (BUCKETS - 1) / BUCKETS, ms / BUCKETS) for ms in (tree, ring)] + [max(0.0, target - MS["context forward"])]
        cells = [f"{ms:.0f}, {100 * over / STEP_MS:.1f} %" for ms, over in zip((tree, ring, target), exposed)]
        print(f"| {gpus} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

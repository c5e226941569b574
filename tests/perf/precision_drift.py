#!/usr/bin/env python3
"""How far precision policies drift apart: the same run in fp32, bf16, published and bf16 with fp8 targets, and what differs after a few
hundred steps.

    tests/perf/precision_drift.py configs/quickstart.yaml --steps 300 --out drift.json        (with the Python of ops/setup)

For each policy: the loss over the last 50 steps, the mean and largest relative difference of a step's loss to fp32's, and for
the target features of 500 images the mean cosine to fp32's and the root mean square of the difference over that of fp32's
deviations from their mean. fp8 targets are also compared with the bf16 run ("... beside bf16"). A further fp32 run whose seed differs is what such numbers are between two runs that have nothing
in common but the recipe.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy

ROOT = pathlib.Path(__file__).resolve().parents[2]


def tessera(*words):
    done = subprocess.run([str(ROOT / "tessera"), *map(str, words)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"tessera {' '.join(map(str, words))}: exit {done.returncode}: {done.stderr[-2000:]}")


def one_run(options, folder, precision, target_precision, seed):
    tessera("up", options.config, "--set", f"function.steps={options.steps}", "--set", f"function.warmup_steps={options.steps // 10}", "--set", f"function.precision={precision}", "--set", f"function.target_precision={target_precision}", "--set", f"function.seed={seed}",
            "--set", f"operation.run_dir={folder}", "--set", "operation.evaluate.at_end=none", "--workers", options.workers, "--json")
    losses = [row["loss"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]
    tessera("embed", folder, "--data", options.data, "--out", folder / "features")
    return losses, numpy.load(folder / "features" / "embeddings.npy").astype(numpy.float64)


def compare(run, reference):
    (losses, features), (true_losses, true_features) = run, reference
    relative = [abs(a - b) / b for a, b in zip(losses, true_losses)]
    cosine = (features * true_features).sum(1) / numpy.linalg.norm(features, axis=1) / numpy.linalg.norm(true_features, axis=1)
    spread = true_features - true_features.mean(0)
    return {"loss": statistics.mean(losses[-50:]), "loss_relative_mean": statistics.mean(relative), "loss_relative_max": max(relative), "feature_cosine": float(cosine.mean()),
            "feature_difference": float(numpy.sqrt(((features - true_features) ** 2).mean() / (spread ** 2).mean()))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--data", default="scenes:500:64:3")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out")
    options = parser.parse_args()
    result = {"schema": 1, "config": options.config, "steps": options.steps}
    runs = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, precision, target_precision, seed in (("fp32", "fp32", "same", 0), ("bf16", "bf16", "same", 0), ("published", "published", "same", 0), ("bf16, fp8 targets", "bf16", "fp8", 0), ("fp32, another seed", "fp32", "same", 1)):
            runs[name] = one_run(options, pathlib.Path(temporary, name.replace(" ", "")), precision, target_precision, seed)
            result[name] = compare(runs[name], runs["fp32"])
            print(f"{name:30s} {json.dumps(result[name])}", flush=True)
    name = "bf16, fp8 targets, beside bf16"
    result[name] = compare(runs["bf16, fp8 targets"], runs["bf16"])
    print(f"{name:30s} {json.dumps(result[name])}", flush=True)
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

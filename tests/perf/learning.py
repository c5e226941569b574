#!/usr/bin/env python3
"""Whether a configuration learns: trains it for several seeds and compares its linear probes with random initialisation.

    tests/perf/learning.py configs/quickstart.yaml --seeds 0,1,2 --test-data scenes:6000:64:1 --out learning.json

Per label: mean over seeds of the model's accuracy and of its own random initialisation's (state[0] of the same seed), their
difference, and its standard error in two ways: from the test set (binomial, all seeds share it) and from the spread over
seeds. `ok` when the difference is at least three of the larger. Standard library only; needs the release build.
"""
import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(command, **kw):
    print("+", " ".join(str(word) for word in command), file=sys.stderr, flush=True)
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **kw)
    if done.returncode != 0:
        sys.exit(f"exit {done.returncode}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--data", help="labelled training data of the probe; default: the run's")
    parser.add_argument("--test-data", help="labelled test data; default: held out of the training data")
    parser.add_argument("--train-images", default="4000")
    parser.add_argument("--test-images", default="2000")
    parser.add_argument("--set", action="append", default=[], help="passed to tessera up")
    parser.add_argument("--runs", default="runs", help="folder of the runs")
    parser.add_argument("--out", help="JSON file")
    options = parser.parse_args()
    tessera = ROOT / "tessera"
    seeds, runs = options.seeds.split(","), []
    for seed in seeds:
        folder = pathlib.Path(options.runs, f"{pathlib.Path(options.config).stem}-seed-{seed}").absolute()
        settings = [word for item in options.set for word in ("--set", item)]
        started = time.time()
        trained = run([tessera, "up", options.config, "--set", f"function.seed={seed}", "--set", f"operation.run_dir={folder}", "--set", "operation.evaluate.at_end=none", *settings, "--json"])
        data = options.data or next(line.split(":", 1)[1].split("#")[0].strip().strip('"') for line in (folder / "config.yaml").read_text().splitlines() if line.strip().startswith("data_path:"))
        test = ["--test-data", options.test_data] if options.test_data else []
        probe = run([tessera, "evaluate", "linear", folder, "--data", data, *test, "--train-images", options.train_images, "--test-images", options.test_images, "--json"])
        runs.append({"seed": seed, "seconds": trained["seconds"], "images_per_second": trained["images_per_second"], "loss": trained["loss"], "steps": trained["step"], "wall_with_probe": time.time() - started,
                     "test_images": probe["settings"]["test_images"],
                     "labels": {name: {"model": p["value"], **p["baselines"]} for name, p in probe["probes"].items()}})
    result = {"config": options.config, "seeds": seeds, "labels": {}, "runs": runs}
    print(f"\n| label | model | random init | pixels | difference | standard error (test set; seeds) | in standard errors |\n|---|---|---|---|---|---|---|")
    for label in runs[0]["labels"]:
        model, random, pixels = ([r["labels"][label][key] for r in runs] for key in ("model", "random_init", "pixels"))
        n = runs[0]["test_images"]
        mean = statistics.mean
        difference = mean(model) - mean(random)
        test_error = math.sqrt((mean(model) * (1 - mean(model)) + mean(random) * (1 - mean(random))) / n)  # one test set: it does not shrink with seeds
        seed_error = statistics.stdev([a - b for a, b in zip(model, random)]) / math.sqrt(len(runs)) if len(runs) > 1 else 0.0
        error = max(test_error, seed_error)
        result["labels"][label] = {"model": mean(model), "random_init": mean(random), "pixels": mean(pixels), "difference": difference, "test_error": test_error, "seed_error": seed_error,
                                   "in_errors": difference / error, "ok": difference >= 3 * error}
        print(f"| {label} | {100 * mean(model):.1f} % | {100 * mean(random):.1f} % | {100 * mean(pixels):.1f} % | {100 * difference:+.1f} | {100 * test_error:.2f}; {100 * seed_error:.2f} | {difference / error:.1f} |")
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"schema": 1, **result}))
    return 0 if all(entry["ok"] for entry in result["labels"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())

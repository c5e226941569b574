#!/usr/bin/env python3
"""Compares encoders by the same frozen probes: groups of runs or Hugging Face folders, one folder for each training seed.

    tests/perf/compare_encoders.py --data scenes:10000:64 --test-data scenes:6000:64:1 --out results.json \\
        multiblock=runs/a-seed-0,runs/a-seed-1 random=runs/b-seed-0,runs/b-seed-1

Every encoder is read by `tessera evaluate linear` and, with --percent P, by `tessera evaluate low-shot`; answers already
in --out are kept, so an interrupted comparison goes on. The table has, for each label, the mean over the group's seeds
with its standard error (the larger of the spread over seeds and the binomial error of the test set), and for every group
but the first the difference to the first in standard errors. Random initialisation and pixels are read beside the first
encoder only: they are the same for all of one architecture, but for the seed. Standard library only.
"""
import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def evaluate(what, folder, options, extra):
    command = [str(ROOT / "tessera"), "evaluate", what, folder, "--data", options.data, "--test-data", options.test_data, "--train-images", str(options.train_images), "--test-images", str(options.test_images), "--json", *extra]
    print("+", " ".join(command[1:]), file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"exit {done.returncode}: {done.stderr[-2000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return {"test_images": answer["settings"].get("test_images", options.test_images),
            "labels": {label: {"model": p["value"], "error": p["standard_error"], **p.get("baselines", {})} for label, p in answer["probes"].items()}}


def read_all(groups, options, store):
    first = True
    for folders in groups.values():
        for folder in folders:
            entry = store.setdefault(folder, {})
            baselines = [] if first else ["--no-baselines"]
            wanted = [("linear", "linear", [])] + ([("low-shot", f"low-shot {options.percent} %", ["--percent", str(options.percent), "--draws", str(options.draws)])] if options.percent else [])
            for what, name, extra in wanted:
                if name not in entry:
                    entry[name] = evaluate(what, folder, options, extra + baselines)
                    pathlib.Path(options.out).write_text(json.dumps(store, indent=1) + "\n")
            first = False


def summary(values, test_images):
    mean = statistics.mean(values)
    seeds = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return mean, max(seeds, math.sqrt(mean * (1 - mean) / test_images))


def print_tables(groups, store):
    start = next(iter(groups.values()))[0]
    for name in store[start]:
        labels = list(store[start][name]["labels"])
        test_images = store[start][name]["test_images"]
        print(f"\n**{name}**\n\n| encoder | seeds | " + " | ".join(labels) + " |\n|---|---|" + "---|" * len(labels))
        reference = {}
        for group, folders in groups.items():
            cells = []
            for label in labels:
                mean, error = summary([store[f][name]["labels"][label]["model"] for f in folders], test_images)
                reference.setdefault(label, (mean, error))
                text = f"{100 * mean:.1f} ± {100 * error:.1f} %"
                if (mean, error) != reference[label]:
                    difference = mean - reference[label][0]
                    text += f" ({difference / math.hypot(error, reference[label][1]):+.1f})"
                cells.append(text)
            print(f"| {group} | {len(folders)} | " + " | ".join(cells) + " |")
        for baseline in ("random_init", "pixels"):
            if baseline in store[start][name]["labels"][labels[0]]:
                print(f"| {baseline.replace('_', ' ')} | 1 | " + " | ".join(f"{100 * store[start][name]['labels'][label][baseline]:.1f} %" for label in labels) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", metavar="NAME=FOLDER,FOLDER")
    parser.add_argument("--data", required=True)
    parser.add_argument("--test-data", required=True)
    parser.add_argument("--train-images", type=int, default=4000)
    parser.add_argument("--test-images", type=int, default=6000)
    parser.add_argument("--percent", type=float, help="also low-shot with so many per cent of the labels")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    groups = {}
    for item in options.groups:
        name, _, folders = item.partition("=")
        if not folders:
            parser.error(f"{item}: NAME=FOLDER,FOLDER is expected")
        groups[name] = folders.split(",")
    path = pathlib.Path(options.out)
    store = json.loads(path.read_text()) if path.exists() else {}
    read_all(groups, options, store)
    print_tables(groups, {folder: store[folder] for folders in groups.values() for folder in folders})


if __name__ == "__main__":
    main()

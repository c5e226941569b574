#!/usr/bin/env python3
"""All GPU tests and benchmarks of a bundle under one time budget; writes one JSON. Started by run.sh.

Each job has its own time limit and none stops the others. Tests decide the exit code (0 all passed, 1 not, 69 no GPU);
benchmarks are recorded. What the budget leaves no time for is listed as not run, which for a test counts as not passed.
"""
import argparse
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
BIN = HERE / "bin"
MODELS = [("vit_base", 16, 128, 384, 6), ("vit_large", 16, 128, 384, 12), ("vit_huge", 14, 128, 384, 12)]


def describe():
    code = ("import json, torch\n"
            "d = {'torch': torch.__version__, 'cuda': torch.version.cuda, 'cudnn': torch.backends.cudnn.version(), 'gpus': []}\n"
            "try:\n"
            "  d['nccl'] = '.'.join(map(str, torch.cuda.nccl.version()))\n"
            "except Exception: pass\n"
            "if torch.cuda.is_available():\n"
            "  for i in range(torch.cuda.device_count()):\n"
            "    p = torch.cuda.get_device_properties(i)\n"
            "    d['gpus'].append({'name': p.name, 'memory_bytes': p.total_memory, 'multiprocessors': p.multi_processor_count, 'capability': [p.major, p.minor]})\n"
            "print(json.dumps(d))\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    facts = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"gpus": [], "error": done.stderr[-500:]}
    try:
        facts["driver"] = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, timeout=20).stdout.split("\n")[0]
    except OSError:
        facts["driver"] = None
    facts["host"] = {"kernel": platform.release(), "cores": os.cpu_count()}
    return facts


def last_json(text):
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                return None
    return None


def environment(program):
    """The bundle's own programs find Debian's libraries in it; Python must not (it has others of the same names)."""
    env = dict(os.environ)
    if pathlib.Path(program).parent == BIN:
        env["LD_LIBRARY_PATH"] = str(HERE / "lib") + ":" + env.get("LD_LIBRARY_PATH", "")
    return env


def run_job(job, limit):
    start = time.monotonic()
    report = pathlib.Path(tempfile.mkstemp(suffix=".json")[1])
    command = [str(part) for part in job["command"]]
    if job.get("gtest"):
        command.append(f"--gtest_output=json:{report}")
    if not pathlib.Path(command[0]).exists():
        return {"name": job["name"], "kind": job["kind"], "ok": False, "exit": None, "ended": f"{command[0]} is not in the bundle", "seconds": 0}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, cwd=HERE, env=environment(command[0]))
    try:
        output, _ = process.communicate(timeout=limit)
        code, ended = process.returncode, "ended"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        code, ended = None, f"killed after {limit:.0f} s"
    out = {"name": job["name"], "kind": job["kind"], "ok": code == 0, "exit": code, "ended": ended, "seconds": round(time.monotonic() - start, 2)}
    if job.get("gtest") and report.stat().st_size:
        suites = json.loads(report.read_text()).get("testsuites", [])
        cases = [case | {"suite": suite["name"]} for suite in suites for case in suite["testsuite"]]
        named = lambda case: f'{case["suite"]}.{case["name"]}'
        out["passed"] = [named(c) for c in cases if c.get("result") == "COMPLETED" and "failures" not in c]
        out["failed"] = [{"test": named(c), "message": c["failures"][0]["failure"][:1000]} for c in cases if "failures" in c]
        out["skipped"] = [{"test": named(c), "reason": (c.get("skipped") or [{}])[0].get("message", "")[:300]} for c in cases if c.get("result") == "SKIPPED"]
    report.unlink()
    if job.get("json"):
        out["result"] = last_json(output)
    if not out["ok"] or job.get("keep"):
        out["output_tail"] = output[-3000:]
    return out


def bench(*arguments):
    return [BIN / "tessera-model-cuda", "bench", *arguments, "--device", "cuda:0", "--json"]


def up(folder, device, steps, *more):
    settings = {"operation.run_dir": folder, "operation.device": device, "operation.workers": 1, "operation.evaluate.at_end": "none", "operation.checkpoint.every_steps": 50, "operation.data_path": "scenes:1000:64",
                "function.precision": "published" if device == "cuda" else "fp32"}
    return [BIN / "tessera", "up", HERE / "share/configs/quickstart.yaml", *[word for key, value in settings.items() for word in ("--set", f"{key}={value}")], "--steps", str(steps), *more]


def jobs(gpu, work):
    yield {"name": "kernel bodies on the CPU", "kind": "test", "command": [BIN / "cuda_test"], "gtest": True, "limit": 60}
    yield {"name": "a run on the CPU, 8 steps", "kind": "test", "command": up(work / "cpu", "cpu", 8), "limit": 150}
    if not gpu:
        yield {"name": "what a user reads without a GPU", "kind": "test-refusal", "command": bench("step", "--model", "vit_tiny"), "limit": 60, "keep": True}
        return
    yield {"name": "kernels, engine, update, checkpoints", "kind": "test", "command": [BIN / "gpu_test"], "gtest": True, "limit": 180}
    yield {"name": "NCCL", "kind": "test", "command": [BIN / "nccl_test"], "gtest": True, "limit": 90}
    yield {"name": "a run on the GPU, 120 steps", "kind": "test", "command": up(work / "gpu", "cuda", 120), "limit": 90, "keep": True}
    yield {"name": "the run resumed, 60 steps more", "kind": "test", "command": up(work / "gpu", "cuda", 180, "--resume"), "limit": 60, "keep": True}
    for model, patch, tile, width, depth in MODELS:
        shape = ["--model", model, "--patch", str(patch), "--tile", str(tile), "--predictor-dim", str(width), "--predictor-depth", str(depth), "--precision", "published"]
        yield {"name": f"step {model}/{patch}", "kind": "bench", "command": bench("step", *shape, "--repeats", "10"), "json": True, "limit": 60}
        if model == "vit_huge":
            yield {"name": f"step {model}/{patch}, fp8 target", "kind": "bench", "command": bench("step", *shape, "--target-precision", "fp8", "--repeats", "10"), "json": True, "limit": 60}
        yield {"name": f"kernels {model}/{patch}", "kind": "bench", "command": bench("kernels", *shape, "--repeats", "10"), "json": True, "limit": 60}
    for model, patch, tile, width, depth in MODELS[:2]:
        for compiled in ([], ["--compile"]):
            yield {"name": f"step {model}/{patch} beside PyTorch{' compiled' if compiled else ''}", "kind": "bench", "json": True, "limit": 120,
                   "command": [sys.executable, HERE / "share/tests/perf/reference_step.py", "--model", model, "--patch", patch, "--tile", tile, "--predictor-dim", width, "--predictor-depth", depth, "--precision",
                               "published", "--device", "cuda:0", "--tessera", BIN / "tessera-model-cuda", "--rounds", 3, "--repeats", 5, "--json", *compiled]}


def losses(folder):
    file = folder / "metrics.jsonl"
    if not file.exists():
        return None
    rows = [json.loads(line) for line in file.read_text().splitlines() if line.startswith("{")]
    return [row.get("loss") for row in rows if "loss" in row]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="gpu_check.json")
    parser.add_argument("--budget", type=float, default=600, help="seconds for everything")
    o = parser.parse_args()
    end = time.monotonic() + o.budget
    facts = describe()
    gpu = bool(facts["gpus"])
    print(f"torch {facts.get('torch')}, " + (", ".join(g["name"] for g in facts["gpus"]) if gpu else "no GPU: only what a CPU can run"), flush=True)
    results = []
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        for job in jobs(gpu, work):
            left = end - time.monotonic() - 5
            if left < 5:
                results.append({"name": job["name"], "kind": job["kind"], "ok": False, "ended": "not run: the budget is used up"})
            else:
                results.append(run_job(job, min(job["limit"], left)))
            one = results[-1]
            if one["kind"] == "test-refusal":  # it has to refuse, and say what to change
                one["kind"], one["ok"] = "test", one["exit"] == 78 and "operation.device: cpu" in one.get("output_tail", "")
            print(f"{'ok  ' if one['ok'] else 'FAIL'} {one['name']} ({one.get('seconds', 0)} s)" + "".join(f"\n       failed: {f['test']}" for f in one.get("failed", [])), flush=True)
        curve = losses(work / "gpu")
    passed = all(one["ok"] for one in results if one["kind"] == "test")
    pathlib.Path(o.out).write_text(json.dumps({"schema": 1, "passed": passed, "gpu": gpu, "facts": facts, "jobs": results, "loss_curve": curve}, indent=1) + "\n")
    print(f"{o.out}: {'all tests passed' if passed else 'some tests did not pass'}" + ("" if gpu else "; no GPU here"))
    return 69 if not gpu else 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

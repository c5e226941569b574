"""Real Tessera processes for the integration tests: start, watch, kill, compare. Standard library only."""
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("TESSERA_BIN", ROOT / "build/release/bin"))
TINY = pathlib.Path(__file__).with_name("tiny.yaml")
DEADLINE_S = float(os.environ.get("TESSERA_TEST_DEADLINE", "120"))


def program(name):
    return str(BIN / name)


def wait_for(condition, what, deadline_s=DEADLINE_S):
    """Polls until condition() is true and returns it; fails with the sentence `what`."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s:.0f} s: {what}")
        time.sleep(0.02)


def processes(name, needle=""):
    """Pids of programs `name` with `needle` in their command line."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if pathlib.Path(words[0].decode()).name == name and needle.encode() in b"\0".join(words):
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
                if state != "Z":
                    found.append(int(entry.name))
    return sorted(found)


class Up:
    """One `tessera up`, in its own folder."""

    def __init__(self, folder, *args, config=TINY, sets=(), name="run"):
        self.run_dir = pathlib.Path(folder) / name
        command = [program("tessera"), "up", str(config), "--json", "--set", f"operation.run_dir={self.run_dir}"]
        for item in sets:
            command += ["--set", item]
        self.command = command + list(args)
        self.log = open(pathlib.Path(folder) / f"{name}.{time.monotonic_ns()}.log", "wb+")
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=self.log, cwd=folder)

    def stderr(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def finish(self, expect=0, deadline_s=DEADLINE_S):
        try:
            out, _ = self.process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            status = self.status_or_none()
            self.kill()
            raise AssertionError(f"no end within {deadline_s} s: {' '.join(self.command)}\nstatus: {status}\n{self.stderr()[-4000:]}")
        if self.process.returncode != expect:
            raise AssertionError(f"exit {self.process.returncode}, expected {expect}: {' '.join(self.command)}\n{self.stderr()[-4000:]}")
        lines = out.decode().strip().splitlines()
        return json.loads(lines[-1]) if lines else {}

    def address(self):
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.run_dir / "address.json").read_text())
        return None

    def status_or_none(self):
        address = self.address()
        if not address:
            return None
        with contextlib.suppress(OSError, ValueError):
            with urllib.request.urlopen(address["http"] + "/api/v1/status", timeout=5) as reply:
                return json.load(reply)
        return None

    def step(self):
        status = self.status_or_none()
        return status["progress"]["step"] if status else -1

    def wait_step(self, step):
        def reached():
            if self.process.poll() is not None and self.step() < step:
                raise AssertionError(f"ended with {self.process.returncode} before step {step}\n{self.stderr()[-4000:]}")
            return self.step() >= step
        wait_for(reached, f"step {step} of {self.run_dir}; status {self.status_or_none()}\n{self.stderr()[-2000:]}")

    def pids(self, name):
        return processes(name, str(self.run_dir))

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        for name in ("tessera-coordinator", "tessera-loader", "tessera-worker", "tessera-trainer"):
            for pid in self.pids(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()


class WorldTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="tessera-test-")
        self.ups = []

    def tearDown(self):
        for up in self.ups:
            up.kill()
            up.log.close()
            if up.process.stdout:
                up.process.stdout.close()
        failed = any(error for _, error in getattr(self._outcome, "errors", []) or []) if hasattr(self._outcome, "errors") else False
        if os.environ.get("TESSERA_KEEP") or failed:
            print("kept:", self.folder)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def up(self, *args, **kw):
        up = Up(self.folder, *args, **kw)
        self.ups.append(up)
        return up

    def run_once(self, *args, **kw):
        return self.up(*args, **kw).finish()

    def ledger(self, up_or_dir):
        """step -> (batch digest, state digest) from metrics.jsonl; a step committed twice must agree."""
        run_dir = getattr(up_or_dir, "run_dir", up_or_dir)
        seen = {}
        for line in (run_dir / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            pair = (row["batch_digest"], row["state_digest"])
            self.assertEqual(seen.setdefault(row["step"], pair), pair, f"step {row['step']} has two digests")
        return seen

"""Real tessera-loader processes and consumers (tile_consumer: a trainer's fetch thread) for the tests of the data path."""
import ctypes
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
BIN = pathlib.Path(os.environ.get("TESSERA_BIN", ROOT / "build/release/bin"))
TESTS = pathlib.Path(os.environ.get("TESSERA_TESTS", ROOT / "build/release/tests"))
FULL = bool(os.environ.get("TESSERA_FULL"))
FUNCTION = """function:
  seed: 11
  model: {{name: custom, patch_size: 4, image_size: {size}, embed_dim: 24, depth: 1, num_heads: 3}}
  predictor: {{embed_dim: 12, depth: 1, num_heads: 3}}
  masks: {{min_keep: 2}}
  batch: {{tile_size: {tile}, tiles: {tiles}}}
"""


def end_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def data(*words, expect=0, env=None):
    """tessera-data WORDS --json: its last line as JSON, or its stderr when it must fail."""
    done = subprocess.run([BIN / "tessera-data", *map(str, words), "--json"], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == expect, f"tessera-data {words}: exit {done.returncode}, not {expect}\n{done.stdout}{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


class Loader:
    """A standalone loader that serves a function's tiles."""

    def __init__(self, folder, name, data_path, function, threads=1, env=None, more=()):
        self.folder, self.name, self.env = pathlib.Path(folder), name, env
        self.words = [BIN / "tessera-loader", "--standalone", "--data", str(data_path), "--function", str(function), "--threads", str(threads),
                      "--manifests", str(self.folder / "manifests"), *map(str, more)]
        self.process = None
        self.start()

    def start(self):
        self.address_file = self.folder / f"{self.name}-{time.monotonic_ns()}.json"
        self.log = open(self.folder / f"{self.name}.log", "ab")
        self.process = subprocess.Popen([*self.words, "--address-file", self.address_file], stdout=self.log, stderr=self.log, env=self.env, preexec_fn=end_with_parent)

    def address(self, deadline_s=60):
        for end in [time.monotonic() + deadline_s]:
            while time.monotonic() < end:
                if self.address_file.exists():
                    return json.loads(self.address_file.read_text())["data_address"]
                if self.process.poll() is not None:
                    break
                time.sleep(0.002)
        raise AssertionError(f"loader {self.name} does not serve: " + (self.folder / f"{self.name}.log").read_text()[-2000:])

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


class Consumer:
    def __init__(self, folder, name, function, loaders, steps, tiles, transport="auto", pause_ms=0):
        self.out = pathlib.Path(folder) / f"{name}.tiles"
        self.log_path = pathlib.Path(folder) / f"{name}.log"
        self.words = [TESTS / "tile_consumer", "--function", str(function), "--loaders", str(loaders), "--steps", f"{steps[0]}:{steps[1]}", "--tiles", f"{tiles[0]}:{tiles[1]}",
                      "--out", self.out, "--transport", transport, "--pause-ms", str(pause_ms)]
        self.start()

    def start(self):
        self.log = open(self.log_path, "ab")
        self.process = subprocess.Popen(self.words, stdout=self.log, stderr=self.log, preexec_fn=end_with_parent)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.log.close()

    def finish(self, deadline_s=120):
        code = self.process.wait(timeout=deadline_s)
        self.log.close()
        assert code == 0, f"consumer ended with {code}: " + self.log_path.read_text()[-2000:]

    def lines(self):
        return [tuple(line.split()) for line in self.out.read_text().splitlines()]


class ServiceTest(unittest.TestCase):
    def setUp(self):
        held = tempfile.TemporaryDirectory(prefix="tessera-loader-")
        self.addCleanup(held.cleanup)
        self.folder = pathlib.Path(held.name)
        self.running = []
        self.addCleanup(lambda: [thing.kill() for thing in self.running if thing.process.poll() is None])

    def function(self, size=32, tile=4, tiles=12):
        path = self.folder / "function.yaml"
        path.write_text(FUNCTION.format(size=size, tile=tile, tiles=tiles))
        return path

    def scenes(self, count=240, size=32, shard=60, name="scenes"):
        data("make-scenes", "--out", self.folder / name, "--count", count, "--size", size, "--shard-size", shard)
        return self.folder / name

    def loader(self, *words, **named):
        self.running.append(Loader(self.folder, *words, **named))
        return self.running[-1]

    def consumer(self, *words, **named):
        self.running.append(Consumer(self.folder, *words, **named))
        return self.running[-1]

    def list_loaders(self, loaders):
        """Writes the loaders file in one go."""
        path, new = self.folder / "loaders", self.folder / "loaders.new"
        new.write_text("".join(f"{loader.name} {loader.address()}\n" for loader in loaders))
        os.replace(new, path)
        return path

    def tiles_of(self, data_path, function, steps, tiles, loaders=1, threads=1, consumers=1, transport="auto", env=None, more=()):
        """{(step, tile): digest} as consumers got them, each once, and the consumers' logs."""
        started = [self.loader(f"loader{i}", data_path, function, threads=threads, env=env, more=more) for i in range(loaders)]
        path = self.list_loaders(started)
        shares = [(tiles * i // consumers, tiles * (i + 1) // consumers) for i in range(consumers)]
        takers = [self.consumer(f"consumer{i}-{time.monotonic_ns()}", function, path, (0, steps), share, transport) for i, share in enumerate(shares)]
        for taker in takers:
            taker.finish()
        for loader in started:
            loader.kill()
        lines = [line for taker in takers for line in taker.lines()]
        self.assertEqual(sorted((int(s), int(t)) for s, t, _ in lines), [(s, t) for s in range(steps) for t in range(tiles)])
        return {(int(s), int(t)): digest for s, t, digest in lines}

"""tests/perf/baselines.py: what it trains in PyTorch is the network that `tessera embed` reads. Run by the venv's Python."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

try:
    import numpy as np
    import torch
    from transformers import IJepaModel
except ImportError as missing:
    print(f"skipped: {missing}; ops/setup --test installs it", file=sys.stderr)
    sys.exit(1 if os.environ.get("TESSERA_REQUIRE_SHARED") else 77)

from cluster import program

PERF = pathlib.Path(__file__).resolve().parents[1] / "perf"
sys.path.insert(0, str(PERF))
import baselines  # noqa: E402

CONFIG = """function:
  model: {name: custom, patch_size: 8, image_size: 32, embed_dim: 32, depth: 2, num_heads: 2}
  predictor: {embed_dim: 16, depth: 1, num_heads: 2}
  data: {crop_scale: [0.3, 1.0]}
  batch: {tile_size: 4, tiles: 2}
  optimizer: {lr: 1.0e-3, start_lr: 2.0e-4, final_lr: 1.0e-6, weight_decay: 0.04}
  steps: 3
  warmup_steps: 1
"""


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise AssertionError(f"exit {done.returncode}: {command}\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


class Baselines(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = pathlib.Path(self.folder.name)
        (self.path / "config.yaml").write_text(CONFIG)
        subprocess.run([program("tessera"), "data", "make-scenes", "--out", str(self.path / "scenes"), "--count", "12", "--size", "32"], check=True, capture_output=True)

    def tearDown(self):
        self.folder.cleanup()

    def features_agree(self, folder):
        run(program("tessera"), "embed", folder, "--data", self.path / "scenes", "--out", self.path / f"{folder.name}-features", "--threads", "1", "--json")
        ours = np.load(self.path / f"{folder.name}-features" / "embeddings.npy")
        images, _, _ = baselines.read_shards(str(self.path / "scenes"), "class")
        pixels = torch.stack([torch.from_numpy(np.asarray(image).copy()) for image in images]).permute(0, 3, 1, 2).float() / 255
        pixels = (pixels - torch.tensor(baselines.MEAN).view(1, 3, 1, 1)) / torch.tensor(baselines.STD).view(1, 3, 1, 1)
        with torch.no_grad():
            theirs = IJepaModel.from_pretrained(folder).eval()(pixels).last_hidden_state.mean(1).numpy()
        self.assertEqual(ours.shape, (12, 32))
        self.assertLess(np.abs(ours - theirs).max(), 1e-5)
        self.assertGreater(ours.std(0).min(), 0)

    def test_both_methods_become_encoders(self):
        for method in ("mae", "supervised"):
            answer = run(sys.executable, PERF / "baselines.py", self.path / "config.yaml", "--method", method, "--data", self.path / "scenes", "--equal", "images", "--out", self.path / method)
            self.assertEqual(answer["steps"], 3)
            self.features_agree(self.path / method)

    def test_same_seed_same_weights(self):
        for name in ("a", "b"):
            run(sys.executable, PERF / "baselines.py", self.path / "config.yaml", "--method", "mae", "--data", self.path / "scenes", "--equal", "images", "--seed", "5", "--out", self.path / name)
        self.assertEqual((self.path / "a" / "model.safetensors").read_bytes(), (self.path / "b" / "model.safetensors").read_bytes())

    def test_products_are_counted_by_hand(self):
        f = {"model": {"image_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32}, "predictor": {"depth": 1, "embed_dim": 16}}
        block = lambda n, d: 2 * n * (12 * d * d + 2 * n * d)
        self.assertEqual(baselines.flops_per_image(f, "supervised"), 3 * 2 * block(16, 32))
        self.assertEqual(baselines.flops_per_image(f, "mae"), 3 * 2 * block(4, 32) + 3 * block(16, 16))
        self.assertEqual(baselines.flops_per_image(f, "ijepa", 5), 2 * block(16, 32) + 3 * 2 * block(5, 32) + 12 * block(5 + 3, 16))


if __name__ == "__main__":
    unittest.main()

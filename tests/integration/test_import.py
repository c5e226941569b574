"""A published checkpoint becomes the root of a run: imported, continued by `tessera up --from`, the same bits for any workers."""
import json
import os
import pathlib
import subprocess
import unittest

from cluster import ROOT, WorldTest, program

GOLDENS = pathlib.Path(os.environ.get("TESSERA_GOLDENS", ROOT.parent / "shared/goldens"))


def published():
    """(checkpoint, training case) pairs of the goldens: the checkpoint NAME-*.pth.tar is of the case NAME."""
    for file in sorted(GOLDENS.glob("checkpoint/*.pth.tar")):
        for case in GOLDENS.glob("train_*/steps.json"):
            if file.name.startswith(case.parent.name + "-"):
                yield file, json.loads(case.read_text())


class Import(WorldTest):
    def setUp(self):
        super().setUp()
        self.cases = list(published())
        if not self.cases:
            if os.environ.get("TESSERA_REQUIRE_SHARED"):
                self.fail(f"no published checkpoint in {GOLDENS}; set TESSERA_GOLDENS")
            self.skipTest(f"no published checkpoint in {GOLDENS}")

    def config(self, case, steps):
        """The training case as a configuration over scenes, of this many steps an epoch."""
        c, t = case["config"], case["train"]
        path = pathlib.Path(self.folder, "published.yaml")
        path.write_text(f"""function:
  model: {{name: custom, patch_size: {c['patch']}, image_size: {c['img']}, embed_dim: {c['embed_dim']}, depth: {c['depth']}, num_heads: {c['heads']}}}
  predictor: {{embed_dim: {c['pred_dim']}, depth: {c['pred_depth']}, num_heads: {c['heads']}}}
  masks: {{mode: uniform, min_keep: 4}}
  batch: {{tile_size: 4, tiles: 3}}
  optimizer: {{lr: {t['lr']:.8f}, start_lr: {t['start_lr']:.8f}, final_lr: {t['final_lr']:.8f}, warmup_epochs: {t['warmup']}, ema: {t['ema']}}}
  epochs: {t['epochs']}
operation: {{data_path: "scenes:{12 * steps}:{c['img']}", run_id: published}}
""")
        return path

    def tessera(self, *words, expect=0):
        done = subprocess.run([program("tessera"), *map(str, words)], capture_output=True, text=True, timeout=120, cwd=self.folder)
        self.assertEqual(done.returncode, expect, done.stdout + done.stderr)
        return json.loads(done.stdout.splitlines()[-1]) if expect == 0 else done.stderr

    def test_goes_on_from_the_published_epoch(self):
        file, case = self.cases[0]
        config = self.config(case, case["train"]["ipe"])
        imported = self.tessera("import", "ijepa", file, "--config", config, "--out", "root", "--json")
        self.assertGreater(imported["step"], 0)
        self.assertEqual(imported["step"], imported["epoch"] * case["train"]["ipe"])
        root = os.path.join(self.folder, "root")
        one = self.up("--workers", "1", "--from", root, config=config, name="one")
        first = one.finish()
        self.assertEqual(first["step"], case["train"]["ipe"] * case["train"]["epochs"])
        ledger = self.ledger(one)
        self.assertEqual(sorted(ledger), list(range(imported["step"], first["step"])))
        self.assertEqual(ledger[imported["step"]][1], imported["state_digest"], "the first step starts from what was imported")
        rows = [json.loads(line) for line in (one.run_dir / "metrics.jsonl").read_text().splitlines()]
        wanted = case["steps"][imported["step"]]  # the published schedules' values of that update
        self.assertAlmostEqual(rows[0]["lr"], wanted["lr"], delta=1e-9 * wanted["lr"])
        self.assertAlmostEqual(rows[0]["ema"], wanted["momentum"], delta=1e-9)
        three = self.run_once("--workers", "3", "--from", root, config=config, name="three")
        self.assertEqual(three["state_digest"], first["state_digest"])
        stopped = self.run_once("--workers", "2", "--from", root, "--steps", str(imported["step"] + 2), config=config, name="two")
        self.assertEqual(stopped["step"], imported["step"] + 2)
        self.assertIn("--resume", self.ups[-1].stderr())
        self.assertNotIn("--from", self.ups[-1].stderr().split("go on with it:")[1])
        self.assertEqual(self.run_once("--workers", "1", "--resume", config=config, name="two")["state_digest"], first["state_digest"])
        self.assertEqual(self.tessera("replay", one.run_dir, "--step", imported["step"] + 1, "--json")["ok"], True)

    def test_another_model_is_refused_with_both_shapes(self):
        file, case = self.cases[0]
        config = self.config(case, case["train"]["ipe"])
        self.tessera("import", "ijepa", file, "--config", config, "--out", "root", "--json")
        other = pathlib.Path(self.folder, "other.yaml")
        other.write_text(config.read_text().replace(f"depth: {case['config']['depth']}", f"depth: {case['config']['depth'] + 1}", 1))
        up = self.up("--from", os.path.join(self.folder, "root"), config=other, name="other")
        up.finish(expect=78)
        self.assertIn(f"{case['config']['embed_dim']} x {case['config']['depth']} ", up.stderr())
        self.assertIn(f"{case['config']['embed_dim']} x {case['config']['depth'] + 1} ", up.stderr())


if __name__ == "__main__":
    unittest.main(verbosity=2)

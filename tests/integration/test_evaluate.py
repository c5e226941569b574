"""What a user sees at the end of `tessera up`: the probe with its baselines, and the picture of masks."""
import json
import subprocess
import unittest

from cluster import WorldTest, program


class Evaluation(WorldTest):
    def test_probe_and_picture_at_the_end(self):
        result = self.run_once("--workers", "1", sets=["function.steps=4", "function.warmup_steps=1", "operation.evaluate.at_end=linear", "operation.evaluate.train_images=200",
                                                       "operation.evaluate.test_images=100"], name="run")
        probes = result["evaluation"]["probes"]
        self.assertEqual(sorted(probes), ["class", "count", "distance"])
        for probe in probes.values():
            self.assertTrue(0 <= probe["value"] <= 1)
            self.assertEqual(sorted(probe["baselines"]), ["pixels", "random_init"])
        picture = (self.ups[0].run_dir / "pictures" / "masks.png").read_bytes()
        self.assertTrue(picture.startswith(b"\x89PNG"))

    def test_sentences_for_bad_input(self):
        for words, code, needle in ((["linear", "no-such-model", "--data", "scenes:40:64"], 65, "no-such-model"), (["linaer", "x", "--data", "y"], 64, "linaer")):
            done = subprocess.run([program("tessera-model"), "evaluate", *words], capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertIn(needle, done.stderr + done.stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)

"""What a user sees at the end of `tessera up`: the probe with its baselines, and the picture of masks."""
import json
import re
import signal
import subprocess
import unittest

from cluster import WorldTest, program, wait_for

SMALL_PROBE = ["operation.evaluate.train_images=100", "operation.evaluate.test_images=50"]
COLLAPSES = ("the target features collapse", "the run has collapsed")  # of the ledger; of the online evaluation


class Evaluation(WorldTest):
    def test_probe_and_picture_at_the_end(self):
        result = self.run_once("--workers", "1", sets=["function.steps=4", "function.warmup_steps=1", "operation.evaluate.at_end=linear", "operation.evaluate.train_images=200",
                                                       "operation.evaluate.test_images=100"], name="run")
        probes = result["evaluation"]["probes"]
        self.assertEqual(sorted(probes), ["class", "count", "distance"])
        for probe in probes.values():
            self.assertTrue(0 <= probe["value"] <= 1)
            self.assertEqual(sorted(probe["baselines"]), ["pixels", "random_init"])
            for name, baseline in probe["baselines"].items():
                above = probe["above_baselines"][name]
                self.assertAlmostEqual(above["value"], probe["value"] - baseline, places=9)
                # Of paired answers: never more than that of two independent test sets; nothing, when no answer differs.
                self.assertTrue(0 <= above["standard_error"] <= 1.001 * (probe["standard_error"] + probe["baseline_standard_errors"][name]), probe)
        picture = (self.ups[0].run_dir / "pictures" / "masks.png").read_bytes()
        self.assertTrue(picture.startswith(b"\x89PNG"))

    def test_online_probes_leave_the_bits_alone(self):
        sets = ["function.steps=30", "function.warmup_steps=1", "operation.checkpoint.every_steps=10", *SMALL_PROBE]
        probed = self.up("--workers", "2", sets=[*sets, "operation.evaluate.every_steps=10"], name="probed")
        with_probes = probed.finish()
        for word in COLLAPSES:
            self.assertNotIn(word, probed.stderr() + (probed.run_dir / "events.jsonl").read_text())
        found = sorted((probed.run_dir / "evaluation").glob("online-step-*.json"))
        self.assertTrue(found, probed.stderr())
        document = json.loads(found[-1].read_text())
        self.assertEqual(sorted(document["probes"]), ["class", "count", "distance"])
        self.assertRegex(probed.stderr(), r"probe at step \d+: class [0-9.]+ % \(k-NN [0-9.]+ %\).*; effective rank [0-9.]+")
        self.assertEqual(document["probes"]["class"]["knn"]["k"], 20)
        self.assertGreater(document["monitors"]["effective_rank"], 1)
        self.assertFalse((probed.run_dir / "evaluation" / ".at-work").exists())
        self.assertEqual(with_probes["state_digest"], self.run_once("--workers", "2", sets=sets, name="alone")["state_digest"])

    def test_a_provoked_collapse_is_said(self):
        """A target that follows at once and a rate ten times too high: the ledger's rank and the probe beside the run both raise an alert while it runs."""
        up = self.up("--workers", "1", name="collapse", sets=["function.steps=100000", "function.warmup_steps=10", "function.optimizer.ema=[0,0]", "function.optimizer.lr=1.0e-2",
                                                              "operation.checkpoint.every_steps=40", "operation.evaluate.every_steps=40", *SMALL_PROBE])
        def alerts():
            self.assertIsNone(up.process.poll(), up.stderr())
            found = {alert["reason"] for alert in (up.status_or_none() or {}).get("alerts", [])}
            return {word: reason for word in COLLAPSES for reason in found if word in reason}
        wait_for(lambda: len(alerts()) == 2, "alerts of the ledger and of the probe")
        step = int(re.search(r"probe at step (\d+)", alerts()[COLLAPSES[1]])[1])
        document = json.loads((up.run_dir / "evaluation" / f"online-step-{step}.json").read_text())
        self.assertTrue(document["monitors"]["collapsed"], document)
        up.process.send_signal(signal.SIGINT)
        up.finish(expect=75)
        for word in COLLAPSES:
            self.assertEqual(up.stderr().count(word), 1, "once, and not at every step or probe")
            self.assertIn(word, (up.run_dir / "events.jsonl").read_text())

    def test_sentences_for_bad_input(self):
        for words, code, needle in ((["linear", "no-such-model", "--data", "scenes:40:64"], 65, "no-such-model"), (["linaer", "x", "--data", "y"], 64, "linaer")):
            done = subprocess.run([program("tessera-model"), "evaluate", *words], capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertIn(needle, done.stderr + done.stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)

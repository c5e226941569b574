"""What a run keeps on disk, cut off anywhere: named crash points, a lost or damaged store, a second coordinator."""
import json
import os
import pathlib
import subprocess
import unittest

from cluster import TINY, WorldTest, program, wait_for

SHORT = ["function.steps=16", "operation.checkpoint.every_steps=4", "operation.checkpoint.keep_last=2"]
# common/crash_point.h has them all; a new one belongs here.
POINTS = ["term.claimed", "world.stored", "step.line_written", "step.row_written", "checkpoint.share_begun", "checkpoint.share_written", "publish.manifest_written", "publish.renamed", "publish.removed"]


def verify(up):
    done = subprocess.run([program("tessera"), "verify", str(up.run_dir), "--json"], capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


class CrashPoints(WorldTest):
    def test_killed_at_each_point_the_run_ends_with_the_bits_of_an_undisturbed_one(self):
        calm = self.run_once("--workers", "2", sets=SHORT, name="calm")
        for point in POINTS:
            with self.subTest(point=point):
                marker = pathlib.Path(self.folder, "marker-" + point)
                os.environ["TESSERA_CRASH_AT"] = f"{point}={marker}"
                try:
                    up = self.up("--workers", "2", sets=SHORT, name=point)
                finally:
                    del os.environ["TESSERA_CRASH_AT"]
                early = point == "term.claimed"  # the coordinator dies before it has an address: `up` says so
                result = up.finish(expect=70 if early else 0)
                self.assertTrue(marker.exists(), "the run never came by")
                if early:
                    self.assertIn("SIGKILL", up.stderr())
                    up = self.up("--workers", "2", "--resume", sets=SHORT, name=point)
                    result = up.finish()
                self.assertEqual((result["state_digest"], result["batch_digest"]), (calm["state_digest"], calm["batch_digest"]))
                self.assertTrue(verify(up)["ok"])
                self.assertEqual(len(result["checkpoints"]), 2)
                self.assertFalse([p for p in (up.run_dir / "checkpoints").iterdir() if p.name.startswith("step-") and not (p / "manifest.json").exists()])

    def test_every_point_of_the_header_is_told_here(self):
        header = pathlib.Path(__file__).parents[2] / "common/crash_point.h"
        named = [line.split()[1] for line in header.read_text().splitlines() if line.startswith("//   ") and "." in line.split()[1]]
        self.assertEqual(named, POINTS)


class Store(WorldTest):
    def stopped(self, name):
        up = self.up("--workers", "2", "--steps", "10", sets=SHORT, name=name)
        self.assertEqual(up.finish()["step"], 10)
        return up

    def terms(self, up):
        return sorted(int(p.name.split("-")[1]) for p in (up.run_dir / "checkpoints").glob(".term-*"))

    def test_a_lost_store_is_read_again_from_the_other_files(self):
        calm = self.run_once("--workers", "1", sets=SHORT, name="calm")
        for lost in (["state.db"], ["state.db", "metrics.jsonl"]):
            with self.subTest(lost=lost):
                up = self.stopped("-".join(lost))
                before = self.terms(up)
                for pattern in lost:
                    for path in up.run_dir.glob(pattern + "*"):
                        path.unlink()
                again = self.up("--workers", "1", "--resume", sets=SHORT, name="-".join(lost))
                result = again.finish()
                self.assertEqual((result["step"], result["state_digest"]), (16, calm["state_digest"]))
                self.assertGreater(max(self.terms(again)), max(before), "no term twice, and so no generation")
                if len(lost) == 1:
                    self.assertEqual(result["batch_digest"], calm["batch_digest"])
                    self.assertTrue(verify(again)["ok"])
                    self.assertEqual(sorted(self.ledger(again)), list(range(16)))

    def test_a_damaged_store_is_refused_with_the_way_out(self):
        up = self.stopped("damaged")
        path = up.run_dir / "state.db"
        for extra in up.run_dir.glob("state.db-*"):
            extra.unlink()
        path.write_bytes(b"SQLite format 3\0" + os.urandom(8000))
        refused = self.up("--workers", "1", "--resume", sets=SHORT, name="damaged")
        refused.finish(expect=65)
        self.assertIn("move it away and start with --resume", refused.stderr())
        path.unlink()
        self.assertEqual(self.up("--workers", "1", "--resume", sets=SHORT, name="damaged").finish()["step"], 16)

    def test_a_second_coordinator_of_the_same_run_is_refused(self):
        up = self.up("--workers", "1", sets=["function.steps=2000"], name="twice")
        up.wait_step(3)
        second = subprocess.run([program("tessera-coordinator"), str(TINY), "--set", "function.steps=2000", "--resume", "--run-dir", str(up.run_dir)], capture_output=True, text=True, timeout=60)
        self.assertEqual(second.returncode, 64, second.stderr)
        self.assertIn(f"in use by another coordinator (pid {up.pids('tessera-coordinator')[0]})", second.stderr)
        step = up.step()
        up.wait_step(step + 3)


if __name__ == "__main__":
    unittest.main()

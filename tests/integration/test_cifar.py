"""A few steps on real CIFAR-10 shards, from a path given on the command line: the same bits for one and two workers."""
import os
import pathlib
import unittest

from cluster import ROOT, WorldTest

DATA = pathlib.Path(os.environ.get("TESSERA_SAMPLE_DATA", ROOT.parent / "shared" / "data")) / "cifar10"


class Cifar(WorldTest):
    def setUp(self):
        super().setUp()
        if not (DATA / "train-000.tar").exists():
            if os.environ.get("TESSERA_REQUIRE_SHARED") == "1":
                self.fail(f"{DATA} holds no CIFAR-10 shards (TESSERA_SAMPLE_DATA)")
            self.skipTest(f"{DATA} holds no CIFAR-10 shards (TESSERA_SAMPLE_DATA)")

    def test_three_steps(self):
        results = [self.run_once("--workers", str(workers), "--steps", "3", config=ROOT / "configs" / "cifar10.yaml", name=f"w{workers}",
                                 sets=[f"operation.data_path={DATA}/train-*.tar", "operation.evaluate.at_end=none"]) for workers in (2, 1)]
        self.assertEqual([r["step"] for r in results], [3, 3])
        for digest in ("state_digest", "batch_digest"):
            self.assertEqual(results[0][digest], results[1][digest])


if __name__ == "__main__":
    unittest.main(verbosity=2)

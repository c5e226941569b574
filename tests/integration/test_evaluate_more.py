"""Every evaluation and picture command on a run of seconds: fields, files, numbers against numpy and scikit-learn, sentences
for bad input. Run by the venv's Python (ops/setup --test)."""
import html.parser
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import unittest

try:
    import numpy as np
    from PIL import Image
    from sklearn.linear_model import LogisticRegression
except ImportError as missing:
    print(f"skipped: {missing}; ops/setup --test installs it", file=sys.stderr)
    sys.exit(1 if os.environ.get("TESSERA_REQUIRE_SHARED") else 77)

from cluster import WorldTest, program

DATA = "scenes:500:64"


def tessera(*words, expect=0, threads=True):
    """The command's JSON, or its stderr where another exit code is expected."""
    command = [program("tessera"), *words] + (["--threads", "1"] if threads else [])
    done = subprocess.run(command + (["--json"] if expect == 0 else []), capture_output=True, text=True, timeout=120)
    if done.returncode != expect:
        raise AssertionError(f"exit {done.returncode}, expected {expect}: {' '.join(command)}\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout) if expect == 0 else done.stderr + done.stdout  # progress goes to stderr


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def knn_accuracy(train, train_labels, test, test_labels, k):
    """DINO's weighted vote, by brute force in double."""
    similarity = unit(test.astype(np.float64)) @ unit(train.astype(np.float64)).T
    right = 0
    for row, truth in zip(similarity, test_labels):
        near = np.argsort(-row, kind="stable")[:k]
        votes = np.bincount(train_labels[near], weights=np.exp(row[near] / 0.07))
        right += int(np.argmax(votes)) == truth
    return right / len(test_labels)


class Evaluation(WorldTest):
    @classmethod
    def setUpClass(cls):
        cls.world = cls("test_low_shot")
        WorldTest.setUp(cls.world)
        cls.world.run_once("--workers", "1", name="run", sets=["function.steps=12", "function.warmup_steps=2", "operation.checkpoint.every_steps=6"])
        cls.run_dir = str(cls.world.ups[0].run_dir)

    @classmethod
    def tearDownClass(cls):
        WorldTest.tearDown(cls.world)

    def out(self, name):
        return str(pathlib.Path(self.folder) / name)

    def fields(self, result, labels=("class", "count", "distance"), baselines=True):
        self.assertEqual(result["schema"], 1)
        self.assertEqual(sorted(result["probes"]), sorted(labels))
        for probe in [result, *result["probes"].values()]:
            self.assertEqual(probe["metric"], "accuracy")
            self.assertTrue(0 <= probe["value"] <= 1 and 0 <= probe["standard_error"] < 0.5, probe)
            if baselines:
                self.assertEqual(sorted(probe["baselines"]), ["pixels", "random_init"])
        self.assertEqual(result["settings"]["step"], 12)
        self.assertEqual(len(result["settings"]["checkpoint_digest"]), 32)

    def test_linear_over_seeds_with_four_blocks(self):
        result = tessera("evaluate", "linear", self.run_dir, "--data", DATA, "--train-images", "150", "--test-images", "80", "--label", "class", "--seeds", "1,2,3", "--features", "last4",
                         "--out", self.out("linear.json"))
        self.fields(result, ["class"])
        self.assertEqual(result["settings"]["features"], "last4")
        self.assertEqual(len(result["values"]), 3)
        self.assertAlmostEqual(result["value"], np.mean(result["values"]), 9)
        self.assertAlmostEqual(result["standard_error"], np.std(result["values"], ddof=1) / 3**0.5, 9)
        self.assertEqual(json.loads(pathlib.Path(self.out("linear.json")).read_text()), result)
        self.assertIn("mix", tessera("evaluate", "linear", self.run_dir, "--data", DATA, "--seeds", "1,2", "--also", self.run_dir, expect=64))
        with Image.open(result["confusion_png"]) as picture:
            self.assertEqual(picture.size[0], picture.size[1])
            self.assertGreater(len(picture.getcolors(100000)), 3)

    def test_linear_over_training_seeds(self):
        self.world.run_once("--workers", "1", name="other", sets=["function.seed=12", "function.steps=4", "function.warmup_steps=1"])
        other = str(self.world.ups[-1].run_dir)
        common = ["--data", DATA, "--train-images", "100", "--test-images", "60", "--label", "class", "--no-baselines"]
        one, two = (tessera("evaluate", "linear", run, *common, "--out", self.out("one.json"))["value"] for run in (self.run_dir, other))
        both = tessera("evaluate", "linear", self.run_dir, *common, "--also", other, "--out", self.out("both.json"))
        self.assertEqual(both["values"], [one, two])
        self.assertAlmostEqual(both["standard_error"], abs(one - two) / 2, 9)
        self.assertEqual([m["step"] for m in both["settings"]["also"]], [4])

    def test_linear_by_stochastic_gradients(self):
        common = ["--data", DATA, "--train-images", "200", "--test-images", "100", "--label", "class", "--no-baselines"]
        best = tessera("evaluate", "linear", self.run_dir, *common, "--out", self.out("lbfgs.json"))
        for solver in ("sgd", "lars"):
            result = tessera("evaluate", "linear", self.run_dir, *common, "--solver", solver, "--epochs", "20", "--batch", "32", "--out", self.out(solver + ".json"))
            self.fields(result, ["class"], baselines=False)
            self.assertEqual((result["settings"]["solver"], result["settings"]["epochs"]), (solver, 20))
            self.assertIn(result["lr"], (0.05, 0.01, 0.001))
            self.assertIn(result["weight_decay"], (0.0005, 0))
            self.assertLess(abs(result["value"] - best["value"]), 0.25)

    def test_features_are_kept(self):
        common = ["evaluate", "linear", self.run_dir, "--data", "scenes:300:64", "--train-images", "120", "--test-images", "50", "--out", self.out("kept.json")]
        first, second = tessera(*common), tessera(*common)
        self.assertEqual([r["settings"]["features_from_cache"] for r in (first, second)], [False, True])
        self.assertEqual(first["probes"], second["probes"])
        words = [program("tessera"), *common, "--threads", "1"]
        self.assertIn("170 images from the cache", subprocess.run(words, capture_output=True, text=True, timeout=120).stderr)
        # Other features, another split, other weights: not the same key.
        for extra in (["--features", "last4"], ["--seed", "3"], ["--encoder", "context"]):
            self.assertFalse(tessera(*common, *extra)["settings"]["features_from_cache"], extra)
        older = self.run_dir + "/checkpoints/step-000000000006"
        self.assertFalse(tessera(*common[:2], older, *common[3:])["settings"]["features_from_cache"])
        # k-NN of the same split reads what the probe kept; a damaged file is made again.
        knn = ["evaluate", "knn", *common[2:-1], self.out("knn-kept.json"), "--k", "20"]
        self.assertTrue(tessera(*knn)["settings"]["features_from_cache"])
        for kept in pathlib.Path(self.run_dir, "evaluation", "cache").iterdir():
            kept.write_bytes(kept.read_bytes()[:-1] + b"\xff")
        self.assertFalse(tessera(*knn)["settings"]["features_from_cache"])

    def test_knn_and_monitors_beside_the_probe(self):
        common = ["--data", DATA, "--train-images", "150", "--test-images", "80", "--label", "class", "--no-baselines"]
        both = tessera("evaluate", "linear", self.run_dir, *common, "--knn", "20", "--out", self.out("both.json"))
        alone = tessera("evaluate", "knn", self.run_dir, *common, "--k", "20", "--out", self.out("alone.json"))
        self.assertEqual(both["knn"]["value"], alone["value"])
        self.assertEqual(both["knn"]["k"], 20)
        for name in ("effective_rank", "deviation_mean", "deviation_min", "mean_cosine"):
            self.assertGreater(both["monitors"][name], 0, name)

    def test_monitors_against_numpy(self):
        folder = self.out("rows")
        tessera("embed", self.run_dir, "--data", "scenes:60:64", "--out", folder)
        rows = np.load(folder + "/embeddings.npy").astype(np.float64)
        result = tessera("evaluate", "monitors", self.run_dir, "--data", "scenes:60:64", "--out", self.out("monitors.json"))
        features = result["features"]
        self.assertAlmostEqual(features["deviation_mean"], rows.std(0, ddof=1).mean(), 4)
        self.assertAlmostEqual(features["deviation_min"], rows.std(0, ddof=1).min(), 4)
        cosine = unit(rows) @ unit(rows).T
        self.assertAlmostEqual(features["mean_cosine"], (cosine.sum() - 60) / (60 * 59), 4)
        values = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
        share = values[values > 0] / values.sum()
        self.assertAlmostEqual(features["effective_rank"], np.exp(-(share * np.log(share)).sum()), 2)
        predictor = result["predictor"]
        cells = [cell for row in predictor["by_position"] for cell in row]
        for table in (cells, list(predictor["by_size"].values())):
            self.assertEqual(sum(cell["blocks"] for cell in table), predictor["blocks"])
            self.assertAlmostEqual(sum(cell["blocks"] * (cell["loss"] or 0) for cell in table) / predictor["blocks"], predictor["loss"], 6)

    def test_finetune(self):
        common = ["--data", DATA, "--train-images", "64", "--test-images", "40", "--label", "class", "--epochs", "2"]
        result = tessera("evaluate", "finetune", self.run_dir, *common, "--seeds", "1,2", "--flip")
        self.fields(result, ["class"])
        self.assertEqual((len(result["values"]), result["settings"]["layer_decay"], result["settings"]["flip"]), (2, 0.75, True))
        few = tessera("evaluate", "low-shot", self.run_dir, *common, "--per-class", "2", "--draws", "2", "--finetune", "--no-baselines")
        self.fields(few, ["class"], baselines=False)
        self.assertEqual((few["labels_known"], few["settings"]["protocol"]), (2 * few["classes"], "low-shot-finetune"))
        self.assertTrue(os.path.exists(self.run_dir + "/evaluation/low-shot-finetune-step-12.json"))

    def test_segment(self):
        images, masks = pathlib.Path(self.folder) / "images", pathlib.Path(self.folder) / "masks"
        for folder in (images, masks):
            folder.mkdir()
        for i in range(90):
            random = np.random.default_rng(i)
            picture, mask = random.integers(0, 120, (64, 64, 3), dtype=np.uint8), np.zeros((64, 64), dtype=np.uint8)
            y, x = random.integers(0, 32, 2)
            picture[y:y + 32, x:x + 32] += 100
            mask[y:y + 32, x:x + 32] = 255
            Image.fromarray(picture).save(images / f"{i:02}.png")
            Image.fromarray(mask).save(masks / f"{i:02}.png")
        words = ["evaluate", "segment", self.run_dir, "--data", str(images), "--masks", str(masks), "--out", self.out("segment.json")]
        result = tessera(*words)
        self.assertEqual(sorted(result["baselines"]), ["majority", "pixels", "random_init"])
        self.assertGreater(result["value"], result["baselines"]["majority"] + 0.1)
        self.assertGreater(result["mean_iou"], 0.6)
        self.assertIn("--test-data", tessera(*words, "--test-data", str(images), expect=64))
        dark = pathlib.Path(self.folder) / "dark"
        dark.mkdir()
        for i in range(90):
            Image.new("L", (64, 64)).save(dark / f"{i:02}.png")
        self.assertIn("one class only", tessera(*words[:-4], "--masks", str(dark), expect=65))
        (masks / "50.png").rename(masks / "50x.png")
        self.assertIn("50x", tessera(*words, expect=65))
        (masks / "50x.png").unlink()
        self.assertIn("one for each image", tessera(*words, expect=65))

    def test_segment_of_scenes(self):
        """The generator's masks need no --masks, and are those that `tessera data make-scenes --masks` writes."""
        common = ["evaluate", "segment", self.run_dir, "--train-images", "100", "--test-images", "30"]
        own = tessera(*common, "--data", "scenes:150:64", "--out", self.out("own.json"))
        self.assertEqual((own["label"], own["classes"], own["metric"], own["settings"]["masks"]), ("object", 2, "accuracy", "scene-masks:150:64"))
        self.assertGreater(own["value"], own["baselines"]["majority"] + 0.03)
        made = tessera("data", "make-scenes", "--out", self.out("images"), "--masks", self.out("masks"), "--count", "150")
        self.assertEqual(made["samples"], 150)
        named = tessera(*common, "--data", self.out("images"), "--masks", self.out("masks"), "--out", self.out("named.json"))
        self.assertEqual(named["probes"], own["probes"])
        other = tessera(*common, "--data", "scenes:150:64", "--masks", "scene-masks:150:64:1", "--out", self.out("other.json"))
        self.assertLess(other["value"], own["value"] - 0.02)
        classes = tessera(*common, "--data", "scenes:150:64", "--label", "class", "--out", self.out("class.json"))
        self.assertEqual((classes["label"], classes["classes"], classes["metric"]), ("class", 7, "mean_iou"))
        self.assertEqual(classes["value"], classes["mean_iou"])
        for name, score in classes["scores"].items():
            self.assertTrue(0 < score["mean_iou"] < score["accuracy"] < 1, name)
            self.assertTrue(0 < score["mean_iou_standard_error"] < 0.1 and 0 < score["accuracy_standard_error"] < 0.1, name)
        self.assertAlmostEqual(classes["baselines"]["majority"], classes["scores"]["majority"]["accuracy"] / 7, 2)  # ground everywhere
        larger = tessera(*common, "--data", "scenes:150:96", "--out", self.out("larger.json"))  # images and masks scaled alike
        self.assertGreater(larger["value"], larger["baselines"]["majority"] + 0.03)
        self.assertIn("at least 10", tessera(*common, "--data", "scenes:20:64", expect=65))
        self.assertIn("whole number", tessera(*common, "--data", "scenes:150:64", "--label", "distance", expect=65))
        self.assertIn("no label colour", tessera(*common, "--data", "scenes:150:64", "--label", "colour", expect=65))
        self.assertIn("--masks", tessera(*common, "--data", self.out("images"), expect=64))

    def test_predictor_pictures(self):
        """A decoder of seconds: files, repeatability, the words for what cannot be."""
        data = ["--data", "scenes:200:64"]
        decoder = self.out("decoder.safetensors")
        trained = tessera("visualize", "train-decoder", self.run_dir, *data, "--steps", "3", "--pairs", "200", "--batch", "8", "--out", decoder)
        self.assertEqual((trained["blocks"], trained["steps"]), (200, 3))
        sheets = []
        for name in ("one", "two"):
            result = tessera("visualize", "predictor", self.run_dir, *data, "--decoder", decoder, "--rows", "2", "--draws", "3", "--out", self.out(name))
            self.assertEqual(result["encoder_digest"], trained["encoder_digest"])
            for number in ("error", "other_error", "deviation"):
                self.assertTrue(0 < result[number] < 1, result)
            sheets.append(pathlib.Path(result["out"]).read_bytes())
        self.assertEqual(sheets[0], sheets[1])
        with Image.open(self.out("one") + "/predictor.png") as picture:
            self.assertEqual(picture.size, (8 + 6 * 136, 8 + 2 * 136))
        own = tessera("visualize", "predictor", self.run_dir, *data, "--steps", "2", "--pairs", "100", "--rows", "2", "--draws", "1", "--out", self.out("own"))
        self.assertEqual(own["training"]["steps"], 2)
        self.assertNotIn("training", tessera("visualize", "predictor", self.run_dir, *data, "--rows", "2", "--draws", "1", "--out", self.out("own")))
        older = self.run_dir + "/checkpoints/step-000000000006"
        message = tessera("visualize", "predictor", older, *data, "--decoder", decoder, "--out", self.out("no"), expect=65)
        self.assertIn("another encoder", message)
        self.assertIn(trained["encoder_digest"], message)
        tessera("export", "huggingface", older, "--out", self.out("encoder-only"), threads=False)
        self.assertIn("no predictor", tessera("visualize", "predictor", self.out("encoder-only"), *data, "--out", self.out("no"), expect=65))
        self.assertIn("no decoder at", tessera("visualize", "predictor", self.run_dir, *data, "--decoder", "/nowhere.safetensors", "--out", self.out("no"), expect=65))
        self.assertIn("fewer than --rows 64", tessera("visualize", "predictor", self.run_dir, "--data", "scenes:40:64", "--decoder", decoder, "--rows", "64", "--out", self.out("no"), expect=65))

    def test_without_labels_and_another_size(self):
        """Monitors and the predictor's pictures need no labels; images of another size are scaled."""
        plain = pathlib.Path(self.folder) / "unlabelled"
        plain.mkdir()
        for i in range(110):
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (50, 90, 3), dtype=np.uint8)).save(plain / f"{i:03}.png")
        result = tessera("evaluate", "monitors", self.run_dir, "--data", str(plain), "--out", self.out("m.json"))
        self.assertEqual(result["settings"]["images"], 110)
        tessera("visualize", "predictor", self.run_dir, "--data", str(plain), "--steps", "1", "--pairs", "100", "--rows", "2", "--draws", "1", "--out", self.out("unlabelled-sheet"))
        self.assertIn("no labels", tessera("evaluate", "finetune", self.run_dir, "--data", str(plain), expect=65))
        near = tessera("neighbours", self.run_dir, str(plain / "007.png"), "--data", str(plain), "--k", "3", "--out", self.out("near.png"))
        self.assertAlmostEqual(near["neighbours"][0]["similarity"], 1, 4)
        for protocol, count in (("linear", "scenes:120:80"), ("knn", "scenes:120:48")):
            self.fields(tessera("evaluate", protocol, self.run_dir, "--data", count, "--no-baselines", *(["--k", "5"] if protocol == "knn" else []), "--out", self.out("sized.json")), baselines=False)

    def test_knn_and_linear_against_numpy_and_scikit_learn(self):
        train_data, test_data = "scenes:400:64", "scenes:300:64"  # the same first scenes: only the arithmetic matters here
        folders = {name: self.out(name) for name in ("train", "test")}
        for name, data in (("train", train_data), ("test", test_data)):
            tessera("embed", self.run_dir, "--data", data, "--out", folders[name])
        train, test = (np.load(folders[n] + "/embeddings.npy") for n in ("train", "test"))
        train_labels, test_labels = (np.load(folders[n] + "/labels.npy") for n in ("train", "test"))
        common = ["--data", train_data, "--test-data", test_data, "--train-images", "400", "--test-images", "300", "--label", "class", "--no-baselines"]
        knn = tessera("evaluate", "knn", self.run_dir, *common, "--k", "5,20,50", "--out", self.out("knn.json"))
        self.fields(knn, ["class"], baselines=False)
        self.assertEqual(knn["value"], knn["by_k"]["20"]["weighted"])
        for k in (5, 20, 50):
            self.assertAlmostEqual(knn["by_k"][str(k)]["weighted"], knn_accuracy(train, train_labels, test, test_labels, k), delta=1.5 / 300, msg=f"k {k}")
        ours = tessera("evaluate", "linear", self.run_dir, *common, "--out", self.out("linear.json"))
        mean, deviation = train.mean(0), train.std(0)
        theirs = LogisticRegression(C=1 / ours["l2"], max_iter=2000).fit((train - mean) / deviation, train_labels)
        # Half a point, and two pictures for where the optimisers stop.
        self.assertAlmostEqual(ours["value"], theirs.score((test - mean) / deviation, test_labels), delta=0.005 + 2 / 300)

    def test_low_shot(self):
        result = tessera("evaluate", "low-shot", self.run_dir, "--data", DATA, "--train-images", "200", "--test-images", "80", "--per-class", "3", "--draws", "3", "--label", "class")
        self.fields(result, ["class"])
        self.assertEqual((len(result["values"]), result["labels_known"]), (3, 3 * result["classes"]))
        self.assertAlmostEqual(result["standard_error"], np.std(result["values"], ddof=1) / 3**0.5, 9)
        share = tessera("evaluate", "low-shot", self.run_dir, "--data", DATA, "--train-images", "200", "--test-images", "80", "--percent", "10", "--draws", "2", "--label", "count", "--no-baselines",
                        "--out", self.out("low.json"))
        self.assertEqual(share["labels_known"], 20)

    def test_attentive(self):
        result = tessera("evaluate", "attentive", self.run_dir, "--data", DATA, "--train-images", "100", "--test-images", "50", "--label", "class", "--epochs", "2")
        self.fields(result, ["class"])

    def test_embed_writes_what_numpy_and_safetensors_read(self):
        for pool, shape in (("mean", (40, 48)), ("last4", (40, 96)), ("patches", (40, 64, 48))):
            folder = self.out(pool)
            result = tessera("embed", self.run_dir, "--data", DATA, "--out", folder, "--pool", pool, "--limit", "40", *(["--projector"] if pool == "mean" else []))
            self.assertEqual(tuple(result["shape"]), shape)
            rows = np.load(folder + "/embeddings.npy", mmap_mode="r")
            self.assertEqual((rows.shape, rows.dtype, rows.flags.c_contiguous), (shape, np.float32, True))
            self.assertEqual(len(pathlib.Path(folder, "ids.txt").read_text().splitlines()), 40)
            labels = np.load(folder + "/labels.npy")
            self.assertEqual((labels.shape, labels.dtype), ((40,), np.int64))
            raw = pathlib.Path(folder, "embeddings.safetensors").read_bytes()
            size = struct.unpack("<Q", raw[:8])[0]
            header = json.loads(raw[8:8 + size])
            begin, end = header["embeddings"]["data_offsets"]
            self.assertEqual(raw[8 + size + begin:8 + size + end], np.ascontiguousarray(rows).tobytes())
            self.assertEqual(sorted(k for k in header if k.startswith("labels.")), ["labels.class", "labels.count", "labels.distance"])
        patches, mean = (np.load(self.out(p) + "/embeddings.npy") for p in ("patches", "mean"))
        np.testing.assert_allclose(patches.mean(1), mean, atol=1e-5)
        vectors = np.loadtxt(self.out("mean") + "/vectors.tsv", delimiter="\t")
        np.testing.assert_allclose(vectors, mean, rtol=1e-4, atol=1e-5)
        self.assertEqual(len(pathlib.Path(self.out("mean"), "metadata.tsv").read_text().splitlines()), 41)

    def test_neighbours(self):
        folder = self.out("bank")
        tessera("embed", self.run_dir, "--data", DATA, "--out", folder)
        rows, keys = unit(np.load(folder + "/embeddings.npy").astype(np.float64)), pathlib.Path(folder, "ids.txt").read_text().splitlines()
        similarity = rows[7] @ rows.T
        expected = [keys[i] for i in np.argsort(-similarity, kind="stable") if i != 7][:5]
        for extra in ([], ["--embeddings", folder]):
            result = tessera("neighbours", self.run_dir, keys[7], "--data", DATA, "--k", "5", "--out", self.out("near.png"), *extra)
            self.assertEqual([n["key"] for n in result["neighbours"]], expected)
            with Image.open(self.out("near.png")) as picture:
                self.assertGreater(picture.size[0], picture.size[1])
        # A file, in data without labels.
        plain = pathlib.Path(self.folder) / "plain"
        plain.mkdir()
        for i in range(12):
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(plain / f"{i:02}.png")
        result = tessera("neighbours", self.run_dir, str(plain / "03.png"), "--data", str(plain), "--k", "3", "--out", self.out("plain.png"))
        self.assertIn("03", result["neighbours"][0]["key"])
        self.assertAlmostEqual(result["neighbours"][0]["similarity"], 1, 4)
        for protocol in (["linear"], ["knn"], ["low-shot", "--per-class", "1"]):
            self.assertIn("no labels", tessera("evaluate", *protocol, self.run_dir, "--data", str(plain), "--train-images", "10", "--test-images", "10", "--test-data", str(plain), expect=65))
        embedded = tessera("embed", self.run_dir, "--data", str(plain), "--out", self.out("plain-embeddings"))
        self.assertEqual(embedded["samples"], 12)
        self.assertFalse(os.path.exists(self.out("plain-embeddings") + "/labels.npy"))
        self.assertIn("other data", tessera("neighbours", self.run_dir, keys[7], "--data", str(plain), "--k", "3", "--out", self.out("x.png"), "--embeddings", folder, expect=65))

    def test_pictures(self):
        for what in ("pca", "attention"):
            result = tessera("visualize", what, self.run_dir, "--data", DATA, "--rows", "3", "--out", self.out(what + ".png"))
            with Image.open(result["out"]) as picture:
                self.assertGreater(len(picture.convert("RGB").getcolors(1 << 24)), 100)

    def test_report(self):
        tessera("evaluate", "knn", self.run_dir, "--data", DATA, "--train-images", "100", "--test-images", "50")
        tessera("visualize", "masks", self.run_dir, threads=False)
        for step in (10, 20):
            online = {"probes": {"class": {"value": step / 100, "knn": {"value": 0.1}}}, "monitors": {"effective_rank": step, "deviation_mean": 0.5, "mean_cosine": 0.9}}
            (pathlib.Path(self.run_dir) / "evaluation" / f"online-step-{step}.json").write_text(json.dumps(online))
        for step in (100, 90):
            (pathlib.Path(self.run_dir) / "evaluation" / f"linear-step-{step}.json").write_text('{"value": 0.5, "label": "<b>"}')
        (pathlib.Path(self.run_dir) / "evaluation" / "torn.json").write_text('{"value":')
        result = tessera("evaluate", "report", self.run_dir, threads=False)
        self.assertEqual((result["steps"], result["checkpoints"]), (12, 2))
        self.assertGreaterEqual(result["evaluations"], 1)
        self.assertGreaterEqual(result["pictures"], 1)
        page = pathlib.Path(result["out"]).read_text()
        self.assertEqual(re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)""", page), [], "the page refers to another file")
        self.assertIn("knn-step-12", page)
        self.assertLess(page.index("linear-step-90"), page.index("linear-step-100"))
        self.assertIn("&lt;b&gt;", page)
        for curve in ("class: linear probe, %", "class: k-NN, %", "images: effective rank"):
            self.assertIn(curve, page)
        self.assertIn("torn.json cannot be read", page)
        self.assertGreaterEqual(page.count("<svg"), 3)

        class Balance(html.parser.HTMLParser):
            open_tags = []

            def handle_starttag(self, tag, attrs):
                if tag not in ("meta", "img"):
                    self.open_tags.append(tag)

            def handle_endtag(self, tag):
                assert self.open_tags and self.open_tags.pop() == tag, f"</{tag}> ends nothing"
        parser = Balance()
        parser.feed(page.replace("/>", ">").replace("<path", "<img").replace("<polyline", "<img"))
        self.assertEqual(parser.open_tags, [])

    def test_other_models(self):
        """A checkpoint folder, a Hugging Face folder and a published file give the run's own embeddings."""
        rows = []
        newest = self.run_dir + "/checkpoints/step-000000000012"
        tessera("export", "huggingface", newest, "--out", self.out("hub"), threads=False)
        tessera("export", "pth", newest, "--out", self.out("published"), threads=False)
        published = next(str(p) for p in pathlib.Path(self.out("published")).iterdir())
        for i, (model, extra) in enumerate(((self.run_dir, []), (newest, []), (self.out("hub"), []), (published, ["--heads", "3"]))):
            tessera("embed", model, "--data", "scenes:20:64", "--out", self.out(f"e{i}"), *extra)
            rows.append(np.load(self.out(f"e{i}") + "/embeddings.npy"))
        for other in rows[1:]:
            np.testing.assert_allclose(other, rows[0], atol=1e-4)

    def test_sentences_for_bad_input(self):
        data = ["--data", DATA]
        full = pathlib.Path(self.folder) / "full"
        full.mkdir()
        (full / "a").write_text("x")
        one = pathlib.Path(self.folder) / "one"
        (one / "only").mkdir(parents=True)
        for i in range(100):
            Image.new("RGB", (16, 16), (i, i, i)).save(one / "only" / f"{i}.png")
        cases = (
            (["evaluate", "knn", "nowhere", *data], 65, "nowhere"),
            (["evaluate", "knn", self.run_dir, "--data", str(one)], 65, "one class only"),
            (["evaluate", "knn", self.run_dir, "--data", "scenes:100:64", "--k", "5000"], 65, "5000"),
            (["evaluate", "linear", self.run_dir, "--data", "scenes:20:64"], 65, "at least 10"),
            (["evaluate", "low-shot", self.run_dir, "--data", "scenes:100:64", "--per-class", "90"], 65, "fewer than --per-class 90"),
            (["evaluate", "low-shot", self.run_dir, *data], 64, "--per-class"),
            (["evaluate", "attentive", self.run_dir, *data, "--train-images", "90000000"], 64, "lower --train-images"),
            (["evaluate", "nonsense", self.run_dir], 64, "nonsense"),
            (["evaluate", "linear", self.run_dir, *data, "--label", "colour"], 65, "colour"),
            (["embed", self.run_dir, *data, "--out", str(full)], 64, "not an empty folder"),
            (["embed", self.run_dir, *data, "--out", self.out("e"), "--limit", "501"], 65, "fewer than --limit 501"),
            (["embed", self.run_dir, *data, "--out", "/proc/nothing/here"], 74, "/proc/nothing"),
            (["neighbours", self.run_dir, "no-such-key", *data, "--out", self.out("n.png")], 65, "no-such-key"),
            (["neighbours", self.run_dir, "00000001", "--data", "scenes:5:64", "--out", self.out("n.png")], 65, "fewer than --k 8"),
            (["neighbours", self.run_dir, __file__, *data, "--out", self.out("n.png")], 65, "no image"),
            (["neighbours", self.run_dir, "00000001", *data, "--limit", "900", "--out", self.out("n.png")], 65, "fewer than --limit 900"),
            (["neighbours", self.run_dir, "00000001", *data, "--out", "/proc/nothing/n.png"], 74, "/proc/nothing"),
            (["evaluate", "knn", self.run_dir, *data, "--out", "/proc/nothing/k.json"], 74, "/proc/nothing"),
            (["visualize", "pca", self.run_dir, *data, "--out", "/proc/nothing/p.png"], 74, "/proc/nothing"),
            (["visualize", "pca", self.run_dir], 64, "--data"),
            (["evaluate", "finetune", self.run_dir, "--data", str(one)], 65, "one class only"),
            (["evaluate", "finetune", self.run_dir, *data, "--train-images", "90000000"], 64, "lower --train-images"),
            (["evaluate", "low-shot", self.run_dir, "--data", "scenes:100:64", "--per-class", "90", "--finetune"], 65, "fewer than --per-class 90"),
            (["evaluate", "monitors", self.run_dir, "--data", "scenes:5:64"], 65, "at least 10"),
        )
        for words, code, needle in cases:
            with self.subTest(words=words):
                message = tessera(*words, expect=code, threads=words[:2] != ["evaluate", "nonsense"])
                self.assertIn(needle, message)
                self.assertEqual(len([line for line in message.splitlines() if line.startswith("tessera ")]), 1, message)
        self.assertIn("--solver", tessera("evaluate", "linear", self.run_dir, *data, "--solver", "adam", expect=64))
        self.assertIn("no run", tessera("evaluate", "report", self.folder, expect=65, threads=False))


if __name__ == "__main__":
    unittest.main(verbosity=2)

#!/usr/bin/env python3
"""Exports of tessera-model in the programs that they are for: transformers and torch.load.

usage: test_exports.py TESSERA_MODEL GOLDENS    (with the venv's Python; exits 77 when the goldens are not there)
"""
import glob
import json
import os
import subprocess
import sys
import tempfile
import unittest

TOOL, GOLDENS = sys.argv[1], sys.argv[2]
CHECKPOINTS = sorted(glob.glob(os.path.join(GOLDENS, "checkpoint", "*-latest.pth.tar")))
if not CHECKPOINTS:
    print(f"no {GOLDENS}/checkpoint/*-latest.pth.tar", file=sys.stderr)
    sys.exit(1 if os.environ.get("TESSERA_REQUIRE_SHARED") == "1" else 77)

import torch  # noqa: E402
import transformers  # noqa: E402

torch.set_num_threads(1)


def tool(*arguments):
    """Runs tessera-model ... --json; the object of its last line."""
    done = subprocess.run([TOOL, *arguments, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, (arguments, done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def heads_of(path):
    case = os.path.join(GOLDENS, os.path.basename(path).split("-latest")[0], "steps.json")
    with open(case) as file:
        return str(json.load(file)["config"]["heads"])


class Exports(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.source = CHECKPOINTS[0]
        cls.published = torch.load(cls.source, weights_only=True)
        cls.checkpoint = os.path.join(cls.folder.name, "checkpoint")
        cls.imported = tool("import", "ijepa", cls.source, "--heads", heads_of(cls.source), "--out", cls.checkpoint)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def test_import_counts_every_tensor(self):
        networks = sum(len(self.published[name]) for name in ("encoder", "target_encoder", "predictor"))
        moments = 3 * len(self.published["opt"]["state"])  # step, exp_avg, exp_avg_sq
        self.assertEqual(self.imported["tensors"], networks + moments)
        self.assertEqual(self.imported["schema"], 1)
        self.assertEqual(self.imported["epoch"], self.published["epoch"])

    def test_hugging_face(self):
        expected = sorted(glob.glob(os.path.join(GOLDENS, "checkpoint", "hf_*_expected.safetensors")))
        if not expected:
            self.skipTest("no hf_*_expected.safetensors")
        from safetensors.torch import load_file

        golden = load_file(expected[0])
        out = tool("export", "huggingface", self.checkpoint, "--out", self.path("hf"), "--weights", "context")
        model, info = transformers.IJepaModel.from_pretrained(self.path("hf"), output_loading_info=True)
        self.assertFalse(info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"], info)
        self.assertEqual(model.config.layer_norm_eps, 1e-6)
        mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        with torch.no_grad():
            for images, states, up in (("images_u8", "last_hidden_state", False), ("images_up_u8", "last_hidden_state_up_interpolated", True)):
                pixels = (golden[images].float() / 255 - mean) / std
                hidden = model(pixels, interpolate_pos_encoding=up).last_hidden_state
                self.assertLessEqual((hidden - golden[states]).abs().max().item(), 1e-5, images)
        processor = transformers.AutoImageProcessor.from_pretrained(self.path("hf"))
        self.assertEqual(list(processor.image_mean), [0.485, 0.456, 0.406])
        self.assertEqual(list(processor.image_std), [0.229, 0.224, 0.225])
        self.assertEqual(out["tensors"], len(model.state_dict()))
        self.assertEqual(type(transformers.AutoModel.from_pretrained(self.path("hf"))).__name__, "IJepaModel")

    def test_target_and_context_are_what_they_say(self):
        for weights, network in (("target", "target_encoder"), ("context", "encoder")):
            tool("export", "huggingface", self.checkpoint, "--out", self.path("hf-" + weights), "--weights", weights)
            tool("export", "safetensors", self.checkpoint, "--out", self.path("st-" + weights), "--weights", weights)
            tool("export", "pth", self.checkpoint, "--out", self.path("pth-" + weights), "--weights", weights)
            wanted = {name.removeprefix("module."): tensor for name, tensor in self.published[network].items()}
            model = transformers.IJepaModel.from_pretrained(self.path("hf-" + weights))
            self.assertTrue(torch.equal(model.embeddings.position_embeddings, wanted["pos_embed"]))
            self.assertTrue(torch.equal(model.layernorm.weight, wanted["norm.weight"]))
            from safetensors.torch import load_file

            plain = load_file(self.path(f"st-{weights}/model.safetensors"))
            self.assertEqual(plain.keys(), wanted.keys())
            one = torch.load(self.path(f"pth-{weights}/model.pth.tar"), weights_only=True)
            self.assertEqual(list(one), [network])
            for name, tensor in wanted.items():
                self.assertTrue(torch.equal(plain[name], tensor), name)
                self.assertTrue(torch.equal(one[network]["module." + name], tensor), name)

    def test_whole_pth_is_the_published_checkpoint_again(self):
        steps = self.imported["step"] // max(1, self.imported["epoch"])
        tool("export", "pth", self.checkpoint, "--out", self.path("pth"), "--steps-per-epoch", str(steps))
        path = self.path("pth/model.pth.tar")
        for kwargs in ({}, {"mmap": True}):
            again = torch.load(path, weights_only=True, **kwargs)
            for network in ("encoder", "target_encoder", "predictor"):
                self.assertEqual(list(again[network]), list(self.published[network]))
                for name, tensor in self.published[network].items():
                    self.assertTrue(torch.equal(again[network][name], tensor), name)
            self.assertEqual(again["opt"]["state"].keys(), self.published["opt"]["state"].keys())
            for index, entry in self.published["opt"]["state"].items():
                for key, value in entry.items():
                    self.assertTrue(torch.equal(again["opt"]["state"][index][key], value), (index, key))
            self.assertEqual([g["params"] for g in again["opt"]["param_groups"]], [g["params"] for g in self.published["opt"]["param_groups"]])
            self.assertEqual(again["epoch"], self.published["epoch"])
        twice = tool("import", "ijepa", path, "--heads", heads_of(self.source), "--out", self.path("again"))
        self.assertEqual(twice["state_digest"], self.imported["state_digest"])

    def test_bf16_and_views(self):
        """bf16 weights, tensors that are windows of shared storages, no optimizer."""
        changed = {k: v for k, v in self.published.items() if k != "opt"}
        for network in ("encoder", "target_encoder", "predictor"):
            changed[network] = {name: tensor.bfloat16() if tensor.dim() == 2 else tensor for name, tensor in self.published[network].items()}
        for network in ("encoder", "target_encoder"):
            weight = changed[network]["module.blocks.0.attn.proj.weight"].float()
            changed[network]["module.blocks.0.attn.proj.weight"] = torch.stack([torch.zeros_like(weight), weight])[1].t().contiguous().t()
        torch.save(changed, self.path("bf16.pth.tar"))
        out = tool("import", "ijepa", self.path("bf16.pth.tar"), "--heads", heads_of(self.source), "--steps-per-epoch", "5", "--out", self.path("bf16"))
        self.assertTrue(any(line.startswith("opt") for line in out["skipped"]), out)
        tool("export", "pth", self.path("bf16"), "--out", self.path("bf16-pth"), "--weights", "context")
        again = torch.load(self.path("bf16-pth/model.pth.tar"), weights_only=True)["encoder"]
        for name, tensor in changed["encoder"].items():
            self.assertTrue(torch.equal(again[name], tensor.float()), name)

    def test_files_that_are_refused(self):
        def message(path, *more):
            done = subprocess.run([TOOL, "import", "ijepa", path, "--heads", "3", "--out", self.path("refused"), *more], capture_output=True, text=True)
            self.assertNotEqual(done.returncode, 0)
            self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
            self.assertFalse(os.path.exists(self.path("refused")))
            return done.stderr

        class Evil:
            def __reduce__(self):
                return os.system, (f"touch {self.path}",)

        evil = Evil()
        evil.path = self.path("executed")
        torch.save({"encoder": evil}, self.path("evil.pth.tar"))
        self.assertRegex(message(self.path("evil.pth.tar")), r"data.pkl byte \d+, opcode GLOBAL: (posix|os)\.system is refused")
        self.assertFalse(os.path.exists(self.path("executed")))
        torch.save(self.published, self.path("old.pth.tar"), _use_new_zipfile_serialization=False)
        self.assertIn("before version 1.6", message(self.path("old.pth.tar")))
        partial = dict(self.published)
        partial["encoder"] = {k: v for k, v in partial["encoder"].items() if "blocks.0.norm2.bias" not in k}
        torch.save(partial, self.path("partial.pth.tar"))
        self.assertIn("encoder.blocks.0.norm2.bias is missing", message(self.path("partial.pth.tar")))
        torch.save({"model": {}}, self.path("other.pth.tar"))
        self.assertIn("the file has the keys model", message(self.path("other.pth.tar")))
        shapes = dict(self.published)
        shapes["target_encoder"] = {k: (v[:-1] if k.endswith("norm.bias") else v) for k, v in shapes["target_encoder"].items()}
        torch.save(shapes, self.path("shapes.pth.tar"))
        self.assertRegex(message(self.path("shapes.pth.tar")), r"target_encoder.norm.bias is \[\d+\], the rest of the file needs \[\d+\]")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)

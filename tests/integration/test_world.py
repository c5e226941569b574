"""The one idea, on real processes: the same weights for any number of workers and loaders and any deaths on the way."""
import contextlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import unittest

from cluster import ROOT, TINY, Up, WorldTest, processes, program, wait_for


SWEEP = ["function.steps=170", "operation.checkpoint.every_steps=25"]


class SameBits(WorldTest):
    _reference = None

    def reference(self):
        if SameBits._reference is None:
            SameBits._reference = self.run_once("--workers", "1", name="reference")
        return SameBits._reference

    def assert_same(self, result):
        reference = self.reference()
        self.assertEqual(result["step"], reference["step"])
        self.assertEqual(result["state_digest"], reference["state_digest"])
        self.assertEqual(result["batch_digest"], reference["batch_digest"])

    def test_any_number_of_workers_and_loaders(self):
        self.assertEqual(self.reference()["step"], 30)
        for workers, loaders in ((2, 1), (3, 2), (4, 1)):
            with self.subTest(workers=workers, loaders=loaders):
                self.assert_same(self.run_once("--workers", str(workers), "--loaders", str(loaders), name=f"w{workers}l{loaders}"))

    def test_more_workers_than_tiles_are_spares(self):
        self.assert_same(self.run_once("--workers", "7", name="spares"))

    def test_loader_threads_do_not_matter(self):
        self.assert_same(self.run_once("--workers", "2", sets=["operation.loader_threads=3"], name="threads"))

    def test_local_and_broadcast_ema_agree(self):
        self.assert_same(self.run_once("--workers", "2", sets=["operation.ema_distribution=local"], name="local"))

    def test_every_mask_mode_and_placement(self):
        """Tiny runs of each kind of masking: three workers and two loaders give the bits of one."""
        for kind in (["masks.mode=uniform"], ["masks.mode=reference"], ["masks.kind=random"], ["masks.kind=block"], ["masks.kind=rasterized"], ["masks.target_masking=input"],
                     ["masks.mode=uniform", "masks.contexts=2", "masks.allow_overlap=true", "batch.tiles_per_mask_group=3"]):
            with self.subTest(kind=kind):
                sets = [f"function.{item}" for item in kind] + ["function.steps=5", "function.warmup_steps=1"]
                name = "-".join(item.split("=")[-1] for item in kind)
                one = self.run_once("--workers", "1", sets=sets, name=name + "-1")
                three = self.run_once("--workers", "3", "--loaders", "2", sets=sets + ["operation.loader_threads=2"], name=name + "-3")
                self.assertEqual((one["state_digest"], one["batch_digest"]), (three["state_digest"], three["batch_digest"]))

    def test_context_lengths_are_multiples_when_asked(self):
        """function.masks.context_multiple reaches the trainers: every step's context is cut to a multiple, same bits for two workers."""
        sets = ["function.masks.context_multiple=4", "function.steps=6", "function.warmup_steps=1"]
        one = self.run_once("--workers", "1", sets=sets, name="multiple1")
        up = self.up("--workers", "2", sets=sets, name="multiple2")
        two = up.finish()
        self.assertEqual((one["state_digest"], one["batch_digest"]), (two["state_digest"], two["batch_digest"]))
        lengths = [json.loads(line)["context_length"] for line in (up.run_dir / "metrics.jsonl").read_text().splitlines()]
        self.assertEqual(len(lengths), 6)
        self.assertTrue(all(length > 0 and length % 4 == 0 for length in lengths), lengths)

    def test_gradients_that_are_not_finite_are_skipped_by_all_and_end_the_run(self):
        """Weights that grow beyond fp32 (a decay of ten thousand times a step): every rank skips, the run stops after max_skipped_steps in a row."""
        sets = ["function.optimizer.lr=100", "function.optimizer.start_lr=100", "function.optimizer.final_lr=100", "function.optimizer.weight_decay=100", "function.optimizer.final_weight_decay=100",
                "operation.max_skipped_steps=3", "operation.checkpoint.every_steps=0"]
        up = self.up("--workers", "2", sets=sets, name="notfinite")
        up.finish(expect=80)
        steps = [json.loads(line) for line in (up.run_dir / "metrics.jsonl").read_text().splitlines()]
        skipped = [step["skipped"] for step in steps]
        self.assertEqual(skipped[-3:], [True] * 3)
        self.assertFalse(skipped[0], "the first gradient is an ordinary one")
        self.assertEqual(len({step["state_digest"] for step in steps[-3:]}), 1, "a skipped step changes neither weights nor moments")
        self.assertIn("3 steps in a row had a gradient that is not finite", up.stderr())

    def test_integer_sums_keep_the_bits_for_any_number_of_workers_and_a_kill(self):
        """function.reduction fixed32: 1 to 5 workers, one killed in mid-run, and a checkpoint resumed with another number."""
        sets = ["function.reduction=fixed32", "function.steps=14", "operation.checkpoint.every_steps=4"]
        one = self.run_once("--workers", "1", sets=sets, name="fixed1")
        self.assertEqual(one["step"], 14)
        for workers in (2, 3, 4, 5):
            with self.subTest(workers=workers):
                up = self.up("--workers", str(workers), sets=sets, name=f"fixed{workers}")
                if workers in (3, 5):
                    up.wait_step(5)
                    os.kill(up.pids("tessera-trainer")[1], signal.SIGKILL)
                result = up.finish()
                self.assertEqual((result["state_digest"], result["batch_digest"]), (one["state_digest"], one["batch_digest"]))
        self.run_once("--workers", "2", "--steps", "9", sets=sets, name="fixedresumed")
        result = self.up("--workers", "3", "--resume", sets=sets, name="fixedresumed").finish()
        self.assertEqual(result["state_digest"], one["state_digest"])

    def test_fast_sums_survive_a_kill_and_accuse_nobody(self):
        sets = ["function.reduction=fast", "function.steps=14", "operation.checkpoint.every_steps=4"]
        up = self.up("--workers", "3", sets=sets, name="fast")
        up.wait_step(6)
        for pid in up.pids("tessera-trainer"):  # nobody is left: steps are evaluated again from the checkpoint
            os.kill(pid, signal.SIGKILL)
        self.assertEqual(up.finish()["step"], 14)
        verified = subprocess.run([program("tessera"), "verify", str(up.run_dir), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.assertEqual(verified.returncode, 0, verified.stderr)
        self.assertIn("states were not compared", verified.stderr)

    def test_trainer_killed_in_mid_run(self):
        up = self.up("--workers", "2", name="killed")
        up.wait_step(7)
        os.kill(up.pids("tessera-trainer")[0], signal.SIGKILL)
        result = up.finish()
        self.assertGreaterEqual(result["generations"], 2)
        self.assert_same(result)

    def test_every_trainer_killed_at_once(self):
        up = self.up("--workers", "2", name="allkilled")
        up.wait_step(13)
        for pid in up.pids("tessera-trainer"):
            os.kill(pid, signal.SIGKILL)
        self.assert_same(up.finish())
        self.ledger(up)

    def test_coordinator_killed_again_and_again(self):
        up = self.up("--workers", "2", name="headless")
        for step in (4, 10, 19):
            up.wait_step(step)
            pid = up.pids("tessera-coordinator")[0]
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: up.pids("tessera-coordinator") not in ([], [pid]), "a new coordinator")
        result = up.finish()
        self.assert_same(result)
        self.assertIn("the coordinator ended", up.stderr())
        self.assertEqual(sorted(self.ledger(up)), list(range(30)))

    def test_loader_killed(self):
        up = self.up("--workers", "2", "--loaders", "2", name="loaderkilled")
        up.wait_step(5)
        os.kill(up.pids("tessera-loader")[0], signal.SIGKILL)
        self.assert_same(up.finish())

    def test_hung_trainer_is_replaced(self):
        up = self.up("--workers", "2", name="hung")
        up.wait_step(6)
        os.kill(up.pids("tessera-trainer")[1], signal.SIGSTOP)
        self.assert_same(up.finish())

    def test_everything_killed_then_resumed(self):
        up = self.up("--workers", "2", name="run")
        up.wait_step(16)
        up.kill()
        again = self.up("--workers", "3", "--resume", name="run")
        self.assert_same(again.finish())
        self.ledger(again)

    def test_stopped_by_ctrl_c_then_resumed(self):
        up = self.up("--workers", "2", name="run")
        up.wait_step(4)
        up.process.send_signal(signal.SIGINT)
        stopped = up.finish(expect=75)
        self.assertLess(stopped["step"], 30)
        self.assertTrue(stopped["checkpoints"])
        self.assertIn("--resume", up.stderr())
        self.assertEqual(processes("tessera-trainer", str(up.run_dir)), [])
        self.assert_same(self.up("--workers", "1", "--resume", name="run").finish())

    def test_steps_flag_stops_and_resume_goes_on(self):
        first = self.run_once("--workers", "2", "--steps", "12", name="run")
        self.assertEqual(first["step"], 12)
        self.assert_same(self.run_once("--workers", "2", "--resume", name="run"))


class Drain(WorldTest):
    """A node asked to leave (SIGTERM, as a scheduler's pre-emption) does so at a boundary: nothing is evaluated twice."""

    def coordinator(self, *sets):
        run = os.path.join(self.folder, "drain")
        command = [program("tessera-coordinator"), str(TINY), "--run-dir", run]
        for item in ("function.steps=400", "function.warmup_steps=5", "operation.run_id=drain", *sets):
            command += ["--set", item]
        self.children = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]
        self.addCleanup(self.end_children)
        address = os.path.join(run, "address.json")
        wait_for(lambda: os.path.exists(address), "the coordinator's address")
        self.start("tessera-loader", "--coordinator", address, "--name", "l")
        return run, address

    def start(self, name, *arguments):
        child = subprocess.Popen([program(name), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.children.append(child)
        return child

    def end_children(self):
        for child in self.children:
            child.kill()
            child.wait()

    def status(self, run):
        import urllib.request
        url = json.loads(pathlib.Path(run, "address.json").read_text())["http"]
        with urllib.request.urlopen(url + "/api/v1/status", timeout=5) as reply:
            return json.load(reply)

    def events(self, run):
        return [json.loads(line)["text"] for line in pathlib.Path(run, "events.jsonl").read_text().splitlines()]

    def test_a_node_leaves_at_a_boundary(self):
        run, address = self.coordinator("operation.min_workers=1")
        self.start("tessera-worker", "--coordinator", address, "--name", "a", "--workers", "1")
        leaver = self.start("tessera-worker", "--coordinator", address, "--name", "b", "--workers", "1")
        wait_for(lambda: self.status(run)["progress"]["step"] >= 10 and sum(w["state"] == "RUNNING" for w in self.status(run)["workers"]) == 2, "two workers train")
        leaver.send_signal(signal.SIGTERM)
        self.assertEqual(leaver.wait(timeout=60), 75)
        self.assertEqual(self.children[0].wait(timeout=120), 0)
        events = self.events(run)
        self.assertTrue(any("drains (SIGTERM): 1 workers leave at the next boundary" in text for text in events), events)
        stopped = next(i for i, text in enumerate(events) if "workers leave with their node" in text)
        boundary = re.search(r"stopped at step (\d+)", events[stopped]).group(1)
        self.assertTrue(any(f"1 workers from step {boundary}:" in text for text in events[stopped:]), events)
        reference = self.run_once("--workers", "1", sets=["function.steps=400", "function.warmup_steps=5"], name="one")
        self.assertEqual(reference["state_digest"], json.loads(pathlib.Path(run, "checkpoints", "step-%012d" % 400, "manifest.json").read_text())["state_digest"])

    def test_the_last_node_leaves_a_checkpoint(self):
        run, address = self.coordinator("operation.checkpoint.every_steps=1000")
        leaver = self.start("tessera-worker", "--coordinator", address, "--name", "a", "--workers", "2")
        wait_for(lambda: self.status(run)["progress"]["step"] >= 10, "steps")
        leaver.send_signal(signal.SIGTERM)
        self.assertEqual(leaver.wait(timeout=60), 75)
        step = wait_for(lambda: self.status(run)["checkpoint"]["last_step"], "a checkpoint")
        self.assertGreaterEqual(step, 10)
        self.start("tessera-worker", "--coordinator", address, "--name", "c", "--workers", "1")
        self.assertEqual(self.children[0].wait(timeout=120), 0)
        self.assertTrue(any(f"1 workers from step {step}" in text for text in self.events(run)))


class Abandoned(Drain):
    def test_a_loader_leaves_when_its_coordinator_is_gone_for_good(self):
        run, address = self.coordinator()
        loader = self.start("tessera-loader", "--coordinator", address, "--name", "short", "--abandoned-seconds", "7")
        wait_for(lambda: sum(entry["state"] == "SERVING" for entry in self.status(run)["loaders"]) == 2, "both loaders serve")
        import time
        time.sleep(9)  # assignments are repeated: with a coordinator it stays
        self.assertIsNone(loader.poll())
        self.children[0].kill()
        self.assertEqual(loader.wait(timeout=40), 69)
        self.assertIsNone(self.children[1].poll(), "the other one has ten minutes")

    test_a_node_leaves_at_a_boundary = test_the_last_node_leaves_a_checkpoint = None


class Chaos(WorldTest):
    def test_a_run_under_drawn_faults_has_the_bits_of_one_without(self):
        done = subprocess.run([program("tessera"), "chaos", str(TINY), "--set", "function.steps=100000", "--set", "operation.checkpoint.every_steps=100", "--kill-every", "2s", "--for", "12s",
                               "--seed", "3", "--json"], capture_output=True, text=True, timeout=200, cwd=self.folder)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        report = json.loads(done.stdout.splitlines()[-1])
        self.assertGreaterEqual(report["faults"], 4)
        self.assertTrue(report["equal"] and report["ledger_ok"])
        self.assertEqual((report["lost"], report["repeated"]), (0, 0))
        self.assertGreater(report["goodput"], 0)
        replayed = subprocess.run([program("tessera"), "replay", report["run_dir"], "--step", str(report["steps"] - 1), "--workers", "1", "--json"], capture_output=True, text=True, timeout=200, cwd=self.folder)
        self.assertEqual(replayed.returncode, 0, replayed.stdout + replayed.stderr)
        self.assertTrue(json.loads(replayed.stdout.splitlines()[-1])["ok"])


class Sweep(WorldTest):
    """Worker counts and numbers of kills; all of them with TESSERA_FULL (ops/test --full integration)."""

    def disturbed(self, workers, kills):
        up = self.up("--workers", str(workers), sets=SWEEP, name=f"w{workers}k{kills}")
        draw = random.Random(100 * workers + kills)
        for kill in range(kills):
            up.wait_step(10 + 15 * kill)
            pids = wait_for(lambda: up.pids("tessera-trainer"), "a trainer")
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(pids), signal.SIGKILL)
        result = up.finish()
        self.assertGreaterEqual(result["generations"], min(kills, 1) + 1)
        checked = subprocess.run([program("tessera"), "verify", str(up.run_dir), "--json"], capture_output=True, text=True)
        self.assertTrue(json.loads(checked.stdout.splitlines()[-1])["ok"], checked.stdout)
        return result["state_digest"], result["batch_digest"]

    def test_workers_and_kills(self):
        full = os.environ.get("TESSERA_FULL")
        want = self.disturbed(1, 0)
        for workers, kills in [(w, k) for w in (1, 2, 3, 4, 5, 8) for k in (0, 1, 10)] if full else [(2, 1), (5, 4)]:
            with self.subTest(workers=workers, kills=kills):
                self.assertEqual(self.disturbed(workers, kills), want)


class Standby(SameBits):
    def test_takes_the_place_of_a_killed_trainer(self):
        up = self.up("--workers", "2", sets=["operation.spares=1", "function.steps=4000"], name="standby")
        comm = lambda pid: pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
        standby = wait_for(lambda: next((pid for pid in up.pids("tessera-trainer") if comm(pid) == "tessera-standby" and os.stat(f"/proc/{pid}").st_mtime), None), "a standby")
        victim = next(pid for pid in up.pids("tessera-trainer") if pid != standby)
        import time
        time.sleep(1)  # it warms up
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: comm(standby) == "tessera-trainer", "the standby becomes a trainer")
        wait_for(lambda: standby in [w["pid"] for w in up.status_or_none()["workers"] if w["rank"] is not None], "the standby has a rank")
        step = up.step()
        up.wait_step(step + 5)
        up.process.send_signal(signal.SIGINT)
        disturbed = up.finish(expect=75)
        calm = self.run_once("--workers", "1", "--steps", str(disturbed["step"]), sets=["function.steps=4000"], name="calm")
        self.assertEqual((disturbed["state_digest"], disturbed["batch_digest"]), (calm["state_digest"], calm["batch_digest"]))


class Pause(SameBits):
    def tessera(self, *arguments, expect=0):
        done = subprocess.run([program("tessera"), *arguments, "--json"], capture_output=True, text=True, timeout=100)
        self.assertEqual(done.returncode, expect, done.stdout + done.stderr)
        return json.loads(done.stdout.splitlines()[-1])

    def test_holds_the_run_and_lets_it_go_on_with_the_same_bits(self):
        up = self.up("--workers", "2", name="paused")
        up.wait_step(5)
        held = self.tessera("pause", str(up.run_dir))
        self.assertEqual(held["state"], "PAUSED")
        os.kill(up.pids("tessera-trainer")[0], signal.SIGKILL)  # whoever dies meanwhile is back before it goes on
        os.kill(up.pids("tessera-coordinator")[0], signal.SIGKILL)
        wait_for(lambda: (up.status_or_none() or {"run": {"state": ""}})["run"]["state"] == "PAUSED", "still paused under a new coordinator")
        self.assertEqual(up.step(), held["step"])
        self.assertIn(held["step"], [c["step"] for c in self.tessera("checkpoint", "list", str(up.run_dir))["checkpoints"]])
        self.assertNotEqual(self.tessera("resume", str(up.run_dir))["state"], "PAUSED")
        self.assert_same(up.finish())

    def test_a_paused_run_can_be_stopped_and_started_again(self):
        up = self.up("--workers", "2", name="held")
        up.wait_step(5)
        held = self.tessera("pause", str(up.run_dir))
        self.tessera("stop", str(up.run_dir))
        self.assertEqual(up.finish(expect=75)["step"], held["step"])
        again = self.up("--workers", "1", "--resume", name="held")
        wait_for(lambda: (again.status_or_none() or {"run": {"state": ""}})["run"]["state"] == "PAUSED", "paused still: nobody said that it may go on")
        self.tessera("resume", str(again.run_dir))
        self.assert_same(again.finish())


for case in (Standby, Pause):  # SameBits' own stories are told once
    for name in [n for n in dir(SameBits) if n.startswith("test_")]:
        setattr(case, name, None)


class Root(WorldTest):
    """A run that begins with a checkpoint from elsewhere: an import, or another run's."""

    def test_goes_on_from_the_step_of_a_checkpoint_with_the_same_bits(self):
        whole = self.run_once("--workers", "2", "--set", "operation.checkpoint.every_steps=10", "--set", "operation.checkpoint.keep_last=9", name="whole")
        root = next(c["path"] for c in whole["checkpoints"] if c["step"] == 10)
        up = self.up("--workers", "1", "--from", root, name="rest")
        rest = up.finish()
        self.assertEqual(rest["step"], 30)
        self.assertEqual(rest["state_digest"], whole["state_digest"])
        self.assertEqual(sorted(self.ledger(up)), list(range(10, 30)))
        checked = subprocess.run([program("tessera"), "verify", str(up.run_dir), "--json"], capture_output=True, text=True)
        self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)
        self.assertEqual(json.loads(checked.stdout.splitlines()[-1])["steps_committed"], 20)

    def test_refuses_another_model_and_a_checkpoint_past_the_end(self):
        whole = self.run_once("--workers", "1", "--steps", "10", name="whole")
        root = whole["checkpoints"][-1]["path"]
        other = self.up("--from", root, sets=["function.model.depth=1"], name="other")
        other.finish(expect=78)
        self.assertIn("set function.model and function.predictor to the checkpoint's", other.stderr())
        short = self.up("--from", root, sets=["function.steps=10", "function.warmup_steps=1"], name="short")
        short.finish(expect=78)
        self.assertIn("is at step 10, the run has 10 steps", short.stderr())
        nothing = self.up("--from", self.folder, name="nothing")
        self.assertNotEqual(nothing.process.wait(timeout=60), 0)


class SecondStart(WorldTest):
    def test_unfinished_run_is_never_touched_silently(self):
        up = self.up("--workers", "1", name="run")
        up.wait_step(3)
        up.process.send_signal(signal.SIGINT)
        up.finish(expect=75)
        again = self.up("--workers", "1", name="run")
        again.finish(expect=64)
        for word in ("--resume", "--fresh"):
            self.assertIn(word, again.stderr())

    def test_finished_run_prints_its_summary(self):
        first = self.run_once("--workers", "1", "--set", "function.steps=3", "--set", "function.warmup_steps=1", name="run")
        second = self.run_once("--workers", "1", "--set", "function.steps=3", "--set", "function.warmup_steps=1", name="run")
        self.assertEqual(first["state_digest"], second["state_digest"])

    def test_a_run_told_to_stop_early_says_how_to_go_on(self):
        length = ("--workers", "1", "--set", "function.steps=4", "--set", "function.warmup_steps=1")
        for sentence in ("it stops at step 2 of 4", "is there already: it stops at step 2 of 4"):
            self.run_once(*length, "--steps", "2", name="run")
            said = self.ups[-1].stderr()
            self.assertIn(sentence, said)
            self.assertNotIn("--steps", said.split("go on with it:")[1])
        self.assertEqual(self.run_once(*length, "--resume", name="run")["step"], 4)

    def test_a_coordinator_resumed_behind_the_end_says_so_and_ends(self):
        """It died after the last checkpoint, its workers already sent home: nobody will come back."""
        first = self.run_once("--workers", "1", "--set", "function.steps=3", "--set", "function.warmup_steps=1", name="run")
        run = os.path.join(self.folder, "run")
        again = subprocess.run([program("tessera-coordinator"), str(TINY), "--run-dir", run, "--resume", "--set", "function.steps=3", "--set", "function.warmup_steps=1"],
                               capture_output=True, text=True, timeout=60)
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertEqual(json.loads(pathlib.Path(run, "status.json").read_text())["run"]["state"], "SUCCEEDED")
        self.assertEqual(first["step"], 3)


class BadInput(WorldTest):
    def refused(self, code, *needles, sets=(), args=(), config=TINY):
        up = self.up(*args, sets=sets, config=config, name="bad")
        up.finish(expect=code, deadline_s=60)
        text = up.stderr()
        for needle in needles:
            self.assertIn(needle, text)
        return text

    def test_missing_dataset(self):
        self.refused(65, "no-such-folder", sets=["operation.data_path=no-such-folder"])

    def test_wrong_key(self):
        self.refused(78, "function.sead", "function.seed", sets=["function.sead=1"])

    def test_fewer_samples_than_a_step(self):
        self.refused(78, "fewer than one step", sets=["function.batch.tile_size=512"])

    def test_masks_that_no_position_satisfies(self):
        self.refused(78, "min_keep", sets=["function.masks.min_keep=30"])

    def test_port_in_use(self):
        import socket
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            self.refused(74, str(taken.getsockname()[1]), "in use", sets=[f"operation.http.port={taken.getsockname()[1]}"])

    def test_too_little_disk_is_asked_before_the_run(self):
        small = os.path.join(self.folder, "small")
        os.makedirs(small)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], capture_output=True, text=True)
        if mounted.returncode != 0:
            self.skipTest("cannot mount a small file system: " + mounted.stderr)
        try:
            self.refused(74, "free", "operation.checkpoint.keep_last", sets=[f"operation.run_dir={small}/run", "operation.checkpoint.keep_last=9"])
        finally:
            subprocess.run(["umount", "-l", small], check=True)

    def test_wrong_libtorch(self):
        for version, needle in (("2.3.1", "is version '2.3.1'; Tessera needs"), ("", "no LibTorch at")):
            torch = pathlib.Path(self.folder, "torch" + version)
            (torch / "include/torch/headeronly").mkdir(parents=True)
            (torch / "lib").mkdir()
            if version:
                (torch / "lib/libtorch_cpu.so").write_bytes(b"")
                numbers = zip(("MAJOR", "MINOR", "PATCH"), version.split("."))
                (torch / "include/torch/headeronly/version.h").write_text("".join(f"#define TORCH_VERSION_{part} {number}\n" for part, number in numbers))
            done = subprocess.run(["cmake", "-S", str(ROOT), "-B", os.path.join(self.folder, "build" + version), "-DTESSERA_COMPONENTS=common"], capture_output=True, text=True,
                                  env={**os.environ, "TESSERA_LIBTORCH": str(torch)}, timeout=120)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(needle, " ".join(done.stderr.split()))

    def test_wrong_flag(self):
        result = subprocess.run([program("tessera"), "up", str(TINY), "--wrokers", "2"], capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, 64)
        self.assertIn("--wrokers", result.stderr)

    def test_missing_config(self):
        self.refused(78, "no-such.yaml", config="no-such.yaml")

    def test_unreadable_image(self):
        folder = os.path.join(self.folder, "images", "a")
        os.makedirs(folder)
        make = subprocess.run([program("tessera-data"), "make-scenes", "--out", os.path.join(self.folder, "tars"), "--count", "40", "--size", "64"], capture_output=True, text=True, timeout=60)
        self.assertEqual(make.returncode, 0, make.stderr)
        import tarfile
        import glob
        for shard in glob.glob(os.path.join(self.folder, "tars", "*.tar")):
            with tarfile.open(shard) as tar:
                for member in tar.getmembers():
                    if member.name.endswith((".jpg", ".png")):
                        with open(os.path.join(folder, os.path.basename(member.name)), "wb") as out:
                            out.write(tar.extractfile(member).read())
        victim = os.path.join(folder, sorted(os.listdir(folder))[3])
        with open(victim, "r+b") as file:
            file.truncate(os.path.getsize(victim) // 2)
        self.refused(65, os.path.basename(victim), sets=[f"operation.data_path={os.path.join(self.folder, 'images')}"])


class Startup(unittest.TestCase):
    def test_nothing_but_trainer_and_model_links_libtorch(self):
        for name in ("tessera", "tessera-coordinator", "tessera-worker", "tessera-loader", "tessera-data"):
            with self.subTest(name):
                libraries = subprocess.run(["ldd", program(name)], capture_output=True, text=True, check=True).stdout
                self.assertNotIn("libtorch", libraries)
                self.assertNotIn("libc10", libraries)


if __name__ == "__main__":
    unittest.main(verbosity=2)
